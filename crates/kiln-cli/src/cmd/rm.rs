//! `kiln rm`: machines by name, templates by reference.

use super::{Context, echo, for_each};
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{ByteSize, Reference};
use kiln_engine::EngineError;

#[derive(Debug, Args)]
#[command(after_help = "\
A name is a machine's where one has it, else a template's. NAME:TAG and sha256:… are always templates.
Removing a tag removes its revision only when no other tag has it and no machine uses it.

Examples:
  kiln rm web-1a2b
  kiln rm -f w1 w2
  kiln rm web:v1
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
