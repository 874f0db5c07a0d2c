//! Machine records: what a machine is (written once), and how it does (replaced as it changes).

mod boot;

use crate::arch::Arch;
use crate::digest::Digest;
use crate::name::{MachineId, MachineName, VariantName};
use crate::ready::ReadyProbe;
use crate::restart::RestartPolicy;
use crate::size::ByteSize;
use crate::ssh::SshPublicKey;
use crate::variant::MachineShape;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

pub use boot::BootArtifacts;

/// The version of the record this program writes and reads.
pub const RECORD_VERSION: u32 = 1;
/// The largest record or status that is read, in bytes.
pub const RECORD_BYTES_MAX: usize = 256 << 10;
/// The most port forwards of a machine.
pub const FORWARDS_MAX: usize = 64;

/// What a machine is: written once, when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The machine's identity.
    pub id: MachineId,
    /// The machine's name, unique among the machines of a store.
    pub name: MachineName,
    /// The reference it was made from, as the user wrote it.
    pub reference: String,
    /// The revision it runs.
    pub revision: Digest,
    /// The variant it runs, where one was named.
    pub variant: Option<VariantName>,
    /// The guest's architecture.
    pub arch: Arch,
    /// What it is made of.
    pub shape: MachineShape,
    /// What it boots with.
    #[serde(flatten)]
    pub boot: BootArtifacts,
    /// The recipe's kernel arguments.
    pub boot_args: Vec<String>,
    /// When it counts as ready.
    pub ready: Option<ReadyProbe>,
    /// How it is connected.
    pub network: Network,
    /// The accelerator asked for: `auto`, `kvm` or `tcg`.
    pub accelerator: String,
    /// How its disk came to be.
    pub clone: CloneRecord,
    /// The root file system that it only reads, which others read too; its own disk then holds what it writes over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Digest>,
    /// Whether it has a disk with a seed for the guest's cloud-init.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seed: bool,
    /// The keys that its seed tells the guest's cloud-init; at most [`SSH_KEYS_MAX`](crate::ssh::SSH_KEYS_MAX).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<SshPublicKey>,
    /// The snapshot it began as, whose disk and memory it continues; none for one that was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Digest>,
    /// Whether it begins as its snapshot or not at all: otherwise a restore that fails becomes a boot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub must_restore: bool,
    /// Whether it boots from the disk of its snapshot, also where that has memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub boots: bool,
    /// Whether its snapshot is of this very machine, which was put back to it and keeps its names and keys.
    #[serde(default, skip_serializing_if = "is_default")]
    pub put_back: bool,
    /// What becomes of a restored guest that is not made a machine of its own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub identity: IdentityPolicy,
    /// Whether its memory is in a file, so that it can be captured.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capturable: bool,
    /// Whether the machine is removed when it ends.
    pub remove_on_exit: bool,
    /// How long it runs at most after each start by somebody, in milliseconds; none means without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// When it is started again after an end.
    #[serde(default, skip_serializing_if = "is_no_restart")]
    pub restart: RestartPolicy,
    /// After how long without work it is suspended, to be woken by whoever asks for it, in milliseconds; none means
    /// never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_suspend_ms: Option<u64>,
    /// When it was made, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
}

impl MachineRecord {
    /// Returns whether its guest has an agent: on a disk that firmware boots it comes with the seed.
    pub fn has_agent(&self) -> bool {
        self.seed || !self.boot.is_firmware()
    }
}

fn is_no_restart(policy: &RestartPolicy) -> bool {
    *policy == RestartPolicy::No
}

/// What becomes of a restored guest that is not made a machine of its own: with fresh random numbers, clock, names and
/// keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum IdentityPolicy {
    /// It ends: nobody gets it.
    #[default]
    Require,
    /// It is handed over, and the reason told.
    Try,
    /// Nothing is tried: it stays what the captured machine was.
    Skip,
}

impl FromStr for IdentityPolicy {
    type Err = InvalidIdentityPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidIdentityPolicy> {
        match text {
            "require" => Ok(Self::Require),
            "try" => Ok(Self::Try),
            "skip" => Ok(Self::Skip),
            _ => Err(InvalidIdentityPolicy(crate::text::clip(text))),
        }
    }
}

/// A text that names no policy of identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of require, try, skip")]
pub struct InvalidIdentityPolicy(String);

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How a machine's private disk was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// The artifact it is a copy of.
    pub artifact: Digest,
    /// The disk's length in bytes.
    pub size: ByteSize,
    /// `reflink`, `overlay` or `copy`.
    pub method: CloneMethod,
}

/// The ways to make a private disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CloneMethod {
    /// Shared extents, by the file system.
    Reflink,
    /// A qcow2 file that holds what was written, over the artifact.
    Overlay,
    /// A copy that keeps holes.
    Copy,
}

impl CloneMethod {
    /// Returns the extension of the name of a disk made in this way.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Overlay => "qcow2",
            Self::Reflink | Self::Copy => "raw",
        }
    }
}

impl fmt::Display for CloneMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reflink => "reflink",
            Self::Overlay => "overlay",
            Self::Copy => "copy",
        })
    }
}

/// How a machine is connected.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Network {
    /// No network device.
    #[default]
    None,
    /// User-mode networking by the machine monitor, no privilege needed.
    User {
        /// Host ports that reach the guest.
        forwards: Vec<Forward>,
        /// Whether the guest may open connections to the outside, the host's loopback included.
        outbound: bool,
    },
}

/// A TCP port of the host's loopback address that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The port on 127.0.0.1.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

/// A text that is not a port forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a port forward: HOST:GUEST is, two numbers from 1 to 65535, such as 8080:80")]
pub struct InvalidForward(String);

impl FromStr for Forward {
    type Err = InvalidForward;

    fn from_str(text: &str) -> Result<Self, InvalidForward> {
        let port = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| part.parse().ok())
                .flatten()
                .filter(|port| *port != 0_u16)
        };
        text.split_once(':')
            .and_then(|(host, guest)| Some(Self { host: port(host)?, guest: port(guest)? }))
            .ok_or_else(|| InvalidForward(crate::text::clip(text)))
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}

/// How a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// Made, never started.
    Created,
    /// The machine monitor was started, the guest is not ready.
    Starting,
    /// The guest is ready.
    Running,
    /// The guest was ready, and its processors stand.
    Paused,
    /// An end was asked for.
    Stopping,
    /// Its memory and its processors are in a file, and nothing runs.
    Suspended,
    /// Ended as asked for, or by the guest.
    Stopped,
    /// Ended otherwise; the report says how.
    Failed,
}

impl Phase {
    /// Whether a machine in this phase has processes.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }
    /// Returns the word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EndCause {
    /// The guest powered off or asked for a reboot by itself.
    GuestShutdown,
    /// The image's entrypoint ended and the machine with it.
    EntrypointExited {
        /// The exit code, or 128 and the signal's number.
        code: i32,
    },
    /// A user asked for it.
    Requested,
    /// It was saved, and goes on when it is started.
    Suspended,
    /// Its time to live had passed.
    Expired,
    /// The guest's kernel panicked.
    GuestPanic {
        /// The console's words about it.
        message: String,
    },
    /// The guest did not become ready in time.
    NeverReady {
        /// What was waited for, and how long.
        reason: String,
    },
    /// The machine monitor could not be started or ended with an error.
    VmmExited {
        /// Its exit code.
        code: i32,
        /// Its last words.
        message: String,
    },
    /// The machine monitor was killed by a signal.
    VmmKilled {
        /// The signal's number.
        signal: i32,
    },
    /// The supervisor of the machine is gone without a word: it was killed, or the host restarted.
    SupervisorLost,
    /// The client that owned the machine went away.
    ClientLost,
    /// The machine could not be started.
    StartFailed {
        /// Why.
        message: String,
    },
    /// One that this program does not know: a newer one wrote it.
    #[serde(other)]
    Other,
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestShutdown => f.write_str("the guest shut down"),
            Self::EntrypointExited { code } => write!(f, "its entrypoint exited with {code}"),
            Self::Requested => f.write_str("stopped on request"),
            Self::Suspended => f.write_str("it was saved and goes on when it is resumed"),
            Self::Expired => f.write_str("its time to live had passed"),
            Self::GuestPanic { message } => write!(f, "the guest's kernel panicked: {message}"),
            Self::NeverReady { reason } => write!(f, "it never became ready: {reason}"),
            Self::VmmExited { code, message } if message.is_empty() => {
                write!(f, "the machine monitor exited with {code}")
            }
            Self::VmmExited { code, message } => {
                write!(f, "the machine monitor exited with {code}: {message}")
            }
            Self::VmmKilled { signal } => write!(f, "the machine monitor was killed by signal {signal}"),
            Self::SupervisorLost => f.write_str("its supervisor was killed or the host restarted"),
            Self::ClientLost => f.write_str("the client that owned it went away"),
            Self::StartFailed { message } => write!(f, "it could not be started: {message}"),
            Self::Other => f.write_str("for a reason that this kiln does not know"),
        }
    }
}

/// How a machine does: replaced by its supervisor at every change.
///
/// Written, a paused machine is a running one with `paused_unix_ms`, and a suspended one a stopped one with
/// `suspended_unix_ms`: programs that know no pause and no suspension take them for what they nearly are, can stop and start
/// them, and keep what they need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct MachineStatus {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The phase.
    pub phase: Phase,
    /// The supervisor's process id, while it lives.
    pub supervisor_pid: Option<u32>,
    /// The machine monitor's process id, while it lives.
    pub vmm_pid: Option<u32>,
    /// The accelerator in use.
    pub accelerator: Option<String>,
    /// When it was last started, by somebody or by its restart policy, in milliseconds since 1970 (UTC).
    pub started_unix_ms: Option<u64>,
    /// Milliseconds from the supervisor's start to readiness.
    pub ready_after_ms: Option<u64>,
    /// When it ended, in milliseconds since 1970 (UTC).
    pub ended_unix_ms: Option<u64>,
    /// Why it ended.
    pub end: Option<EndCause>,
    /// Since when it is paused, in milliseconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_unix_ms: Option<u64>,
    /// Since when it is suspended, in milliseconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_unix_ms: Option<u64>,
    /// When its time to live will have passed, in milliseconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
    /// How often its restart policy started it since somebody did.
    #[serde(default)]
    pub restarts: u32,
    /// Whether it was restored when it was last started, and did not boot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restored: bool,
}

impl Serialize for MachineStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut written = self.clone();
        match self.phase {
            Phase::Paused => written.phase = Phase::Running,
            Phase::Suspended => written.phase = Phase::Stopped,
            _ => {}
        }
        written.paused_unix_ms = self.paused_unix_ms.filter(|_| self.phase == Phase::Paused);
        written.suspended_unix_ms = self.suspended_unix_ms.filter(|_| self.phase == Phase::Suspended);
        Self::serialize(&written, serializer)
    }
}

impl<'de> Deserialize<'de> for MachineStatus {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut status = Self::deserialize(deserializer)?;
        match (status.phase, status.paused_unix_ms, status.suspended_unix_ms) {
            (Phase::Running, Some(_), _) => status.phase = Phase::Paused,
            (Phase::Stopped, _, Some(_)) => status.phase = Phase::Suspended,
            _ => {}
        }
        status.paused_unix_ms = status.paused_unix_ms.filter(|_| status.phase == Phase::Paused);
        status.suspended_unix_ms = status.suspended_unix_ms.filter(|_| status.phase == Phase::Suspended);
        Ok(status)
    }
}

impl MachineStatus {
    /// Returns the status of a machine that was never started.
    pub fn created() -> Self {
        Self {
            version: RECORD_VERSION,
            phase: Phase::Created,
            supervisor_pid: None,
            vmm_pid: None,
            accelerator: None,
            started_unix_ms: None,
            ready_after_ms: None,
            ended_unix_ms: None,
            end: None,
            paused_unix_ms: None,
            suspended_unix_ms: None,
            expires_unix_ms: None,
            restarts: 0,
            restored: false,
        }
    }
}

#[cfg(test)]
mod tests;
