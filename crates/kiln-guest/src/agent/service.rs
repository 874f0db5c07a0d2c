//! The agent as a service of an image that kiln does not start itself: it waits for its port and serves it.
//!
//! Only one process of a guest can have the port open. A second agent, such as one that an image has beside the one that
//! was brought, finds the port taken and ends without an error: the host is served.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::process::setsid;

use super::boot::new_boot_id;
use super::console::log;
use super::daemon::DaemonPlatform;
use super::port::{self, OpenError, ServedPort};
use super::reaper::Reaper;
use super::server::Server;
use crate::message::AgentState;

/// How long the port may take to appear: its driver may be loaded late.
const PORT_WAIT: Duration = Duration::from_secs(60);

pub(super) fn run() -> ExitCode {
    let port = match port::open_within(PORT_WAIT) {
        Ok(port) => port,
        Err(error @ OpenError::Taken { .. }) => {
            log(format!("another agent serves the host: {error}"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            log(error.to_string());
            return ExitCode::FAILURE;
        }
    };
    // It leads a session only when it is no group's leader, as a service of systemd it is one already.
    let _ = setsid();
    let platform = DaemonPlatform::live();
    let cell: Arc<OnceLock<Arc<Server>>> = platform.server();
    let served = Reaper::start().and_then(|reaper| {
        let server = Server::new(Box::new(platform), reaper, new_boot_id(), AgentState::Ready);
        let _ = cell.set(Arc::clone(&server));
        ServedPort::start(&server, port, None)
    });
    match served {
        Ok(_served) => loop {
            thread::park();
        },
        Err(error) => {
            log(format!("cannot serve the host: {error}"));
            ExitCode::FAILURE
        }
    }
}
