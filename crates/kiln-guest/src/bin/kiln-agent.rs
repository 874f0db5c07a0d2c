//! The static guest agent; see [`kiln_guest::agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kiln_guest::agent::main(std::env::args_os().skip(1))
}
