//! Where a supervisor's news arrive, from any thread, and wake the one that acts.

use crate::EngineResult;
use kiln_guest::Session;
use kiln_guest::relay::Relay;
use kiln_sys::IoResultExt as _;
use kiln_sys::process::poll_within;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Something a supervisor should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// The guest is ready.
    Ready,
    /// The guest will not become ready.
    NeverReady {
        /// Why.
        reason: String,
    },
    /// The image's entrypoint ended; the guest powers off.
    EntrypointExited {
        /// Its exit code, or 128 and the signal's number.
        code: i32,
    },
    /// Somebody wants the machine to end.
    StopRequested {
        /// Time the guest has.
        grace: Duration,
    },
    /// Whoever owned the machine is gone.
    OwnerLost,
}

/// News, and the way to the agent once there is one.
#[derive(Debug)]
pub(super) struct Desk {
    news: Mutex<Vec<News>>,
    relay: Mutex<Option<Arc<Relay>>>,
    wake: OwnedFd,
    /// Readable from the moment the guest is ready.
    ready: OwnedFd,
}

impl Desk {
    pub(super) fn new() -> EngineResult<Arc<Self>> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).at("make", "an event");
        let (wake, ready) = (event()?, event()?);
        Ok(Arc::new(Self { news: Mutex::default(), relay: Mutex::default(), wake, ready }))
    }

    /// Leaves news and wakes the reader.
    pub(super) fn post(&self, news: News) {
        lock(&self.news).push(news);
        // The counter can only be full when the descriptor is readable already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Takes all news.
    pub(super) fn take(&self) -> Vec<News> {
        let mut count = [0; 8];
        // Nothing to read means that nothing was posted since.
        let _ = rustix::io::read(&self.wake, &mut count);
        std::mem::take(&mut lock(&self.news))
    }

    /// Returns a descriptor that is readable while there are news.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Tells everybody who waits that the guest is ready.
    pub(super) fn set_ready(&self) {
        // The counter is never full: this happens once.
        let _ = rustix::io::write(&self.ready, &1_u64.to_ne_bytes());
    }

    /// Waits until the guest is ready; `false` when the client said something or went away before.
    pub(super) fn wait_ready(&self, client: &UnixStream) -> io::Result<bool> {
        loop {
            let mut fds = [
                PollFd::new(&self.ready, PollFlags::IN),
                PollFd::new(client, PollFlags::IN | PollFlags::RDHUP),
            ];
            poll_within(&mut fds, None)?;
            if !fds[0].revents().is_empty() {
                return Ok(true);
            }
            if !fds[1].revents().is_empty() {
                return Ok(false);
            }
        }
    }

    pub(super) fn set_relay(&self, relay: Relay) {
        *lock(&self.relay) = Some(Arc::new(relay));
    }

    pub(super) fn relay(&self) -> Option<Arc<Relay>> {
        lock(&self.relay).clone()
    }

    /// Returns the session with the agent, once there is one.
    pub(super) fn session(&self) -> Option<Session> {
        self.relay().map(|relay| relay.session().clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
