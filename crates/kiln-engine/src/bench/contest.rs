//! A comparison: contestants that do the same work in turn.

use super::material::Material;
use super::report::{Level, Measured, Peer, Row, Verdict, ratio};
use crate::progress::{Reporter, step};
use crate::{EngineResult, Settings};
use kiln_core::ByteSize;
use kiln_sys::measure::{Usage, timed};
use kiln_sys::{Cancel, Tool};
use std::ffi::OsStr;
use std::time::Duration;

/// Work shorter than this is done in many rounds.
const SHORT: Duration = Duration::from_millis(10);
/// Rounds of a comparison of short work.
const ROUNDS_SHORT: u32 = 100;
/// Rounds where only kiln's part is short.
const ROUNDS_MIXED: u32 = 30;
/// Rounds of anything else.
const ROUNDS_LONG: u32 = 7;

/// What all comparisons share.
pub(super) struct Arena<'a> {
    pub(super) settings: &'a Settings,
    pub(super) cancel: &'a Cancel,
    pub(super) reporter: &'a dyn Reporter,
    pub(super) material: &'a Material,
    pub(super) rounds: Option<u32>,
}

/// One run of one contestant.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    pub(super) usage: Usage,
    /// Bytes that the file it made takes up.
    pub(super) allocated: Option<u64>,
}

impl From<Usage> for Sample {
    fn from(usage: Usage) -> Self {
        Self { usage, allocated: None }
    }
}

/// What is wanted of a peer's figures over kiln's.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// Of processor time.
    Cpu(f64),
    /// Of the median of wall times.
    Wall(f64),
    /// Of the medians of wall and of processor times.
    WallAndCpu(f64, f64),
    /// Of the shortest wall time.
    WallMin(f64),
    /// Of the shortest wall time and of what the files take up.
    WallMinAndBlocks(f64),
}

enum Role {
    Ours,
    Floor,
    Peer(Option<Target>),
}

type Work<'a> = Box<dyn FnMut() -> EngineResult<Sample> + 'a>;

struct Contestant<'a> {
    name: String,
    role: Role,
    work: Work<'a>,
    samples: Vec<Sample>,
}

/// A comparison in the making. The first contestant is kiln.
pub(super) struct Contest<'a> {
    arena: &'a Arena<'a>,
    name: &'static str,
    level: Level,
    contestants: Vec<Contestant<'a>>,
    absent: Vec<String>,
    notes: Vec<String>,
}

impl<'a> Arena<'a> {
    /// Begins a comparison with kiln's part.
    pub(super) fn contest(
        &'a self,
        name: &'static str,
        level: Level,
        ours: impl Into<String>,
        work: impl FnMut() -> EngineResult<Sample> + 'a,
    ) -> Contest<'a> {
        let (contestants, absent, notes) = (Vec::new(), Vec::new(), Vec::new());
        Contest { arena: self, name, level, contestants, absent, notes }.with(ours.into(), Role::Ours, work)
    }

    /// Returns kiln as a program, on the benchmark's store.
    pub(super) fn kiln<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Tool {
        let env = self.settings.toolbox.env().to_vec();
        let tool = Tool::new("kiln", self.settings.own_program.clone(), env);
        tool.arg("--home").arg(self.material.store.root()).args(args)
    }

    /// Runs a program that is installed for what it costs.
    pub(super) fn run<S: AsRef<OsStr>>(
        &self,
        name: &str,
        args: impl IntoIterator<Item = S>,
    ) -> EngineResult<Usage> {
        Ok(self.settings.toolbox.find(name)?.args(args).measure(self.cancel)?)
    }
}

impl<'a> Contest<'a> {
    fn with(mut self, name: String, role: Role, work: impl FnMut() -> EngineResult<Sample> + 'a) -> Self {
        self.contestants.push(Contestant { name, role, work: Box::new(work), samples: Vec::new() });
        self
    }

    /// Adds a peer that is there on every host.
    pub(super) fn peer(
        self,
        name: impl Into<String>,
        target: Option<Target>,
        work: impl FnMut() -> EngineResult<Sample> + 'a,
    ) -> Self {
        self.with(name.into(), Role::Peer(target), work)
    }

    /// Adds a peer that is a program, if `tool` is installed.
    pub(super) fn tool(
        mut self,
        tool: &str,
        name: impl Into<String>,
        target: Option<Target>,
        work: impl FnMut() -> EngineResult<Sample> + 'a,
    ) -> Self {
        if self.arena.settings.toolbox.find(tool).is_ok() {
            return self.peer(name, target, work);
        }
        self.absent.push(name.into());
        self
    }

    /// Adds what cannot be undercut.
    pub(super) fn floor(
        self,
        name: impl Into<String>,
        work: impl FnMut() -> EngineResult<Sample> + 'a,
    ) -> Self {
        self.with(name.into(), Role::Floor, work)
    }

    /// Adds what has to be known.
    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Lets everyone do the work: once or twice to warm up, then in rounds, each in the reverse order of the one before.
    pub(super) fn hold(mut self) -> EngineResult<Row> {
        let arena = self.arena;
        let level = match self.level {
            Level::Calls => "calls",
            Level::Programs => "programs",
        };
        step(arena.reporter, &format!("{}, {level}", self.name), || {
            arena.material.flush()?;
            let mut warm = Vec::new();
            for contestant in &mut self.contestants {
                let first = (contestant.work)()?.usage.wall;
                arena.cancel.check()?;
                // What takes long needs no second look.
                warm.push(if first < SHORT * 10 {
                    first.min((contestant.work)()?.usage.wall)
                } else {
                    first
                });
                arena.cancel.check()?;
            }
            let slowest = warm.iter().max().copied().unwrap_or_default();
            let rounds = arena.rounds.unwrap_or(match warm.first() {
                _ if slowest < SHORT => ROUNDS_SHORT,
                Some(ours) if *ours < SHORT => ROUNDS_MIXED,
                _ => ROUNDS_LONG,
            });
            for round in 0..rounds {
                for at in 0..self.contestants.len() {
                    arena.cancel.check()?;
                    let at = if round % 2 == 0 { at } else { self.contestants.len() - 1 - at };
                    let sample = (self.contestants[at].work)()?;
                    self.contestants[at].samples.push(sample);
                }
            }
            let row = self.row(rounds);
            let told = row.peers.iter().map(|p| format!("{:.1}x {}", p.cpu_ratio, p.measured.name));
            Ok((row.clone(), told.collect::<Vec<_>>().join(", ")))
        })
    }

    fn row(self, rounds: u32) -> Row {
        let (mut ours, mut floor, mut peers) = (None, None, Vec::new());
        for contestant in self.contestants {
            let measured = measured(contestant.name, &contestant.samples);
            match contestant.role {
                Role::Ours => ours = Some(measured),
                Role::Floor => floor = Some(measured),
                Role::Peer(target) => peers.push((measured, target)),
            }
        }
        #[expect(clippy::unwrap_used, reason = "a comparison begins with kiln's part")]
        let ours = ours.unwrap();
        Row {
            name: self.name,
            level: self.level,
            rounds,
            floor: floor.map(|floor| {
                let reached = ratio(floor.wall_min, ours.wall_min);
                (floor, reached)
            }),
            peers: peers.into_iter().map(|(peer, target)| compared(peer, &ours, target)).collect(),
            ours,
            absent: self.absent,
            verdict: None,
            notes: self.notes,
        }
    }
}

pub(super) fn compared(peer: Measured, ours: &Measured, target: Option<Target>) -> Peer {
    let cpu_ratio = ratio(peer.cpu, ours.cpu);
    let wall_ratio = ratio(peer.wall, ours.wall);
    let wall_min_ratio = ratio(peer.wall_min, ours.wall_min);
    let blocks = || match (peer.allocated, ours.allocated) {
        (Some(theirs), Some(ours)) => theirs.bytes() as f64 / ours.bytes().max(1) as f64,
        _ => 0.0,
    };
    let verdict = target.map(|target| match target {
        Target::Cpu(least) => Verdict { target: format!("cpu >= {least:.1}"), met: cpu_ratio >= least },
        Target::Wall(least) => Verdict { target: format!("wall >= {least:.1}"), met: wall_ratio >= least },
        Target::WallAndCpu(wall, cpu) => Verdict {
            target: format!("wall >= {wall:.1}, cpu >= {cpu:.1}"),
            met: wall_ratio >= wall && cpu_ratio >= cpu,
        },
        Target::WallMin(least) => {
            Verdict { target: format!("wall >= {least:.2}"), met: wall_min_ratio >= least }
        }
        Target::WallMinAndBlocks(least) => Verdict {
            target: format!("wall and blocks >= {least:.1}"),
            met: wall_min_ratio >= least && blocks() >= least,
        },
    });
    Peer { cpu_ratio, wall_ratio, wall_min_ratio, verdict, measured: peer }
}

pub(super) fn measured(name: String, samples: &[Sample]) -> Measured {
    let walls: Vec<Duration> = samples.iter().map(|sample| sample.usage.wall).collect();
    Measured {
        name,
        wall: median(walls.clone()),
        wall_min: walls.iter().min().copied().unwrap_or_default(),
        cpu: median(samples.iter().map(|sample| sample.usage.cpu).collect()),
        samples: walls,
        resident_max: samples.iter().filter_map(|s| s.usage.resident_max).max().map(ByteSize::from_bytes),
        allocated: samples.iter().filter_map(|s| s.allocated).max().map(ByteSize::from_bytes),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    match (times.len(), times.len() / 2) {
        (0, _) => Duration::ZERO,
        (count, at) if count % 2 == 1 => times[at],
        (_, at) => (times[at - 1] + times[at]) / 2,
    }
}

/// Does work in this process and says what it took.
pub(super) fn call<T, E: Into<crate::EngineError>>(
    work: impl FnOnce() -> Result<T, E>,
) -> EngineResult<Usage> {
    let (usage, value) = timed(work);
    value.map(|_| usage).map_err(Into::into)
}

/// Does short work many times in this process and says what one time took.
pub(super) fn calls<T, E: Into<crate::EngineError>>(
    times: u32,
    mut work: impl FnMut() -> Result<T, E>,
) -> EngineResult<Sample> {
    let usage = call(|| (0..times).try_for_each(|_| work().map(drop)))?;
    Ok(Usage { wall: usage.wall / times, cpu: usage.cpu / times, resident_max: None }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(wall_ms: u64, cpu_ms: u64, allocated: u64) -> Sample {
        let (wall, cpu) = (Duration::from_millis(wall_ms), Duration::from_millis(cpu_ms));
        Sample { usage: Usage { wall, cpu, resident_max: None }, allocated: Some(allocated) }
    }

    #[test]
    fn medians_minima_and_ratios() {
        let ours = measured("kiln".into(), &[sample(10, 4, 5), sample(30, 2, 5), sample(20, 3, 5)]);
        assert_eq!((ours.wall, ours.wall_min), (Duration::from_millis(20), Duration::from_millis(10)));
        assert_eq!(ours.cpu, Duration::from_millis(3));
        let peer = || measured("cp".into(), &[sample(40, 9, 40), sample(60, 9, 40)]);
        let told = compared(peer(), &ours, Some(Target::Cpu(2.5)));
        assert_eq!((told.cpu_ratio, told.wall_ratio, told.wall_min_ratio), (3.0, 2.5, 4.0));
        let met = |target| compared(peer(), &ours, Some(target)).verdict.unwrap().met;
        assert!(met(Target::Cpu(3.0)) && !met(Target::Cpu(3.1)));
        assert!(met(Target::WallMin(4.0)) && !met(Target::WallMin(4.1)));
        assert!(met(Target::WallMinAndBlocks(4.0)) && !met(Target::WallMinAndBlocks(4.1)));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }
}
