//! `kiln wait`.

use super::{Context, for_each};
use crate::error::CliResult;
use crate::output;
use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "Prints why each machine ended.\n\nExamples:\n  kiln wait web-1a2b")]
pub(crate) struct WaitArgs {
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &WaitArgs) -> CliResult {
    for_each(&args.machines, |name| {
        let entry = context.engine.find_machine(name)?;
        let end = context.engine.wait_ended(&entry)?.and_then(|entry| entry.status.end);
        output::line(&end.map_or_else(|| "removed".to_owned(), |end| end.to_string()));
        Ok(())
    })
}
