//! `kiln wait`.

use super::{Context, for_each};
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::time::Milliseconds;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
#[command(after_help = "\
Prints why each machine ended. With --ready it prints each machine's name once it is ready, and
fails when one has ended or the time has passed; [ready] in kiln.toml says what ready means.

Examples:
  kiln wait web-1a2b
  kiln wait --ready --timeout 60s web-1a2b")]
pub(crate) struct WaitArgs {
    /// Machines
    #[arg(required = true)]
    machines: Vec<String>,
    /// Wait until they are ready, not until they end
    #[arg(long)]
    ready: bool,
    /// The longest time to wait for all of them, such as 500ms, 60s or 2m [default: no limit]
    #[arg(long, value_name = "TIME", requires = "ready")]
    timeout: Option<Milliseconds>,
}

pub(crate) fn run(context: &Context, args: &WaitArgs) -> CliResult {
    if args.ready {
        return ready(context, args);
    }
    for_each(&args.machines, |name| {
        let entry = context.engine.find_machine(name)?;
        let end = context.engine.wait_ended(&entry)?.and_then(|entry| entry.status.end);
        output::line(&end.map_or_else(|| "removed".to_owned(), |end| end.to_string()));
        Ok(())
    })
}

fn ready(context: &Context, args: &WaitArgs) -> CliResult {
    let begun = Instant::now();
    let within = args.timeout.map(Duration::from);
    for_each(&args.machines, |name| {
        super::suspend::wake(context, name)?;
        let left = within.map(|within| within.saturating_sub(begun.elapsed()));
        context.engine.wait_ready(name, left).map_err(|error| match error {
            // The whole time was waited, for the machines before this one too.
            kiln_engine::EngineError::NotReady { name, within: left } => {
                kiln_engine::EngineError::NotReady { name, within: within.unwrap_or(left) }
            }
            error => error,
        })?;
        output::line(name);
        Ok(())
    })
}
