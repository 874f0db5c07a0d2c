//! `kiln completion`: scripts for shells.

use crate::args::Cli;
use crate::error::CliResult;
use crate::output;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln completion bash > /etc/bash_completion.d/kiln\n  kiln completion fish > ~/.config/fish/completions/kiln.fish"
)]
pub(crate) struct CompletionArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &CompletionArgs) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kiln", &mut script);
    output::data(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}
