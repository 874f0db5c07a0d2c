//! What a comparison came to.

use kiln_core::ByteSize;
use std::time::Duration;

/// What kind of thing is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Calls in one process.
    Calls,
    /// Programs, from their start to their end.
    Programs,
}

/// One contestant's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What ran.
    pub name: String,
    /// The median of wall times.
    pub wall: Duration,
    /// The shortest wall time.
    pub wall_min: Duration,
    /// The median of processor times.
    pub cpu: Duration,
    /// All wall times, in order of the rounds.
    pub samples: Vec<Duration>,
    /// The most memory resident, of programs.
    pub resident_max: Option<ByteSize>,
    /// What its file takes up, where it makes one.
    pub allocated: Option<ByteSize>,
}

/// Something kiln is compared with. A ratio above 1 means that kiln takes less.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its figures.
    pub measured: Measured,
    /// Its processor time over kiln's.
    pub cpu_ratio: f64,
    /// Its median wall time over kiln's.
    pub wall_ratio: f64,
    /// Its shortest wall time over kiln's.
    pub wall_min_ratio: f64,
    /// What is wanted, and whether it is so.
    pub verdict: Option<Verdict>,
}

/// What is wanted of a figure, and whether it is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The target: `cpu >= 2.5`.
    pub target: String,
    /// Whether it is met.
    pub met: bool,
}

/// A comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What is done.
    pub name: &'static str,
    /// What kind of things are compared.
    pub level: Level,
    /// Rounds; each contestant ran once in each.
    pub rounds: u32,
    /// kiln.
    pub ours: Measured,
    /// What cannot be undercut, and its shortest wall time over kiln's: 1 is the best there is.
    pub floor: Option<(Measured, f64)>,
    /// What kiln is compared with.
    pub peers: Vec<Peer>,
    /// What it would be compared with, were it installed.
    pub absent: Vec<String>,
    /// A target for kiln alone.
    pub verdict: Option<Verdict>,
    /// What has to be known to read the figures.
    pub notes: Vec<String>,
}

/// Returns `a` over `b`; 0 where `b` is nothing.
pub(super) fn ratio(a: Duration, b: Duration) -> f64 {
    if b.is_zero() { 0.0 } else { a.as_nanos() as f64 / b.as_nanos() as f64 }
}
