//! What identity and capture work on: the guest's files below a root directory, and its kernel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};

use rustix::fs::sync;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::pretend::PretendedKernel;
use super::{configure, network};
use crate::error::{ErrorKind, RemoteError};
use crate::flow::lock;
use crate::identity::IdentityNetwork;
use crate::private::Environment;
use crate::secret::Entropy;
use crate::token::{Epoch, Hostname};

/// What a kernel does for an identity and before a capture.
pub(super) trait Kernel: Send + Sync {
    fn add_entropy(&self, entropy: &Entropy) -> Result<(), RemoteError>;
    /// Sets the wall clock; returns what was added to it, in nanoseconds.
    fn set_clock(&self, unix_ns: u64) -> Result<i64, RemoteError>;
    fn set_hostname(&self, name: &Hostname) -> Result<(), RemoteError>;
    /// Configures an interface; returns its name.
    fn set_network(
        &self,
        config: &IdentityNetwork,
        notes: &mut Vec<String>,
    ) -> Result<Option<String>, RemoteError>;
    /// Mounts memory on an empty directory, for root alone.
    fn mount_memory(&self, directory: &Path) -> Result<(), RemoteError>;
    /// Writes every filesystem.
    fn sync(&self);
    /// Drops clean page cache, dentries and inodes.
    fn drop_caches(&self) -> Result<(), RemoteError>;
}

/// A guest.
pub(super) struct Machine {
    pub(super) root: PathBuf,
    pub(super) kernel: Box<dyn Kernel>,
    turn: Mutex<()>,
    epoch: Mutex<Option<Epoch>>,
    environment: Mutex<Environment>,
    /// What the entry point has of its own: other programs begin with it too.
    purpose: OnceLock<BTreeMap<String, String>>,
}

impl Machine {
    /// Returns the guest this process runs in.
    pub(super) fn live() -> Self {
        Self::new(PathBuf::from("/"), Box::new(LiveKernel))
    }

    /// Makes a guest of a directory; what its kernel is asked is written down there.
    pub(super) fn pretended(root: PathBuf) -> Self {
        let kernel = PretendedKernel::new(&root);
        Self::new(root, Box::new(kernel))
    }

    pub(super) fn new(root: PathBuf, kernel: Box<dyn Kernel>) -> Self {
        Self {
            root,
            kernel,
            turn: Mutex::default(),
            epoch: Mutex::default(),
            environment: Mutex::default(),
            purpose: OnceLock::new(),
        }
    }

    /// Returns the place of a path of the guest, given without its leading `/`.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Returns the restore this guest was last told of.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        lock(&self.epoch).clone()
    }

    pub(super) fn set_epoch(&self, epoch: &Epoch) {
        *lock(&self.epoch) = Some(epoch.clone());
    }

    /// Returns the machine's own environment, as `/run/kiln/env` has it.
    pub(super) fn environment(&self) -> Environment {
        lock(&self.environment).clone()
    }

    pub(super) fn set_environment(&self, environment: &Environment) {
        lock(&self.environment).clone_from(environment);
    }

    /// Returns the environment of the machine's purpose, its entry point.
    pub(super) fn purpose_environment(&self) -> impl Iterator<Item = (&String, &String)> {
        self.purpose.get().into_iter().flatten()
    }

    /// Sets the environment of the machine's purpose, once.
    pub(super) fn set_purpose_environment(&self, environment: &BTreeMap<String, String>) {
        let _ = self.purpose.set(environment.clone());
    }

    /// Takes the turn: two requests of two sessions must not mix their parts.
    pub(super) fn turn(&self) -> Result<MutexGuard<'_, ()>, RemoteError> {
        match self.turn.try_lock() {
            Ok(turn) => Ok(turn),
            Err(TryLockError::Poisoned(turn)) => Ok(turn.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(RemoteError::new(ErrorKind::Busy, "another quiesce, identity or configure is under way"))
            }
        }
    }
}

struct LiveKernel;

impl Kernel for LiveKernel {
    fn add_entropy(&self, entropy: &Entropy) -> Result<(), RemoteError> {
        configure::add_entropy(entropy.bytes())
    }

    fn set_clock(&self, unix_ns: u64) -> Result<i64, RemoteError> {
        configure::set_clock(unix_ns)
    }

    fn set_hostname(&self, name: &Hostname) -> Result<(), RemoteError> {
        configure::set_hostname(name)
    }

    fn set_network(
        &self,
        config: &IdentityNetwork,
        notes: &mut Vec<String>,
    ) -> Result<Option<String>, RemoteError> {
        network::apply(config.interface.as_ref(), &config.config, notes)
    }

    fn mount_memory(&self, directory: &Path) -> Result<(), RemoteError> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let failed = |error: Errno| {
            RemoteError::from_io(format!("cannot mount memory on {}", directory.display()), &error.into())
        };
        mount("tmpfs", directory, "tmpfs", flags, Some(c"mode=0700,size=1m,nr_inodes=256")).map_err(failed)
    }

    fn sync(&self) {
        sync();
    }

    fn drop_caches(&self) -> Result<(), RemoteError> {
        const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
        // Page cache, dentries and inodes.
        std::fs::write(DROP_CACHES, "3\n")
            .map_err(|error| RemoteError::from_io(format!("cannot write {DROP_CACHES}"), &error))
    }
}
