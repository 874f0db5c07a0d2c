//! `kiln gc`.

use super::Context;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::{ByteSize, Digest, TimeSpan, text};
use kiln_engine::collect::CollectReport;
use kiln_store::CollectPolicy;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Kept is what a tag points to, what it pointed to before (--keep-last), what a machine, a lease, a
clone or a snapshot that somebody made uses, and what a running command is about to use. A build's
snapshots go with their revision, a fork's with the last machine that continues it. The rest goes
to the trash at once, and is deleted from there when it has been there for --grace; until then its
files can be taken back by hand.

Examples:
  kiln gc --dry-run
  kiln gc
  kiln gc --keep-last 1 --grace 0       free all that can be freed, now
  kiln gc --older-than 30d
  kiln gc --cache                       what builds fetched too
  kiln gc --budget 20G                  only until artifacts take up 20 GiB or less")]
pub(crate) struct GcArgs {
    /// Change nothing, and print what would go
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Revisions to keep for each tag, the current one among them
    #[arg(long, value_name = "N", default_value_t = CollectPolicy::default().keep_last, value_parser = at_least_one)]
    keep_last: usize,
    /// Keep revisions built less than this ago
    #[arg(long, value_name = "SPAN", default_value = "0")]
    older_than: TimeSpan,
    /// Stop once artifacts take up no more than this, the oldest revisions first
    #[arg(long, value_name = "SIZE")]
    budget: Option<ByteSize>,
    /// Delete what has been in the trash for this long
    #[arg(long, value_name = "SPAN", default_value = "1d")]
    grace: TimeSpan,
    /// Delete what builds fetched too (layers of images, flakes): another build fetches it again
    #[arg(long)]
    cache: bool,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print digests of revisions only
    #[arg(short, long)]
    quiet: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| "at least 1: tags keep what they point to".to_owned())
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    revisions: Vec<Dead>,
    snapshots: Vec<DeadSnapshot>,
    artifacts: Vec<DeadArtifact>,
    kept_revisions: usize,
    kept_bytes: u64,
    freed_bytes: u64,
    deleted_bytes: u64,
    trash_bytes: u64,
    fetched_bytes: u64,
    unreadable: Vec<Digest>,
    unreadable_snapshots: Vec<Digest>,
}

#[derive(Serialize)]
struct Dead {
    revision: Digest,
    built_unix_ms: Option<u64>,
    exclusive_bytes: u64,
}

#[derive(Serialize)]
struct DeadSnapshot {
    snapshot: Digest,
    revision: Digest,
    created_unix_ms: Option<u64>,
    exclusive_bytes: u64,
}

#[derive(Serialize)]
struct DeadArtifact {
    artifact: Digest,
    allocated_bytes: u64,
}

pub(crate) fn run(context: &Context, args: &GcArgs) -> CliResult {
    let policy =
        CollectPolicy { keep_last: args.keep_last, older_than: args.older_than.get(), budget: args.budget };
    let reporter = context.reporter(args.quiet);
    let report = context.engine.collect(&policy, args.grace.get(), args.cache, args.dry_run, &reporter)?;
    drop(reporter);
    render(args, &report);
    Ok(ExitCode::SUCCESS)
}

/// What is said of things that cannot be read.
const IN_THE_WAY: &str = "cannot be read: no artifact is collected while it is there";

fn render(args: &GcArgs, report: &CollectReport) {
    let plan = &report.collection;
    if args.json {
        return output::json(Report {
            dry_run: args.dry_run,
            revisions: plan
                .revisions
                .iter()
                .map(|dead| Dead {
                    revision: dead.id,
                    built_unix_ms: dead.built_unix_ms,
                    exclusive_bytes: dead.exclusive.bytes(),
                })
                .collect(),
            snapshots: plan
                .snapshots
                .iter()
                .map(|dead| DeadSnapshot {
                    snapshot: dead.id,
                    revision: dead.subject,
                    created_unix_ms: dead.created_unix_ms,
                    exclusive_bytes: dead.exclusive.bytes(),
                })
                .collect(),
            artifacts: plan
                .artifacts
                .iter()
                .map(|(artifact, bytes)| DeadArtifact { artifact: *artifact, allocated_bytes: bytes.bytes() })
                .collect(),
            kept_revisions: plan.kept_revisions,
            kept_bytes: plan.kept.bytes(),
            freed_bytes: plan.freed().bytes(),
            deleted_bytes: report.deleted.bytes(),
            trash_bytes: report.in_trash.bytes(),
            fetched_bytes: report.fetched.bytes(),
            unreadable: plan.unreadable.clone(),
            unreadable_snapshots: plan.unreadable_snapshots.clone(),
        });
    }
    for dead in &plan.revisions {
        if args.quiet {
            output::line(&dead.id.to_string());
        } else {
            let built = dead.built_unix_ms.map_or_else(|| "unknown".to_owned(), output::ago);
            let own = dead.exclusive.human();
            output::line(&format!("{} built {built}, {own} of its own", dead.id.short()));
        }
    }
    if args.quiet {
        return;
    }
    for dead in &plan.snapshots {
        let made = dead.created_unix_ms.map_or_else(|| "unknown".to_owned(), output::ago);
        let (id, of, own) = (dead.id.short(), dead.subject.short(), dead.exclusive.human());
        output::line(&format!("snapshot {id} of {of} made {made}, {own} of its own"));
    }
    for id in &plan.unreadable {
        output::tell(&format!("revision {} {IN_THE_WAY}; kiln rm {id} removes it", id.short()));
    }
    for id in &plan.unreadable_snapshots {
        output::tell(&format!("snapshot {0} {IN_THE_WAY}; kiln snapshot rm {0} removes it", id.short()));
    }
    let mut went_first = text::count(plan.revisions.len(), "revision");
    if !plan.snapshots.is_empty() {
        went_first = format!("{went_first}, {}", text::count(plan.snapshots.len(), "snapshot"));
    }
    let artifacts = text::count(plan.artifacts.len(), "artifact");
    let freed = plan.freed().human();
    let went = if args.dry_run { "would go to the trash" } else { "went to the trash" };
    output::tell(&format!("{went_first} and {artifacts} ({freed}) {went}"));
    let kept = text::count(plan.kept_revisions, "revision");
    let (stay, bytes) = (if plan.kept_revisions == 1 { "stays" } else { "stay" }, plan.kept.human());
    let trash = report.in_trash.human();
    let deleted = report.deleted.human();
    output::tell(&format!("{kept} ({bytes}) {stay}; {deleted} deleted, {trash} in the trash"));
    if args.cache {
        let went = if args.dry_run { "would be deleted" } else { "deleted" };
        output::tell(&format!("{} of what builds fetched {went}", report.fetched.human()));
    }
}
