//! `kiln snapshot ls`.

use super::Brief;
use crate::cmd::Context;
use crate::error::{self, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{ByteSize, Digest, Reference};
use kiln_engine::snapshots::SnapshotEntry;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
ON DISK is what the snapshot's files take up, others that have them too or not. KEEP says for how
long it stays: revision is as long as its revision, machines as long as a machine continues it,
always until it is removed.

Examples:
  kiln snapshot ls
  kiln snapshot ls web:v1
  kiln snapshot rm $(kiln snapshot ls -q web:v1)")]
pub(super) struct LsArgs {
    /// List only the snapshots of this revision
    #[arg(value_name = "REF")]
    reference: Option<Reference>,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Line {
    snapshot: Digest,
    damaged: bool,
    /// The other fields; none where the snapshot is damaged.
    #[serde(flatten)]
    content: Option<Content>,
    machines: Vec<String>,
}

#[derive(Serialize)]
struct Content {
    name: Option<String>,
    revision: Digest,
    tags: Vec<String>,
    variant: Option<String>,
    vmm: Option<String>,
    vmm_version: Option<String>,
    /// None for a snapshot of the disks only.
    memory_bytes: Option<u64>,
    apparent_bytes: u64,
    allocated_bytes: u64,
    created_unix_ms: Option<u64>,
    keep: &'static str,
}

pub(super) fn run(context: &Context, args: &LsArgs) -> CliResult {
    let entries = context.engine.snapshots(args.reference.as_ref())?;
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    let ids: String = entries.iter().map(|entry| format!("{}\n", entry.id)).collect();
    let lines: Vec<Line> = entries.into_iter().map(line).collect();
    if args.json {
        output::json_list(lines);
    } else if args.quiet {
        output::data(&ids);
    } else {
        let head = ["SNAPSHOT", "NAME", "OF", "VMM", "MEMORY", "ON DISK", "CREATED", "KEEP", "MACHINES"];
        output::table(&head, &rows);
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes an entry apart for JSON, and tells what is wrong with one that cannot be read.
fn line(entry: SnapshotEntry) -> Line {
    let (apparent, allocated) = (entry.apparent().bytes(), entry.allocated().bytes());
    let snapshot = entry.content.map_err(|error| error::tell(&error.into())).ok();
    let content = snapshot.map(|snapshot| {
        let Brief { name, vmm, vmm_version, memory_bytes, created_unix_ms, keep, .. } = Brief::of(&snapshot);
        let manifest = snapshot.manifest;
        Content {
            name,
            revision: manifest.subject,
            tags: entry.tags,
            variant: manifest.variant.map(|variant| variant.to_string()),
            vmm,
            vmm_version,
            memory_bytes,
            apparent_bytes: apparent,
            allocated_bytes: allocated,
            created_unix_ms,
            keep,
        }
    });
    Line { snapshot: entry.id, damaged: content.is_none(), content, machines: entry.machines }
}

fn row(entry: &SnapshotEntry) -> Vec<String> {
    let none = || "-".to_owned();
    let machines = if entry.machines.is_empty() { none() } else { entry.machines.join(",") };
    let Ok(snapshot) = &entry.content else {
        let mut row = vec![entry.id.short(), none(), "damaged".to_owned()];
        row.extend(std::iter::repeat_with(none).take(5));
        row.push(machines);
        return row;
    };
    let (brief, manifest) = (Brief::of(snapshot), &snapshot.manifest);
    vec![
        entry.id.short(),
        brief.name.clone().unwrap_or_else(none),
        entry.tags.first().cloned().unwrap_or_else(|| manifest.subject.short()),
        brief.vmm(),
        match &manifest.memory {
            Some(_) => manifest.machine.memory.human(),
            None => "disk only".to_owned(),
        },
        ByteSize::human(entry.allocated()),
        brief.created_unix_ms.map_or_else(none, output::ago),
        brief.keep.to_owned(),
        machines,
    ]
}
