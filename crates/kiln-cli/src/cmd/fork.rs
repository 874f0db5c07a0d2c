//! `kiln fork`.

use super::Context;
use super::each::{EachOptions, tell_failed};
use super::named::{Named, named};
use super::run::Identity;
use super::ssh::keys::usual;
use crate::error::{CliError, CliResult};
use crate::output;
use crate::progress::ProgressMode;
use clap::Args;
use kiln_core::{ByteSize, Digest, MachineName, Reference};
use kiln_engine::create::CreateRequest;
use kiln_engine::fork::{ForkRequest, Forked};
use kiln_engine::restore::RestoreChoice;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Debug, Args)]
#[command(after_help = "\
Makes machines that begin as a snapshot of the template, or as a running machine is now, and leaves
them running. They share the snapshot's memory until they write to it; each has a disk, names, keys
and random numbers of its own, and all have the same environment and secrets. Prints their names,
one a line. Refused before anything is made when so many would not fit into the host's memory.
A running machine stands still for a moment, which is told, and goes on. Its published ports stay
with it. One with an environment or secrets of its own is not captured: its memory holds them. The
snapshot goes when no fork continues it; kiln snapshot create keeps one.

Examples:
  kiln build --snapshot && kiln fork web -n 20
  kiln run -d --name first web && kiln fork first -n 4
  kiln fork -n 8 --name worker --ttl 1h web
  kiln fork -q -n 3 web | xargs kiln rm -f")]
pub(crate) struct ForkArgs {
    /// Begin their names with this; a number follows [default: the template's and four digits]
    #[arg(long)]
    name: Option<MachineName>,
    #[command(flatten)]
    each: EachOptions,
    /// Virtual processors, where not the template's: a snapshot of that shape is needed
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory, where not the template's: a snapshot of that shape is needed
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// What becomes of a guest that cannot be given names, keys and random numbers of its own
    #[arg(long, value_enum, default_value = "require", hide = true)]
    identity: Identity,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but names
    #[arg(short, long)]
    quiet: bool,
    #[arg(
        value_name = "MACHINE|REF",
        help = "What to fork: a machine's name or id, or NAME[/VARIANT][:TAG][@sha256:…] or sha256:…"
    )]
    target: String,
}

#[derive(Serialize)]
struct Report {
    snapshot: Digest,
    /// None for a template: it was captured before.
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_us: Option<u64>,
    elapsed_ms: u64,
    machines: Vec<Machine>,
    failed: Vec<String>,
}

#[derive(Serialize)]
struct Machine {
    name: String,
    ready_after_ms: u64,
}

impl From<Forked> for Machine {
    fn from(Forked { name, ready_after_ms }: Forked) -> Self {
        Self { name, ready_after_ms }
    }
}

impl ForkArgs {
    fn request(&self, reference: Reference) -> Result<ForkRequest, CliError> {
        let machine = CreateRequest {
            name: self.name.clone(),
            vcpus: self.vcpus,
            memory: self.memory,
            restore: RestoreChoice::Require,
            ..CreateRequest::new(reference)
        };
        self.each.request(machine, self.identity, true)
    }
}

pub(crate) fn run(context: &Context, args: &ForkArgs) -> CliResult {
    let begun = Instant::now();
    let named = named(context, &args.target)?;
    let reporter = context.reporter(args.quiet || context.progress_mode() == ProgressMode::Auto);
    let (report, paused_us) = match named {
        Named::Template(reference) => {
            let mut request = args.request(reference)?;
            request.machine.ssh_keys = usual(context, &request.machine.reference)?;
            (context.engine.fork(&request, &reporter)?, None)
        }
        Named::Machine(machine) => {
            if args.memory.is_some() || args.vcpus.is_some() {
                let what = format!("machine `{}`: its forks have its memory and processors", args.target);
                return Err(CliError::Usage(what));
            }
            let request = args.request(Reference::of_digest(machine.record.revision))?;
            let id = machine.record.id.as_str();
            let (report, captured) = context.engine.fork_machine(id, &request, &reporter)?;
            (report, Some(captured.paused_us))
        }
    };
    drop(reporter);
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (machines, failed) = tell_failed(report.machines);
    let machines: Vec<Machine> = machines.into_iter().map(Machine::from).collect();
    if args.json {
        let all = failed.is_empty();
        output::json(Report { snapshot: report.snapshot, paused_us, elapsed_ms, machines, failed });
        return Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    for machine in &machines {
        output::line(&machine.name);
    }
    if !args.quiet {
        let count = kiln_core::text::count(u32::try_from(machines.len()).unwrap_or(u32::MAX), "machine");
        let from = match paused_us {
            Some(_) => args.target.clone(),
            None => report.snapshot.short(),
        };
        let stood = paused_us
            .map_or_else(String::new, |paused| format!("; it stood still for {}", output::micros(paused)));
        output::tell(&format!("{count} forked from {from} in {}{stood}", output::span(elapsed_ms)));
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
