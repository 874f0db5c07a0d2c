//! `kiln start`.

use super::{Context, echo, for_each};
use crate::error::CliResult;
use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "A machine keeps its disk over stop and start.\n\nExamples:\n  kiln start web-1a2b")]
pub(crate) struct StartArgs {
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &StartArgs) -> CliResult {
    let reporter = context.reporter(false);
    for_each(&args.machines, |name| {
        context.engine.start(name, &reporter)?;
        echo(name);
        Ok(())
    })
}
