//! `kiln snapshot create`.

use crate::cmd::Context;
use crate::cmd::exec::strip_dashes;
use crate::cmd::named::{Named, named};
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::Digest;
use kiln_core::snapshot::SnapshotKeep;
use kiln_core::{ByteSize, Reference, VariantName};
use kiln_engine::capture::machine::MachineSnapshotRequest;
use kiln_engine::capture::{SnapshotReport, SnapshotRequest};
use kiln_store::MachineEntry;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Of a template: boots a machine, captures it when it is ready, and removes it. kiln run takes the
youngest that fits. What the recipe's [snapshot] says is done before the command.
Of a machine: it stands still for a moment and goes on; kiln snapshot restore makes machines of it.
The last line of standard output is the snapshot's id. It stays until kiln snapshot rm, and its
revision with it.

Examples:
  kiln snapshot create web
  kiln snapshot create --name warm -m 1G web -- /usr/bin/warm-up --all
  kiln snapshot create --name before-upgrade web-1a2b")]
pub(crate) struct CreateArgs {
    /// Its name
    #[arg(long)]
    name: Option<VariantName>,
    /// Virtual processors, in place of the template's
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory, in place of the template's
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Have the guest drop clean caches first: a smaller snapshot, slower first reads
    #[arg(long)]
    drop_caches: bool,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Of a machine: its disks alone, without its memory
    #[arg(long)]
    disk_only: bool,
    /// Of a machine: as it is, without asking its guest to write its file systems first
    #[arg(long)]
    no_quiesce: bool,
    #[arg(
        value_name = "MACHINE|REF",
        help = "What to capture: a machine's name or id, or NAME[/VARIANT][:TAG][@sha256:…] or sha256:…"
    )]
    target: String,
    /// A command that warms the ready guest of a template up
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) fn run(context: &Context, args: &CreateArgs) -> CliResult {
    match named(context, &args.target)? {
        Named::Template(reference) => of_template(context, args, reference),
        Named::Machine(machine) => of_machine(context, args, &machine),
    }
}

fn of_template(context: &Context, args: &CreateArgs, reference: Reference) -> CliResult {
    if args.disk_only || args.no_quiesce {
        let option = if args.disk_only { "--disk-only" } else { "--no-quiesce" };
        return Err(CliError::Usage(format!("{option} is for machines, and `{}` is none", args.target)));
    }
    let command = strip_dashes(&args.command).to_vec();
    let request = SnapshotRequest {
        reference,
        keep: SnapshotKeep::Always,
        name: args.name.clone(),
        memory: args.memory,
        vcpus: args.vcpus,
        board: None,
        accelerator: "auto".to_owned(),
        warm_up: if command.is_empty() { Vec::new() } else { vec![command] },
        drop_caches: args.drop_caches,
    };
    let reporter = context.reporter(args.quiet);
    let report = context.engine.snapshot_template(&request, &reporter)?;
    drop(reporter);
    if !args.quiet {
        tell_captured(&report);
    }
    let id = report.id;
    if args.json {
        output::json(Captured::from(report));
    } else {
        output::line(&id.to_string());
    }
    Ok(ExitCode::SUCCESS)
}

fn of_machine(context: &Context, args: &CreateArgs, machine: &MachineEntry) -> CliResult {
    let name = &machine.record.name;
    let shaped = args.memory.is_some() || args.vcpus.is_some();
    if shaped || !args.command.is_empty() {
        let what = if shaped { "has its memory and processors" } else { "is captured as it is: kiln exec" };
        return Err(CliError::Usage(format!("machine `{name}` {what}")));
    }
    let request = MachineSnapshotRequest {
        machine: machine.record.id.to_string(),
        keep: SnapshotKeep::Always,
        name: args.name.clone(),
        memory: !args.disk_only,
        quiesce: !args.no_quiesce,
        drop_caches: args.drop_caches,
    };
    let reporter = context.reporter(args.quiet);
    let report = context.engine.snapshot_machine(&request, &reporter)?;
    drop(reporter);
    if !args.quiet {
        let memory = report
            .memory
            .map_or_else(|| "no memory".to_owned(), |memory| format!("{} of memory", memory.human()));
        output::tell(&format!(
            "`{name}` captured as snapshot {}: stood still for {}, published in {}; {memory}, {} of disk",
            report.id.short(),
            output::micros(report.paused_us),
            output::span(report.publish_ms),
            report.disk.human(),
        ));
    }
    if args.json {
        output::json(CapturedMachine {
            id: report.id,
            quiesce_ms: report.quiesce_ms,
            paused_us: report.paused_us,
            publish_ms: report.publish_ms,
            disk_bytes: report.disk.bytes(),
            memory_bytes: report.memory.map(ByteSize::bytes),
        });
    } else {
        output::line(&report.id.to_string());
    }
    Ok(ExitCode::SUCCESS)
}

/// A snapshot that was made of a machine.
#[derive(Serialize)]
struct CapturedMachine {
    id: Digest,
    quiesce_ms: u64,
    paused_us: u64,
    publish_ms: u64,
    disk_bytes: u64,
    memory_bytes: Option<u64>,
}

/// A snapshot that was made.
#[derive(Serialize)]
pub(in crate::cmd) struct Captured {
    id: Digest,
    ready_after_ms: u64,
    quiesce_ms: u64,
    paused_us: u64,
    publish_ms: u64,
    memory_bytes: u64,
    state_bytes: u64,
}

impl From<SnapshotReport> for Captured {
    fn from(report: SnapshotReport) -> Self {
        let SnapshotReport { id, ready_after_ms, paused_us, quiesce_ms, publish_ms, memory, state } = report;
        let (memory_bytes, state_bytes) = (memory.bytes(), state.bytes());
        Self { id, ready_after_ms, quiesce_ms, paused_us, publish_ms, memory_bytes, state_bytes }
    }
}

/// Says what a snapshot took.
pub(in crate::cmd) fn tell_captured(report: &SnapshotReport) {
    output::tell(&format!(
        "captured as snapshot {}: ready in {}, stood still for {}, published in {}; {} of memory, {} of state",
        report.id.short(),
        output::span(report.ready_after_ms),
        output::micros(report.paused_us),
        output::span(report.publish_ms),
        report.memory.human(),
        report.state.human(),
    ));
}
