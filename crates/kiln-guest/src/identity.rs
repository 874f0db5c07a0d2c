//! `Identity`, after a restore and before the guest is handed over: the wire types.
//!
//! The agent does the parts in the order of [`Part`], whatever is given.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorKind, RemoteError};
use crate::hook::{HookReport, HookTimeout};
use crate::limits::DNS_SERVERS_MAX;
use crate::message::NetworkConfig;
use crate::private::{Environment, Secrets, check_environment, check_secrets};
use crate::secret::Entropy;
use crate::token::{Epoch, Hostname, InterfaceName, MachineId};

/// Makes a restored guest a machine of its own; absent parts are left alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Names this restore; no two are the same.
    pub epoch: Epoch,
    /// Fresh random bytes, credited to the kernel's generator, which reseeds at once.
    pub entropy: Entropy,
    /// Wall-clock time in nanoseconds since 1970.
    #[serde(default)]
    pub clock_unix_ns: Option<u64>,
    /// Host name of the running kernel.
    #[serde(default)]
    pub hostname: Option<Hostname>,
    /// Content of `/etc/machine-id`.
    #[serde(default)]
    pub machine_id: Option<MachineId>,
    /// One interface.
    #[serde(default)]
    pub network: Option<IdentityNetwork>,
    /// Replaces the host keys of an SSH server, where there are any.
    #[serde(default)]
    pub ssh_host_keys: bool,
    /// The machine's own environment, all of it.
    #[serde(default)]
    pub environment: Option<Environment>,
    /// The machine's own secrets, all of them.
    #[serde(default)]
    pub secrets: Option<Secrets>,
    /// Time each hook may take.
    #[serde(default)]
    pub hook_timeout_ms: HookTimeout,
}

/// Values may be secrets: only their number is shown.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("epoch", &self.epoch)
            .field("hostname", &self.hostname)
            .field("machine_id", &self.machine_id)
            .field("network", &self.network)
            .field("environment", &self.environment.as_ref().map(Environment::len))
            .field("secrets", &self.secrets.as_ref().map(Secrets::len))
            .finish_non_exhaustive()
    }
}

/// One interface of a restored guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityNetwork {
    /// The interface; when absent it is chosen by hardware address, else the first.
    #[serde(default)]
    pub interface: Option<InterfaceName>,
    /// Addresses. A hardware address is given to the interface.
    #[serde(flatten)]
    pub config: NetworkConfig,
}

impl Identity {
    /// Makes a request that reseeds and names the restore, and nothing else.
    #[must_use]
    pub fn new(epoch: Epoch, entropy: Entropy) -> Self {
        Self {
            epoch,
            entropy,
            clock_unix_ns: None,
            hostname: None,
            machine_id: None,
            network: None,
            ssh_host_keys: false,
            environment: None,
            secrets: None,
            hook_timeout_ms: HookTimeout::default(),
        }
    }

    /// Checks the limits that no single type has.
    ///
    /// # Errors
    /// Names the first rule that is broken; no value is part of the text.
    pub fn check(&self) -> Result<(), RemoteError> {
        self.environment.as_ref().map(check_environment).transpose()?;
        self.secrets.as_ref().map(check_secrets).transpose()?;
        if self.network.as_ref().is_some_and(|network| network.config.dns.len() > DNS_SERVERS_MAX) {
            let message = format!("more than {DNS_SERVERS_MAX} dns servers");
            return Err(RemoteError::new(ErrorKind::Invalid, message));
        }
        Ok(())
    }
}

/// A part of the identity, in the order they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// The kernel's random numbers.
    Entropy,
    /// The wall clock.
    Clock,
    /// The host name.
    Hostname,
    /// `/etc/machine-id`.
    MachineId,
    /// The interface.
    Network,
    /// Host keys of an SSH server.
    SshHostKeys,
    /// `/run/kiln/epoch`.
    Epoch,
    /// `/run/kiln/env`.
    Environment,
    /// `/run/kiln/secrets`.
    Secrets,
    /// The hooks `post-restore`.
    Hooks,
    /// A part this version does not know.
    #[serde(other)]
    Unknown,
}

impl Part {
    /// Every part, in the order they are done.
    pub const ALL: [Self; 10] = [
        Self::Entropy,
        Self::Clock,
        Self::Hostname,
        Self::MachineId,
        Self::Network,
        Self::SshHostKeys,
        Self::Epoch,
        Self::Environment,
        Self::Secrets,
        Self::Hooks,
    ];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Entropy => "entropy",
            Self::Clock => "clock",
            Self::Hostname => "host name",
            Self::MachineId => "machine id",
            Self::Network => "network",
            Self::SshHostKeys => "ssh host keys",
            Self::Epoch => "epoch",
            Self::Environment => "environment",
            Self::Secrets => "secrets",
            Self::Hooks => "hooks",
            Self::Unknown => "unknown part",
        })
    }
}

/// What became of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PartResult {
    /// It is as asked.
    Done,
    /// It was not asked for, or the guest has no such thing.
    NotApplicable,
    /// It is not as asked.
    Failed {
        /// Why.
        error: RemoteError,
    },
    /// An earlier failure makes it unsafe.
    Skipped {
        /// The part that failed.
        after: Part,
    },
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartReport {
    /// The part.
    pub part: Part,
    /// What became of it.
    #[serde(flatten)]
    pub result: PartResult,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub elapsed_ms: u64,
}

/// What `Identity` did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IdentityReport {
    /// Every part, in the order they were done.
    #[serde(default)]
    pub parts: Vec<PartReport>,
    /// What was added to the wall clock, in nanoseconds.
    #[serde(default)]
    pub clock_offset_ns: Option<i64>,
    /// The interface that was configured.
    #[serde(default)]
    pub interface: Option<String>,
    /// The hooks `post-restore`.
    #[serde(default)]
    pub hooks: HookReport,
    /// What a caller may want to know, in words.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl IdentityReport {
    /// Returns what became of a part; `None` from an agent that does not know it.
    #[must_use]
    pub fn result(&self, part: Part) -> Option<&PartResult> {
        self.parts.iter().find(|report| report.part == part).map(|report| &report.result)
    }

    /// Returns the first part that failed or was skipped, with its reason. A guest that has one must not be
    /// handed over as a machine of its own.
    #[must_use]
    pub fn failed(&self) -> Option<&PartReport> {
        self.parts
            .iter()
            .find(|report| !matches!(report.result, PartResult::Done | PartResult::NotApplicable))
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
