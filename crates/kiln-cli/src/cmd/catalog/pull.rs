//! `kiln catalog pull`, `outdated` and `update`.

use super::super::Context;
use super::{FetchArgs, VerifyArgs, sources};
use crate::error::{self, CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::Digest;
use kiln_core::catalog::{ImageName, ImagePin};
use kiln_engine::images::{PullOptions, PullReport};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
The last line of standard output is the revision's id. What was pulled before is used as it is:
kiln catalog update moves it.

Examples:
  kiln catalog pull ubuntu:24.04
  kiln catalog pull --limit-rate 5M fedora
  id=$(kiln catalog pull -q debian:12)")]
pub(super) struct PullArgs {
    /// The image: NAME or NAME:RELEASE
    name: ImageName,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    keep: KeepArgs,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct KeepArgs {
    /// Leave the image as it was published in the cache, which kiln gc --cache empties
    #[arg(long)]
    keep_original: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit code 1 when something is outdated or could not be looked up.

Examples:
  kiln catalog outdated
  kiln catalog outdated ubuntu:24.04 --json")]
pub(super) struct OutdatedArgs {
    /// The images [default: all that were pulled]
    names: Vec<ImageName>,
    #[command(flatten)]
    verify: VerifyArgs,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Catalogs that were added from the web are fetched anew first. Machines stay on the revision they
were made of; kiln history shows where a name pointed, and kiln rollback moves it back.

Examples:
  kiln catalog update
  kiln catalog update --catalogs
  kiln catalog update ubuntu:24.04")]
pub(super) struct UpdateArgs {
    /// The images [default: all that were pulled]
    names: Vec<ImageName>,
    #[command(flatten)]
    verify: VerifyArgs,
    #[command(flatten)]
    keep: KeepArgs,
    /// Only catalogs, no images
    #[arg(long, conflicts_with = "names")]
    catalogs: bool,
    /// Take images that were signed before those which are here, too
    #[arg(long)]
    allow_older: bool,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Shown {
    image: String,
    revision: Digest,
    there: bool,
    digest: Option<String>,
    serial: Option<String>,
    signer: Option<String>,
    elapsed_ms: u64,
}

#[derive(Serialize)]
struct Compared {
    image: String,
    here: String,
    published: Option<String>,
    here_serial: Option<String>,
    published_serial: Option<String>,
    outdated: bool,
}

impl Shown {
    fn of(report: &PullReport) -> Self {
        let pin = report.pin.as_ref();
        Self {
            image: report.name.clone(),
            revision: report.revision,
            there: report.there,
            digest: pin.map(|pin| pin.disk.to_string()),
            serial: serial(pin),
            signer: pin.and_then(|pin| pin.signer).map(|signer| signer.to_string()),
            elapsed_ms: report.elapsed_ms,
        }
    }
}

fn serial(pin: Option<&ImagePin>) -> Option<String> {
    pin.and_then(|pin| pin.serial).map(|serial| serial.to_string())
}

/// Tells in a line what came of a pull.
fn tell(report: &PullReport) {
    let of = serial(report.pin.as_ref()).map(|serial| format!(" of {serial}")).unwrap_or_default();
    let span = output::span(report.elapsed_ms);
    output::tell(&match (&report.before, report.there) {
        (_, true) => format!("{}{of} is here already", report.name),
        (None, false) => format!("{}{of} pulled in {span}", report.name),
        (Some(before), false) => {
            let side = |pin: &ImagePin| serial(Some(pin)).unwrap_or_else(|| pin.disk.to_string());
            let (from, to) = (side(before), report.pin.as_ref().map(side).unwrap_or_default());
            format!("{} moved from {from} to {to} in {span}", report.name)
        }
    });
}

pub(super) fn pull(context: &Context, args: &PullArgs) -> CliResult {
    let mut options = args.fetch.options();
    options.fetch.keep = args.keep.keep_original;
    let reporter = context.reporter(args.quiet);
    let report = context.engine.pull_image(&args.name, &options, &reporter)?;
    drop(reporter);
    if !args.quiet {
        tell(&report);
    }
    if args.json {
        output::json(Shown::of(&report));
    } else {
        output::line(&report.revision.to_string());
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the images that are named, or else all that were pulled.
fn named_or_all(context: &Context, names: &[ImageName]) -> Result<Vec<ImageName>, CliError> {
    if !names.is_empty() {
        return Ok(names.to_vec());
    }
    let catalog = context.engine.catalog()?;
    let mut names = Vec::new();
    for image in context.engine.pulled_images()? {
        let Ok(name) = image.name.parse::<ImageName>() else { continue };
        if catalog.find(&name).is_ok() {
            names.push(name);
        } else {
            output::tell(&format!("{name} is in no catalog any more, and stays as it is"));
        }
    }
    Ok(names)
}

pub(super) fn outdated(context: &Context, args: &OutdatedArgs) -> CliResult {
    let names = named_or_all(context, &args.names)?;
    let pulled = context.engine.pulled_images()?;
    let catalog = context.engine.catalog()?;
    let (mut compared, mut failed) = (Vec::new(), 0);
    for name in &names {
        let (distribution, release) =
            catalog.find(name).map_err(|error| CliError::from(kiln_engine::EngineError::from(error)))?;
        let image = format!("{}:{}", distribution.name, release.name);
        let Some(here) = pulled.iter().find(|pulled| pulled.name == image) else {
            error::tell(&CliError::Usage(format!("{image} was not pulled")));
            failed += 1;
            continue;
        };
        let reporter = context.reporter(args.quiet);
        match context.engine.look_up_image(name, args.verify.options(), &reporter) {
            Ok(now) => compared.push(Compared {
                image,
                here: here.pin.disk.to_string(),
                here_serial: serial(Some(&here.pin)),
                outdated: now.as_ref().is_some_and(|now| now.disk != here.pin.disk),
                published_serial: serial(now.as_ref()),
                published: now.map(|now| now.disk.to_string()),
            }),
            Err(error) => {
                error::tell(&error.into());
                failed += 1;
            }
        }
    }
    let outdated = compared.iter().filter(|line| line.outdated).count();
    if args.json {
        output::json_list(&compared);
    } else if args.quiet {
        let names = compared.iter().filter(|line| line.outdated).map(|line| format!("{}\n", line.image));
        output::data(&names.collect::<String>());
    } else {
        let side = |digest: Option<&String>, serial: &Option<String>| {
            serial.clone().or_else(|| digest.map(|it| it.chars().take(19).collect())).unwrap_or_default()
        };
        let rows: Vec<Vec<String>> = compared
            .iter()
            .map(|line| {
                let state = if line.outdated { "outdated" } else { "current" };
                let here = side(Some(&line.here), &line.here_serial);
                vec![
                    line.image.clone(),
                    state.to_owned(),
                    here,
                    side(line.published.as_ref(), &line.published_serial),
                ]
            })
            .collect();
        output::table(&["IMAGE", "STATE", "HERE", "PUBLISHED"], &rows);
    }
    if failed > 0 {
        return Err(CliError::Some { failed, all: names.len() });
    }
    Ok(if outdated > 0 { ExitCode::from(error::EXIT_FAILED) } else { ExitCode::SUCCESS })
}

pub(super) fn update(context: &Context, args: &UpdateArgs) -> CliResult {
    let (catalogs, mut failed) = sources::refresh(context, args.quiet)?;
    let refreshed = catalogs.len() + failed;
    if args.catalogs {
        if args.json {
            output::json_list(&catalogs);
        } else if !args.quiet && refreshed == 0 {
            output::tell("no catalog was added from the web");
        }
        let all = refreshed;
        return if failed > 0 { Err(CliError::Some { failed, all }) } else { Ok(ExitCode::SUCCESS) };
    }
    let names = named_or_all(context, &args.names)?;
    let fetch = kiln_build::FetchOptions { keep: args.keep.keep_original, ..args.verify.options() };
    let options = PullOptions { fetch, offline: false, update: true, allow_older: args.allow_older };
    let mut reports = Vec::new();
    for name in &names {
        let reporter = context.reporter(args.quiet);
        let pulled = context.engine.pull_image(name, &options, &reporter);
        drop(reporter);
        match pulled {
            Ok(report) => {
                if !args.quiet {
                    tell(&report);
                }
                reports.push(Shown::of(&report));
            }
            Err(error) => {
                error::tell(&error.into());
                failed += 1;
            }
        }
    }
    if args.json {
        output::json_list(&reports);
    } else if !args.quiet && names.is_empty() {
        output::tell("no image of the catalog was pulled");
    }
    let all = refreshed + names.len();
    if failed > 0 { Err(CliError::Some { failed, all }) } else { Ok(ExitCode::SUCCESS) }
}
