//! `kiln why`.

use super::Context;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::{Digest, Reference};
use kiln_store::Root;
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

/// A line, and what it says to people.
struct Found {
    line: Line,
    what: String,
    /// What keeps it.
    told: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &WhyArgs) -> CliResult {
    let found = context.engine.why(&args.reference)?;
    let found: Vec<Found> = found
        .into_iter()
        .map(|reasons| {
            let name = reasons.snapshot.as_ref().map(|(_, name)| name.clone());
            let revision = format!("revision {}", reasons.revision.short());
            let of = match &name {
                Some(name) => format!("snapshot {name} of {revision}"),
                None => revision,
            };
            let what = match &reasons.role {
                Some(role) => format!("{role} of {of}"),
                None => of,
            };
            let told = |root: &Root| match root {
                Root::Snapshot { name: own } if Some(own) == name.as_ref() => {
                    "whoever made it, until kiln snapshot rm".to_owned()
                }
                root => root.to_string(),
            };
            let told = reasons.roots.iter().map(told).collect();
            let line = Line {
                revision: reasons.revision,
                snapshot: reasons.snapshot.map(|(id, _)| id),
                role: reasons.role,
                kept_by: reasons.roots.iter().map(ToString::to_string).collect(),
            };
            Found { line, what, told }
        })
        .collect();
    if args.json {
        output::json_list(found.into_iter().map(|found| found.line));
        return Ok(ExitCode::SUCCESS);
    }
    for Found { what, told, .. } in &found {
        if told.is_empty() {
            output::line(&format!("{what}: nothing keeps it"));
        }
        for root in told {
            output::line(&format!("{what} <- {root}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
