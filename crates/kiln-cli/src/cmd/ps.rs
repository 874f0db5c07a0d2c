//! `kiln ps`: machines.

use super::Context;
use crate::error::{self, CliResult};
use crate::output;
use clap::Args;
use kiln_core::machine::{EndCause, Network, Phase};
use kiln_core::{Digest, MachineId, RestartPolicy};
use kiln_store::MachineEntry;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln ps\n  kiln ps -a\n  kiln rm $(kiln ps -aq)")]
pub(crate) struct PsArgs {
    /// Also list machines that ended
    #[arg(short, long)]
    all: bool,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
pub(crate) struct Line {
    id: MachineId,
    name: String,
    reference: String,
    revision: Digest,
    phase: Phase,
    vcpus: u32,
    memory_bytes: u64,
    accelerator: Option<String>,
    clone: String,
    ports: Vec<String>,
    created_unix_ms: u64,
    started_unix_ms: Option<u64>,
    ready_after_ms: Option<u64>,
    paused_unix_ms: Option<u64>,
    ttl_ms: Option<u64>,
    expires_unix_ms: Option<u64>,
    restart: RestartPolicy,
    restarts: u32,
    ended_unix_ms: Option<u64>,
    supervisor_pid: Option<u32>,
    vmm_pid: Option<u32>,
    end: Option<EndCause>,
}

impl Line {
    pub(crate) fn new(entry: MachineEntry) -> Self {
        let MachineEntry { record, status, .. } = entry;
        let ports = match &record.network {
            Network::User { forwards, .. } => forwards.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        Self {
            id: record.id,
            name: record.name.to_string(),
            reference: record.reference,
            revision: record.revision,
            phase: status.phase,
            vcpus: record.shape.vcpus,
            memory_bytes: record.shape.memory.bytes(),
            accelerator: status.accelerator,
            clone: record.clone.method.to_string(),
            ports,
            created_unix_ms: record.created_unix_ms,
            started_unix_ms: status.started_unix_ms,
            ready_after_ms: status.ready_after_ms,
            paused_unix_ms: status.paused_unix_ms,
            ttl_ms: record.ttl_ms,
            expires_unix_ms: status.expires_unix_ms,
            restart: record.restart,
            restarts: status.restarts,
            ended_unix_ms: status.ended_unix_ms,
            supervisor_pid: status.supervisor_pid,
            vmm_pid: status.vmm_pid,
            end: status.end,
        }
    }
}

pub(crate) fn run(context: &Context, args: &PsArgs) -> CliResult {
    let mut lines = Vec::new();
    let mut damaged = 0;
    for (id, entry) in context.engine.machines()? {
        match entry {
            Ok(entry) if args.all || entry.status.phase.is_live() || entry.status.phase == Phase::Created => {
                lines.push(Line::new(entry));
            }
            Ok(_) => {}
            Err(error) => {
                output::tell(&format!("machine {id}:"));
                error::tell(&error.into());
                damaged += 1;
            }
        }
    }
    if args.json {
        output::json_list(&lines);
    } else if args.quiet {
        for line in &lines {
            output::line(&line.name);
        }
    } else {
        let rows: Vec<Vec<String>> = lines.iter().map(row).collect();
        output::table(&["NAME", "ID", "TEMPLATE", "PHASE", "STARTED", "PORTS"], &rows);
    }
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::from(error::EXIT_FAILED) })
}

fn row(line: &Line) -> Vec<String> {
    let phase = match &line.end {
        Some(end) if !line.phase.is_live() => {
            format!("{}: {}", line.phase, kiln_core::text::clip(&end.to_string()))
        }
        _ => line.phase.to_string(),
    };
    let restarts = match line.restarts {
        0 => String::new(),
        1 => ", 1 restart".to_owned(),
        more => format!(", {more} restarts"),
    };
    vec![
        line.name.clone(),
        line.id.to_string(),
        line.reference.clone(),
        phase + &restarts,
        line.started_unix_ms.map_or_else(|| "-".to_owned(), output::ago),
        if line.ports.is_empty() { "-".to_owned() } else { line.ports.join(",") },
    ]
}
