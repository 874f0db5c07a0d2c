//! `kiln stop`.

use super::{Context, echo, for_each};
use crate::error::CliResult;
use clap::Args;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln stop web-1a2b\n  kiln stop -t 0 w1 w2      at once, without asking the guests"
)]
pub(crate) struct StopArgs {
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
    /// Seconds the guest has to power off by itself
    #[arg(short, long, default_value_t = 10)]
    time: u32,
}

pub(crate) fn run(context: &Context, args: &StopArgs) -> CliResult {
    for_each(&args.machines, |name| {
        context.engine.stop(name, Duration::from_secs(args.time.into()))?;
        echo(name);
        Ok(())
    })
}
