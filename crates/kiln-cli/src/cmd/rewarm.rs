//! `kiln rewarm`.

use super::Context;
use crate::error::{self, CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::Digest;
use kiln_core::Reference;
use kiln_core::text::chain;
use kiln_engine::EngineError;
use kiln_engine::rewarm::{RewarmOutcome, Rewarmed};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
A snapshot that a build made fits a host as long as the host has the machine monitor, processor
and clock that it was captured on. Where none of a revision and shape fits any more, a new one is
captured from the same revision in the same shape. The others stay until it is there, and those
that machines continue stay as long as they do. Snapshots of kiln snapshot create are left alone.

Exits with 1 when a new one could not be made.

Examples:
  kiln rewarm --all
  kiln rewarm --all --dry-run
  kiln rewarm web tools:v1")]
pub(crate) struct RewarmArgs {
    /// Of all revisions
    #[arg(long, conflicts_with = "references")]
    all: bool,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    #[arg(
        value_name = "REF",
        required_unless_present = "all",
        help = "Whose snapshots: NAME[/VARIANT][:TAG][@sha256:…] or sha256:…"
    )]
    references: Vec<Reference>,
}

/// What became of the snapshots of one revision and shape.
#[derive(Serialize)]
struct Line {
    revision: Digest,
    tags: Vec<String>,
    variant: Option<String>,
    vcpus: Option<u32>,
    memory_bytes: Option<u64>,
    board: Option<&'static str>,
    /// `none`, `fits`, `stale`, `rewarmed` or `failed`.
    result: &'static str,
    /// The one that fits, or the new one.
    snapshot: Option<Digest>,
    /// Why the youngest of the others does not fit.
    reason: Option<String>,
    error: Option<String>,
    removed: Vec<Digest>,
    in_use: Vec<InUse>,
}

#[derive(Serialize)]
struct InUse {
    snapshot: Digest,
    machines: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &RewarmArgs) -> CliResult {
    let reporter = context.reporter(args.quiet);
    let of = (!args.all).then_some(args.references.as_slice());
    let done = context.engine.rewarm(of, args.dry_run, &reporter)?;
    drop(reporter);
    let all = done.len();
    let (lines, errors): (Vec<Line>, Vec<Option<EngineError>>) = done.into_iter().map(line).unzip();
    if args.json {
        output::json_list(&lines);
    } else {
        for line in &lines {
            output::line(&told(line, args.dry_run));
        }
    }
    if all == 0 && !args.quiet {
        output::tell("no build made a snapshot");
    }
    let errors: Vec<EngineError> = errors.into_iter().flatten().collect();
    let failed = errors.len();
    for error in errors {
        error::tell(&CliError::Engine(error));
    }
    if failed == 0 { Ok(ExitCode::SUCCESS) } else { Err(CliError::Some { failed, all }) }
}

fn line(of: Rewarmed) -> (Line, Option<EngineError>) {
    let Rewarmed { revision, tags, variant, shape, outcome, removed, in_use } = of;
    let (result, snapshot, reason, error) = match outcome {
        RewarmOutcome::None => ("none", None, None, None),
        RewarmOutcome::Fits(snapshot) => ("fits", Some(snapshot), None, None),
        RewarmOutcome::Stale { reason } => ("stale", None, Some(reason), None),
        RewarmOutcome::Rewarmed { snapshot, reason } => ("rewarmed", Some(snapshot), Some(reason), None),
        RewarmOutcome::Failed { reason, error } => ("failed", None, reason, Some(*error)),
    };
    let line = Line {
        revision,
        tags,
        variant: variant.map(|variant| variant.to_string()),
        vcpus: shape.as_ref().map(|shape| shape.vcpus),
        memory_bytes: shape.as_ref().map(|shape| shape.memory.bytes()),
        board: shape.as_ref().map(|shape| shape.board.as_str()),
        result,
        snapshot,
        reason,
        error: error.as_ref().map(|error| chain(error)),
        removed,
        in_use: in_use.into_iter().map(|(snapshot, machines)| InUse { snapshot, machines }).collect(),
    };
    (line, error)
}

/// Says for people what became of them.
fn told(line: &Line, dry_run: bool) -> String {
    let mut text = line.tags.first().cloned().unwrap_or_else(|| line.revision.short());
    if let Some(variant) = &line.variant {
        text.push_str(&format!(" variant {variant}"));
    }
    let id = line.snapshot.map(|id| id.short()).unwrap_or_default();
    let why = line.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    text.push_str(&match line.result {
        "none" => ": no build made a snapshot of it".to_owned(),
        "fits" => format!(": snapshot {id} fits"),
        "stale" => format!(": would be captured anew{why}"),
        "rewarmed" => format!(": captured anew as snapshot {id}{why}"),
        _ => format!(": failed{why}"),
    });
    let went = if dry_run { "would go" } else { "removed" };
    for id in &line.removed {
        text.push_str(&format!("\n  snapshot {} {went}", id.short()));
    }
    for InUse { snapshot, machines } in &line.in_use {
        text.push_str(&format!(
            "\n  snapshot {} stays while {} continues it",
            snapshot.short(),
            machines.join(", ")
        ));
    }
    text
}
