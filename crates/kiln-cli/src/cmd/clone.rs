//! `kiln clone`: a disk for somebody who brings a machine monitor.

use super::Context;
use crate::error::CliResult;
use crate::output;
use clap::{Args, ValueEnum};
use kiln_core::machine::CloneMethod;
use kiln_core::{Digest, Reference};
use kiln_store::CloneChoice;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// How a private disk is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CloneBy {
    /// The first that this host can
    Auto,
    /// Blocks shared by the file system
    Reflink,
    /// A file of what is written, over the template's disk
    Overlay,
    /// A whole copy
    Copy,
}

impl From<CloneBy> for CloneChoice {
    fn from(by: CloneBy) -> Self {
        match by {
            CloneBy::Auto => Self::Auto,
            CloneBy::Reflink => Self::Exactly(CloneMethod::Reflink),
            CloneBy::Overlay => Self::Exactly(CloneMethod::Overlay),
            CloneBy::Copy => Self::Exactly(CloneMethod::Copy),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Writes the template's root disk to a new file that only its owner may use: raw, or with --clone overlay a qcow2
file that needs the store's copy. Nothing is overwritten, and the store does not change.

Examples:
  kiln clone web disk.raw
  kiln clone web:v1 /srv/disks/          names it /srv/disks/web.raw
  kiln clone web disk.qcow2 --clone overlay
  kiln clone web disk.raw --json | jq .allocated_bytes")]
pub(crate) struct CloneArgs {
    /// What to clone
    reference: Reference,
    /// The new file, or a directory for it
    dest: PathBuf,
    /// How it is made: auto means reflink, else copy
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    clone: CloneBy,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print the file's path only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Shown {
    path: PathBuf,
    reference: String,
    revision: Digest,
    artifact: Digest,
    method: CloneMethod,
    format: &'static str,
    size_bytes: u64,
    allocated_bytes: u64,
}

pub(crate) fn run(context: &Context, args: &CloneArgs) -> CliResult {
    let reporter = context.reporter(args.quiet);
    let report = context.engine.clone_disk(&args.reference, &args.dest, args.clone.into(), &reporter)?;
    drop(reporter);
    if args.json {
        output::json(Shown {
            reference: args.reference.to_string(),
            revision: report.revision,
            artifact: report.artifact,
            method: report.method,
            format: report.method.extension(),
            size_bytes: report.size.bytes(),
            allocated_bytes: report.allocated.bytes(),
            path: report.path,
        });
        return Ok(ExitCode::SUCCESS);
    }
    let path = report.path.display();
    if args.quiet {
        output::line(&path.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let (size, allocated) = (report.size.human(), report.allocated.human());
    output::line(&format!("{path}: {size} by {}, {allocated} on disk", report.method));
    if report.method == CloneMethod::Overlay {
        let id = report.revision.short();
        output::tell(&format!("note: it needs revision {id} in this store; kiln rm does not know of it"));
    }
    Ok(ExitCode::SUCCESS)
}
