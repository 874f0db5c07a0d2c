//! `kiln build`.

use super::Context;
use super::snapshot::create::{Captured, tell_captured};
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::Digest;
use kiln_engine::build::{BuildOptions, find_recipe};
use kiln_engine::capture::SnapshotRequest;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
The last line of standard output is the revision's id. The template's `latest` tag moves to it.
Equal inputs are baked once: a second build is a cache hit. So is a snapshot: it is made where none
of the revision fits this host. `auto` in the recipe's [snapshot] asks for one at each build.

Examples:
  kiln build
  kiln build images/web
  kiln build --snapshot images/web
  kiln build --explain
  id=$(kiln build -q)")]
pub(crate) struct BuildArgs {
    /// A directory (its kiln.toml, or the nearest above it) or a recipe file
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Bake although the cache knows the result, and capture although there is a snapshot
    #[arg(long)]
    force: bool,
    /// Print what goes into the cache key, and bake nothing
    #[arg(long)]
    explain: bool,
    /// Boot it once, and capture it when it is ready: later runs begin there instead of booting
    #[arg(long)]
    snapshot: bool,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Built {
    revision: Digest,
    template: String,
    cached: bool,
    elapsed_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<OfBuild>,
}

#[derive(Serialize)]
struct Explained<'a> {
    key: Digest,
    inputs: Vec<(&'a str, &'a str)>,
}

/// The snapshot of a build.
#[derive(Serialize)]
#[serde(untagged)]
enum OfBuild {
    Made(Captured),
    There { id: Digest, there: bool },
}

/// Captures what was built, unless that was done already and is good for this host.
fn capture(context: &Context, args: &BuildArgs, revision: Digest) -> Result<OfBuild, CliError> {
    let reporter = context.reporter(args.quiet);
    if !args.force
        && let Some(id) = context.engine.fitting_snapshot(&revision, &reporter)?
    {
        drop(reporter);
        if !args.quiet {
            output::tell(&format!("snapshot {} is there already", id.short()));
        }
        return Ok(OfBuild::There { id, there: true });
    }
    let captured = context.engine.snapshot_template(&SnapshotRequest::of_revision(revision), &reporter)?;
    drop(reporter);
    if !args.quiet {
        tell_captured(&captured);
    }
    Ok(OfBuild::Made(Captured::from(captured)))
}

pub(crate) fn run(context: &Context, args: &BuildArgs) -> CliResult {
    let found = find_recipe(&args.path)?;
    if args.explain {
        let plan = context.engine.plan(&found)?;
        let inputs: Vec<(&str, &str)> =
            plan.explanation.iter().map(|part| (part.name, part.value.as_str())).collect();
        if args.json {
            output::json(Explained { key: plan.key, inputs });
        } else {
            let rows: Vec<Vec<String>> =
                inputs.iter().map(|(name, value)| vec![(*name).to_owned(), (*value).to_owned()]).collect();
            output::table(&["INPUT", "VALUE"], &rows);
            output::line(&plan.key.to_string());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let reporter = context.reporter(args.quiet);
    let report = context.engine.build(&found, &BuildOptions { force: args.force }, &reporter)?;
    drop(reporter);
    if !args.quiet {
        let how = if report.cached { "cache hit, nothing to do" } else { "baked" };
        let tag = if report.moved { "" } else { " (unchanged)" };
        let span = output::span(report.elapsed_ms);
        output::tell(&format!("{}:latest {how} in {span}{tag}", report.template));
    }
    let wanted = args.snapshot || found.recipe.snapshot.auto;
    let snapshot = wanted.then(|| capture(context, args, report.revision)).transpose()?;
    if args.json {
        output::json(Built {
            revision: report.revision,
            template: report.template.to_string(),
            cached: report.cached,
            elapsed_ms: report.elapsed_ms,
            snapshot,
        });
    } else {
        output::line(&report.revision.to_string());
    }
    Ok(ExitCode::SUCCESS)
}
