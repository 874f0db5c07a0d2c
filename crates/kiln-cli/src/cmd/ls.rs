//! `kiln ls`: templates and their tags.

use super::Context;
use crate::error::{self, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{ByteSize, Digest};
use serde::Serialize;
use std::collections::BTreeSet;
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
    revision: Digest,
    /// Bytes of all artifacts, holes included.
    apparent_bytes: Option<u64>,
    variants: Vec<String>,
    built_unix_ms: Option<u64>,
    damaged: bool,
}

pub(crate) fn run(context: &Context, args: &LsArgs) -> CliResult {
    let mut lines = Vec::new();
    let mut tagged = BTreeSet::new();
    for line in context.engine.tag_lines()? {
        tagged.insert(line.revision);
        let damaged = line.content.is_err();
        let content = line.content.map_err(|error| error::tell(&error.into())).ok();
        lines.push(Line {
            template: Some(line.template.to_string()),
            tag: Some(line.tag.to_string()),
            revision: line.revision,
            apparent_bytes: content.as_ref().map(|revision| revision.manifest.apparent_size().bytes()),
            variants: content
                .iter()
                .flat_map(|r| r.manifest.variants.iter().map(|v| v.name.to_string()))
                .collect(),
            built_unix_ms: line.build.map(|build| build.built_unix_ms),
            damaged,
        });
    }
    if args.all {
        let store = context.engine.store();
        for id in store.revision_ids()?.into_iter().filter(|id| !tagged.contains(id)) {
            let content = store.revision(&id).map_err(|error| error::tell(&error.into())).ok();
            lines.push(Line {
                template: None,
                tag: None,
                revision: id,
                apparent_bytes: content.as_ref().map(|revision| revision.manifest.apparent_size().bytes()),
                variants: Vec::new(),
                built_unix_ms: store.build_record(&id)?.map(|build| build.built_unix_ms),
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
        for line in lines {
            match (&line.template, &line.tag) {
                (Some(template), Some(tag)) => output::line(&format!("{template}:{tag}")),
                _ => output::line(&line.revision.to_string()),
            }
        }
        return;
    }
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            vec![
                line.template.clone().unwrap_or_else(none),
                line.tag.clone().unwrap_or_else(none),
                line.revision.short(),
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
