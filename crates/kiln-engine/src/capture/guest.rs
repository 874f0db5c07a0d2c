//! A capture as the guest has it: commands that warm it up, its hooks, and the moment it stands still.

use super::{SnapshotRequest, millis};
use crate::control::{Ask, ask_capture, ask_for};
use crate::guest::hook_words;
use crate::progress::{Progress, Reporter};
use crate::start::Started;
use crate::{Engine, EngineError, EngineResult};
use kiln_guest::message::ExecRequest;
use kiln_guest::quiesce::Quiesce;
use kiln_guest::session::ExecEvent;
use kiln_guest::{Session, SessionError};
use kiln_store::{MachineEntry, Staging};
use kiln_sys::process::poll_within;
use kiln_sys::{Cancel, IoResultExt as _};
use rustix::event::{PollFd, PollFlags};
use std::time::{Duration, Instant};

/// Time the hooks before a capture and the writing of the guest's file systems may take.
const QUIESCE_WITHIN: Duration = Duration::from_secs(120);
/// Time a warm-up command may take.
const WARM_UP_WITHIN: Duration = Duration::from_secs(600);
/// Characters of the end of a warm-up command's output that an error repeats.
const SAID_CHARS_MAX: usize = 400;
/// Bytes that these characters are taken from.
const SAID_BYTES_MAX: usize = 4 * SAID_CHARS_MAX;

/// What a captured guest took part in.
pub(super) struct Stood {
    /// How long it stood still, in microseconds.
    pub(super) paused_us: u64,
    /// How long its hooks and the writing of its file systems took, in milliseconds.
    pub(super) quiesce_ms: u64,
}

impl Engine {
    /// Warms a ready guest up, makes it ready to be captured, and captures its machine. A cancellation ends the machine,
    /// and with it whatever the guest is at.
    pub(super) fn capture_guest(
        &self,
        entry: &MachineEntry,
        request: &SnapshotRequest,
        staging: &Staging,
        reporter: &dyn Reporter,
    ) -> EngineResult<Stood> {
        let done = Cancel::new().at("make", "an event")?;
        std::thread::scope(|scope| {
            scope.spawn(|| self.end_when_cancelled(entry, &done));
            let result = self.in_guest(entry, request, staging, reporter);
            done.cancel();
            result
        })
    }

    fn in_guest(
        &self,
        entry: &MachineEntry,
        request: &SnapshotRequest,
        staging: &Staging,
        reporter: &dyn Reporter,
    ) -> EngineResult<Stood> {
        let name = entry.record.name.as_str();
        if !request.warm_up.is_empty() {
            let session = self.session_of(&self.find_machine(name)?)?;
            for command in &request.warm_up {
                warm_up(&session, name, command, reporter)?;
            }
        }
        let quiesce_ms = self.quiesce(name, request.drop_caches)?;
        self.cancel.check()?;
        let paused_us = ask_capture(&entry.dir, name, staging.path())?;
        Ok(Stood { paused_us, quiesce_ms })
    }

    /// Has a guest run its hooks before a capture and write its file systems; returns the milliseconds it took.
    pub(crate) fn quiesce(&self, name: &str, drop_caches: bool) -> EngineResult<u64> {
        let begun = Instant::now();
        // The session ends before the capture: none is part of the snapshot.
        let session = self.session(name)?;
        let quiesce = Quiesce { drop_caches, ..Quiesce::default() };
        match session.quiesce(quiesce, Instant::now() + QUIESCE_WITHIN) {
            Err(SessionError::Hook(failure)) => {
                let reason = hook_words(&failure);
                Err(EngineError::NotCaptured { name: name.to_owned(), reason })
            }
            other => {
                other?;
                Ok(millis(begun))
            }
        }
    }

    /// Ends the machine when the work is cancelled before it is done.
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

    /// Ends a machine that was not captured, and returns why it was not.
    pub(super) fn not_captured(
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
        // It ends with its owner's handle; what it leaves must be gone when this returns.
        drop(started);
        let _ = self.wait_ended_always(entry);
        error
    }
}

/// Runs a warm-up command to its end.
fn warm_up(session: &Session, name: &str, command: &[String], reporter: &dyn Reporter) -> EngineResult<()> {
    let words = kiln_core::text::clip(&command.join(" "));
    reporter.progress(Progress::Note { text: format!("warm-up: {words}") });
    let (deadline, begun) = (Instant::now() + WARM_UP_WITHIN, Instant::now());
    let (mut stdin, _control, mut output) = session.exec(ExecRequest::new(command.iter().cloned()))?.split();
    stdin.close()?;
    // How much a command says is its own affair.
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = loop {
        match output.recv_deadline(deadline)? {
            None => {
                let action = "running a warm-up command";
                return Err(SessionError::Timeout { action, waited: begun.elapsed() }.into());
            }
            Some(ExecEvent::Exit(status)) => break status,
            Some(ExecEvent::Stdout(bytes)) => keep_end(&mut stdout, &bytes),
            Some(ExecEvent::Stderr(bytes)) => keep_end(&mut stderr, &bytes),
        }
    };
    if status.success() {
        return Ok(());
    }
    let said = if stderr.is_empty() { stdout } else { stderr };
    let said = kiln_core::text::tail(String::from_utf8_lossy(&said).trim(), SAID_CHARS_MAX);
    let code = status.code.map_or("a signal".to_owned(), |code| format!("code {code}"));
    let reason = format!("warm-up command `{words}` ended with {code}: {said}");
    Err(EngineError::NotCaptured { name: name.to_owned(), reason })
}

/// Adds bytes to what was said and keeps the end of it.
fn keep_end(said: &mut Vec<u8>, bytes: &[u8]) {
    said.extend_from_slice(bytes);
    said.drain(..said.len().saturating_sub(SAID_BYTES_MAX));
}
