//! What the capture of a machine and its restore take and give.
//!
//! A machine whose memory is [`MemoryBacking::Shared`] is captured by its memory file, which holds its memory already,
//! and by a small file with the state of its processors and devices. Any number of machines are made of the two:
//! each maps the memory file privately and loads the state.
//!
//! Any machine is saved whole: memory and state in one stream. One machine is
//! made of it, which loads all of it. Where that machine's memory is shared, it can be captured in turn.

use kiln_sys::process::Exit;
use kiln_sys::tool::ExitText;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a machine's memory is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MemoryBacking {
    /// In no file.
    #[default]
    Anonymous,
    /// In a file that the guest writes to: the machine can be captured.
    Shared {
        /// The file, made empty for this machine.
        file: PathBuf,
    },
    /// In a file that is only read; what the guest writes is its own. The machine is restored.
    Private {
        /// The memory file of a captured machine.
        file: PathBuf,
    },
}

impl MemoryBacking {
    /// Returns the kind's name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Shared { .. } => "shared",
            Self::Private { .. } => "private",
        }
    }
}

/// What a machine is restored from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreState {
    /// What a capture or a save wrote.
    pub state_file: PathBuf,
    /// What is in it.
    pub scope: StateScope,
}

/// What a state holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateScope {
    /// Processors and devices: what a capture writes. The memory is the captured machine's file.
    Devices,
    /// The memory too: what a save writes. The restored machine's memory is its own.
    Machine,
}

/// Where a capture goes.
#[derive(Debug, Clone, Copy)]
pub struct CaptureTarget<'a> {
    /// A file open for writing, empty, in which the state is written. It is not synced.
    pub state: &'a File,
    /// Time the monitor has.
    pub within: Duration,
}

/// A capture that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured {
    /// Time from the command to stop the guest until all was written.
    pub paused: Duration,
    /// Length of the state in bytes.
    pub state_bytes: u64,
}

/// A machine that was saved whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// When the guest stopped for it; none when it stood before.
    pub stopped: Option<Instant>,
    /// Length of what was written in bytes.
    pub bytes: u64,
}

/// Where the time of a restore went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreTimings {
    /// From the start of the monitor's process until it answered.
    pub up: Duration,
    /// From then until the state was loaded and the machine found paused.
    pub loaded: Duration,
}

/// Why a state was not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreFailure {
    /// The monitor ended over it.
    Ended(Exit),
    /// The monitor's connection was lost and it had to be killed.
    Lost,
    /// The monitor refused it, with these words.
    Refused(String),
    /// The machine is not paused afterwards, but in this state.
    NotPaused(String),
    /// It took longer than this.
    TimedOut(Duration),
}

impl fmt::Display for RestoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(exit) => write!(f, "the machine monitor ended: {}", ExitText(*exit)),
            Self::Lost => f.write_str("the machine monitor closed its control connection"),
            Self::Refused(words) => f.write_str(words),
            Self::NotPaused(status) => write!(f, "the machine is in state `{status}` and not paused"),
            Self::TimedOut(within) => write!(f, "it took longer than {} s", within.as_secs()),
        }
    }
}
