//! `kiln verify`.

use super::Context;
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{Digest, Reference};
use kiln_engine::verify::{ArtifactReport, Repair, VerifyReport};
use kiln_store::Verdict;
use serde::Serialize;
use std::process::ExitCode;

/// The most damaged ranges a line for people names.
const RANGES_SHOWN: usize = 4;

#[derive(Debug, Args)]
#[command(after_help = "\
Reads every byte and compares it with the index. A damaged artifact is moved to quarantine/ in the
store, never deleted, and nothing starts from it any more. --repair builds it again from the
recipe it came from; that brings it back only while the recipe still makes the same bytes. What a
snapshot captured is lost. Exits with 1 when something is damaged or missing at the end.

Examples:
  kiln verify web:v1
  kiln verify --all
  kiln verify --all --repair")]
pub(crate) struct VerifyArgs {
    #[arg(
        help = "A revision: NAME[:TAG] or sha256:…",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    reference: Option<Reference>,
    /// Everything in the store, snapshots among it
    #[arg(short, long)]
    all: bool,
    /// Build what is damaged or missing again
    #[arg(long)]
    repair: bool,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print only what is wrong
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Report {
    whole: bool,
    artifacts: Vec<Line>,
    revisions: Vec<BadRevision>,
    snapshots: Vec<BadSnapshot>,
}

#[derive(Serialize)]
struct BadRevision {
    revision: Digest,
    reason: String,
}

#[derive(Serialize)]
struct BadSnapshot {
    snapshot: Digest,
    reason: String,
}

#[derive(Serialize)]
struct Line {
    artifact: Digest,
    used_by: Vec<String>,
    /// `intact`, `damaged` or `missing`: what was found.
    found: &'static str,
    /// Whether it is whole now.
    whole: bool,
    size_bytes: Option<u64>,
    data_bytes: Option<u64>,
    index_rebuilt: bool,
    /// What protects the file: `none`, `verity`, `immutable` or `verity+immutable`.
    protection: &'static str,
    reason: Option<String>,
    quarantined: Option<String>,
    /// Start and end of damaged bytes.
    damaged_ranges: Vec<[u64; 2]>,
    damaged_segments: u64,
    repair: Option<String>,
}

impl Line {
    fn of(report: &ArtifactReport) -> Self {
        let mut line = Self {
            artifact: report.digest,
            used_by: report.users.clone(),
            found: "missing",
            whole: report.is_whole(),
            size_bytes: None,
            data_bytes: None,
            index_rebuilt: false,
            protection: report.protection.as_str(),
            reason: None,
            quarantined: None,
            damaged_ranges: Vec::new(),
            damaged_segments: 0,
            repair: report.repair.as_ref().map(|repair| match repair {
                Repair::Rebuilt { recipe } => format!("built again from {}", recipe.display()),
                Repair::Failed { reason } => format!("not repaired: {reason}"),
                _ => "not repaired".to_owned(),
            }),
        };
        match &report.verdict {
            Verdict::Intact { size, data, index_rebuilt } => {
                line.found = "intact";
                line.size_bytes = Some(size.bytes());
                line.data_bytes = Some(data.bytes());
                line.index_rebuilt = *index_rebuilt;
            }
            Verdict::Damaged(damage) => {
                line.found = "damaged";
                line.reason = Some(damage.reason.clone());
                line.quarantined = Some(damage.quarantined.display().to_string());
                line.damaged_ranges = damage.ranges.iter().map(|range| [range.start, range.end]).collect();
                line.damaged_segments = damage.segments;
            }
            _ => {}
        }
        line
    }

    fn details(&self) -> String {
        let mut text = String::new();
        if self.protection != "none" {
            text.push_str("; ");
            text.push_str(self.protection);
        }
        if self.index_rebuilt {
            text.push_str("; its lost index was made again");
        }
        if let Some(reason) = &self.reason {
            text.push_str(": ");
            text.push_str(reason);
        }
        let ranges: Vec<String> = self
            .damaged_ranges
            .iter()
            .take(RANGES_SHOWN)
            .map(|[start, end]| format!("{start}-{end}"))
            .collect();
        if !ranges.is_empty() {
            let more = if self.damaged_ranges.len() > RANGES_SHOWN { ", …" } else { "" };
            text.push_str(&format!(" (bytes {}{more})", ranges.join(", ")));
        }
        if let Some(path) = &self.quarantined {
            text.push_str(&format!("; moved to {path}"));
        }
        if let Some(repair) = &self.repair {
            text.push_str("; ");
            text.push_str(repair);
        }
        text
    }
}

pub(crate) fn run(context: &Context, args: &VerifyArgs) -> CliResult {
    let reporter = context.reporter(args.quiet);
    let report = context.engine.verify(args.reference.as_ref(), args.repair, &reporter)?;
    drop(reporter);
    render(args, &report);
    if report.is_whole() {
        return Ok(ExitCode::SUCCESS);
    }
    let bad: Vec<&ArtifactReport> = report.artifacts.iter().filter(|artifact| !artifact.is_whole()).collect();
    let captured = bad.iter().flat_map(|artifact| artifact.snapshots.iter().cloned());
    let mut lost: Vec<String> = captured.chain(report.snapshots.iter().map(|(id, _)| id.short())).collect();
    lost.sort();
    lost.dedup();
    Err(CliError::Verify {
        artifacts: bad.len(),
        captured: bad.iter().filter(|artifact| artifact.captured_only).count(),
        revisions: report.revisions.len(),
        snapshots: report.snapshots.len(),
        lost,
        repaired: args.repair,
    })
}

fn render(args: &VerifyArgs, report: &VerifyReport) {
    let lines: Vec<Line> = report.artifacts.iter().map(Line::of).collect();
    let bad =
        |(revision, reason): &(Digest, String)| BadRevision { revision: *revision, reason: reason.clone() };
    if args.json {
        let revisions = report.revisions.iter().map(bad).collect();
        let bad = |(snapshot, reason): &(Digest, String)| BadSnapshot {
            snapshot: *snapshot,
            reason: reason.clone(),
        };
        let snapshots = report.snapshots.iter().map(bad).collect();
        return output::json(Report { whole: report.is_whole(), artifacts: lines, revisions, snapshots });
    }
    for line in lines.iter().filter(|line| !args.quiet || !line.whole) {
        let user = line.used_by.first().map_or("nothing uses it", String::as_str);
        output::line(&format!("{} {} ({user}){}", line.artifact.short(), line.found, line.details()));
    }
    for (revision, reason) in &report.revisions {
        output::line(&format!("{} unreadable: {reason}", revision.short()));
    }
    for (snapshot, reason) in &report.snapshots {
        output::line(&format!("snapshot {} unreadable: {reason}", snapshot.short()));
    }
}
