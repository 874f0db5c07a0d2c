//! Pausing machines and letting them go on.

use crate::control::{Ask, ask_for};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::Phase;
use kiln_store::MachineEntry;

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was so already.
    Already,
}

impl Engine {
    /// Lets the processors of a machine that is ready stand: it keeps its memory and its connections, and does
    /// nothing.
    ///
    /// # Errors
    /// When it is not ready yet, or ending, or has ended.
    pub fn pause(&self, name: &str) -> EngineResult<Outcome> {
        self.command(name, &Ask::Pause, "paused")
    }

    /// Lets the processors of a paused machine go on, or starts a suspended one; its clock is set right.
    ///
    /// # Errors
    /// When it is not ready yet, or ending, or has ended; [`EngineError::NotResumed`] for one that stays suspended.
    pub fn resume(&self, name: &str) -> EngineResult<Outcome> {
        let entry = self.find_machine(name)?;
        if entry.status.phase == Phase::Suspended {
            self.start(entry.record.id.as_str(), &crate::Silent)?;
            return Ok(Outcome::Done);
        }
        self.command(name, &Ask::Resume, "resumed")
    }

    fn command(&self, name: &str, question: &Ask, action: &'static str) -> EngineResult<Outcome> {
        let entry = self.find_machine(name)?;
        refuse_unless_ready(&entry, action)?;
        match ask_for(&entry.dir, entry.record.name.as_str(), question) {
            Ok(true) => Ok(Outcome::Already),
            Ok(false) => Ok(Outcome::Done),
            Err(error) => {
                // Its own phase says more than a connection that failed, where it ended meanwhile.
                refuse_unless_ready(&self.find_machine(entry.record.id.as_str())?, action)?;
                Err(error)
            }
        }
    }
}

fn refuse_unless_ready(entry: &MachineEntry, action: &'static str) -> EngineResult<()> {
    let phase = entry.status.phase;
    if matches!(phase, Phase::Running | Phase::Paused) {
        return Ok(());
    }
    Err(EngineError::Phase { name: entry.record.name.to_string(), phase: phase.as_str(), action })
}
