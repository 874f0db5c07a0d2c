//! Machines that begin as a snapshot beside machines that boot, of one template. Cloning the disk, making the guest a
//! machine of its own and starting the program are inside every time. A file that only the captured memory holds
//! proves that a guest was restored.

mod many;
mod monitor;

use super::contest::{Sample, Target, compared, measured};
use super::report::{Level, Row, Verdict, ratio};
use super::{BenchReport, Host, host};
use crate::capture::SnapshotRequest;
use crate::progress::{Reporter, Silent, step};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::snapshot::SnapshotKeep;
use kiln_core::{ByteSize, Digest, Reference};
use kiln_sys::measure::Usage;
use kiln_sys::memory::Process;
use kiln_sys::process::{Bond, Child, Output, Spawn};
use kiln_sys::tool::ScratchDir;
use kiln_sys::{IoResultExt as _, clock, fs};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

/// Rounds where none are given.
const ROUNDS: u32 = 7;
/// Machines at once where no number is given.
pub const FORKS: u32 = 20;
/// Where the captured memory has its file.
const NONCE: &str = "/run/kiln-bench";
/// A file that every guest has.
const OSTYPE: &str = "/proc/sys/kernel/ostype";
/// The most that is read of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Wanted of a boot's time over a restore's, and of its processor time.
const BOOT: (f64, f64) = (15.0, 25.0);
/// Wanted of a restore of much memory over one of little.
const SIZES: f64 = 1.3;
/// Wanted of the time a guest stands still.
const PAUSE: Duration = Duration::from_millis(100);
/// The two sizes of memory.
const SMALL_AND_LARGE: (ByteSize, ByteSize) = (ByteSize::from_mib(128), ByteSize::from_mib(1024));

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct ForkBenchRequest {
    /// The template, of the engine's store.
    pub reference: Reference,
    /// Rounds of each comparison.
    pub rounds: Option<u32>,
    /// Machines at once.
    pub forks: u32,
}

/// Measures restores of a template beside its boots. What it makes is removed, also where it fails.
///
/// # Errors
/// When the template cannot be captured or booted, or when a guest is not what it has to be.
pub fn bench_fork(
    engine: &Engine,
    request: &ForkBenchRequest,
    reporter: &dyn Reporter,
) -> EngineResult<BenchReport> {
    let scratch = ScratchDir::new(&fs::canonicalize(&engine.store.root().join("staging"))?)?;
    let host = Host::gather(&engine.settings.toolbox, scratch.path(), &engine.cancel)?;
    let nonce = clock::random_hex::<16>();
    let mut bench = Bench { engine, request, nonce, made: Vec::new(), dir: scratch.path() };
    let rows = bench.rows(reporter);
    let removed = bench.remove();
    // Why there are no rows says more than what is left.
    let rows = rows?;
    removed?;
    let size = engine.store.resolve(&request.reference)?.manifest.machine.memory;
    Ok(BenchReport { load_after: host::load()?, host, size, rows })
}

struct Bench<'a> {
    engine: &'a Engine,
    request: &'a ForkBenchRequest,
    nonce: String,
    /// Snapshots that were made.
    made: Vec<Digest>,
    dir: &'a Path,
}

impl Bench<'_> {
    fn rows(&mut self, reporter: &dyn Reporter) -> EngineResult<Vec<Row>> {
        let rounds = self.request.rounds.unwrap_or(ROUNDS);
        let mut rows = Vec::new();
        let snapshot = told(reporter, "capture", || self.capture_row(rounds, &mut rows))?;
        told(reporter, "first answer", || self.answer_row(rounds, snapshot, &mut rows))?;
        told(reporter, "sizes", || self.size_row(rounds, &mut rows))?;
        told(reporter, "many", || self.many_row(snapshot, &mut rows))?;
        told(reporter, "monitor", || monitor::rows(self.engine, &snapshot, rounds, self.dir, &mut rows))?;
        Ok(rows)
    }

    fn remove(&self) -> EngineResult<()> {
        self.made.iter().try_for_each(|id| self.engine.remove_snapshot(&id.to_string(), &Silent).map(|_| ()))
    }

    /// Captures the template with a file in memory.
    fn capture(&mut self, memory: Option<ByteSize>) -> EngineResult<crate::capture::SnapshotReport> {
        let write = format!("echo {} > {NONCE}", self.nonce);
        let request = SnapshotRequest {
            reference: self.request.reference.clone(),
            keep: SnapshotKeep::Always,
            name: None,
            memory,
            vcpus: None,
            board: None,
            accelerator: "auto".to_owned(),
            warm_up: vec![["sh", "-c", &write].map(str::to_owned).to_vec()],
            drop_caches: false,
        };
        let report = self.engine.snapshot_template(&request, &Silent)?;
        self.made.push(report.id);
        Ok(report)
    }

    fn capture_row(&mut self, rounds: u32, rows: &mut Vec<Row>) -> EngineResult<Digest> {
        let mut samples = Vec::new();
        let mut last = self.capture(None)?;
        for round in 0..rounds.min(3) {
            if round > 0 {
                last = self.capture(None)?;
            }
            samples.push(sample(Duration::from_micros(last.paused_us), Duration::ZERO));
        }
        let ours = measured("guest stands still".to_owned(), &samples);
        let met = ours.wall <= PAUSE;
        let verdict = Some(Verdict { target: "wall <= 100 ms".to_owned(), met });
        let memory = self.engine.store.snapshot(&last.id)?.manifest.machine.memory;
        let notes = vec![
            format!(
                "hooks and file systems before: {} ms; taken in, synced, published: {} ms",
                last.quiesce_ms, last.publish_ms
            ),
            format!(
                "{} of memory lie on disk as {}, {:.2} of it, raw: machines map the file; state {}",
                memory.human(),
                last.memory.human(),
                last.memory.bytes() as f64 / memory.bytes() as f64,
                last.state.human()
            ),
        ];
        rows.push(Row { verdict, notes, ..alone("capture", Level::Calls, ours, &samples) });
        Ok(last.id)
    }

    /// Runs a machine in the foreground by a program of its own, until its command, one program that shows a file and stays, has
    /// said a line; then it is ended.
    fn first_answer(&self, how: &[&str], file: &str, wanted: &str) -> EngineResult<Sample> {
        let name = format!("bench-{}", clock::random_hex::<4>());
        let mut args: Vec<OsString> = vec!["--home".into(), self.engine.store.root().into()];
        args.extend(["run", "--rm", "--name", &name].map(Into::into));
        args.extend(how.iter().map(Into::into));
        args.push(self.request.reference.to_string().into());
        args.extend(["--", "tail", "-f", file].map(Into::into));
        let log = self.dir.join("kiln.log");
        fs::remove_file(&log)?;
        let begun = Instant::now();
        let mut child = Child::spawn(Spawn {
            program: &self.engine.settings.own_program,
            args: &args,
            env: self.engine.settings.toolbox.env(),
            current_dir: self.dir,
            stdout: Output::Pipe,
            stderr: fs::append(&log)?,
            bond: Bond::DiesWithParent,
        })?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout() {
            BufReader::new(stdout).read_line(&mut said).at("read from", &self.engine.settings.own_program)?;
        }
        let wall = begun.elapsed();
        let cpu = self.engine.find_machine(&name).and_then(|entry| {
            let cpu = processor_time(&entry.status);
            self.engine.remove_machine(&name, true)?;
            cpu
        });
        child.wait().at("wait for", &self.engine.settings.own_program)?;
        if said.trim() != wanted {
            let words = fs::read_limited(&log, ANSWER_BYTES_MAX).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).trim().to_owned();
            return Err(unlike(&name, format!("it says `{}` and not `{wanted}`; {words}", said.trim())));
        }
        Ok(sample(wall, cpu?))
    }

    fn answer_row(&self, rounds: u32, snapshot: Digest, rows: &mut Vec<Row>) -> EngineResult<()> {
        let (mut restored, mut booted) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    restored.push(self.first_answer(&["--restore", "require"], NONCE, &self.nonce)?);
                } else {
                    booted.push(self.first_answer(&["--restore", "never"], OSTYPE, "Linux")?);
                }
            }
        }
        let ours = measured("kiln run, restored".to_owned(), &restored);
        let boot = measured("kiln run, booted".to_owned(), &booted);
        let row = alone("first answer of a command", Level::Programs, ours, &restored);
        let peers = vec![compared(boot, &row.ours, Some(Target::WallAndCpu(BOOT.0, BOOT.1)))];
        let notes = vec![format!(
            "snapshot {}; processor time is the monitor's and the supervisor's until then",
            snapshot.short()
        )];
        rows.push(Row { peers, notes, ..row });
        Ok(())
    }

    fn size_row(&mut self, rounds: u32, rows: &mut Vec<Row>) -> EngineResult<()> {
        let (small, large) = SMALL_AND_LARGE;
        for memory in [small, large] {
            self.capture(Some(memory))?;
        }
        let (mut of_small, mut of_large) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for turn in 0..2 {
                let (memory, samples) =
                    if (round + turn) % 2 == 0 { (small, &mut of_small) } else { (large, &mut of_large) };
                let how = ["--restore", "require", "-m", &memory.to_string()];
                samples.push(self.first_answer(&how, NONCE, &self.nonce)?);
            }
        }
        let ours = measured(format!("restored, {}", large.human()), &of_large);
        let base = measured(format!("restored, {}", small.human()), &of_small);
        let over = ratio(ours.wall, base.wall);
        let verdict =
            Some(Verdict { target: format!("wall <= {SIZES} of {}", small.human()), met: over <= SIZES });
        let row = alone("size of memory", Level::Programs, ours, &of_large);
        let peers = vec![compared(base, &row.ours, None)];
        rows.push(Row {
            peers,
            verdict,
            notes: vec![format!("{over:.2} of the smaller one's median")],
            ..row
        });
        Ok(())
    }
}

/// Does a part of the work and tells when it is done.
fn told<T>(
    reporter: &dyn Reporter,
    name: &'static str,
    work: impl FnOnce() -> EngineResult<T>,
) -> EngineResult<T> {
    step(reporter, name, || work().map(|done| (done, String::new())))
}

/// Returns a row without peers.
fn alone(name: &'static str, level: Level, ours: super::Measured, samples: &[Sample]) -> Row {
    Row {
        name,
        level,
        rounds: u32::try_from(samples.len()).unwrap_or(u32::MAX),
        ours,
        floor: None,
        peers: Vec::new(),
        absent: Vec::new(),
        verdict: None,
        notes: Vec::new(),
    }
}

fn sample(wall: Duration, cpu: Duration) -> Sample {
    Usage { wall, cpu, resident_max: None }.into()
}

/// Returns the processor time of a machine's monitor and its supervisor.
fn processor_time(status: &kiln_core::machine::MachineStatus) -> EngineResult<Duration> {
    [status.vmm_pid, status.supervisor_pid].into_iter().flatten().map(processor_time_of).sum()
}

fn processor_time_of(pid: u32) -> EngineResult<Duration> {
    let time = Process::open(pid).and_then(|process| process.processor_time());
    time.map_err(|error| unlike(&format!("process {pid}"), kiln_core::text::chain(&error)))
}

fn unlike(name: &str, reason: String) -> EngineError {
    EngineError::NotCaptured { name: name.to_owned(), reason }
}
