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
Prints what keeps a revision, or the revisions that have an artifact: tags, machines, leases. What
nothing keeps is removed by the next kiln gc.

Examples:
  kiln why web:v1
  kiln why sha256:0123abcd")]
pub(crate) struct WhyArgs {
    #[arg(help = "NAME[:TAG], or the digest of a revision or an artifact")]
    reference: Reference,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    revision: Digest,
    role: Option<String>,
    kept_by: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &WhyArgs) -> CliResult {
    let found = context.engine.why(&args.reference)?;
    let lines: Vec<Line> = found
        .into_iter()
        .map(|reasons| Line {
            revision: reasons.revision,
            role: reasons.role,
            kept_by: reasons.roots.iter().map(ToString::to_string).collect(),
        })
        .collect();
    if args.json {
        output::json_list(lines);
        return Ok(ExitCode::SUCCESS);
    }
    for line in &lines {
        let what = match &line.role {
            Some(role) => format!("{role} of revision {}", line.revision.short()),
            None => format!("revision {}", line.revision.short()),
        };
        if line.kept_by.is_empty() {
            output::line(&format!("{what}: nothing keeps it"));
        }
        for root in &line.kept_by {
            output::line(&format!("{what} <- {root}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
