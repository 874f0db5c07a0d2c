//! `kiln show`: everything about one template, revision or machine.

use super::snapshot::Brief;
use super::{Context, ps};
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::revision::Manifest;
use kiln_core::{Digest, DiskOwner, Reference};
use kiln_engine::EngineError;
use kiln_store::{BuildRecord, StoreError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
A name is a template's where one has it, else a machine's.

Examples:
  kiln show web
  kiln show web:v1 --json | jq .manifest.artifacts
  kiln show web-1a2b")]
pub(crate) struct ShowArgs {
    /// A reference, digest or machine
    name: String,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Take the name for a machine's
    #[arg(long)]
    machine: bool,
}

#[derive(Serialize)]
struct Shown {
    revision: Digest,
    tags: Vec<String>,
    machines: Vec<String>,
    /// Owners of disks of other programs.
    disks: Vec<DiskOwner>,
    manifest: Manifest,
    /// What protects the file of each artifact, by its role.
    protection: BTreeMap<String, &'static str>,
    /// The newest first.
    snapshots: Vec<Brief>,
    build: Option<BuildRecord>,
}

pub(crate) fn run(context: &Context, args: &ShowArgs) -> CliResult {
    if args.machine {
        return machine(context, args);
    }
    let reference: Reference =
        args.name.parse().map_err(|error| CliError::Usage(kiln_core::text::chain(&error)))?;
    let store = context.engine.store();
    let revision = match store.resolve(&reference) {
        Ok(revision) => revision,
        Err(error @ StoreError::NotFound { kind: "template", .. }) => {
            return match machine(context, args) {
                Err(CliError::Engine(EngineError::NoMachine { .. })) => Err(error.into()),
                other => other,
            };
        }
        Err(error) => return Err(error.into()),
    };
    let mut protection = BTreeMap::new();
    for artifact in &revision.manifest.artifacts {
        protection.insert(artifact.role.to_string(), store.protection(&artifact.digest)?.as_str());
    }
    let shown = Shown {
        protection,
        // A tag that cannot be read is told by the list of tags.
        tags: store
            .tags()?
            .iter()
            .filter(|entry| entry.record.as_ref().is_ok_and(|record| record.revision == revision.id))
            .map(|entry| format!("{}:{}", entry.template, entry.tag))
            .collect(),
        machines: store.machines_of(&revision.id)?,
        disks: store.disks_of(&revision.id)?,
        snapshots: store.snapshots_of(&revision.id)?.iter().map(Brief::of).collect(),
        build: store.build_record(&revision.id)?,
        revision: revision.id,
        manifest: revision.manifest,
    };
    if args.json {
        output::json(shown);
    } else {
        render(&shown);
    }
    Ok(ExitCode::SUCCESS)
}

fn machine(context: &Context, args: &ShowArgs) -> CliResult {
    let entry = context.engine.find_machine(&args.name)?;
    let (dir, boot_args) = (entry.dir.display().to_string(), entry.record.boot_args.join(" "));
    let disk = entry.record.clone.clone();
    let private = context.engine.private_names(&entry)?;
    let line = ps::Line::new(entry, private);
    if args.json {
        output::json(line);
        return Ok(ExitCode::SUCCESS);
    }
    #[expect(clippy::unwrap_used, reason = "what is printed is plain data")]
    let value = serde_json::to_value(&line).unwrap();
    let mut rows = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        rows.push(vec![key.clone(), text]);
    }
    rows.push(vec!["boot_args".to_owned(), boot_args]);
    rows.push(vec![
        "disk".to_owned(),
        format!("{} of {} by {}", disk.size.human(), disk.artifact.short(), disk.method),
    ]);
    rows.push(vec!["directory".to_owned(), dir]);
    output::table(&["MACHINE", ""], &rows);
    Ok(ExitCode::SUCCESS)
}

/// Returns one word where all artifacts have the same protection, else one for each.
fn protection(of: &BTreeMap<String, &'static str>) -> String {
    let mut words = of.values();
    let first = words.next().copied().unwrap_or_default();
    if words.all(|word| *word == first) {
        return first.to_owned();
    }
    of.iter().map(|(role, word)| format!("{role} {word}")).collect::<Vec<_>>().join(", ")
}

fn render(shown: &Shown) {
    let manifest = &shown.manifest;
    let disks: Vec<&str> = shown.disks.iter().map(DiskOwner::as_str).collect();
    let mut rows = vec![
        vec!["revision".to_owned(), shown.revision.to_string()],
        vec!["tags".to_owned(), shown.tags.join(", ")],
        vec!["machines".to_owned(), shown.machines.join(", ")],
        vec!["disks".to_owned(), disks.join(", ")],
        vec!["arch".to_owned(), manifest.arch.to_string()],
        vec![
            "machine".to_owned(),
            format!(
                "{} vcpu, {} memory, board {}",
                manifest.machine.vcpus,
                manifest.machine.memory.human(),
                manifest.machine.board.as_str()
            ),
        ],
        vec!["boot args".to_owned(), manifest.boot_args.join(" ")],
    ];
    if let Some(ready) = &manifest.ready {
        rows.push(vec!["ready".to_owned(), ready.check.to_string()]);
    }
    if let Some(plan) = &manifest.snapshot {
        let words = plan.warm_up.iter().map(|command| kiln_core::text::clip(&command.join(" ")));
        rows.extend(words.map(|words| vec!["warm-up".to_owned(), words]));
        if plan.drop_caches {
            rows.push(vec!["warm-up".to_owned(), "drop caches".to_owned()]);
        }
    }
    if let Some(seed) = &manifest.seed {
        let user_data = seed.user_data.as_ref().map(|text| format!(", {} bytes of user data", text.len()));
        let user = seed.user.as_ref().map(|user| format!(", user {user}"));
        rows.push(vec![
            "seed".to_owned(),
            format!("{}{}{}", seed.kind.as_str(), user_data.unwrap_or_default(), user.unwrap_or_default()),
        ]);
    }
    for artifact in &manifest.artifacts {
        let text = format!("{}  {} {}", artifact.digest, artifact.size.human(), artifact.format.as_str());
        rows.push(vec![artifact.role.to_string(), text]);
    }
    rows.push(vec!["protection".to_owned(), protection(&shown.protection)]);
    for variant in &manifest.variants {
        let shape = variant.shape(&manifest.machine);
        let text = format!("{} vcpu, {} memory", shape.vcpus, shape.memory.human());
        rows.push(vec![format!("variant {}", variant.name), text]);
    }
    for snapshot in &shown.snapshots {
        rows.push(vec!["snapshot".to_owned(), snapshot.line()]);
    }
    if let Some(build) = &shown.build {
        let text = format!(
            "{} as {}, {}",
            output::ago(build.built_unix_ms),
            build.template,
            output::span(build.elapsed_ms)
        );
        rows.push(vec!["built".to_owned(), text]);
        rows.extend(build.facts.iter().map(|(key, value)| vec![key.clone(), value.clone()]));
    }
    output::table(&["REVISION", ""], &rows);
}
