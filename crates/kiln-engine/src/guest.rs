//! Reaching the agent of a running machine.

use crate::control::{Ask, IS_SUSPENDING, ask};
use crate::machines::LOOK_AGAIN;
use crate::suspend::Woken;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::Phase;
use kiln_guest::Session;
use kiln_guest::hook::HookFailure;
use kiln_store::MachineEntry;
use kiln_sys::lock::wait_cancelled;
use std::time::{Duration, Instant};

/// How long an agent that is up may take to greet.
const GREET_WITHIN: Duration = Duration::from_secs(10);

impl Engine {
    /// Connects to the agent of a machine, through its supervisor. One that was suspended because nobody wanted anything of
    /// it is started first.
    pub fn session(&self, name: &str) -> EngineResult<Session> {
        self.session_woken(name, &mut |_| {})
    }

    /// Like [`Engine::session`]; `told` hears that the machine was woken.
    pub fn session_woken(&self, name: &str, told: &mut dyn FnMut(&Woken)) -> EngineResult<Session> {
        loop {
            let mut entry = self.find_machine(name)?;
            if let Some(woken) = self.wake_entry(&entry, &crate::Silent)? {
                told(&woken);
                entry = self.find_machine(name)?;
            }
            match self.session_of(&entry) {
                // Its supervisor is saving it, which takes a while; afterwards it is woken, or it went on.
                Err(EngineError::SupervisorRefused { reason, .. }) if reason == IS_SUSPENDING => {
                    if wait_cancelled(&self.cancel, LOOK_AGAIN) {
                        return Err(EngineError::Cancelled);
                    }
                }
                // It was saved since it was looked up.
                Err(_) if self.sleeps(&entry)? => {}
                other => return other,
            }
        }
    }

    /// Whether a machine that wakes by itself is suspended now.
    fn sleeps(&self, entry: &MachineEntry) -> EngineResult<bool> {
        let now = self.find_machine(entry.record.id.as_str())?;
        Ok(now.status.phase == Phase::Suspended && now.record.idle_suspend_ms.is_some())
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
