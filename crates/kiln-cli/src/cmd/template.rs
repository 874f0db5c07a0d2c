//! `kiln template`: what is done with a template as a whole.

mod test;

pub(super) use test::summary;

use super::Context;
use crate::error::CliResult;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct TemplateArgs {
    #[command(subcommand)]
    command: TemplateCommand,
}

#[derive(Debug, Subcommand)]
enum TemplateCommand {
    /// Restore several machines from a template's snapshot, and check them
    Test(test::TestArgs),
}

pub(crate) fn run(context: &Context, args: &TemplateArgs) -> CliResult {
    match &args.command {
        TemplateCommand::Test(args) => test::run(context, args),
    }
}
