//! `kiln df`.

use super::{Context, memory};
use crate::error::{self, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{ByteSize, Digest};
use kiln_engine::memory::TemplateMemory;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
APPARENT is the length of the artifacts of a template's revisions, ALLOCATED what they take up,
SHARED what of it other templates or snapshots have too, EXCLUSIVE what would be free without the
template. Snapshots are counted beside the templates, those of each revision together.
SHARED of a machine is what the file system says other files have too. A revision counts as long
as it is in the store, tagged or once tagged.

While machines run, what each template's have of the host's memory: NOMINAL is what the guests were
promised, RESIDENT what their monitors' processes have, with shared pages counted once for each,
PRIVATE what each has alone, SHARE what they take up when what is shared is divided among them.")]
pub(crate) struct DfArgs {
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    templates: Vec<Template>,
    snapshots: Vec<Snapshots>,
    machines: Vec<Machine>,
    /// Only while a machine runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    memory: Vec<memory::Template>,
    disks: Vec<Disk>,
    artifact_bytes: u64,
    /// None where something that may keep revisions cannot be read.
    reclaimable_bytes: Option<u64>,
    trash_bytes: u64,
    quarantine_bytes: u64,
    cache_bytes: u64,
    available_bytes: u64,
}

#[derive(Serialize)]
struct Template {
    /// None for revisions without a tag.
    template: Option<String>,
    revisions: usize,
    apparent_bytes: u64,
    allocated_bytes: u64,
    shared_bytes: u64,
    exclusive_bytes: u64,
}

/// The snapshots of a revision.
#[derive(Serialize)]
struct Snapshots {
    revision: Digest,
    /// A template that has or had it.
    template: Option<String>,
    snapshots: usize,
    apparent_bytes: u64,
    allocated_bytes: u64,
    shared_bytes: u64,
    exclusive_bytes: u64,
}

#[derive(Serialize)]
struct Machine {
    machine: String,
    allocated_bytes: u64,
    shared_bytes: u64,
}

#[derive(Serialize)]
struct Disk {
    owner: String,
    allocated_bytes: u64,
    shared_bytes: u64,
}

pub(crate) fn run(context: &Context, args: &DfArgs) -> CliResult {
    let usage = context.engine.usage()?;
    let reclaimable = usage.reclaimable.map_err(|error| error::tell(&error.into())).ok();
    if args.json {
        output::json(Report {
            templates: usage
                .templates
                .iter()
                .map(|of| Template {
                    template: of.template.clone(),
                    revisions: of.revisions,
                    apparent_bytes: of.apparent.bytes(),
                    allocated_bytes: of.allocated.bytes(),
                    shared_bytes: of.shared.bytes(),
                    exclusive_bytes: of.exclusive().bytes(),
                })
                .collect(),
            snapshots: usage
                .snapshots
                .iter()
                .map(|of| Snapshots {
                    revision: of.revision,
                    template: of.template.clone(),
                    snapshots: of.snapshots,
                    apparent_bytes: of.apparent.bytes(),
                    allocated_bytes: of.allocated.bytes(),
                    shared_bytes: of.shared.bytes(),
                    exclusive_bytes: of.exclusive().bytes(),
                })
                .collect(),
            machines: usage
                .machines
                .iter()
                .map(|of| Machine {
                    machine: of.machine.clone(),
                    allocated_bytes: of.allocated.bytes(),
                    shared_bytes: of.shared.bytes(),
                })
                .collect(),
            memory: usage.memory.iter().map(memory::Template::new).collect(),
            disks: usage
                .disks
                .iter()
                .map(|of| Disk {
                    owner: of.owner.clone(),
                    allocated_bytes: of.allocated.bytes(),
                    shared_bytes: of.shared.bytes(),
                })
                .collect(),
            artifact_bytes: usage.artifacts.bytes(),
            reclaimable_bytes: reclaimable.map(ByteSize::bytes),
            trash_bytes: usage.trash.bytes(),
            quarantine_bytes: usage.quarantine.bytes(),
            cache_bytes: usage.cache.bytes(),
            available_bytes: usage.available.bytes(),
        });
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = usage
        .templates
        .iter()
        .map(|of| {
            vec![
                of.template.clone().unwrap_or_else(|| "(no tag)".to_owned()),
                of.revisions.to_string(),
                of.apparent.human(),
                of.allocated.human(),
                of.shared.human(),
                of.exclusive().human(),
            ]
        })
        .collect();
    output::table(&["TEMPLATE", "REVISIONS", "APPARENT", "ALLOCATED", "SHARED", "EXCLUSIVE"], &rows);
    if !usage.snapshots.is_empty() {
        output::line("");
        let rows: Vec<Vec<String>> = usage
            .snapshots
            .iter()
            .map(|of| {
                vec![
                    of.template.clone().unwrap_or_else(|| "(no tag)".to_owned()),
                    of.revision.short(),
                    of.snapshots.to_string(),
                    of.apparent.human(),
                    of.allocated.human(),
                    of.shared.human(),
                    of.exclusive().human(),
                ]
            })
            .collect();
        let head = ["SNAPSHOTS OF", "REVISION", "COUNT", "APPARENT", "ALLOCATED", "SHARED", "EXCLUSIVE"];
        output::table(&head, &rows);
    }
    if !usage.machines.is_empty() {
        output::line("");
        let rows: Vec<Vec<String>> = usage
            .machines
            .iter()
            .map(|of| vec![of.machine.clone(), of.allocated.human(), of.shared.human()])
            .collect();
        output::table(&["MACHINE", "ALLOCATED", "SHARED"], &rows);
    }
    if !usage.disks.is_empty() {
        output::line("");
        let rows: Vec<Vec<String>> = usage
            .disks
            .iter()
            .map(|of| vec![of.owner.clone(), of.allocated.human(), of.shared.human()])
            .collect();
        output::table(&["DISK OF", "ALLOCATED", "SHARED"], &rows);
    }
    output::line("");
    let rows: Vec<Vec<String>> = [
        ("artifacts", Some(usage.artifacts)),
        ("reclaimable (kiln gc)", reclaimable),
        ("trash", Some(usage.trash)),
        ("quarantine", Some(usage.quarantine)),
        ("caches", Some(usage.cache)),
        ("free on the file system", Some(usage.available)),
    ]
    .map(|(what, bytes)| {
        vec![what.to_owned(), bytes.map_or_else(|| "unknown".to_owned(), |bytes| bytes.human())]
    })
    .to_vec();
    output::table(&["WHAT", "BYTES"], &rows);
    if !usage.memory.is_empty() {
        output::line("");
        let rows: Vec<Vec<String>> = usage.memory.iter().map(memory_row).collect();
        output::table(&[&["MEMORY OF", "RUNNING"], &memory::COLUMNS[..]].concat(), &rows);
    }
    Ok(ExitCode::SUCCESS)
}

fn memory_row(TemplateMemory { template, sum }: &TemplateMemory) -> Vec<String> {
    let running = match sum.unknown {
        0 => sum.machines.to_string(),
        unknown => format!("{}, {unknown} not known", sum.machines),
    };
    let mut row = vec![template.clone().unwrap_or_else(|| "(no tag)".to_owned()), running];
    row.extend(memory::sum_cells(sum));
    row
}
