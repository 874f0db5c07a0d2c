//! `kiln history`, `kiln rollback`, `kiln untag`: where tags were, and back.

use super::Context;
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{Digest, Reference, RevisionSelector, Tag, TemplateName};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
The latest move comes first. A tag that was removed still has its history, and kiln rollback
brings it back.

Examples:
  kiln history web
  kiln history web:v1 --json")]
pub(crate) struct HistoryArgs {
    #[arg(help = "NAME[:TAG]")]
    tag: Reference,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Undoes the tag's last move; a second rollback undoes the first. --to takes any revision the tag
had (kiln history). A tag that was removed comes back. Machines stay what they are.

Examples:
  kiln rollback web
  kiln rollback web:stable --to sha256:0123abcd")]
pub(crate) struct RollbackArgs {
    #[arg(help = "NAME[:TAG]")]
    tag: Reference,
    /// A revision the tag had
    #[arg(long, value_name = "REVISION")]
    to: Option<Reference>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Its revision stays until kiln gc finds that nothing keeps it; kiln rm removes both at once.

Examples:
  kiln untag web:v1")]
pub(crate) struct UntagArgs {
    #[arg(help = "NAME[:TAG]")]
    tags: Vec<String>,
}

#[derive(Serialize)]
struct Line {
    at_unix_ms: u64,
    from: Option<Digest>,
    to: Digest,
    by: String,
    /// Whether the revision is still in the store.
    kept: bool,
}

/// Takes a reference for the name of a tag.
fn tag_of(reference: &Reference) -> Result<(&TemplateName, &Tag), CliError> {
    match (&reference.revision, &reference.variant) {
        (RevisionSelector::Tagged { template, tag, digest: None }, None) => Ok((template, tag)),
        _ => Err(CliError::Usage(format!("`{reference}` is not a tag: NAME[:TAG] is"))),
    }
}

pub(crate) fn history(context: &Context, args: &HistoryArgs) -> CliResult {
    let (template, tag) = tag_of(&args.tag)?;
    let (record, there) = context.engine.history(template, tag)?;
    let store = context.engine.store();
    let lines: Vec<Line> = record
        .log
        .iter()
        .rev()
        .map(|step| Line {
            at_unix_ms: step.at_unix_ms,
            from: step.from,
            to: step.to,
            by: step.by.clone(),
            kept: store.revision(&step.to).is_ok(),
        })
        .collect();
    if args.json {
        output::json_list(lines);
        return Ok(ExitCode::SUCCESS);
    }
    if !there {
        output::tell(&format!("{template}:{tag} was removed; kiln rollback {template}:{tag} brings it back"));
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let gone = if line.kept { "" } else { " (collected)" };
            vec![
                output::ago(line.at_unix_ms),
                line.by.clone(),
                line.from.map_or_else(|| "-".to_owned(), |from| from.short()),
                format!("{}{gone}", line.to.short()),
            ]
        })
        .collect();
    output::table(&["WHEN", "BY", "FROM", "TO"], &rows);
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn rollback(context: &Context, args: &RollbackArgs) -> CliResult {
    let (template, tag) = tag_of(&args.tag)?;
    let revision = context.engine.rollback(template, tag, args.to.as_ref(), &context.reporter(false))?;
    output::tell(&format!("{template}:{tag} is {revision}"));
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn untag(context: &Context, args: &UntagArgs) -> CliResult {
    if args.tags.is_empty() {
        return Err(CliError::Usage("which tag? NAME[:TAG]".to_owned()));
    }
    super::for_each(&args.tags, |text| {
        let reference: Reference =
            text.parse().map_err(|error| CliError::Usage(kiln_core::text::chain(&error)))?;
        let (template, tag) = tag_of(&reference)?;
        context.engine.untag(template, tag, &context.reporter(false))?;
        super::echo(&format!("{template}:{tag}"));
        Ok(())
    })
}
