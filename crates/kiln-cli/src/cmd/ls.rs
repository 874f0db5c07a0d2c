//! `kiln ls`: templates and their tags.

use super::Context;
use crate::error::{self, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{ByteSize, Digest};
use serde::Serialize;
use std::collections::HashSet;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln ls\n  kiln ls -q\n  kiln ls --json | jq -r '.[].revision'")]
pub(crate) struct LsArgs {
    /// Also list revisions without a tag
    #[arg(short, long)]
    all: bool,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
    /// Print references only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Line {
    template: Option<String>,
    tag: Option<String>,
    /// None for a tag that cannot be read.
    revision: Option<Digest>,
    /// Bytes of all artifacts, holes included.
    apparent_bytes: Option<u64>,
    variants: Vec<String>,
    built_unix_ms: Option<u64>,
    damaged: bool,
}

pub(crate) fn run(context: &Context, args: &LsArgs) -> CliResult {
    let mut lines = Vec::new();
    let mut tagged = HashSet::new();
    for line in context.engine.tag_lines()? {
        tagged.extend(line.revision);
        let damaged = line.content.is_err();
        let content = line.content.map_err(|error| error::tell(&error.into())).ok();
        lines.push(Line {
            template: Some(line.template.to_string()),
            tag: Some(line.tag.to_string()),
            revision: line.revision,
            apparent_bytes: content.as_ref().map(|content| content.apparent.bytes()),
            variants: content.iter().flat_map(|c| c.variants.iter().map(ToString::to_string)).collect(),
            built_unix_ms: line.built_unix_ms,
            damaged,
        });
    }
    if args.all {
        let all = context.engine.store().all_summaries()?.revisions;
        for summary in all.into_iter().filter(|summary| !tagged.contains(&summary.id)) {
            let content = summary.content.map_err(|error| error::tell(&error.into())).ok();
            lines.push(Line {
                template: None,
                tag: None,
                revision: Some(summary.id),
                apparent_bytes: content.as_ref().map(|content| content.apparent.bytes()),
                variants: Vec::new(),
                built_unix_ms: summary.built_unix_ms,
                damaged: content.is_none(),
            });
        }
    }
    render(args, &lines);
    Ok(ExitCode::SUCCESS)
}

fn render(args: &LsArgs, lines: &[Line]) {
    if args.json {
        return output::json_list(lines);
    }
    if args.quiet {
        let name = |line: &Line| match (&line.template, &line.tag) {
            (Some(template), Some(tag)) => format!("{template}:{tag}\n"),
            _ => line.revision.map_or_else(String::new, |id| format!("{id}\n")),
        };
        return output::data(&lines.iter().map(name).collect::<String>());
    }
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            vec![
                line.template.clone().unwrap_or_else(none),
                line.tag.clone().unwrap_or_else(none),
                line.revision.map_or_else(none, |id| id.short()),
                match line.apparent_bytes {
                    Some(bytes) => ByteSize::from_bytes(bytes).human(),
                    None => "damaged".to_owned(),
                },
                if line.variants.is_empty() { none() } else { line.variants.join(",") },
                line.built_unix_ms.map_or_else(none, output::ago),
            ]
        })
        .collect();
    output::table(&["TEMPLATE", "TAG", "REVISION", "SIZE", "VARIANTS", "BUILT"], &rows);
}
