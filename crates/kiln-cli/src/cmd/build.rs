//! `kiln build`.

use super::Context;
use super::catalog::VerifyArgs;
use super::exec::{self, ShellArgs};
use super::snapshot::create::{Captured, tell_captured};
use crate::error::{self, CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_build::FetchOptions;
use kiln_core::Digest;
use kiln_core::text::clip;
use kiln_engine::EngineError;
use kiln_engine::build::{BuildOptions, find_recipe};
use kiln_engine::capture::SnapshotRequest;
use kiln_engine::explain::{ExplainedInput, Explanation, Reproduced};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
The last line of standard output is the revision's id. The template's `latest` tag moves to it.
Equal inputs are baked once: a second build is a cache hit. So is a snapshot: it is made where none
of the revision fits this host. `auto` in the recipe's [snapshot] asks for one at each build.
A kiln.lock beside the recipe (kiln lock) is kept to: what cannot be had as it says is an error.

Examples:
  kiln build
  kiln build images/web
  kiln build --snapshot images/web
  kiln build --explain
  kiln build --locked --force
  id=$(kiln build -q)")]
pub(crate) struct BuildArgs {
    /// A directory (its kiln.toml, or the nearest above it) or a recipe file
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Bake although the cache knows the result and say whether it is the same again; capture although there is a snapshot
    #[arg(long)]
    force: bool,
    /// Print what goes into the cache key and what of it changed since the last build, and bake nothing
    #[arg(long)]
    explain: bool,
    /// Refuse to bake without a kiln.lock that fits, made with these versions of kiln and its tools
    #[arg(long)]
    locked: bool,
    /// Ask nothing of the network
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    fetch: VerifyArgs,
    /// Leave the machine of a step that failed running
    #[arg(long)]
    keep_failed: bool,
    /// Open a shell in the machine of a step that failed
    #[arg(long)]
    shell_on_error: bool,
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
    new_block_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reproduced: Option<Again>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<OfBuild>,
}

/// How a forced build compares with the one before.
#[derive(Serialize)]
struct Again {
    reproducible: bool,
    before: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<String>,
}

#[derive(Serialize)]
struct Explained<'a> {
    key: Digest,
    cached: Option<Digest>,
    last: Option<Digest>,
    inputs: &'a [ExplainedInput],
}

/// Prints what goes into a build.
fn explain(args: &BuildArgs, explanation: &Explanation) {
    let Explanation { key, cached, last, inputs } = explanation;
    if args.json {
        output::json(Explained { key: *key, cached: *cached, last: *last, inputs });
        return;
    }
    let rows: Vec<Vec<String>> = inputs
        .iter()
        .map(|input| {
            let text = |value: &Option<String>| value.as_deref().map_or_else(|| "-".to_owned(), clip);
            let before = if input.changed { text(&input.before) } else { String::new() };
            vec![input.name.clone(), text(&input.value), before]
        })
        .collect();
    output::table(&["INPUT", "VALUE", "AT THE LAST BUILD"], &rows);
    if !args.quiet {
        let changed: Vec<&str> =
            inputs.iter().filter(|input| input.changed).map(|input| input.name.as_str()).collect();
        output::tell(&match (cached, last) {
            (Some(id), _) => format!("the cache knows the result: {}", id.short()),
            (None, None) => "nothing is known of an earlier build".to_owned(),
            (None, Some(_)) if changed.is_empty() => {
                "nothing changed since the last build, whose result is not there any more".to_owned()
            }
            (None, Some(last)) => {
                format!("changed since the last build, {}: {}", last.short(), changed.join(", "))
            }
        });
    }
    output::line(&key.to_string());
}

/// Opens a shell in the machine of a step that failed, where that is wanted, and removes the machine unless it is to stay.
fn look_at_failed(context: &Context, args: &BuildArgs, failed: EngineError) -> CliError {
    let (EngineError::StepFailed { number, machine: Some(name), .. }, true) = (&failed, args.shell_on_error)
    else {
        return failed.into();
    };
    output::tell(&format!("step {number} failed; this is {name} as it left it, exit goes on"));
    if let Err(error) = exec::shell(context, ShellArgs::of(name)) {
        error::tell(&error);
    }
    if args.keep_failed {
        return failed.into();
    }
    let removed = context.engine.remove_machine(name, true);
    match (failed, removed) {
        (EngineError::StepFailed { number, step, reason, log, .. }, Ok(())) => {
            EngineError::StepFailed { number, step, reason, log, machine: None }.into()
        }
        (failed, _) => failed.into(),
    }
}

/// Tells whether a forced build gave the same again.
fn tell_again(again: &Reproduced) {
    output::tell(&match &again.first_difference {
        None => "reproducible: yes".to_owned(),
        Some(first) => format!(
            "reproducible: no, first difference: {first} (kiln diff {} shows all)",
            again.before.short()
        ),
    });
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
    let options = BuildOptions {
        force: args.force,
        locked: args.locked,
        offline: args.offline,
        keep_failed: args.keep_failed || args.shell_on_error,
        fetch: FetchOptions { keep: true, ..args.fetch.options() },
    };
    if args.explain {
        explain(args, &context.engine.explain(&found, options)?);
        return Ok(ExitCode::SUCCESS);
    }
    let reporter = context.reporter(args.quiet);
    let built = context.engine.build(&found, &options, &reporter);
    drop(reporter);
    let report = match built {
        Ok(report) => report,
        Err(error) => return Err(look_at_failed(context, args, error)),
    };
    if !args.quiet {
        let how = if report.cached { "cache hit, nothing to do" } else { "baked" };
        let tag = if report.moved { "" } else { " (unchanged)" };
        let span = output::span(report.elapsed_ms);
        output::tell(&format!("{}:latest {how} in {span}{tag}", report.template));
    }
    if let Some(new) = report.new_blocks.filter(|_| !args.quiet) {
        // Of what `latest` was until now.
        let percent = new.bytes.bytes() as f64 * 100.0 / new.data.bytes().max(1) as f64;
        let (bytes, data) = (new.bytes.human(), new.data.human());
        output::tell(&format!("{bytes} of {data} are in new blocks ({percent:.1} %)"));
    }
    if let Some(again) = report.reproduced.as_ref().filter(|_| !args.quiet) {
        tell_again(again);
    }
    let wanted = args.snapshot || found.recipe.snapshot.auto;
    let snapshot = wanted.then(|| capture(context, args, report.revision)).transpose()?;
    if args.json {
        output::json(Built {
            revision: report.revision,
            template: report.template.to_string(),
            cached: report.cached,
            elapsed_ms: report.elapsed_ms,
            new_block_bytes: report.new_blocks.map(|new| new.bytes.bytes()),
            data_bytes: report.new_blocks.map(|new| new.data.bytes()),
            reproduced: report.reproduced.map(|again| Again {
                reproducible: again.first_difference.is_none(),
                before: again.before,
                first_difference: again.first_difference,
            }),
            snapshot,
        });
    } else {
        output::line(&report.revision.to_string());
    }
    Ok(ExitCode::SUCCESS)
}
