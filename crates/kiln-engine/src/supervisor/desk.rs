//! Where a supervisor's news arrive, from any thread, and wake the one that acts.

use crate::EngineResult;
use crate::control::SavedMachine;
use kiln_core::machine::Phase;
use kiln_guest::Session;
use kiln_guest::relay::Relay;
use kiln_sys::IoResultExt as _;
use kiln_sys::process::poll_within;
use kiln_vmm::Captured;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Something a supervisor should know.
#[derive(Debug)]
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
    /// Somebody wants the guest's processors to stand.
    Pause(Reply),
    /// Somebody wants them to go on.
    Resume(Reply),
    /// Somebody wants the machine saved and ended.
    Suspend(Reply),
    /// Somebody wants the machine captured, its files in this directory, and ended.
    Capture { into: PathBuf, reply: Sender<Result<Captured, String>> },
    /// Somebody wants the machine saved in this directory, with or without its memory.
    Save { into: PathBuf, memory: bool, reply: Sender<Result<SavedMachine, String>> },
}

/// Says whether it was so already, or why it cannot be.
pub(super) type Said = Result<bool, String>;

/// Where the answer to a command goes. Dropped without one, the machine has ended.
#[derive(Debug)]
pub(super) struct Reply(Sender<Said>);

impl Reply {
    pub(super) fn new() -> (Self, Receiver<Said>) {
        let (sender, receiver) = channel();
        (Self(sender), receiver)
    }

    pub(super) fn give(self, said: Said) {
        // Whoever asked may have gone.
        let _ = self.0.send(said);
    }
}

/// News, how the machine does, and the way to the agent once there is one.
#[derive(Debug)]
pub(super) struct Desk {
    news: Mutex<Vec<News>>,
    run: Mutex<Run>,
    wake: OwnedFd,
    /// Readable from the moment the guest is ready.
    ready: OwnedFd,
    /// How many answers this process must give before it ends.
    owed: Mutex<u32>,
    given: Condvar,
    door: Mutex<Door>,
}

/// Whether the agent may be asked for.
#[derive(Debug, Default)]
struct Door {
    is_closed: bool,
    /// How often it was asked for.
    sessions: u64,
}

/// An answer that this process must give before it ends: given, or given up, when this is dropped.
#[derive(Debug)]
pub(super) struct Owed<'a>(&'a Desk);

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        *lock(&self.0.owed) -= 1;
        self.0.given.notify_all();
    }
}

/// What belongs to one run of the machine monitor.
#[derive(Debug)]
struct Run {
    number: u32,
    phase: Phase,
    relay: Option<Arc<Relay>>,
}

impl Desk {
    pub(super) fn new() -> EngineResult<Arc<Self>> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).at("make", "an event");
        let (wake, ready) = (event()?, event()?);
        let run = Mutex::new(Run { number: 0, phase: Phase::Starting, relay: None });
        let (owed, given) = (Mutex::default(), Condvar::new());
        Ok(Arc::new(Self { news: Mutex::default(), run, wake, ready, owed, given, door: Mutex::default() }))
    }

    /// Keeps this process from ending before an answer is given.
    pub(super) fn owe_answer(&self) -> Owed<'_> {
        *lock(&self.owed) += 1;
        Owed(self)
    }

    /// Waits until every answer that is owed is given; `false` when that takes longer than `within`.
    pub(super) fn wait_answered(&self, within: Duration) -> bool {
        let waited = self.given.wait_timeout_while(lock(&self.owed), within, |owed| *owed > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }

    /// Leaves news and wakes the reader.
    pub(super) fn post(&self, news: News) {
        lock(&self.news).push(news);
        // The counter can only be full when the descriptor is readable already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Leaves news of a run, where that is the one at work.
    pub(super) fn post_of(&self, run: u32, news: News) {
        let current = lock(&self.run);
        if current.number == run {
            self.post(news);
        }
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
        // The counter is never full: this happens once a run.
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

    /// Returns the number of the run at work.
    pub(super) fn run(&self) -> u32 {
        lock(&self.run).number
    }

    /// Ends a run: what its agent still says is not heard, and nobody reaches it.
    pub(super) fn end_run(&self) {
        let mut run = lock(&self.run);
        run.number = run.number.wrapping_add(1);
        run.relay = None;
        // The next run is not ready.
        let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        lock(&self.news).retain(|news| {
            !matches!(news, News::Ready | News::NeverReady { .. } | News::EntrypointExited { .. })
        });
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        lock(&self.run).phase = phase;
    }

    pub(super) fn phase(&self) -> Phase {
        lock(&self.run).phase
    }

    /// Counts somebody who asks for the agent; `false` while nobody may.
    pub(super) fn count_session(&self) -> bool {
        let mut door = lock(&self.door);
        door.sessions += u64::from(!door.is_closed);
        !door.is_closed
    }

    /// Returns how often the agent was asked for.
    pub(super) fn sessions(&self) -> u64 {
        lock(&self.door).sessions
    }

    /// Lets nobody ask for the agent from now on; `false`, and nothing done, where it was asked for since `sessions` were
    /// counted.
    pub(super) fn close_agent(&self, sessions: u64) -> bool {
        let mut door = lock(&self.door);
        door.is_closed |= door.sessions == sessions;
        door.is_closed
    }

    /// Lets the agent be asked for again.
    pub(super) fn open_agent(&self) {
        lock(&self.door).is_closed = false;
    }

    /// Opens the way to the agent of a run, where that is the one at work.
    pub(super) fn set_relay(&self, run: u32, relay: Relay) {
        let mut current = lock(&self.run);
        if current.number == run {
            current.relay = Some(Arc::new(relay));
        }
    }

    pub(super) fn relay(&self) -> Option<Arc<Relay>> {
        lock(&self.run).relay.clone()
    }

    /// Returns the session with the agent, once there is one.
    pub(super) fn session(&self) -> Option<Session> {
        self.relay().map(|relay| relay.session().clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_is_closed_only_while_nobody_has_come_since() {
        let desk = Desk::new().unwrap();
        assert!(desk.count_session());
        assert!(!desk.close_agent(0));
        assert!(desk.count_session() && desk.close_agent(2));
        assert!(!desk.count_session());
        assert_eq!(desk.sessions(), 2);
        desk.open_agent();
        assert!(desk.count_session());
    }

    #[test]
    fn the_end_waits_for_answers() {
        let desk = Desk::new().unwrap();
        assert!(desk.wait_answered(Duration::ZERO));
        let (first, second) = (desk.owe_answer(), desk.owe_answer());
        drop(first);
        assert!(!desk.wait_answered(Duration::ZERO));
        std::thread::scope(|scope| {
            scope.spawn(|| drop(second));
            assert!(desk.wait_answered(Duration::from_secs(60)));
        });
    }
}
