//! Commands that the engine itself runs in a guest, to their end.

use crate::control::{Ask, ask_for};
use crate::start::Started;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::text::tail;
use kiln_guest::Session;
use kiln_guest::message::{ExecRequest, ExitStatus};
use kiln_guest::session::ExecEvent;
use kiln_store::MachineEntry;
use kiln_sys::process::poll_within;
use kiln_sys::{Cancel, IoResultExt as _};
use rustix::event::{PollFd, PollFlags};
use std::time::{Duration, Instant};

/// Characters of the end of a command's output that an error repeats.
const SAID_CHARS_MAX: usize = 400;
/// Bytes that these characters are taken from.
const SAID_BYTES_MAX: usize = 4 * SAID_CHARS_MAX;

/// How a command ended, and the end of what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// None for one that did not end in its time.
    status: Option<ExitStatus>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    within: Duration,
}

impl Ended {
    /// Says how the command failed, with its last words; none when it did not.
    pub(crate) fn failure(&self) -> Option<String> {
        let Some(status) = self.status else {
            return Some(format!("did not end within {} s", self.within.as_secs()));
        };
        if status.success() {
            return None;
        }
        let said = if self.stderr.is_empty() { &self.stdout } else { &self.stderr };
        let said = tail(String::from_utf8_lossy(said).trim(), SAID_CHARS_MAX);
        let code = status.code.map_or("a signal".to_owned(), |code| format!("code {code}"));
        Some(if said.is_empty() {
            format!("ended with {code}")
        } else {
            format!("ended with {code}: {said}")
        })
    }
}

/// Runs a command without input, for `within` at most. `heard` gets all that it says; how much that is, is its own affair.
pub(crate) fn run(
    session: &Session,
    request: ExecRequest,
    within: Duration,
    heard: &mut dyn FnMut(&[u8]) -> EngineResult<()>,
) -> EngineResult<Ended> {
    let deadline = Instant::now() + within;
    let (mut stdin, control, mut output) = session.exec(request)?.split();
    stdin.close()?;
    let mut ended = Ended { status: None, stdout: Vec::new(), stderr: Vec::new(), within };
    loop {
        let (said, bytes) = match output.recv_deadline(deadline)? {
            None => {
                control.reset();
                return Ok(ended);
            }
            Some(ExecEvent::Exit(status)) => return Ok(Ended { status: Some(status), ..ended }),
            Some(ExecEvent::Stdout(bytes)) => (&mut ended.stdout, bytes),
            Some(ExecEvent::Stderr(bytes)) => (&mut ended.stderr, bytes),
        };
        heard(&bytes)?;
        said.extend_from_slice(&bytes);
        said.drain(..said.len().saturating_sub(SAID_BYTES_MAX));
    }
}

impl Engine {
    /// Works with a machine that is ended at once when the work is cancelled before it is done, and with it whatever the
    /// guest is at.
    pub(crate) fn attended<T>(
        &self,
        entry: &MachineEntry,
        work: impl FnOnce() -> EngineResult<T>,
    ) -> EngineResult<T> {
        let done = Cancel::new().at("make", "an event")?;
        std::thread::scope(|scope| {
            scope.spawn(|| self.end_when_cancelled(entry, &done));
            let result = work();
            done.cancel();
            result
        })
    }

    fn end_when_cancelled(&self, entry: &MachineEntry, done: &Cancel) {
        while !done.is_cancelled() && !self.cancel.is_cancelled() {
            let (done, cancel) = (done.fd(), self.cancel.fd());
            let mut fds = [PollFd::new(&done, PollFlags::IN), PollFd::new(&cancel, PollFlags::IN)];
            if poll_within(&mut fds, None).is_err() {
                return;
            }
        }
        if !done.is_cancelled() {
            // One that does not answer ends with the handle of who started it.
            let _ = ask_for(&entry.dir, entry.record.name.as_str(), &Ask::Stop { grace_ms: 0 });
        }
    }

    /// Ends a machine that the work failed with, and returns why it did: where the guest was lost, how it ended.
    pub(crate) fn end_failed(
        &self,
        entry: &MachineEntry,
        mut started: Started,
        error: EngineError,
    ) -> EngineError {
        let error = match error {
            _ if self.cancel.is_cancelled() => EngineError::Cancelled,
            EngineError::Guest(lost) if lost.is_lost() => match started.wait_end(self) {
                Ok(cause) => EngineError::Ended { name: started.name.clone(), cause, console: Vec::new() },
                Err(error) => error,
            },
            other => other,
        };
        // It ends with its owner's handle, one that has no owner when it is told; what it leaves must be gone when this
        // returns.
        self.tell_to_end(entry);
        drop(started);
        let _ = self.wait_ended_always(entry);
        error
    }
}
