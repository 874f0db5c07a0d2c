//! The two traits a machine monitor implements, and what they exchange.
//!
//! A monitor is launched and owned by one thread that lives as long as the machine should: the kernel kills the
//! monitor when that thread ends, however it ends.

use crate::exit::VmmExit;
use crate::fingerprint::MachineFingerprint;
use crate::qmp::QmpError;
use crate::runtime_dir::RuntimeDir;
use crate::snapshot::{CaptureTarget, Captured, RestoreFailure, RestoreTimings, Saved};
use crate::spec::{CheckedSpec, MachineSpec, SpecRejected};
use kiln_core::arch::Arch;
use kiln_core::variant::Board;
use kiln_sys::IoError;
use kiln_sys::kvm::KvmVerdict;
use kiln_sys::process::Exit;
use kiln_sys::tool::{ExitText, ToolError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

/// A machine monitor that can be started.
pub trait Vmm: fmt::Debug + Send + Sync {
    /// Returns the monitor's name.
    fn name(&self) -> &'static str;

    /// Asks the monitor what it can do.
    ///
    /// # Errors
    /// When it is not installed or does not answer.
    fn probe(&self) -> Result<Capabilities, VmmError>;

    /// Returns the machine the monitor would make, by what [`Vmm::probe`] said.
    ///
    /// # Errors
    /// When it cannot honour a field. It never ignores one.
    fn check(&self, spec: &MachineSpec, caps: &Capabilities) -> Result<CheckedSpec, SpecRejected>;

    /// Describes what must be the same where a machine is captured and where it is restored. Monitors do not find most
    /// of it out by themselves.
    fn fingerprint(&self, spec: &CheckedSpec, caps: &Capabilities) -> MachineFingerprint;

    /// Starts a machine in its directory and returns when the monitor has taken every device and runs the guest, or,
    /// for a machine that is restored, has loaded its state: that machine is paused. The monitor dies with the calling
    /// thread.
    ///
    /// # Errors
    /// When the monitor does not come up or does not take the state; nothing of it is left then.
    fn launch(&self, spec: CheckedSpec, dir: &RuntimeDir) -> Result<Box<dyn Machine>, VmmError>;
}

/// A started machine. Dropping it kills the monitor.
pub trait Machine: fmt::Debug + Send {
    /// Returns the process id of the monitor.
    fn pid(&self) -> u32;

    /// Waits for the monitor's end, for `wake` to become readable, or for the time to pass. Serves the monitor's
    /// control connection meanwhile.
    ///
    /// # Errors
    /// When the system refuses the wait.
    fn wait(&mut self, timeout: Option<Duration>, wake: Option<BorrowedFd<'_>>) -> Result<Waited, VmmError>;

    /// Stops the guest's processors.
    ///
    /// # Errors
    /// When the monitor does not answer or refuses.
    fn pause(&mut self) -> Result<(), VmmError>;

    /// Lets the guest's processors go on.
    ///
    /// # Errors
    /// When the monitor does not answer or refuses, or the machine [was captured](VmmError::AlreadyCaptured).
    fn resume(&mut self) -> Result<(), VmmError>;

    /// Pauses the machine and writes the state of its processors and devices; its memory is in its file. The machine
    /// stays paused: after a capture it can only be stopped, because its memory file is the snapshot's from then on;
    /// after a failed one it can be resumed. Nothing is synced: the caller syncs state, memory and disks after the
    /// machine's end.
    ///
    /// # Errors
    /// When its memory is not [shared](crate::MemoryBacking::Shared), or the state could not be written in time.
    fn capture(&mut self, target: CaptureTarget<'_>) -> Result<Captured, VmmError>;

    /// Writes memory, processors and devices in one stream, most of it while the guest runs where the monitor can do that
    /// without fault. The guest stands at the end, its disks written, and can be resumed: what the files of its disks hold until then belongs to the stream.
    /// After a failure a guest that ran goes on.
    ///
    /// # Errors
    /// When it [was captured](VmmError::AlreadyCaptured), or the stream could not be written in time.
    fn save(&mut self, target: CaptureTarget<'_>) -> Result<Saved, VmmError>;

    /// Returns where the time of the machine's restore went, if it was restored.
    fn restored(&self) -> Option<RestoreTimings>;

    /// Ends the machine and returns how it ended, also when it had ended before.
    ///
    /// # Errors
    /// When not even a kill ends the monitor.
    fn stop(&mut self, how: Stop) -> Result<VmmExit, VmmError>;
}

/// How a machine is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// By its power button; when the guest has not ended itself in time, as by [`Stop::Now`].
    Graceful {
        /// The guest's time.
        within: Duration,
    },
    /// By the monitor's orderly end, disks flushed; when that takes too long, as by [`Stop::Kill`].
    Now,
    /// By a kill of the monitor.
    Kill,
}

/// What a wait ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// The monitor ended.
    Ended(VmmExit),
    /// The wake-up descriptor is readable.
    Woken,
    /// The time passed.
    TimedOut,
}

/// A version of a monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// What a monitor can do, as far as kiln asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The monitor's program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// The architecture it emulates.
    pub arch: Arch,
    /// The boards it has, of those kiln uses.
    pub boards: Vec<BoardSupport>,
    /// Whether it was built with KVM.
    pub has_kvm: bool,
    /// What the host's `/dev/kvm` is good for.
    pub kvm: KvmVerdict,
    /// The rate of the host's time stamp counter in kHz, where it is steady.
    pub tsc_khz: Option<u32>,
    /// What it can do with captured machines; none when it cannot capture them.
    #[serde(default)]
    pub capture: Option<CaptureSupport>,
    /// The host's processor, for machines that KVM executes: model and a digest of its features.
    #[serde(default)]
    pub host_cpu: String,
}

/// What a monitor can do with captured machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureSupport {
    /// Whether it can open the memory file of a restored machine for reading only.
    pub reads_memory_only: bool,
}

impl Capabilities {
    /// Returns what the monitor has of `board`.
    pub fn board(&self, board: Board) -> Option<&BoardSupport> {
        self.boards.iter().find(|support| support.board == board)
    }
}

/// A board a monitor has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardSupport {
    /// The board.
    pub board: Board,
    /// The monitor's name of it.
    pub machine_type: String,
    /// The most processors it takes.
    pub vcpus_max: u32,
    /// The most disks kiln attaches to it.
    pub disks_max: usize,
}

/// Why a monitor did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// It is not installed.
    #[error("machine monitor `{name}` is not installed")]
    NotFound {
        /// Its program's name.
        name: String,
    },
    /// It does not answer a probe.
    #[error("machine monitor `{name}` cannot be asked what it can do")]
    Probe {
        /// Its program's name.
        name: String,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// It answers a probe with something else.
    #[error("machine monitor `{name}` answers a probe without {what}")]
    ProbeAnswer {
        /// Its program's name.
        name: String,
        /// What is missing.
        what: &'static str,
    },
    /// It ended before the guest ran.
    #[error("the machine monitor ended at once: {}{}", ExitText(*exit), said(message))]
    DiedAtStart {
        /// How it ended.
        exit: Exit,
        /// Its last words.
        message: String,
    },
    /// It did not come up in time, and was killed.
    #[error("the machine monitor did not come up within {} s{}", within.as_secs(), said(message))]
    NotUp {
        /// The time it had.
        within: Duration,
        /// Its last words.
        message: String,
    },
    /// The control connection failed, or the monitor refused a command.
    #[error("the machine monitor's control connection failed")]
    Control(#[from] QmpError),
    /// It was killed and is still there.
    #[error("the machine monitor with process id {pid} does not end")]
    Unkillable {
        /// Its process id.
        pid: u32,
    },
    /// Its memory is in no file of its own.
    #[error("the machine cannot be captured: its memory is in no file of its own")]
    NotCapturable,
    /// Its memory is part of a snapshot.
    #[error("the machine was captured: its memory belongs to the snapshot, and it can only be stopped")]
    AlreadyCaptured,
    /// Its state could not be written.
    #[error("the machine's state could not be captured{}{}", because(description), said(message))]
    CaptureFailed {
        /// The monitor's reason; empty where it has none.
        description: String,
        /// Its last words.
        message: String,
    },
    /// Its state was not written in time.
    #[error("the machine's state was not captured within {} ms", within.as_millis())]
    CaptureTimedOut {
        /// The time it had.
        within: Duration,
        /// Whether the monitor has given up. Otherwise the machine can only be stopped.
        settled: bool,
    },
    /// A state was not loaded; nothing of the monitor is left.
    #[error("the machine's state could not be restored: {failure}{}", said(message))]
    NotRestored {
        /// Why.
        failure: RestoreFailure,
        /// The monitor's last words.
        message: String,
    },
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// A file or the program itself.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A wait or a signal.
    #[error("cannot {action} the machine monitor")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn because(description: &str) -> String {
    if description.is_empty() { String::new() } else { format!(": {description}") }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!("; it said: {message}") }
}
