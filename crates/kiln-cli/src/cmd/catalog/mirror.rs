//! `kiln catalog mirror`.

use super::super::Context;
use super::rate;
use crate::error::{self, CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_build::FetchOptions;
use kiln_core::Arch;
use kiln_core::catalog::ImageName;
use kiln_core::text::count;
use kiln_engine::catalogs::MirrorOptions;
use serde::Serialize;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
The directory is a catalog: any server of files publishes it, and a disk carries it. Images,
checksums, signatures and keys are as their publishers made them, so who uses the mirror checks the
same signatures.

Examples:
  kiln catalog mirror /srv/images ubuntu:24.04 debian --sign FINGERPRINT
  kiln catalog add https://images.example/catalog.toml --name site --signer FINGERPRINT
  kiln catalog add /mnt/disk/catalog.toml --name disk")]
pub(super) struct MirrorArgs {
    /// The directory
    #[arg(value_name = "DEST")]
    directory: PathBuf,
    /// The images: NAME or NAME:RELEASE
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    names: Vec<ImageName>,
    /// All images of the catalog that are still looked after
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// An architecture [default: this host's]
    #[arg(long = "arch", value_name = "ARCH")]
    arches: Vec<Arch>,
    /// Sign the catalog of the mirror by this key of gpg
    #[arg(long, value_name = "KEYID")]
    sign: Option<String>,
    /// Take what was signed before that which is there, too
    #[arg(long)]
    allow_older: bool,
    /// The most bytes to fetch in a second, such as 2M
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    limit_rate: Option<NonZeroU64>,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Shown {
    catalog: PathBuf,
    changed: bool,
    listed: usize,
    images: Vec<ShownImage>,
}

#[derive(Serialize)]
struct ShownImage {
    image: String,
    arch: Arch,
    digest: String,
    serial: Option<String>,
    signer: Option<String>,
    files_fetched: usize,
    bytes_fetched: u64,
}

pub(super) fn mirror(context: &Context, args: &MirrorArgs) -> CliResult {
    if args.directory.to_str().is_some_and(|text| text.contains("://")) {
        return Err(CliError::Usage("a mirror is made in a directory".to_owned()));
    }
    let arches = match (args.arches.as_slice(), Arch::host()) {
        ([], Some(host)) => vec![host],
        ([], None) => return Err(CliError::Usage("name an architecture with --arch".to_owned())),
        (arches, _) => arches.to_vec(),
    };
    let options = MirrorOptions {
        names: args.names.clone(),
        all: args.all,
        arches,
        fetch: FetchOptions { rate_max: args.limit_rate, ..FetchOptions::default() },
        allow_older: args.allow_older,
        sign: args.sign.clone(),
    };
    let reporter = context.reporter(args.quiet);
    let report = context.engine.mirror(&args.directory, &options, &reporter)?;
    drop(reporter);
    let (mut images, mut failed) = (Vec::new(), 0);
    let all = report.images.len();
    for image in report.images {
        match image.result {
            Ok(mirrored) => images.push(ShownImage {
                image: image.name,
                arch: image.arch,
                digest: mirrored.pin.disk.to_string(),
                serial: mirrored.pin.serial.map(|serial| serial.to_string()),
                signer: mirrored.pin.signer.map(|signer| signer.to_string()),
                files_fetched: mirrored.fetched,
                bytes_fetched: mirrored.bytes,
            }),
            Err(error) => {
                error::tell(&error.into());
                failed += 1;
            }
        }
    }
    if !args.quiet && report.listed > 0 {
        let state = if report.changed { "lists" } else { "is as it was, with" };
        output::tell(&format!("{} {state} {}", report.catalog.display(), count(report.listed, "image")));
        if report.unsigned {
            output::tell("its signature was of the catalog before, and was removed: --sign makes one");
        }
    }
    let (catalog, changed, listed) = (report.catalog, report.changed, report.listed);
    if args.json {
        output::json(Shown { catalog, changed, listed, images });
    } else if listed > 0 {
        output::line(&catalog.display().to_string());
    }
    if failed > 0 { Err(CliError::Some { failed, all }) } else { Ok(ExitCode::SUCCESS) }
}
