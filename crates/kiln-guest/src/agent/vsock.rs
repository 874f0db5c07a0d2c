//! The agent on vsock: one host connection at a time; the next is accepted when it has gone.

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use super::boot::pause;
use super::console::log;
use super::files::hex;
use super::link::{Link, LinkRead};
use super::server::{LinkEnd, Server};
use crate::frame::Nonce;
use crate::limits::OUTBOX_BYTES_MAX;
use crate::outbox::Outbox;
use crate::transport::AGENT_VSOCK_PORT;

/// Interval of trying again after an error.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time the rest of a frame has to arrive while pausing.
const PAUSE_INTERVAL: Duration = Duration::from_millis(20);

/// Listens for the host.
pub(super) fn listen() -> io::Result<VsockListener> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_VSOCK_PORT)?;
    // A host that has gone between the poll and the accept must not hold up the agent.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A connection and, where one goes on, its session.
type Connection = (VsockStream, Option<Nonce>);

/// Vsock that is served in a thread.
#[derive(Debug)]
pub(super) struct ServedVsock {
    worker: JoinHandle<Option<Connection>>,
    pause: OwnedFd,
}

impl ServedVsock {
    /// Serves a listener, going on with a session when one is given.
    pub(super) fn start(
        server: &Arc<Server>,
        listener: VsockListener,
        resumed: Option<(OwnedFd, Nonce)>,
    ) -> io::Result<Self> {
        let (hang_up, pause_fd) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let server = Arc::clone(server);
        let mut next = resumed.map(|(stream, nonce)| (VsockStream::from(stream), Some(nonce)));
        let worker = thread::Builder::new().name("vsock".to_owned()).spawn(move || {
            loop {
                let connection = match next.take() {
                    Some(connection) => Ok(Some(connection)),
                    None => accept(&listener, &hang_up).map(|stream| stream.map(|stream| (stream, None))),
                };
                match connection.and_then(|connection| match connection {
                    Some((stream, nonce)) => serve(&server, stream, nonce, &hang_up),
                    None => Ok(Served::Paused(None)),
                }) {
                    Ok(Served::Paused(connection)) => return connection,
                    Ok(Served::Gone) => {}
                    Err(error) => {
                        log(format!("vsock: {error}"));
                        pause(RETRY_INTERVAL);
                    }
                }
            }
        })?;
        Ok(Self { worker, pause: pause_fd })
    }

    /// Stops serving between two frames; returns the connection and, in hex, the session that may go on elsewhere.
    pub(super) fn stop(self) -> Option<(OwnedFd, String)> {
        drop(self.pause);
        let (stream, nonce) = self.worker.join().ok().flatten()?;
        Some((OwnedFd::from(stream), hex(&nonce?)))
    }
}

enum Served {
    Gone,
    /// Asked to pause, with a connection or without.
    Paused(Option<Connection>),
}

/// Waits for a connection; none when asked to pause.
fn accept(listener: &VsockListener, pause: &OwnedFd) -> io::Result<Option<VsockStream>> {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(pause, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !fds[1].revents().is_empty() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((stream, _)) => return Ok(Some(stream)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

fn serve(
    server: &Arc<Server>,
    stream: VsockStream,
    session: Option<Nonce>,
    pause: &OwnedFd,
) -> io::Result<Served> {
    let outbox = Arc::new(Outbox::new(OUTBOX_BYTES_MAX));
    let mut writer = File::from(OwnedFd::from(stream.try_clone()?));
    let writing = Arc::clone(&outbox);
    let writer = thread::Builder::new().name("vsock-write".to_owned()).spawn(move || {
        // A failed write is a host that is gone, which the reader sees too.
        let _ = writing.run(&mut writer);
        writing.close();
    })?;
    if let Some(nonce) = session {
        server.resume(&outbox, nonce);
    }
    let ended = server.serve(&mut StreamLink { stream: &stream, pause }, &outbox);
    if let Ok(LinkEnd::Paused(session)) = ended {
        let drained = outbox.wait_drained(Instant::now() + RETRY_INTERVAL);
        outbox.close();
        let _ = writer.join();
        return Ok(Served::Paused(drained.then_some((stream, session))));
    }
    server.end_session();
    outbox.close();
    // The host may have closed it already.
    let _ = stream.shutdown(Shutdown::Both);
    let _ = writer.join();
    ended.map(|_| Served::Gone)
}

/// Reads a connection until it is paused.
#[derive(Debug)]
struct StreamLink<'a> {
    stream: &'a VsockStream,
    /// Hangs up to ask for a pause.
    pause: &'a OwnedFd,
}

impl Link for StreamLink<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<LinkRead> {
        loop {
            let mut fds =
                [PollFd::new(self.stream, PollFlags::IN), PollFd::new(self.pause, PollFlags::empty())];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let (ready, pausing) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if ready {
                match self.stream.read(buffer) {
                    Ok(0) => return Ok(LinkRead::Closed),
                    Ok(count) => return Ok(LinkRead::Bytes(count)),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            }
            if pausing {
                super::boot::pause(PAUSE_INTERVAL);
                return Ok(LinkRead::Paused);
            }
        }
    }
}
