//! `kiln catalog ls`, `search` and `show`.

use super::super::Context;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::catalog::{BUILT_IN_NAME, Distribution, ImageName, ImagePin, Release, Signature};
use kiln_core::{Arch, Date, Digest};
use kiln_engine::EngineError;
use kiln_engine::images::PulledImage;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln catalog ls\n  kiln catalog ls --all\n  kiln catalog ls --json | jq -r '.[].name'"
)]
pub(super) struct LsArgs {
    /// Also those that have no image for this host, and those that are not looked after any more
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln catalog search suse")]
pub(super) struct SearchArgs {
    /// A part of a name, a title or an alias
    word: String,
    #[command(flatten)]
    form: Form,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln catalog show ubuntu\n  kiln catalog show fedora:43 --json | jq .images"
)]
pub(super) struct ShowArgs {
    /// The image: NAME or NAME:RELEASE
    name: ImageName,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Form {
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// A release, as it is listed.
#[derive(Serialize)]
struct Line {
    name: String,
    title: String,
    aliases: Vec<String>,
    architectures: Vec<String>,
    /// `signature` or `checksum`: how an image of it is checked.
    verified_by: &'static str,
    end_of_life: Option<Date>,
    /// Whether the end of its life is over.
    over: bool,
    user: String,
    /// The catalog that says so.
    source: String,
    pulled: Option<Pulled>,
}

/// What is here of an image.
#[derive(Serialize)]
struct Pulled {
    revision: Digest,
    digest: String,
    serial: Option<String>,
    signer: Option<String>,
}

/// A release with its images.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    line: Line,
    images: Vec<ShownImage>,
}

#[derive(Serialize)]
struct ShownImage {
    arch: String,
    format: &'static str,
    urls: Vec<String>,
    checksums: String,
    signers: Vec<String>,
}

impl Pulled {
    fn of(revision: Digest, pin: &ImagePin) -> Self {
        Self {
            revision,
            digest: pin.disk.to_string(),
            serial: pin.serial.map(|serial| serial.to_string()),
            signer: pin.signer.map(|signer| signer.to_string()),
        }
    }
}

impl Line {
    fn of(distribution: &Distribution, release: &Release, pulled: &[PulledImage]) -> Self {
        let name = format!("{}:{}", distribution.name, release.name);
        let here = pulled.iter().find(|image| image.name == name);
        let signed = release.images.values().all(|image| image.signature.is_some());
        Self {
            title: distribution.title.clone(),
            aliases: release.aliases.clone(),
            architectures: release.images.keys().map(ToString::to_string).collect(),
            verified_by: if signed { "signature" } else { "checksum" },
            end_of_life: release.end_of_life,
            over: release.is_over(today()),
            user: release.user.clone(),
            source: release.catalog.as_ref().map_or_else(|| BUILT_IN_NAME.to_owned(), ToString::to_string),
            pulled: here.map(|image| Pulled::of(image.revision, &image.pin)),
            name,
        }
    }

    fn is_here_or_fit(&self) -> bool {
        let fits = Arch::host().is_some_and(|arch| self.architectures.contains(&arch.to_string()));
        self.pulled.is_some() || (fits && !self.over)
    }
}

fn today() -> Date {
    Date::of_unix_seconds(kiln_sys::clock::now_unix_ms() / 1000)
}

fn lines(context: &Context) -> Result<Vec<Line>, EngineError> {
    let pulled = context.engine.pulled_images()?;
    let catalog = context.engine.catalog()?;
    let all = catalog
        .distributions()
        .flat_map(|distribution| distribution.releases.iter().map(move |release| (distribution, release)));
    Ok(all.map(|(distribution, release)| Line::of(distribution, release, &pulled)).collect())
}

pub(super) fn ls(context: &Context, args: &LsArgs) -> CliResult {
    let mut lines = lines(context)?;
    let all = lines.len();
    lines.retain(|line| args.all || line.is_here_or_fit());
    let left_out = all - lines.len();
    render(&args.form, &lines);
    if left_out > 0 && !args.form.quiet && !args.form.json {
        output::tell(&format!("{left_out} more with --all"));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn search(context: &Context, args: &SearchArgs) -> CliResult {
    let mut lines = lines(context)?;
    let word = args.word.to_lowercase();
    let catalog = context.engine.catalog()?;
    let holds = |text: &str| text.to_lowercase().contains(&word);
    lines.retain(|line| {
        let distribution = line.name.split(':').next().unwrap_or_default();
        let known = catalog.distributions().find(|known| known.name == distribution);
        let aliases = known.map(|known| known.aliases.as_slice()).unwrap_or_default();
        holds(&line.name)
            || holds(&line.title)
            || line.aliases.iter().chain(aliases).any(|alias| holds(alias))
    });
    render(&args.form, &lines);
    if lines.is_empty() && !args.form.quiet {
        output::tell("nothing has that in its name; kiln catalog ls --all lists everything");
    }
    Ok(ExitCode::SUCCESS)
}

fn render(form: &Form, lines: &[Line]) {
    if form.json {
        return output::json_list(lines);
    }
    if form.quiet {
        return output::data(&lines.iter().map(|line| format!("{}\n", line.name)).collect::<String>());
    }
    let none = || "-".to_owned();
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let end = match (line.end_of_life, line.over) {
                (Some(end), true) => format!("{end}, over"),
                (Some(end), false) => end.to_string(),
                (None, _) => none(),
            };
            let here = line.pulled.as_ref().map(|pulled| {
                pulled.serial.clone().unwrap_or_else(|| pulled.digest.chars().take(19).collect())
            });
            vec![
                line.name.clone(),
                if line.aliases.is_empty() { none() } else { line.aliases.join(", ") },
                line.architectures.join(", "),
                line.verified_by.to_owned(),
                end,
                here.unwrap_or_else(none),
            ]
        })
        .collect();
    output::table(&["IMAGE", "ALSO", "ARCHITECTURES", "CHECKED BY", "LOOKED AFTER UNTIL", "HERE"], &rows);
}

pub(super) fn show(context: &Context, args: &ShowArgs) -> CliResult {
    let catalog = context.engine.catalog()?;
    let (distribution, release) = catalog.find(&args.name).map_err(EngineError::from)?;
    let line = Line::of(distribution, release, &context.engine.pulled_images()?);
    let signers = |signature: &Option<Signature>| {
        signature.iter().flat_map(|it| it.signers.iter().map(ToString::to_string)).collect()
    };
    let images = release.images.iter().map(|(arch, image)| ShownImage {
        arch: arch.to_string(),
        format: image.format.as_str(),
        urls: image.urls.clone(),
        checksums: image.checksums.clone(),
        signers: signers(&image.signature),
    });
    let shown = Shown { images: images.collect(), line };
    if args.json {
        output::json(shown);
    } else {
        render_one(&shown);
    }
    Ok(ExitCode::SUCCESS)
}

fn render_one(shown: &Shown) {
    let line = &shown.line;
    let mut rows = Vec::new();
    let mut row = |key: &str, value: String| rows.push(vec![key.to_owned(), value]);
    row("image", line.name.clone());
    row("title", line.title.clone());
    if !line.aliases.is_empty() {
        row("also", line.aliases.join(", "));
    }
    row("source", line.source.clone());
    row("user", line.user.clone());
    if let Some(end) = line.end_of_life {
        row("looked after until", if line.over { format!("{end}, over") } else { end.to_string() });
    }
    for image in &shown.images {
        row(&image.arch, format!("{} at {}", image.format, image.urls.join(" ")));
        row("  checksums", image.checksums.clone());
        match image.signers.as_slice() {
            [] => row("  signed by", "nobody".to_owned()),
            signers => row("  signed by", signers.join(" ")),
        }
    }
    match &line.pulled {
        None => row("here", "no".to_owned()),
        Some(pulled) => {
            row("here", pulled.revision.to_string());
            row("  digest", pulled.digest.clone());
            if let Some(serial) = &pulled.serial {
                row("  serial", serial.clone());
            }
            if let Some(signer) = &pulled.signer {
                row("  signer", signer.clone());
            }
        }
    }
    output::table(&["CATALOG", ""], &rows);
}
