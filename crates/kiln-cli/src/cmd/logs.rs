//! `kiln logs`: the console of a machine.

use super::Context;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_engine::machines::ConsoleReader;
use std::process::ExitCode;
use std::time::Duration;

/// Time between two looks at a console that is followed.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln logs web-1a2b\n  kiln logs -f web-1a2b")]
pub(crate) struct LogsArgs {
    /// The machine
    machine: String,
    /// Go on until the machine ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
}

pub(crate) fn run(context: &Context, args: &LogsArgs) -> CliResult {
    let entry = context.engine.find_machine(&args.machine)?;
    let mut reader = ConsoleReader::open(&entry);
    let mut bytes = reader.read_new()?;
    if let Some(lines) = args.tail {
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let start = text.iter().rposition({
            let mut left = lines;
            move |byte| {
                left -= usize::from(*byte == b'\n' && left > 0);
                *byte == b'\n' && left == 0
            }
        });
        bytes.drain(..if lines == 0 { bytes.len() } else { start.map_or(0, |at| at + 1) });
    }
    output::bytes(&bytes);
    if args.follow {
        follow(context, &args.machine, reader)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what the console says until the machine has ended.
pub(super) fn follow(
    context: &Context,
    machine: &str,
    mut reader: ConsoleReader,
) -> Result<(), crate::error::CliError> {
    loop {
        // Asked first, so that nothing said before the end is missed.
        let live = context.engine.find_machine(machine).is_ok_and(|entry| entry.status.phase.is_live());
        output::bytes(&reader.read_new()?);
        if !live {
            return Ok(());
        }
        if kiln_sys::lock::wait_cancelled(context.engine.cancel(), LOOK_AGAIN) {
            return Err(kiln_engine::EngineError::Cancelled.into());
        }
    }
}
