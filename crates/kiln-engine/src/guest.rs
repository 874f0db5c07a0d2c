//! Reaching the agent of a running machine.

use crate::control::{Ask, ask};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::Phase;
use kiln_guest::Session;
use kiln_guest::hook::HookFailure;
use kiln_store::MachineEntry;
use std::time::{Duration, Instant};

/// How long an agent that is up may take to greet.
const GREET_WITHIN: Duration = Duration::from_secs(10);

impl Engine {
    /// Connects to the agent of a machine, through its supervisor.
    pub fn session(&self, name: &str) -> EngineResult<Session> {
        let entry = self.find_machine(name)?;
        self.session_of(&entry)
    }

    /// Connects to the agent of a machine that was looked up.
    pub fn session_of(&self, entry: &MachineEntry) -> EngineResult<Session> {
        let name = entry.record.name.as_str();
        let unreachable = |phase: Phase| EngineError::Phase {
            name: name.to_owned(),
            phase: phase.as_str(),
            action: "reached",
        };
        if !entry.status.phase.is_live() || entry.status.phase == Phase::Paused {
            return Err(unreachable(entry.status.phase));
        }
        let stream = match ask(&entry.dir, name, &Ask::Agent) {
            // It may have been paused since it was looked up.
            Err(EngineError::SupervisorRefused { reason, name }) => {
                let now = self.store.machine(&entry.record.id)?.status.phase;
                return Err(if now == Phase::Paused {
                    unreachable(now)
                } else {
                    EngineError::SupervisorRefused { reason, name }
                });
            }
            other => other?,
        };
        Ok(Session::connect(Box::new(stream), Instant::now() + GREET_WITHIN)?)
    }
}

/// Characters of a failed hook's own words that are repeated.
const SAID_CHARS_MAX: usize = 400;

/// Returns which hook failed and how, with its last words, in one line.
pub(crate) fn hook_words(failure: &HookFailure) -> String {
    let said = [&failure.stderr_tail, &failure.stdout_tail].map(|said| said.trim());
    match said.into_iter().find(|said| !said.is_empty()) {
        Some(said) => format!("{failure}: {}", kiln_core::text::tail(said, SAID_CHARS_MAX)),
        None => failure.to_string(),
    }
}
