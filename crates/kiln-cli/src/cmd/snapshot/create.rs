//! `kiln snapshot create`.

use crate::cmd::Context;
use crate::cmd::exec::strip_dashes;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::Digest;
use kiln_core::snapshot::SnapshotKeep;
use kiln_core::{ByteSize, Reference, VariantName};
use kiln_engine::capture::SnapshotReport;
use kiln_engine::capture::SnapshotRequest;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
The last line of standard output is the snapshot's id. It stays until kiln snapshot rm, and its
revision with it; kiln run takes the youngest that fits. What the recipe's [snapshot] says is done
before the command.

Examples:
  kiln snapshot create web
  kiln snapshot create --name warm -m 1G web -- /usr/bin/warm-up --all")]
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
    #[arg(help = "What to capture: NAME[/VARIANT][:TAG][@sha256:…] or sha256:…")]
    reference: Reference,
    /// A command that warms the ready guest up
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) fn run(context: &Context, args: &CreateArgs) -> CliResult {
    let command = strip_dashes(&args.command).to_vec();
    let request = SnapshotRequest {
        reference: args.reference.clone(),
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
    let paused = f64::from(u32::try_from(report.paused_us).unwrap_or(u32::MAX)) / 1000.0;
    output::tell(&format!(
        "captured as snapshot {}: ready in {}, stood still for {paused:.1} ms, published in {}; {} of memory, {} of state",
        report.id.short(),
        output::span(report.ready_after_ms),
        output::span(report.publish_ms),
        report.memory.human(),
        report.state.human(),
    ));
}
