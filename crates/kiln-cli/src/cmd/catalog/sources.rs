//! `kiln catalog add`, `rm` and `sources`: catalogs over the one that comes with kiln.

use super::super::Context;
use crate::error::{self, CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::catalog::{BUILT_IN_NAME, CatalogName, CatalogPlace, Fingerprint, KeySource, local_address};
use kiln_core::text::{chain, count};
use kiln_engine::catalogs::{CatalogEntry, NewCatalog};
use kiln_sys::fs;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
A file is copied, and not looked at again. A catalog of the web is signed by one of --signer: it is
clear-signed, or its signature lies beside it (.asc, else .sig). kiln catalog update fetches it
again.

Examples:
  kiln catalog add site.toml
  kiln catalog add https://images.example/catalog.toml --name site --signer FINGERPRINT
  kiln catalog add /mnt/disk/catalog.toml --name disk")]
pub(super) struct AddArgs {
    /// The catalog: a file, or the http:// or https:// address of one
    #[arg(value_name = "FILE|URL")]
    place: CatalogPlace,
    /// What it is called here [default: the file's name without its ending]
    #[arg(long)]
    name: Option<CatalogName>,
    /// The whole fingerprint of a key that may sign it
    #[arg(long = "signer", value_name = "FINGERPRINT")]
    signers: Vec<Fingerprint>,
    /// Where signers' keys are [default: beside the catalog, .key added to its name]
    #[arg(long = "key", value_name = "FILE|URL", requires = "signers")]
    keys: Vec<String>,
    /// Take a catalog of the web that nobody has to sign
    #[arg(long, conflicts_with = "signers")]
    unsigned: bool,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What was pulled of its images stays and runs.

Examples:
  kiln catalog rm site")]
pub(super) struct RmArgs {
    /// The catalogs
    #[arg(required = true)]
    names: Vec<CatalogName>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A later one goes over an earlier one.

Examples:
  kiln catalog sources
  kiln catalog sources --json | jq -r '.[].source'")]
pub(super) struct SourcesArgs {
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// A catalog, as it is shown.
#[derive(Serialize)]
pub(super) struct Shown {
    name: String,
    /// Where it is from; none of the built-in one, and of one that somebody put there.
    source: Option<String>,
    images: usize,
    signers: Vec<String>,
    signer: Option<String>,
    serial: Option<String>,
    fetched_unix_ms: Option<u64>,
}

#[derive(Serialize)]
struct Added {
    #[serde(flatten)]
    catalog: Shown,
    /// Names that were known and mean something of it now, and what.
    overridden: BTreeMap<String, String>,
}

impl Shown {
    pub(super) fn of(entry: &CatalogEntry) -> Self {
        Self {
            name: entry.name.to_string(),
            source: entry.place.as_ref().map(CatalogPlace::address),
            images: entry.images,
            signers: entry.signers.iter().map(ToString::to_string).collect(),
            signer: entry.signer.map(|signer| signer.to_string()),
            serial: entry.serial.map(|serial| serial.to_string()),
            fetched_unix_ms: entry.fetched_unix_ms,
        }
    }
}

/// Returns the place with the whole path of a file.
fn whole(place: &CatalogPlace) -> Result<CatalogPlace, CliError> {
    Ok(match place {
        CatalogPlace::File(path) => CatalogPlace::File(fs::canonicalize(path)?),
        web @ CatalogPlace::Web(_) => web.clone(),
    })
}

fn key(text: &str) -> Result<KeySource, CliError> {
    if text.starts_with("https://") || text.starts_with("http://") {
        return Ok(KeySource::Address(text.to_owned()));
    }
    Ok(KeySource::Address(local_address(&fs::canonicalize(Path::new(text))?)))
}

pub(super) fn add(context: &Context, args: &AddArgs) -> CliResult {
    let place = whole(&args.place)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => place
            .default_name()
            .map_err(|error| CliError::Usage(format!("{}: name it with --name", chain(&error))))?,
    };
    let keys = args.keys.iter().map(|text| key(text)).collect::<Result<_, _>>()?;
    let new = NewCatalog { name, place, signers: args.signers.clone(), keys, unsigned: args.unsigned };
    let reporter = context.reporter(args.quiet);
    let added = context.engine.add_catalog(&new, &reporter)?;
    drop(reporter);
    let entry = &added.entry;
    if !args.quiet {
        let images = count(entry.images, "image");
        let by = match (&new.place, entry.signer) {
            (_, Some(signer)) => format!("signed by {signer}"),
            (CatalogPlace::File(path), None) => format!("copied from {}", path.display()),
            (CatalogPlace::Web(_), None) => "signed by nobody".to_owned(),
        };
        output::tell(&format!("catalog {} added: {images}, {by}", entry.name));
        if !added.overridden.is_empty() {
            let names: Vec<&str> = added.overridden.iter().map(|(name, _)| name.as_str()).collect();
            output::tell(&format!("these names mean its images now: {}", names.join(", ")));
        }
    }
    if args.json {
        output::json(Added { catalog: Shown::of(entry), overridden: added.overridden.into_iter().collect() });
    } else {
        output::line(entry.name.as_str());
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rm(context: &Context, args: &RmArgs) -> CliResult {
    let mut failed = 0;
    for name in &args.names {
        match context.engine.remove_catalog(name, &context.reporter(false)) {
            Ok(()) => output::line(name.as_str()),
            Err(error) => {
                error::tell(&error.into());
                failed += 1;
            }
        }
    }
    let all = args.names.len();
    if failed > 0 { Err(CliError::Some { failed, all }) } else { Ok(ExitCode::SUCCESS) }
}

pub(super) fn sources(context: &Context, args: &SourcesArgs) -> CliResult {
    let images = kiln_core::catalog::Catalog::built_in().distributions().map(|it| it.releases.len()).sum();
    let mut shown = vec![Shown {
        name: BUILT_IN_NAME.to_owned(),
        source: None,
        images,
        signers: Vec::new(),
        signer: None,
        serial: None,
        fetched_unix_ms: None,
    }];
    shown.extend(context.engine.catalogs()?.iter().map(Shown::of));
    if args.json {
        output::json_list(&shown);
    } else if args.quiet {
        output::data(&shown.iter().map(|it| format!("{}\n", it.name)).collect::<String>());
    } else {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let rows: Vec<Vec<String>> = shown
            .iter()
            .map(|it| {
                vec![
                    it.name.clone(),
                    it.images.to_string(),
                    or_none(&it.source),
                    or_none(&it.signer),
                    or_none(&it.serial),
                    it.fetched_unix_ms.map_or_else(|| "-".to_owned(), output::ago),
                ]
            })
            .collect();
        output::table(&["CATALOG", "IMAGES", "SOURCE", "SIGNED BY", "SERIAL", "FETCHED"], &rows);
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches the catalogs of the web anew; returns what came of them, and how many failed.
pub(super) fn refresh(context: &Context, quiet: bool) -> Result<(Vec<Shown>, usize), CliError> {
    let (mut shown, mut failed) = (Vec::new(), 0);
    for entry in context.engine.catalogs()? {
        let reporter = context.reporter(quiet);
        let refreshed = context.engine.refresh_catalog(&entry.name, &reporter);
        drop(reporter);
        match refreshed {
            Ok(None) => {}
            Ok(Some(refreshed)) => {
                if !quiet {
                    let serial = refreshed.entry.serial.map(|serial| format!(" of {serial}"));
                    let state = if refreshed.changed { "is new" } else { "is here already" };
                    output::tell(&format!("catalog {}{} {state}", entry.name, serial.unwrap_or_default()));
                }
                shown.push(Shown::of(&refreshed.entry));
            }
            Err(error) => {
                error::tell(&error.into());
                failed += 1;
            }
        }
    }
    Ok((shown, failed))
}
