//! The agent beside an image's own init.
//!
//! PID 1 starts it with the port, or the host's connection on vsock, as stdin and, as stdout, the reading end of a
//! pipe that says why the image's init did not start, or nothing. The port is inherited, not opened again: closing
//! it would drop what the host has sent.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::setsid;
use rustix::stdio::{dup2_stdin, dup2_stdout};

use super::channel::Served;
use super::console::log;
use super::files::parse_hex;
use super::machine::Machine;
use super::reaper::Reaper;
use super::server::{Platform, Server};
use super::{configure, power};
use crate::error::RemoteError;
use crate::message::{AgentState, Configure, Configured, ShutdownMode};

/// Argument that selects this mode.
pub(super) const MODE: &str = "daemon";

/// The process's name; systemd spares processes of root whose name starts with `@` until the very end.
pub(super) const NAME: &str = "@kiln-agent";

/// Stands for no session.
pub(super) const NO_SESSION: &str = "-";

/// Longest reason.
const REASON_BYTES_MAX: u64 = 4096;

/// A guest whose init is the image's own.
pub(super) struct DaemonPlatform {
    server: Arc<OnceLock<Arc<Server>>>,
    machine: Machine,
}

impl DaemonPlatform {
    /// Returns the platform of the guest that this runs in.
    pub(super) fn live() -> Self {
        Self { server: Arc::default(), machine: Machine::live() }
    }

    /// Returns where the server has to be put that is asked to stop the guest.
    pub(super) fn server(&self) -> Arc<OnceLock<Arc<Server>>> {
        Arc::clone(&self.server)
    }
}

impl Platform for DaemonPlatform {
    fn configure(&self, request: &Configure) -> Result<Configured, RemoteError> {
        configure::apply(request)
    }

    fn machine(&self) -> Option<&Machine> {
        Some(&self.machine)
    }

    fn shutdown(&self, mode: ShutdownMode, grace: Duration) {
        if let Some(server) = self.server.get() {
            power::stop_beside_init(server, mode, grace);
        }
    }
}

pub(super) fn run(channel: &str, session: &str, boot_id: &str) -> ExitCode {
    match serve(channel, session, boot_id) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(format!("cannot serve the host: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(channel: &str, session: &str, boot_id: &str) -> io::Result<()> {
    let inherited: OwnedFd = fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let status: OwnedFd = fcntl_dupfd_cloexec(io::stdout(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    // It leads a session only when it is no group's leader; started by PID 1 it is none.
    let _ = setsid();
    let mut reason = String::new();
    File::from(status).take(REASON_BYTES_MAX).read_to_string(&mut reason)?;
    let platform = DaemonPlatform::live();
    let cell = platform.server();
    let server = Server::new(Box::new(platform), Reaper::start()?, boot_id.to_owned(), AgentState::Ready);
    let _ = cell.set(Arc::clone(&server));
    let failed = !reason.is_empty();
    if failed {
        server.set_state(AgentState::Failed { reason: reason.clone() });
    }
    let _served = Served::resume(&server, channel, inherited, parse_hex(session))?;
    if failed {
        power::fail(&server, reason);
    }
    loop {
        thread::park();
    }
}
