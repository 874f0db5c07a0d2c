//! `kiln bench`.

use crate::error::CliResult;
use crate::progress::{ProgressMode, Shown};
use crate::signals::SignalDesk;
use crate::{env, output};
use clap::Args;
use kiln_core::Reference;
use kiln_core::image::ContentDigest;
use kiln_core::text::count;
use kiln_engine::Engine;
use kiln_engine::bench::{
    BENCHMARKS, BenchReport, BenchRequest, DOWNLOAD_MIB, FORKS, ForkBenchRequest, Level, Measured, Peer,
    ROUNDS_MAX, Row, SIZE_MIB, SIZE_MIB_MAX, Verdict, bench_disk, bench_download, bench_fork, bench_store,
    fetch_file, ingest_file, raw_of_image,
};
use kiln_engine::fork::FORKS_MAX;
use kiln_source::download::Url;
use kiln_sys::{Cancel, IoResultExt as _};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The benchmark that takes a template.
const FORK: &str = "fork";
/// The benchmark of disk images.
const DISK: &str = "disk";
/// The benchmark of downloads.
const DOWNLOAD: &str = "download";

#[derive(Debug, Args)]
#[command(after_help = "\
Measures kiln beside other tools on real bytes: in turn (A B, B A), medians of at least 7 rounds,
of 100 for what takes under 10 ms. Calls are compared with calls, programs with programs. A ratio
above 1 means that kiln takes less; `floor` is the share of the time that nothing can save. A load
average over 3 marks a run as noisy: then only processor times count. `store`, `disk` and `download`
work in a directory of their own, which is removed afterwards; `fork` with a template of yours,
whose machines and snapshots of the benchmark are removed.

Examples:
  kiln bench --list
  kiln bench store
  kiln bench disk --size 512
  kiln bench download --size 8192
  kiln bench store --dir /srv/xfs --json >store.json
  kiln bench fork --template web --forks 50")]
pub(crate) struct BenchArgs {
    /// What to measure
    #[arg(required_unless_present = "list", value_parser = BENCHMARKS.map(|(name, _)| name))]
    name: Option<String>,
    /// List what can be measured
    #[arg(long, conflicts_with = "name")]
    list: bool,
    /// Where to work: the file system there is what is measured [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Data of the largest files [default: 256, 1024 of `download`]
    #[arg(long, value_name = "MIB",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(SIZE_MIB_MAX)))]
    size: Option<u32>,
    /// The template that `fork` takes, of your store
    #[arg(long, value_name = "REF", default_value = "demo")]
    template: Reference,
    /// How many machines `fork` has at once
    #[arg(long, value_name = "N", default_value_t = FORKS,
          value_parser = clap::value_parser!(u32).range(2..=i64::from(FORKS_MAX)))]
    forks: u32,
    /// Rounds of each comparison [default: 7, 30 or 100, by what a round takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    rounds: Option<u32>,
    /// Print an object of JSON, with every sample
    #[arg(long)]
    json: bool,
}

/// kiln's part of a comparison, run by `kiln bench`.
#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    /// The store
    #[arg(long)]
    into: PathBuf,
    /// The file
    path: PathBuf,
}

/// kiln's part of a comparison of disk images.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// The image
    from: PathBuf,
    /// The raw file, which must not exist
    to: PathBuf,
    /// End only when the file is kept
    #[arg(long)]
    sync: bool,
}

/// kiln's part of a comparison of downloads.
#[derive(Debug, Args)]
pub(crate) struct DownloadArgs {
    /// Where it is
    url: Url,
    /// What it must be
    digest: ContentDigest,
    /// The directory of what has come so far
    cache: PathBuf,
    /// Where it is in the end
    target: PathBuf,
}

#[derive(Serialize)]
struct Listed {
    name: &'static str,
    measures: &'static str,
}

#[derive(Serialize)]
struct Shape<'a> {
    file_system: &'static str,
    reflink: bool,
    kernel: &'a str,
    processor: &'a str,
    processors: usize,
    load_before: f64,
    load_after: f64,
    noisy: bool,
    tools: Vec<ToolShape<'a>>,
    size_bytes: u64,
    rows: Vec<RowShape<'a>>,
}

#[derive(Serialize)]
struct ToolShape<'a> {
    name: &'static str,
    version: Option<&'a str>,
}

#[derive(Serialize)]
struct RowShape<'a> {
    name: &'static str,
    compares: &'static str,
    rounds: u32,
    kiln: Figures<'a>,
    floor: Option<Figures<'a>>,
    floor_share: Option<f64>,
    peers: Vec<PeerShape<'a>>,
    not_installed: &'a [String],
    target: Option<&'a str>,
    met: Option<bool>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct PeerShape<'a> {
    #[serde(flatten)]
    figures: Figures<'a>,
    cpu_ratio: f64,
    wall_ratio: f64,
    wall_min_ratio: f64,
    target: Option<&'a str>,
    met: Option<bool>,
}

#[derive(Serialize)]
struct Figures<'a> {
    what: &'a str,
    wall_us: f64,
    wall_min_us: f64,
    cpu_us: f64,
    resident_bytes: Option<u64>,
    allocated_bytes: Option<u64>,
    wall_samples_us: Vec<f64>,
}

impl<'a> Figures<'a> {
    fn of(measured: &'a Measured) -> Self {
        Self {
            what: &measured.name,
            wall_us: micros(measured.wall),
            wall_min_us: micros(measured.wall_min),
            cpu_us: micros(measured.cpu),
            resident_bytes: measured.resident_max.map(kiln_core::ByteSize::bytes),
            allocated_bytes: measured.allocated.map(kiln_core::ByteSize::bytes),
            wall_samples_us: measured.samples.iter().copied().map(micros).collect(),
        }
    }
}

impl<'a> RowShape<'a> {
    fn of(row: &'a Row) -> Self {
        Self {
            name: row.name,
            compares: level(row.level),
            rounds: row.rounds,
            kiln: Figures::of(&row.ours),
            floor: row.floor.as_ref().map(|(floor, _)| Figures::of(floor)),
            floor_share: row.floor.as_ref().map(|(_, share)| *share),
            peers: row.peers.iter().map(PeerShape::of).collect(),
            not_installed: &row.absent,
            target: row.verdict.as_ref().map(|verdict| verdict.target.as_str()),
            met: row.verdict.as_ref().map(|verdict| verdict.met),
            notes: &row.notes,
        }
    }
}

impl<'a> PeerShape<'a> {
    fn of(peer: &'a Peer) -> Self {
        Self {
            figures: Figures::of(&peer.measured),
            cpu_ratio: peer.cpu_ratio,
            wall_ratio: peer.wall_ratio,
            wall_min_ratio: peer.wall_min_ratio,
            target: peer.verdict.as_ref().map(|verdict| verdict.target.as_str()),
            met: peer.verdict.as_ref().map(|verdict| verdict.met),
        }
    }
}

pub(crate) fn run(args: &BenchArgs, home: Option<PathBuf>, progress: ProgressMode) -> CliResult {
    if args.list {
        let all = BENCHMARKS.map(|(name, measures)| Listed { name, measures });
        if args.json {
            output::json_list(all);
        } else {
            let rows = all.map(|listed| vec![listed.name.to_owned(), listed.measures.to_owned()]);
            output::table(&["NAME", "MEASURES"], &rows);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cancel = Cancel::new().at("make", "an event")?;
    let _signals = SignalDesk::open(&cancel).at("watch", "signals")?;
    let reporter = Shown::new(progress, false);
    let report = if args.name.as_deref() == Some(FORK) {
        let engine = Engine::open(env::settings(home)?, cancel)?;
        let request =
            ForkBenchRequest { reference: args.template.clone(), rounds: args.rounds, forks: args.forks };
        bench_fork(&engine, &request, &reporter)?
    } else {
        let dir = args.dir.clone().unwrap_or_else(env::temporary);
        let usual = if args.name.as_deref() == Some(DOWNLOAD) { DOWNLOAD_MIB } else { SIZE_MIB };
        let size_mib = args.size.unwrap_or(usual);
        let request = BenchRequest { dir: &dir, size_mib, rounds: args.rounds };
        let settings = env::settings(None)?;
        match args.name.as_deref() {
            Some(DISK) => bench_disk(&settings, &request, &cancel, &reporter)?,
            Some(DOWNLOAD) => bench_download(&settings, &request, &cancel, &reporter)?,
            _ => bench_store(&settings, &request, &cancel, &reporter)?,
        }
    };
    drop(reporter);
    if args.json {
        output::json(shape(&report));
    } else {
        output::data(&text(&report));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn ingest(args: &IngestArgs) -> CliResult {
    let cancel = Cancel::new().at("make", "an event")?;
    let settings = env::settings(Some(args.into.clone()))?;
    let digest = ingest_file(&settings, &args.path, &cancel)?;
    output::line(&digest.to_string());
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn disk(args: &DiskArgs) -> CliResult {
    let cancel = Cancel::new().at("make", "an event")?;
    raw_of_image(&env::settings(None)?.toolbox, &args.from, &args.to, args.sync, &cancel)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn download(args: &DownloadArgs) -> CliResult {
    let cancel = Cancel::new().at("make", "an event")?;
    let toolbox = env::settings(None)?.toolbox;
    fetch_file(&toolbox, &args.url, &args.digest, &args.cache, &args.target, &cancel)?;
    Ok(ExitCode::SUCCESS)
}

fn shape(report: &BenchReport) -> Shape<'_> {
    let host = &report.host;
    Shape {
        file_system: host.file_system,
        reflink: host.reflink,
        kernel: &host.kernel,
        processor: &host.processor,
        processors: host.processors,
        load_before: host.load,
        load_after: report.load_after,
        noisy: report.is_noisy(),
        tools: host
            .tools
            .iter()
            .map(|(name, version)| ToolShape { name, version: version.as_deref() })
            .collect(),
        size_bytes: report.size.bytes(),
        rows: report.rows.iter().map(RowShape::of).collect(),
    }
}

fn text(report: &BenchReport) -> String {
    let host = &report.host;
    let reflink = if host.reflink { "with reflinks" } else { "no reflinks" };
    let mut text = format!(
        "file system   {}, {reflink}\nkernel        {}\nprocessor     {} x {}\nload          {:.2} before, {:.2} after{}\n",
        host.file_system,
        host.kernel,
        host.processors,
        host.processor,
        host.load,
        report.load_after,
        if report.is_noisy() { "  NOISY: only processor times count" } else { "" },
    );
    for (name, version) in &host.tools {
        text.push_str(&format!("{name:<13} {}\n", version.as_deref().unwrap_or("not installed")));
    }
    for row in &report.rows {
        text.push('\n');
        text.push_str(&row_text(row));
    }
    text
}

fn row_text(row: &Row) -> String {
    let mut text = format!("{}, {}, {}\n", row.name, level(row.level), count(row.rounds, "round"));
    let memory = |measured: &Measured| measured.resident_max.map_or(String::new(), |size| size.human());
    let taken = |measured: &Measured| measured.allocated.map_or(String::new(), |size| size.human());
    let cells = |measured: &Measured, ratios: [String; 3], target: String| {
        let [cpu, wall, least] = ratios;
        let times = [measured.wall, measured.wall_min, measured.cpu].map(span);
        let mut cells = vec![measured.name.clone()];
        cells.extend(times);
        cells.extend([memory(measured), taken(measured), cpu, wall, least, target]);
        cells
    };
    let none = || [String::new(), String::new(), String::new()];
    let mut rows = vec![cells(&row.ours, none(), verdict(row.verdict.as_ref()))];
    for peer in &row.peers {
        let ratios = [peer.cpu_ratio, peer.wall_ratio, peer.wall_min_ratio].map(times);
        rows.push(cells(&peer.measured, ratios, verdict(peer.verdict.as_ref())));
    }
    if let Some((floor, share)) = &row.floor {
        rows.push(cells(floor, none(), format!("floor: {:.0} % of kiln's least", share * 100.0)));
    }
    let head = ["", "WALL", "MIN", "CPU", "MEMORY", "DISK", "CPU x", "WALL x", "MIN x", ""];
    text.push_str(&output::aligned(&head, &rows));
    for absent in &row.absent {
        text.push_str(&format!("not installed: {absent}\n"));
    }
    for note in &row.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

fn verdict(verdict: Option<&Verdict>) -> String {
    verdict.map_or(String::new(), |verdict| {
        format!("{}: {}", verdict.target, if verdict.met { "met" } else { "MISSED" })
    })
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Calls => "calls",
        Level::Programs => "programs",
    }
}

fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e9).round() / 1e3
}

fn times(ratio: f64) -> String {
    if ratio >= 100.0 { format!("{ratio:.0}") } else { format!("{ratio:.2}") }
}

/// Returns a short time with three digits that count.
fn span(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        ..1000.0 => format!("{us:.1} us"),
        ..100_000.0 => format!("{:.2} ms", us / 1e3),
        ..1_000_000.0 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::ByteSize;

    fn measured(name: &str, us: u64) -> Measured {
        let wall = Duration::from_micros(us);
        Measured {
            name: name.to_owned(),
            wall,
            wall_min: wall,
            cpu: wall * 2,
            samples: vec![wall],
            resident_max: Some(ByteSize::from_mib(8)),
            allocated: None,
        }
    }

    #[test]
    fn a_row_says_what_is_compared_and_what_is_wanted() {
        let met = Verdict { target: "cpu >= 2.5".to_owned(), met: true };
        let row = Row {
            name: "verify dense",
            level: Level::Programs,
            rounds: 7,
            ours: measured("kiln verify", 50_000),
            floor: Some((measured("dd", 25_000), 0.5)),
            peers: vec![Peer {
                measured: measured("openssl dgst -sha256", 200_000),
                cpu_ratio: 4.0,
                wall_ratio: 4.0,
                wall_min_ratio: 4.0,
                verdict: Some(met),
            }],
            absent: vec!["sha256sum".to_owned()],
            verdict: Some(Verdict { target: "memory <= 1 MiB".to_owned(), met: false }),
            notes: vec!["another digest".to_owned()],
        };
        insta::assert_snapshot!(row_text(&row), @r"
        verify dense, programs, 7 rounds
                               WALL       MIN        CPU        MEMORY    DISK   CPU x   WALL x   MIN x
        kiln verify            50.00 ms   50.00 ms   100 ms     8.0 MiB                                   memory <= 1 MiB: MISSED
        openssl dgst -sha256   200 ms     200 ms     400 ms     8.0 MiB          4.00    4.00     4.00    cpu >= 2.5: met
        dd                     25.00 ms   25.00 ms   50.00 ms   8.0 MiB                                   floor: 50 % of kiln's least
        not installed: sha256sum
        note: another digest
        ");
    }
}
