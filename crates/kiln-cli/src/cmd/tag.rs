//! `kiln tag`.

use super::Context;
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{Reference, RevisionSelector};
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln tag web web:v1\n  kiln tag sha256:0123abcd web:stable")]
pub(crate) struct TagArgs {
    /// What gets the new name
    source: Reference,
    #[arg(help = "The new name: NAME[:TAG]")]
    target: Reference,
}

pub(crate) fn run(context: &Context, args: &TagArgs) -> CliResult {
    let RevisionSelector::Tagged { template, tag, digest: None } = &args.target.revision else {
        return Err(CliError::Usage(format!("`{}` cannot be a new name: NAME[:TAG] can", args.target)));
    };
    if args.target.variant.is_some() || args.source.variant.is_some() {
        return Err(CliError::Usage("a variant is part of a revision and has no tag of its own".to_owned()));
    }
    let revision = context.engine.tag(&args.source, template, tag, &context.reporter(false))?;
    output::tell(&format!("{template}:{tag} is {revision}"));
    Ok(ExitCode::SUCCESS)
}
