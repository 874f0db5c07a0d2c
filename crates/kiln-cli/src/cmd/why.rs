//! `kiln why`.

use super::Context;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::{Digest, Reference};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Prints what keeps a revision or a snapshot, or the revisions and snapshots that have an artifact:
tags, machines, leases, snapshots. A snapshot that somebody made keeps itself. What nothing keeps is
removed by the next kiln gc.

Examples:
  kiln why web:v1
  kiln why sha256:0123abcd")]
pub(crate) struct WhyArgs {
    #[arg(help = "NAME[:TAG], or the digest of a revision, a snapshot or an artifact")]
    reference: Reference,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    revision: Digest,
    /// The snapshot of that revision which is meant, or has the artifact.
    snapshot: Option<Digest>,
    role: Option<String>,
    kept_by: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &WhyArgs) -> CliResult {
    let found = context.engine.why(&args.reference)?;
    let lines: Vec<(String, Line)> = found
        .into_iter()
        .map(|reasons| {
            let line = Line {
                revision: reasons.revision,
                snapshot: reasons.snapshot.as_ref().map(|(id, _)| *id),
                kept_by: reasons.roots.iter().map(ToString::to_string).collect(),
                role: reasons.role,
            };
            let of = match &reasons.snapshot {
                Some((_, name)) => format!("snapshot {name} of revision {}", line.revision.short()),
                None => format!("revision {}", line.revision.short()),
            };
            let what = line.role.as_ref().map_or_else(|| of.clone(), |role| format!("{role} of {of}"));
            (what, line)
        })
        .collect();
    if args.json {
        output::json_list(lines.into_iter().map(|(_, line)| line));
        return Ok(ExitCode::SUCCESS);
    }
    for (what, line) in &lines {
        if line.kept_by.is_empty() {
            output::line(&format!("{what}: nothing keeps it"));
        }
        for root in &line.kept_by {
            output::line(&format!("{what} <- {root}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
