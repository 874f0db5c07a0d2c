//! `kiln rm`: machines by name, templates by reference, disks of other programs by owner.

use super::{Context, echo, for_each};
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{ByteSize, DiskOwner, Reference};
use kiln_engine::EngineError;

#[derive(Debug, Args)]
#[command(after_help = "\
A name is a machine's where one has it, else a template's. NAME:TAG and sha256:… are always
templates. Removing a tag removes its revision only when no other tag has it and no machine or
disk uses it. Snapshots that its builds made go with it; while there are others, it is not removed:
kiln snapshot rm removes them.

Examples:
  kiln rm web-1a2b
  kiln rm -f w1 w2
  kiln rm web:v1
  kiln rm --disk job-17              what a program with its own machine monitor left
  kiln rm --all --force              every machine")]
pub(crate) struct RmArgs {
    /// Machines, references or digests
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
    /// End machines that run
    #[arg(short, long)]
    force: bool,
    /// Take every name for a machine's
    #[arg(long, conflicts_with = "template")]
    machine: bool,
    /// Take every name for a template's
    #[arg(long)]
    template: bool,
    /// Take every name for the owner of a disk of another program's
    #[arg(long, conflicts_with_all = ["machine", "template", "all", "force"])]
    disk: bool,
    /// Every machine
    #[arg(short, long, conflicts_with_all = ["names", "template"])]
    all: bool,
}

pub(crate) fn run(context: &Context, args: &RmArgs) -> CliResult {
    let names = if args.all {
        context.engine.machines()?.into_iter().map(|(id, _)| id.to_string()).collect()
    } else {
        args.names.clone()
    };
    for_each(&names, |name| {
        if args.disk {
            return release_disk(context, name);
        }
        let is_template = args.template || (!args.machine && !args.all && name.contains([':', '@', '/']));
        if is_template {
            return remove_template(context, name);
        }
        match context.engine.remove_machine(name, args.force) {
            Ok(()) => {
                echo(name);
                Ok(())
            }
            Err(EngineError::NoMachine { name: wanted, similar }) if !args.machine && !args.all => {
                match remove_template(context, name) {
                    Err(CliError::Engine(EngineError::Store(kiln_store::StoreError::NotFound {
                        similar: s,
                        ..
                    }))) if s.is_empty() => Err(EngineError::NoMachine { name: wanted, similar }.into()),
                    other => other,
                }
            }
            Err(error) => Err(error.into()),
        }
    })
}

fn release_disk(context: &Context, name: &str) -> Result<(), CliError> {
    let owner: DiskOwner = name.parse().map_err(|error| CliError::Usage(kiln_core::text::chain(&error)))?;
    let store = context.engine.store();
    if store.disks(context.engine.cancel()).release(&owner)? {
        echo(name);
        return Ok(());
    }
    let owners = store.disk_owners()?;
    let near = kiln_core::text::nearest(name, owners.iter().map(DiskOwner::as_str));
    let similar = near.map(str::to_owned).into_iter().collect();
    Err(kiln_store::StoreError::NotFound { kind: "disk", name: name.to_owned(), similar }.into())
}

fn remove_template(context: &Context, name: &str) -> Result<(), CliError> {
    let reference: Reference =
        name.parse().map_err(|error| CliError::Usage(kiln_core::text::chain(&error)))?;
    if reference.variant.is_some() {
        let text = format!("`{reference}`: a variant is part of a revision and goes with it");
        return Err(CliError::Usage(text));
    }
    let report = context.engine.remove_template(&reference, &context.reporter(false))?;
    for tag in &report.untagged {
        output::line(&format!("untagged {tag}"));
    }
    if let Some(revision) = report.revision {
        let freed = ByteSize::from_bytes(report.removed.bytes).human();
        output::line(&format!("removed {revision} ({freed} freed)"));
    }
    Ok(())
}
