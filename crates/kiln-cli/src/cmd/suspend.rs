//! `kiln suspend`, and waking what suspends itself.

use super::{Context, echo, for_each};
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::TimeSpan;
use kiln_engine::suspend::Woken;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Memory, processors and devices are written to a file in the machine's directory, and nothing of it
runs any more. kiln resume, or kiln start, lets it go on where it stood, its clock set right;
kiln start --boot discards what was saved. Commands that are attached to it lose their connection.
Its time to live goes on. When it cannot be saved, it goes on.

Examples:
  kiln suspend w1 w2
  kiln resume w1
  kiln run -d --name web --idle-suspend 10m -p 8080:80 web")]
pub(crate) struct SuspendArgs {
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
}

pub(crate) fn run(context: &Context, args: &SuspendArgs) -> CliResult {
    for_each(&args.machines, |name| {
        let suspended = context.engine.suspend(name)?;
        let took_ms = u64::try_from(suspended.took.as_millis()).unwrap_or(u64::MAX);
        let (state, took) = (suspended.state.human(), output::span(took_ms));
        output::tell(&format!("{name} is suspended: {state} saved in {took}"));
        echo(name);
        Ok(())
    })
}

/// Starts a machine that was suspended because it was idle, and says so.
pub(crate) fn wake(context: &Context, name: &str) -> Result<(), CliError> {
    let reporter = context.reporter(true);
    if let Some(woken) = context.engine.wake(name, &reporter)? {
        drop(reporter);
        tell_woken(&woken);
    }
    Ok(())
}

pub(crate) fn tell_woken(woken: &Woken) {
    output::tell(&format!("{} was suspended: resumed in {}", woken.name, output::span(woken.after_ms)));
}

/// Returns after how long without work a machine is suspended.
pub(crate) fn idle_after(asked: Option<TimeSpan>) -> Result<Option<Duration>, CliError> {
    match asked {
        Some(time) if time == TimeSpan::default() => {
            Err(CliError::Usage("--idle-suspend 0 leaves a machine no time".to_owned()))
        }
        other => Ok(other.map(TimeSpan::get)),
    }
}
