//! `kiln pause` and `kiln resume`.

use super::{Context, echo, for_each};
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_engine::pause::Outcome;

#[derive(Debug, Args)]
#[command(after_help = "\
A paused machine keeps its memory and does nothing. Nobody reaches it until kiln resume;
kiln stop ends it. Its time to live goes on.

Examples:
  kiln pause w1 w2")]
pub(crate) struct PauseArgs {
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "The guest's clock is set right.\n\nExamples:\n  kiln resume w1 w2")]
pub(crate) struct ResumeArgs {
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
}

pub(crate) fn pause(context: &Context, args: &PauseArgs) -> CliResult {
    for_each(&args.machines, |name| {
        if context.engine.pause(name)? == Outcome::Already {
            output::tell(&format!("{name} is paused already"));
        }
        echo(name);
        Ok(())
    })
}

pub(crate) fn resume(context: &Context, args: &ResumeArgs) -> CliResult {
    for_each(&args.machines, |name| {
        if context.engine.resume(name)? == Outcome::Already {
            output::tell(&format!("{name} is running already"));
        }
        echo(name);
        Ok(())
    })
}
