//! The agent's virtio-serial port.
//!
//! While no host client is connected, the port polls as hung up and reads as ended, again and again; a client
//! may come at any time, so the port is looked at until one does.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::boot::{list, pause, read_attribute, wait_for};
use super::console::log;
use super::exec::timespec;
use super::files::hex;
use super::link::{Link, LinkRead};
use super::server::{LinkEnd, Server};
use crate::frame::Nonce;
use crate::limits::OUTBOX_BYTES_MAX;
use crate::outbox::Outbox;
use crate::transport::AGENT_PORT_NAME;

const PORTS: &str = "/sys/class/virtio-ports";

/// How long the port may take to appear once its device exists.
const PORT_WAIT: Duration = Duration::from_secs(5);

/// Interval of looking for a host client.
const CLIENT_INTERVAL: Duration = Duration::from_millis(50);

/// Interval of trying again after an error.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time the rest of a frame has to arrive while pausing.
const PAUSE_INTERVAL: Duration = Duration::from_millis(20);

/// Opens the agent's port; only one process of the guest can have it open.
pub(super) fn open() -> Result<File, String> {
    open_within(PORT_WAIT).map_err(|error| error.to_string())
}

/// Why the agent's port could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("no virtio port is named {AGENT_PORT_NAME}")]
    Missing,
    #[error("{} is in use", path.display())]
    Taken { path: PathBuf },
    #[error("cannot open {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Opens the agent's port, which may take so long to appear.
pub(super) fn open_within(wait: Duration) -> Result<File, OpenError> {
    let path = wait_for(wait, find).ok_or(OpenError::Missing)?;
    File::options().read(true).write(true).open(&path).map_err(|source| {
        if source.kind() == io::ErrorKind::ResourceBusy {
            OpenError::Taken { path }
        } else {
            OpenError::Io { path, source }
        }
    })
}

fn find() -> Option<PathBuf> {
    list(PORTS).into_iter().find_map(|name| {
        let path = Path::new("/dev").join(&name);
        let named = read_attribute(&Path::new(PORTS).join(&name).join("name"));
        (named.as_deref() == Some(AGENT_PORT_NAME) && path.exists()).then_some(path)
    })
}

/// Reads a port until it is paused.
#[derive(Debug)]
pub(super) struct PortLink {
    port: File,
    /// Hangs up to ask for a pause.
    pause: OwnedFd,
}

impl Link for PortLink {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<LinkRead> {
        loop {
            let mut fds =
                [PollFd::new(&self.port, PollFlags::IN), PollFd::new(&self.pause, PollFlags::empty())];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let (ready, pausing) = (fds[0].revents(), !fds[1].revents().is_empty());
            if ready.contains(PollFlags::IN) {
                match self.port.read(buffer) {
                    Ok(0) => {}
                    Ok(count) => return Ok(LinkRead::Bytes(count)),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            }
            if pausing {
                pause(PAUSE_INTERVAL);
                return Ok(LinkRead::Paused);
            }
            if !ready.is_empty() {
                let mut pause = [PollFd::new(&self.pause, PollFlags::empty())];
                poll(&mut pause, timespec(CLIENT_INTERVAL).as_ref())?;
                return Ok(LinkRead::Disconnected);
            }
        }
    }
}

/// A port that is served in threads.
#[derive(Debug)]
pub(super) struct ServedPort {
    outbox: Arc<Outbox>,
    reader: JoinHandle<Option<Nonce>>,
    pause: OwnedFd,
    port: File,
}

impl ServedPort {
    /// Serves a port, going on with a session when one is given.
    pub(super) fn start(server: &Arc<Server>, port: File, session: Option<Nonce>) -> io::Result<Self> {
        let outbox = Arc::new(Outbox::new(OUTBOX_BYTES_MAX));
        let mut writer = port.try_clone()?;
        let kept = port.try_clone()?;
        let writing = Arc::clone(&outbox);
        thread::Builder::new().name("port-write".to_owned()).spawn(move || {
            while let Err(error) = writing.run(&mut writer) {
                log(format!("cannot write to the agent port: {error}"));
                pause(RETRY_INTERVAL);
            }
        })?;
        if let Some(nonce) = session {
            server.resume(&outbox, nonce);
        }
        let (hang_up, pause_fd) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut link = PortLink { port, pause: hang_up };
        let (server, reading) = (Arc::clone(server), Arc::clone(&outbox));
        let reader = thread::Builder::new().name("port-read".to_owned()).spawn(move || {
            loop {
                match server.serve(&mut link, &reading) {
                    Ok(LinkEnd::Paused(session)) => return session,
                    Ok(LinkEnd::Closed) => {}
                    Err(error) => log(format!("cannot read the agent port: {error}")),
                }
                server.end_session();
                pause(RETRY_INTERVAL);
            }
        })?;
        Ok(Self { outbox, reader, pause: pause_fd, port: kept })
    }

    /// Stops serving between two frames; returns the port and, in hex, the session that may go on elsewhere.
    pub(super) fn stop(self) -> (Option<String>, File) {
        drop(self.pause);
        let session = self.reader.join().ok().flatten();
        let drained = self.outbox.wait_drained(std::time::Instant::now() + RETRY_INTERVAL);
        self.outbox.close();
        (session.filter(|_| drained).map(|nonce| hex(&nonce)), self.port)
    }
}
