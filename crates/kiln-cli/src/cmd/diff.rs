//! `kiln diff`: what differs between two revisions.

use super::Context;
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::{ByteSize, Reference};
use kiln_engine::diff::{
    ArtifactDiff, ArtifactSummary, Aspect, Change, DiffReport, DiffRequest, FileChange, FileDiff, FileFacts,
    FileKind, FileList, FileSum, PackageDiff,
};
use std::process::ExitCode;

/// Files that are listed where not all are asked for.
const LISTED_FILES: usize = 40;

#[derive(Debug, Args)]
#[command(after_help = "\
Compares settings, artifacts, packages (dpkg, apk, RPM, Nix store paths) and the files of the
root file systems: type, content, link target, device, mode and owner. Times and extended
attributes are not compared. Databases of RPM are listed by the host's rpm; where it is not
installed they are named as not read. Letters: A added, C changed, D removed.
Exits with 0 whether or not the two differ.

Examples:
  kiln diff web:v1 web:latest
  kiln diff web:v1 web --packages
  kiln diff web/small web/big
  kiln diff sha256:1a2b3c web --files --json | jq -r '.files.changes[].path'")]
pub(crate) struct DiffArgs {
    /// The revision before: a reference or digest
    a: String,
    /// The revision after
    b: String,
    /// List every changed file, not only the 40 largest
    #[arg(long)]
    files: bool,
    /// Compare packages only
    #[arg(long, conflicts_with = "files")]
    packages: bool,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(context: &Context, args: &DiffArgs) -> CliResult {
    let parse = |text: &str| -> Result<Reference, CliError> {
        text.parse().map_err(|error: kiln_core::reference::InvalidReference| {
            CliError::Usage(kiln_core::text::chain(&error))
        })
    };
    let files = match (args.files, args.packages) {
        (true, _) => FileList::All,
        (_, true) => FileList::None,
        _ => FileList::Largest(LISTED_FILES),
    };
    let request = DiffRequest { a: parse(&args.a)?, b: parse(&args.b)?, files };
    let report = context.engine.diff(&request)?;
    if args.json {
        output::json(report);
    } else {
        output::data(&render(&report));
    }
    Ok(ExitCode::SUCCESS)
}

fn render(report: &DiffReport) -> String {
    let mut text = String::new();
    let mut section = |part: String| {
        if !text.is_empty() && !part.is_empty() {
            text.push('\n');
        }
        text.push_str(&part);
    };
    if let Some(files) = &report.files {
        let rows = [("before", &report.a), ("after", &report.b)]
            .map(|(word, side)| vec![word.to_owned(), side.reference.clone(), side.revision.to_string()]);
        section(output::aligned(&["", "REFERENCE", "REVISION"], &rows));
        section(settings(report));
        if report.is_identical() {
            section("the same revision\n".to_owned());
            return text;
        }
        section(output::aligned(
            &["ARTIFACT", "BEFORE", "AFTER", "SHARED"],
            &report.artifacts.iter().map(artifact).collect::<Vec<_>>(),
        ));
        section(packages(&report.packages));
        section(self::files(files));
    } else {
        section(packages(&report.packages));
    }
    text
}

fn settings(report: &DiffReport) -> String {
    let value = |value: &Option<String>| value.as_deref().map_or_else(|| "-".to_owned(), plain);
    let rows: Vec<_> = report
        .settings
        .iter()
        .map(|setting| vec![setting.name.clone(), value(&setting.before), value(&setting.after)])
        .collect();
    if rows.is_empty() { String::new() } else { output::aligned(&["SETTING", "BEFORE", "AFTER"], &rows) }
}

fn artifact(line: &ArtifactDiff) -> Vec<String> {
    let digest = |summary: &ArtifactSummary| summary.digest.short();
    let (before, after) = (line.before.as_ref(), line.after.as_ref());
    let is_same = before.map(|summary| summary.digest) == after.map(|summary| summary.digest);
    let data =
        before.map_or(0, |summary| summary.data_bytes).max(after.map_or(0, |summary| summary.data_bytes));
    vec![
        line.role.to_string(),
        before.map_or_else(|| "-".to_owned(), digest),
        if is_same { "same".to_owned() } else { after.map_or_else(|| "-".to_owned(), digest) },
        format!("{} of {}", human(line.shared_bytes), human(data)),
    ]
}

fn packages(diff: &PackageDiff) -> String {
    let count = |change| diff.changes.iter().filter(|package| package.change == change).count();
    let mut text = format!(
        "packages: {} added, {} changed, {} removed\n",
        count(Change::Added),
        count(Change::Changed),
        count(Change::Removed)
    );
    let version = |version: &Option<String>| version.as_deref().map_or_else(|| "-".to_owned(), plain);
    let rows: Vec<_> = diff
        .changes
        .iter()
        .map(|package| {
            vec![
                letter(package.change).to_owned(),
                package.manager.as_str().to_owned(),
                plain(&package.name),
                version(&package.before),
                version(&package.after),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&output::aligned(&["", "MANAGER", "PACKAGE", "BEFORE", "AFTER"], &rows));
    }
    for database in &diff.not_read {
        text.push_str(&format!("not read: {}\n", plain(database)));
    }
    text
}

fn files(diff: &FileDiff) -> String {
    let sum = |word: &str, sum: &FileSum, bytes: u64| format!("{} {word} ({})", sum.count, human(bytes));
    let mut text = format!(
        "files: {}, {}, {}\n",
        sum("added", &diff.added, diff.added.bytes_after),
        sum("changed", &diff.changed, diff.changed.bytes_after),
        sum("removed", &diff.removed, diff.removed.bytes_before)
    );
    let rows: Vec<_> = diff.changes.iter().map(file).collect();
    if !rows.is_empty() {
        text.push_str(&output::aligned(&["", "BEFORE", "AFTER", "DIFFERS", "PATH"], &rows));
    }
    if diff.omitted > 0 {
        text.push_str(&format!("and {} more; --files lists them\n", diff.omitted));
    }
    text
}

fn file(change: &FileChange) -> Vec<String> {
    let facts = |facts: Option<FileFacts>| match facts {
        None => "-".to_owned(),
        Some(facts) if facts.kind == FileKind::File => human(facts.size),
        Some(facts) => facts.kind.as_str().to_owned(),
    };
    let aspects: Vec<String> = change.aspects.iter().map(|aspect| differs(*aspect, change)).collect();
    vec![
        letter(change.change).to_owned(),
        facts(change.before),
        facts(change.after),
        if aspects.is_empty() { "-".to_owned() } else { aspects.join(", ") },
        plain(&change.path),
    ]
}

/// Says in what a file differs, and how where that is short.
fn differs(aspect: Aspect, change: &FileChange) -> String {
    match (aspect, change.before, change.after) {
        (Aspect::Mode, Some(a), Some(b)) => format!("mode {:04o} to {:04o}", a.mode, b.mode),
        (Aspect::Owner, Some(a), Some(b)) => format!("owner {}:{} to {}:{}", a.uid, a.gid, b.uid, b.gid),
        (aspect, ..) => aspect.as_str().to_owned(),
    }
}

/// The letters of `docker diff`.
fn letter(change: Change) -> &'static str {
    match change {
        Change::Added => "A",
        Change::Changed => "C",
        Change::Removed => "D",
    }
}

fn human(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).human()
}

/// Returns an image's text with what could steer a terminal, or pass for another line, escaped.
fn plain(text: &str) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn names_from_images_do_not_steer_the_terminal() {
        assert_eq!(plain("/etc/a\x1b[2J\nb\u{202e}c \u{e9}"), "/etc/a\\u{1b}[2J\\nb\\u{202e}c \u{e9}");
    }
}
