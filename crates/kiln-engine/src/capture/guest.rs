//! A capture as the guest has it: commands that warm it up, its hooks, and the moment it stands still.

use super::{SnapshotRequest, millis};
use crate::command;
use crate::control::ask_capture;
use crate::guest::hook_words;
use crate::progress::{Progress, Reporter};
use crate::{Engine, EngineError, EngineResult};
use kiln_guest::message::ExecRequest;
use kiln_guest::quiesce::Quiesce;
use kiln_guest::{Session, SessionError};
use kiln_store::{MachineEntry, Staging};
use std::time::{Duration, Instant};

/// Time the hooks before a capture and the writing of the guest's file systems may take.
const QUIESCE_WITHIN: Duration = Duration::from_secs(120);
/// Time a warm-up command may take.
const WARM_UP_WITHIN: Duration = Duration::from_secs(600);
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
        self.attended(entry, || self.in_guest(entry, request, staging, reporter))
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
}

/// Runs a warm-up command to its end.
fn warm_up(session: &Session, name: &str, command: &[String], reporter: &dyn Reporter) -> EngineResult<()> {
    let words = kiln_core::text::clip(&command.join(" "));
    reporter.progress(Progress::Note { text: format!("warm-up: {words}") });
    let request = ExecRequest::new(command.iter().cloned());
    match command::run(session, request, WARM_UP_WITHIN, &mut |_| Ok(()))?.failure() {
        None => Ok(()),
        Some(how) => {
            let reason = format!("warm-up command `{words}` {how}");
            Err(EngineError::NotCaptured { name: name.to_owned(), reason })
        }
    }
}
