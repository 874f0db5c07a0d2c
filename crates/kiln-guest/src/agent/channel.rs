//! The channel to the host: the port of a virtio console, or vsock.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::boot::wait_for;
use super::console::log;
use super::modules;
use super::port::{self, ServedPort};
use super::server::Server;
use super::vsock::{self, ServedVsock};
use crate::frame::Nonce;

/// Name of the port as a channel.
const PORT: &str = "port";

/// Name of vsock as a channel.
const VSOCK: &str = "vsock";

/// How long the agent's port on vsock may take to become free: PID 1 has it until the image's init runs.
const LISTEN_WAIT: Duration = Duration::from_secs(5);

/// The channel to the host.
pub(super) enum Served {
    Port(ServedPort),
    Vsock(ServedVsock),
}

impl Served {
    /// Serves vsock where the machine has it, else the agent's port.
    pub(super) fn start(server: &Arc<Server>) -> Result<Self, String> {
        if modules::device_exists(modules::VIRTIO_VSOCK) {
            let served = vsock::listen().and_then(|listener| ServedVsock::start(server, listener, None));
            match served {
                Ok(served) => return Ok(Self::Vsock(served)),
                Err(error) => log(format!("cannot serve vsock: {error}")),
            }
        }
        if modules::device_exists(modules::VIRTIO_CONSOLE) {
            let served = ServedPort::start(server, port::open()?, None);
            return served.map(Self::Port).map_err(|error| format!("cannot serve the agent port: {error}"));
        }
        Err("neither vsock nor a virtio console: the host cannot reach the agent".to_owned())
    }

    /// Goes on with a channel that another process of this guest has served.
    pub(super) fn resume(
        server: &Arc<Server>,
        channel: &str,
        inherited: OwnedFd,
        session: Option<Nonce>,
    ) -> io::Result<Self> {
        if channel != VSOCK {
            return ServedPort::start(server, File::from(inherited), session).map(Self::Port);
        }
        let listener = wait_for(LISTEN_WAIT, || vsock::listen().ok()).map_or_else(vsock::listen, Ok)?;
        let resumed = session.map(|nonce| (inherited, nonce));
        ServedVsock::start(server, listener, resumed).map(Self::Vsock)
    }

    /// Stops serving between two frames; returns what a daemon needs to go on.
    pub(super) fn stop(self) -> Handed {
        match self {
            Self::Port(served) => {
                let (session, port) = served.stop();
                Handed { channel: PORT, stdin: Some(port.into()), session }
            }
            Self::Vsock(served) => {
                let (stream, session) = served.stop().unzip();
                Handed { channel: VSOCK, stdin: stream, session }
            }
        }
    }
}

/// What a daemon goes on with.
pub(super) struct Handed {
    /// Name of the channel, for [`Served::resume`].
    pub(super) channel: &'static str,
    /// The port, or the host's connection.
    pub(super) stdin: Option<OwnedFd>,
    /// The session, in hex, that may go on.
    pub(super) session: Option<String>,
}
