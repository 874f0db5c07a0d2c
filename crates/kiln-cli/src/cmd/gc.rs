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
Kept is what a tag points to, what it pointed to before (--keep-last), what a machine, a lease or
a clone uses, and what a running command is about to use. The rest goes to the trash at once, and
is deleted from there when it has been there for --grace; until then its files can be taken back
by hand.

Examples:
  kiln gc --dry-run
  kiln gc
  kiln gc --keep-last 1 --grace 0       free all that can be freed, now
  kiln gc --older-than 30d
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
    artifacts: Vec<DeadArtifact>,
    kept_revisions: usize,
    kept_bytes: u64,
    freed_bytes: u64,
    deleted_bytes: u64,
    trash_bytes: u64,
    unreadable: Vec<Digest>,
}

#[derive(Serialize)]
struct Dead {
    revision: Digest,
    built_unix_ms: Option<u64>,
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
    let report = context.engine.collect(&policy, args.grace.get(), args.dry_run, &reporter)?;
    drop(reporter);
    render(args, &report);
    Ok(ExitCode::SUCCESS)
}

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
            unreadable: plan.unreadable.clone(),
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
    for id in &plan.unreadable {
        let text = "cannot be read: no artifact is collected while it is there";
        output::tell(&format!("revision {} {text}; kiln rm {id} removes it", id.short()));
    }
    let revisions = text::count(plan.revisions.len(), "revision");
    let artifacts = text::count(plan.artifacts.len(), "artifact");
    let freed = plan.freed().human();
    let went = if args.dry_run { "would go to the trash" } else { "went to the trash" };
    output::tell(&format!("{revisions} and {artifacts} ({freed}) {went}"));
    let kept = text::count(plan.kept_revisions, "revision");
    let (stay, bytes) = (if plan.kept_revisions == 1 { "stays" } else { "stay" }, plan.kept.human());
    let trash = report.in_trash.human();
    let deleted = report.deleted.human();
    output::tell(&format!("{kept} ({bytes}) {stay}; {deleted} deleted, {trash} in the trash"));
}
