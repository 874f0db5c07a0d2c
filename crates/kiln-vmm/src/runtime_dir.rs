//! The directory of one machine, as far as its monitor is concerned.

use kiln_sys::{IoResult, fs};
use std::path::{Path, PathBuf};

/// The control socket the monitor connects to; it exists only while a machine is launched.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The socket of the guest agent's channel; it exists while the monitor runs.
pub const AGENT_SOCKET: &str = "agent.sock";
/// What the guest wrote to its console; the part before it is in `console.log.1`.
pub const CONSOLE_LOG: &str = "console.log";
/// What the monitor wrote to standard error; the part before it is in `vmm.log.1`.
pub const VMM_LOG: &str = "vmm.log";

/// A machine's directory. The monitor runs with it as working directory and knows its sockets by their bare names,
/// so that a long path is no obstacle to a socket address of 107 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir(PathBuf);

impl RuntimeDir {
    /// Takes an existing directory.
    ///
    /// # Errors
    /// When it cannot be resolved to an absolute path.
    pub fn new(path: &Path) -> IoResult<Self> {
        fs::canonicalize(path).map(Self)
    }

    /// Returns the absolute path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the path of the console's log.
    pub fn console_log(&self) -> PathBuf {
        self.0.join(CONSOLE_LOG)
    }

    /// Returns the path of the monitor's own log.
    pub fn vmm_log(&self) -> PathBuf {
        self.0.join(VMM_LOG)
    }

    /// Removes what a monitor leaves behind besides its logs: the sockets.
    ///
    /// # Errors
    /// When something there cannot be removed.
    pub fn clear(&self) -> IoResult<()> {
        for name in [QMP_SOCKET, AGENT_SOCKET] {
            fs::remove_file(&self.0.join(name))?;
        }
        Ok(())
    }
}
