//! `kiln schema`: the JSON Schema of the recipe.

use crate::error::CliResult;
use crate::output;
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln schema > kiln.schema.json")]
pub(crate) struct SchemaArgs {}

pub(crate) fn run(_args: &SchemaArgs) -> CliResult {
    output::line(&format!("{:#}", kiln_core::recipe::json_schema()));
    Ok(ExitCode::SUCCESS)
}
