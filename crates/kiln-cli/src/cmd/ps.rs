//! `kiln ps`: machines.

use super::{Context, memory};
use crate::error::{self, CliResult};
use crate::output;
use clap::Args;
use kiln_core::machine::{EndCause, Network, Phase};
use kiln_core::{ByteSize, Digest, MachineId, RestartPolicy};
use kiln_engine::memory::{MachineMemory, MemorySum};
use kiln_engine::private::PrivateNames;
use kiln_store::MachineEntry;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
NOMINAL is the memory a guest was promised, RESIDENT what its machine monitor's process has of it
and of its own, PRIVATE what of that no other process has, SHARE its part when what several have is
divided among them. Only NOMINAL, PRIVATE and SHARE may be added up; the total of RESIDENT counts
shared pages once for each machine.

Examples:
  kiln ps
  kiln ps -a
  kiln ps --memory
  kiln rm $(kiln ps -aq)")]
pub(crate) struct PsArgs {
    /// Also list machines that ended
    #[arg(short, long)]
    all: bool,
    /// Show what each machine that runs has of the host's memory
    #[arg(long, conflicts_with = "quiet")]
    memory: bool,
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
    suspended_unix_ms: Option<u64>,
    /// What a suspended machine's state takes up on disk.
    suspended_bytes: Option<u64>,
    idle_suspend_ms: Option<u64>,
    ttl_ms: Option<u64>,
    expires_unix_ms: Option<u64>,
    restart: RestartPolicy,
    restarts: u32,
    ended_unix_ms: Option<u64>,
    supervisor_pid: Option<u32>,
    vmm_pid: Option<u32>,
    end: Option<EndCause>,
    /// What the SSH keys it was given are called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh_keys: Vec<String>,
    #[serde(flatten)]
    private: PrivateNames,
    /// Only where it was asked for; then null for a machine that does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Option<memory::Machine>>,
}

impl Line {
    pub(crate) fn new(entry: MachineEntry, private: PrivateNames) -> Self {
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
            suspended_unix_ms: status.suspended_unix_ms,
            suspended_bytes: None,
            idle_suspend_ms: record.idle_suspend_ms,
            ttl_ms: record.ttl_ms,
            expires_unix_ms: status.expires_unix_ms,
            restart: record.restart,
            restarts: status.restarts,
            ended_unix_ms: status.ended_unix_ms,
            supervisor_pid: status.supervisor_pid,
            vmm_pid: status.vmm_pid,
            end: status.end,
            ssh_keys: record.ssh_keys.iter().map(|key| key.label().to_owned()).collect(),
            private,
            memory: None,
        }
    }
}

pub(crate) fn run(context: &Context, args: &PsArgs) -> CliResult {
    let mut lines = Vec::new();
    let mut memories = Vec::new();
    let mut damaged = 0;
    for (id, entry) in context.engine.machines()? {
        match entry {
            Ok(entry) if args.all || is_listed(entry.status.phase) => {
                let saved = context.engine.saved_bytes(&entry)?;
                let memory = if args.memory { MachineMemory::of(&entry) } else { None };
                let private = match context.engine.private_names(&entry) {
                    Ok(private) => private,
                    Err(error) => {
                        output::tell(&format!("machine {id}:"));
                        error::tell(&error.into());
                        damaged += 1;
                        PrivateNames::default()
                    }
                };
                let mut line = Line::new(entry, private);
                line.suspended_bytes = saved.map(ByteSize::bytes);
                line.memory = args.memory.then(|| memory.as_ref().map(memory::Machine::new));
                memories.push(memory);
                lines.push(line);
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
    } else if args.memory {
        tell_memory(&lines, &memories);
    } else {
        let rows: Vec<Vec<String>> = lines.iter().map(row).collect();
        output::table(&["NAME", "ID", "TEMPLATE", "PHASE", "STARTED", "PORTS"], &rows);
    }
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::from(error::EXIT_FAILED) })
}

/// Whether a machine in this phase is listed although not all are asked for.
pub(crate) fn is_listed(phase: Phase) -> bool {
    phase.is_live() || matches!(phase, Phase::Created | Phase::Suspended)
}

/// Prints what machines have in memory, what they have together, and of which that is not known.
fn tell_memory(lines: &[Line], memories: &[Option<MachineMemory>]) {
    let mut sum = MemorySum::default();
    let mut rows = Vec::new();
    for (line, memory) in lines.iter().zip(memories) {
        let mut row = vec![line.name.clone(), line.id.to_string(), line.reference.clone(), phase(line)];
        row.extend(memory::cells(memory.as_ref()));
        rows.push(row);
        if let Some(bytes) = line.suspended_bytes {
            let saved = ByteSize::from_bytes(bytes).human();
            output::tell(&format!("{} is suspended: {saved} on disk", line.name));
        }
        let Some(memory) = memory else { continue };
        sum.add(memory);
        if let Err(unknown) = &memory.process {
            output::tell(&format!("memory of {} is not known: {}", line.name, memory::reason(unknown)));
        }
    }
    if !rows.is_empty() {
        let mut total = vec!["total".to_owned(), String::new(), String::new(), String::new()];
        total.extend(memory::sum_cells(&sum));
        rows.push(total);
    }
    output::table(&[&["NAME", "ID", "TEMPLATE", "PHASE"], &memory::COLUMNS[..]].concat(), &rows);
}

fn phase(line: &Line) -> String {
    let phase = match &line.end {
        Some(end) if !line.phase.is_live() && line.phase != Phase::Suspended => {
            format!("{}: {}", line.phase, kiln_core::text::clip(&end.to_string()))
        }
        _ => line.phase.to_string(),
    };
    let restarts = match line.restarts {
        0 => String::new(),
        1 => ", 1 restart".to_owned(),
        more => format!(", {more} restarts"),
    };
    phase + &restarts
}

fn row(line: &Line) -> Vec<String> {
    vec![
        line.name.clone(),
        line.id.to_string(),
        line.reference.clone(),
        phase(line),
        line.started_unix_ms.map_or_else(|| "-".to_owned(), output::ago),
        if line.ports.is_empty() { "-".to_owned() } else { line.ports.join(",") },
    ]
}
