//! A name on the command line that may be a machine's or a template's.

use super::Context;
use crate::error::CliError;
use kiln_core::Reference;
use kiln_core::text::chain;
use kiln_engine::EngineError;
use kiln_store::MachineEntry;

/// What such a name means.
pub(super) enum Named {
    Machine(Box<MachineEntry>),
    Template(Reference),
}

/// Finds out what a name means. One that means both is refused: neither is more likely to be meant.
pub(super) fn named(context: &Context, name: &str) -> Result<Named, CliError> {
    let machine = match context.engine.find_machine(name) {
        Ok(machine) => Some(Box::new(machine)),
        Err(EngineError::NoMachine { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let reference = name.parse::<Reference>().map_err(|error| CliError::Usage(chain(&error)));
    match (machine, reference) {
        (Some(machine), Ok(reference)) if context.engine.knows(&reference) => {
            let id = &machine.record.id;
            Err(CliError::Usage(format!(
                "`{name}` is a machine and a template: the machine is {id}, the template {name}:latest"
            )))
        }
        (Some(machine), _) => Ok(Named::Machine(machine)),
        (None, reference) => Ok(Named::Template(reference?)),
    }
}
