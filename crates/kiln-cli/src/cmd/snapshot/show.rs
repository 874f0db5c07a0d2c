//! `kiln snapshot show`.

use super::{Brief, stays};
use crate::cmd::Context;
use crate::cmd::template::summary;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::snapshot::{SnapshotManifest, SnapshotRecord};
use kiln_core::template_test::{CheckStatus, SnapshotTest};
use kiln_core::{ByteSize, Digest};
use kiln_engine::snapshots::SnapshotEntry;
use kiln_store::Snapshot;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kiln snapshot show warm
  kiln snapshot show warm --json | jq .manifest.memory.compatibility")]
pub(super) struct ShowArgs {
    /// The snapshot's name or id
    #[arg(value_name = "SNAP")]
    snapshot: String,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    brief: Brief,
    tags: Vec<String>,
    machines: Vec<String>,
    manifest: SnapshotManifest,
    files: Vec<File>,
    apparent_bytes: u64,
    allocated_bytes: u64,
    /// None where it is lost: the snapshot stays until it is removed.
    record: Option<SnapshotRecord>,
    /// What the last test found that was kept.
    test: Option<SnapshotTest>,
}

#[derive(Serialize)]
struct File {
    role: &'static str,
    digest: Digest,
    apparent_bytes: u64,
    /// None where the file is missing.
    allocated_bytes: Option<u64>,
    /// What protects it: `none`, `verity`, `immutable` or `verity+immutable`.
    protection: &'static str,
}

pub(super) fn run(context: &Context, args: &ShowArgs) -> CliResult {
    let (entry, snapshot) = context.engine.snapshot(&args.snapshot)?;
    let test = context.engine.store().snapshot_test(&snapshot.id)?;
    if !args.json {
        render(&entry, &snapshot, test.as_ref());
        return Ok(ExitCode::SUCCESS);
    }
    let mut files = Vec::with_capacity(entry.files.len());
    for part in &entry.files {
        files.push(File {
            role: part.role,
            digest: part.file.digest,
            apparent_bytes: part.file.size.bytes(),
            allocated_bytes: part.allocated.map(ByteSize::bytes),
            protection: context.engine.store().protection(&part.file.digest)?.as_str(),
        });
    }
    output::json(Shown {
        brief: Brief::of(&snapshot),
        apparent_bytes: entry.apparent().bytes(),
        allocated_bytes: entry.allocated().bytes(),
        tags: entry.tags,
        machines: entry.machines,
        manifest: snapshot.manifest,
        files,
        record: snapshot.record,
        test,
    });
    Ok(ExitCode::SUCCESS)
}

fn render(entry: &SnapshotEntry, snapshot: &Snapshot, test: Option<&SnapshotTest>) {
    let (brief, manifest, record) = (Brief::of(snapshot), &snapshot.manifest, snapshot.record.as_ref());
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, text: String| rows.push(vec![name.to_owned(), text]);
    row("snapshot", snapshot.id.to_string());
    row("name", brief.name.clone().unwrap_or_default());
    row("revision", manifest.subject.to_string());
    row("tags", entry.tags.join(", "));
    row("machines", entry.machines.join(", "));
    row("keep", stays(snapshot.keep()).to_owned());
    row("arch", manifest.arch.to_string());
    let shape = &manifest.machine;
    let (memory, board) = (shape.memory.human(), shape.board.as_str());
    row("machine", format!("{} vcpu, {memory} memory, board {board}", shape.vcpus));
    if let Some(variant) = &manifest.variant {
        row("variant", variant.to_string());
    }
    row("boot args", manifest.boot_args.join(" "));
    if manifest.memory.is_none() {
        row("memory", "none: disks only".to_owned());
    }
    for part in &entry.files {
        let (digest, apparent) = (part.file.digest, part.file.size.human());
        let allocated =
            part.allocated.map_or_else(|| "missing".to_owned(), |bytes| format!("{} on disk", bytes.human()));
        row(part.role, format!("{digest}  {apparent}, {allocated}"));
    }
    match record {
        Some(record) => {
            row("created", output::ago(record.created_unix_ms));
            if let Some(machine) = &record.machine {
                row("captured from", machine.clone());
            }
            let paused = format!("{}.{} ms", record.paused_us / 1000, record.paused_us % 1000 / 100);
            row("stood still", paused);
            row("took", output::span(record.elapsed_ms));
        }
        None => row("record", "lost".to_owned()),
    }
    if let Some(test) = test {
        row("tested", format!("{}: {}", output::ago(test.tested_unix_ms), summary(test)));
        for check in test.checks.iter().filter(|check| check.status == CheckStatus::Failed) {
            row(&format!("failed {}", check.name.as_str()), check.detail.clone());
        }
    }
    for fact in manifest.memory.iter().flat_map(|memory| memory.compatibility.facts()) {
        row(&format!("needs {}", fact.name), fact.value.clone());
    }
    output::table(&["SNAPSHOT", ""], &rows);
}
