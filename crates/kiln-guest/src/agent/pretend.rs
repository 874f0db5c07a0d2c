//! A kernel for tests of the whole agent: it changes nothing and writes down what it is asked.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::machine::Kernel;
use super::network;
use crate::error::RemoteError;
use crate::flow::lock;
use crate::identity::IdentityNetwork;
use crate::secret::Entropy;
use crate::token::Hostname;

/// File of the root directory that gets a line for everything that is asked.
const SAID: &str = "kernel-was-asked";

/// What its clock says at first, in nanoseconds since 1970.
const CLOCK_UNIX_NS: u64 = 1_000_000_000;

pub(super) struct PretendedKernel {
    said: PathBuf,
    clock_unix_ns: Mutex<u64>,
}

impl PretendedKernel {
    pub(super) fn new(root: &Path) -> Self {
        Self { said: root.join(SAID), clock_unix_ns: Mutex::new(CLOCK_UNIX_NS) }
    }

    fn say(&self, line: &str) -> Result<(), RemoteError> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.said)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(|error| RemoteError::from_io(format!("cannot write {}", self.said.display()), &error))
    }
}

impl Kernel for PretendedKernel {
    fn add_entropy(&self, entropy: &Entropy) -> Result<(), RemoteError> {
        self.say(&format!("entropy {}", entropy.bytes().len()))
    }

    fn set_clock(&self, unix_ns: u64) -> Result<i64, RemoteError> {
        let before = std::mem::replace(&mut *lock(&self.clock_unix_ns), unix_ns);
        self.say(&format!("clock {unix_ns}"))?;
        Ok(i64::try_from(i128::from(unix_ns) - i128::from(before)).unwrap_or(i64::MAX))
    }

    fn set_hostname(&self, name: &Hostname) -> Result<(), RemoteError> {
        self.say(&format!("hostname {name}"))
    }

    fn set_network(
        &self,
        config: &IdentityNetwork,
        _notes: &mut Vec<String>,
    ) -> Result<Option<String>, RemoteError> {
        network::check(&config.config)?;
        let name = config.interface.as_ref().map_or("eth0", |name| name.as_str());
        self.say(&format!("network {name} {}", config.config.address))?;
        Ok(Some(name.to_owned()))
    }

    fn mount_memory(&self, _directory: &Path) -> Result<(), RemoteError> {
        self.say("mount_memory")
    }

    fn sync(&self) {
        // A test that misses the line fails.
        let _ = self.say("sync");
    }

    fn drop_caches(&self) -> Result<(), RemoteError> {
        self.say("drop_caches")
    }
}
