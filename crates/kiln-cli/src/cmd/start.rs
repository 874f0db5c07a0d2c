//! `kiln start`.

use super::{Context, echo, for_each};
use crate::error::CliResult;
use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
A machine keeps its disk over stop and start. A suspended one goes on where it stood.

Examples:
  kiln start web-1a2b
  kiln start --boot w1       boot it though it is suspended; what was saved is gone")]
pub(crate) struct StartArgs {
    /// Discard what was saved of suspended machines: they boot
    #[arg(long)]
    boot: bool,
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &StartArgs) -> CliResult {
    let reporter = context.reporter(false);
    for_each(&args.machines, |name| {
        if args.boot {
            context.engine.discard_saved(name)?;
        }
        context.engine.start(name, &reporter)?;
        echo(name);
        Ok(())
    })
}
