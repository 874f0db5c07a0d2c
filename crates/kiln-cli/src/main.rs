//! The program `kiln`: arguments, rendering, hints and exit codes. What it does is in `kiln-engine`.
//!
//! A command is parse, call, render: each file in `cmd` holds the arguments of one verb and the call they stand for.

mod args;
mod cmd;
mod env;
mod error;
mod hints;
mod output;
mod progress;
mod signals;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = std::panic::catch_unwind(|| match args::parse() {
        Ok(cli) => cmd::dispatch(cli),
        Err(error) => usage(&error),
    });
    result.unwrap_or(ExitCode::from(error::EXIT_BUG))
}

/// Prints help and version to standard output, usage errors to standard error.
fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell when standard error is closed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(error::EXIT_USAGE) } else { ExitCode::SUCCESS }
}
