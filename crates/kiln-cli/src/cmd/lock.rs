//! `kiln lock` and `kiln update`: what the names in a recipe stand for.

use super::Context;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::lock::Moved;
use kiln_core::text::count;
use kiln_engine::build::find_recipe;
use kiln_engine::lock::{LockReport, LockRequest};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Looks up what the names in the recipe stand for now (versions of packages and the kernel, digests of
images, locked flakes) and writes kiln.lock beside it. Builds keep to it, on every host of that
architecture; kiln build --locked refuses to bake without it. A lock that fits its recipe stays as
it is. Commit it with the recipe.

Examples:
  kiln lock
  kiln lock images/web && kiln build --locked images/web")]
pub(crate) struct LockArgs {
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Looks everything up anew and tells what moved, by name, before and after.

Examples:
  kiln update --dry-run
  kiln update && kiln build")]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    of: Of,
    /// Tell what would move, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Pin images of the catalog also where they were signed before those that are pinned
    #[arg(long)]
    allow_older: bool,
}

#[derive(Debug, Args)]
struct Of {
    /// A directory (its kiln.toml, or the nearest above it) or a recipe file
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Locked<'a> {
    path: String,
    changed: bool,
    pins: usize,
    moved: &'a [Moved],
}

fn make(context: &Context, of: &Of, request: LockRequest) -> CliResult {
    let found = find_recipe(&of.path)?;
    let reporter = context.reporter(of.quiet);
    let report = context.engine.lock(&found, request, &reporter)?;
    drop(reporter);
    let LockReport { path, new, changed, moved, pins } = &report;
    if of.json {
        let path = path.to_string_lossy().into_owned();
        output::json(Locked { path, changed: *changed, pins: *pins, moved });
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = moved
        .iter()
        .map(|moved| {
            let text = |side: &Option<String>| side.clone().unwrap_or_else(|| "-".to_owned());
            vec![moved.kind.as_str().to_owned(), moved.name.clone(), text(&moved.before), text(&moved.after)]
        })
        .collect();
    if !rows.is_empty() && !new {
        output::table(&["KIND", "NAME", "BEFORE", "AFTER"], &rows);
    }
    if !of.quiet {
        let (path, pins) = (path.display(), count(*pins, "pin"));
        output::tell(&match (changed, request.dry_run) {
            (false, _) => format!("{path} stays as it is: {pins}"),
            (true, true) => format!("{path} would be written: {pins}"),
            (true, false) => format!("{path} is written: {pins}"),
        });
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn lock(context: &Context, args: &LockArgs) -> CliResult {
    make(context, &args.of, LockRequest::default())
}

pub(crate) fn update(context: &Context, args: &UpdateArgs) -> CliResult {
    make(
        context,
        &args.of,
        LockRequest { update: true, dry_run: args.dry_run, allow_older: args.allow_older },
    )
}
