//! `kiln catalog`: the images that distributions publish.

mod list;
mod mirror;
mod pull;
mod sources;

use super::Context;
use crate::error::{CliError, CliResult};
use clap::{Args, Subcommand, ValueEnum};
use kiln_build::FetchOptions;
use kiln_build::catalog::Verify;
use kiln_core::catalog::ImageName;
use kiln_core::{ByteSize, Reference};
use kiln_engine::images::PullOptions;
use std::num::NonZeroU64;

#[derive(Debug, Args)]
#[command(after_help = "\
An image that was pulled is a template: ubuntu:24.04 is the template `ubuntu` with the tag `24.04`.
What was pulled once stays what it is until kiln catalog update moves it.

Examples:
  kiln catalog ls
  kiln catalog show ubuntu:24.04
  kiln catalog pull debian
  kiln catalog outdated
  kiln catalog update ubuntu:24.04
  kiln catalog add https://images.example/catalog.toml --signer FINGERPRINT
  kiln catalog mirror /srv/images ubuntu:24.04")]
pub(crate) struct CatalogArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the images of the catalog
    Ls(list::LsArgs),
    /// List the images whose name, title or alias holds a word
    Search(list::SearchArgs),
    /// Show where an image is published, who signs it, and what of it is here
    Show(list::ShowArgs),
    /// Fetch an image, check it, and make it a template
    Pull(pull::PullArgs),
    /// List the images here that are published anew
    Outdated(pull::OutdatedArgs),
    /// Move catalogs and images that are here to what is published now
    Update(pull::UpdateArgs),
    /// Take a catalog over the one that comes with kiln
    Add(sources::AddArgs),
    /// Remove catalogs that were added
    Rm(sources::RmArgs),
    /// List the catalogs, with where they are from and who signed them
    Sources(sources::SourcesArgs),
    /// Copy images, as they are published, to a directory or a bucket that is a catalog
    Mirror(mirror::MirrorArgs),
}

pub(crate) fn run(context: &Context, args: &CatalogArgs) -> CliResult {
    match &args.verb {
        Verb::Ls(args) => list::ls(context, args),
        Verb::Search(args) => list::search(context, args),
        Verb::Show(args) => list::show(context, args),
        Verb::Pull(args) => pull::pull(context, args),
        Verb::Outdated(args) => pull::outdated(context, args),
        Verb::Update(args) => pull::update(context, args),
        Verb::Add(args) => sources::add(context, args),
        Verb::Rm(args) => sources::rm(context, args),
        Verb::Sources(args) => sources::sources(context, args),
        Verb::Mirror(args) => mirror::mirror(context, args),
    }
}

/// How much of an image is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VerifyBy {
    /// By its signature, or not at all
    Signature,
    /// By its published checksum
    Checksum,
    /// Not: what comes is taken
    None,
}

/// How images of the catalog are checked.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// How images of the catalog are checked [default: by signature where somebody signs, else by checksum]
    #[arg(long, value_enum, value_name = "HOW")]
    verify: Option<VerifyBy>,
    /// The most bytes to fetch in a second, such as 2M
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    limit_rate: Option<NonZeroU64>,
}

/// How an image of the catalog is fetched that is not here yet.
#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    #[command(flatten)]
    how: VerifyArgs,
    /// Ask nothing of the network
    #[arg(long)]
    offline: bool,
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    let size: ByteSize = text.parse().map_err(|error| kiln_core::text::chain(&error))?;
    NonZeroU64::new(size.bytes()).ok_or_else(|| "at least one byte in a second is wanted".to_owned())
}

impl VerifyArgs {
    pub(super) fn options(&self) -> FetchOptions {
        let verify = match self.verify {
            None => Verify::Usual,
            Some(VerifyBy::Signature) => Verify::Signature,
            Some(VerifyBy::Checksum) => Verify::Checksum,
            Some(VerifyBy::None) => Verify::Nothing,
        };
        FetchOptions { verify, rate_max: self.limit_rate, keep: false }
    }
}

impl FetchArgs {
    fn options(&self) -> PullOptions {
        PullOptions { fetch: self.how.options(), offline: self.offline, ..PullOptions::default() }
    }
}

/// Parses what to run. The names of the catalog's images may be written in upper case, as their makers do.
pub(super) fn reference(text: &str) -> Result<Reference, String> {
    let parsed = text.parse::<Reference>();
    let image = || text.parse::<ImageName>().ok().and_then(|image| image.to_string().parse().ok());
    parsed.or_else(|error| image().ok_or_else(|| kiln_core::text::chain(&error)))
}

/// Returns a reference to what is here, pulling an image of the catalog that is not.
pub(super) fn bring(
    context: &Context,
    reference: &Reference,
    args: &FetchArgs,
) -> Result<Reference, CliError> {
    let reporter = context.reporter(false);
    Ok(context.engine.bring(reference, &args.options(), &reporter)?)
}
