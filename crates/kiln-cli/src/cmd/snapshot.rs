//! `kiln snapshot`: memory and disks of machines at one instant.

pub(super) mod create;
mod ls;
mod restore;
mod rm;
mod show;

use super::Context;
use crate::error::CliResult;
use crate::output;
use clap::{Args, Subcommand};
use kiln_core::Digest;
use kiln_core::snapshot::SnapshotKeep;
use kiln_store::Snapshot;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
A snapshot is named by the name it was given, its id, or the first 6 digits of that or more.

Examples:
  kiln snapshot create --name warm web -- /usr/bin/warm-up
  kiln snapshot ls
  kiln snapshot show warm
  kiln snapshot restore warm
  kiln snapshot rm warm")]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Capture a machine as it is, or one that is booted from a template for it
    Create(create::CreateArgs),
    /// List snapshots
    Ls(ls::LsArgs),
    /// Show a snapshot, its files and what it needs of a host
    Show(show::ShowArgs),
    /// Make machines that go on as a captured one, or put a machine back
    Restore(restore::RestoreArgs),
    /// Remove snapshots that no machine continues
    Rm(rm::RmArgs),
}

pub(crate) fn run(context: &Context, args: &SnapshotArgs) -> CliResult {
    match &args.command {
        SnapshotCommand::Create(args) => create::run(context, args),
        SnapshotCommand::Ls(args) => ls::run(context, args),
        SnapshotCommand::Show(args) => show::run(context, args),
        SnapshotCommand::Restore(args) => restore::run(context, args),
        SnapshotCommand::Rm(args) => rm::run(context, args),
    }
}

/// What a list says of a snapshot in a few words.
#[derive(Serialize)]
pub(super) struct Brief {
    snapshot: Digest,
    name: Option<String>,
    vmm: Option<String>,
    vmm_version: Option<String>,
    /// None for a snapshot of the disks only.
    memory_bytes: Option<u64>,
    created_unix_ms: Option<u64>,
    keep: &'static str,
}

impl Brief {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let facts = snapshot.manifest.memory.as_ref().map(|memory| &memory.compatibility);
        let fact = |name| facts.and_then(|facts| facts.get(name)).map(str::to_owned);
        let record = snapshot.record.as_ref();
        Self {
            snapshot: snapshot.id,
            name: record.and_then(|record| Some(record.name.as_ref()?.to_string())),
            vmm: fact("vmm"),
            vmm_version: fact("vmm_version").or_else(|| fact("vmm.version")),
            memory_bytes: facts.map(|_| snapshot.manifest.machine.memory.bytes()),
            created_unix_ms: record.map(|record| record.created_unix_ms),
            keep: snapshot.keep().as_str(),
        }
    }

    /// Returns one line: its name, the beginning of its id, the machine monitor and its age.
    pub(super) fn line(&self) -> String {
        let mut words: Vec<String> = self.name.iter().cloned().collect();
        words.push(self.snapshot.short());
        words.push(if self.memory_bytes.is_some() { self.vmm() } else { "disk only".to_owned() });
        words.extend(self.created_unix_ms.map(output::ago));
        words.join(", ")
    }

    /// Returns the machine monitor and its version; a snapshot of disks needs none.
    fn vmm(&self) -> String {
        let words: Vec<&str> =
            [&self.vmm, &self.vmm_version].into_iter().flatten().map(String::as_str).collect();
        if words.is_empty() { "-".to_owned() } else { words.join(" ") }
    }
}

/// Says for people how long a snapshot stays.
fn stays(keep: SnapshotKeep) -> &'static str {
    match keep {
        SnapshotKeep::Revision => "as long as its revision",
        SnapshotKeep::Machines => "as long as a machine continues it",
        _ => "until kiln snapshot rm",
    }
}
