//! `kiln snapshot restore`.

use crate::cmd::Context;
use crate::cmd::each::{EachOptions, tell_failed};
use crate::cmd::run::{Identity, Net, network_of};
use crate::error::{CliError, CliResult};
use crate::output;
use crate::progress::ProgressMode;
use clap::Args;
use kiln_core::MachineName;
use kiln_core::machine::Forward;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Makes a machine that goes on as the captured one: with its memory, its disks as they were at that
instant, and names, keys and random numbers of its own. One without memory boots from the disk.
Leaves it running and prints its name.
With --in-place a machine that does not run is put back to the snapshot, under its own name and
with its own settings: what it was since is lost, and kiln start starts it.

Examples:
  kiln snapshot restore warm
  kiln snapshot restore -n 5 --rm --name try warm
  kiln snapshot restore --in-place db before-upgrade && kiln start db")]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    each: EachOptions,
    /// Its name; of several the beginning, which a number follows [default: the template's and four digits]
    #[arg(long)]
    name: Option<MachineName>,
    /// Boot from the disk, without the memory
    #[arg(long)]
    boot: bool,
    /// Put this machine back, which must not run, and make none
    #[arg(long, value_name = "MACHINE", conflicts_with_all = ["count", "name", "jobs", "publish", "net", "env", "env_file", "secret", "clone", "rm", "ttl", "idle_suspend"])]
    in_place: Option<String>,
    /// Publish a TCP port of the guest on 127.0.0.1
    #[arg(short, long, value_name = "HOST:GUEST")]
    publish: Vec<Forward>,
    /// The network [default: as it was captured, or restricted with -p]
    #[arg(long, value_enum, value_name = "MODE")]
    net: Option<Net>,
    /// Print nothing but names
    #[arg(short, long)]
    quiet: bool,
    /// The snapshot's name or id
    #[arg(value_name = "SNAP")]
    snapshot: String,
}

pub(super) fn run(context: &Context, args: &RestoreArgs) -> CliResult {
    let reporter = context.reporter(args.quiet || context.progress_mode() == ProgressMode::Auto);
    if let Some(machine) = &args.in_place {
        let entry = context.engine.put_back(machine, &args.snapshot, args.boot, &reporter)?;
        drop(reporter);
        if !args.quiet {
            let name = &entry.record.name;
            output::tell(&format!(
                "machine `{name}` is as snapshot {} again: kiln start {name}",
                args.snapshot
            ));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.each.count > 1 && !args.publish.is_empty() {
        return Err(CliError::Usage(
            "one port leads to one machine: -p goes with one machine only".to_owned(),
        ));
    }
    let (_, mut machine) = context.engine.machine_of_snapshot(&args.snapshot, args.boot)?;
    if args.net.is_some() || !args.publish.is_empty() {
        machine.network = network_of(args.net, args.publish.clone())?;
    }
    machine.name.clone_from(&args.name);
    let request = args.each.request(machine, Identity::Require, args.each.count > 1)?;
    let report = context.engine.fork(&request, &reporter)?;
    drop(reporter);
    let (made, failed) = tell_failed(report.machines);
    for machine in made {
        output::line(&machine.name);
        if !args.quiet {
            let after = output::span(machine.ready_after_ms);
            output::tell(&format!("{} is ready in {after}", machine.name));
        }
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
