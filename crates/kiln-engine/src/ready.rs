//! Waiting for a machine that somebody else starts: its supervisor tells when it is ready.

use crate::control::{Told, await_ready};
use crate::machines::LOOK_AGAIN;
use crate::supervisor::last_lines;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::Phase;
use kiln_store::MachineEntry;
use kiln_sys::lock::wait_cancelled;
use std::time::{Duration, Instant};

/// The most bytes of a console that are looked at for its last lines.
const CONSOLE_TAIL_BYTES: u64 = 4096;

impl Engine {
    /// Waits until a machine is ready; `within` is the longest time that takes, none as long as it takes.
    ///
    /// # Errors
    /// [`EngineError::Ended`] when it has ended, before or meanwhile, [`EngineError::NotReady`] when the time has
    /// passed, and [`EngineError::Phase`] for a machine that nobody starts.
    pub fn wait_ready(&self, name: &str, within: Option<Duration>) -> EngineResult<()> {
        let deadline = within.and_then(|within| Instant::now().checked_add(within));
        let mut entry = self.find_machine(name)?;
        let name = entry.record.name.to_string();
        loop {
            // Looked at before the record: one without a supervisor does not change any more.
            let is_live = self.has_supervisor(&entry)?;
            entry = self.find_machine(entry.record.id.as_str()).map_err(|error| match error {
                EngineError::NoMachine { .. } => EngineError::NoMachine { name: name.clone(), similar: None },
                error => error,
            })?;
            match entry.status.phase {
                Phase::Running if is_live => return Ok(()),
                _ if !is_live => return Err(not_ready(entry)),
                // One that ends is waited for, to say why it did.
                Phase::Stopping => {}
                _ => match await_ready(&entry.dir, &name, &self.cancel, deadline) {
                    Ok(Told::Ready) => return Ok(()),
                    Ok(Told::Gone | Told::Late) | Err(EngineError::Io(_)) => {}
                    Err(error) => return Err(error),
                },
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(EngineError::NotReady { name, within: within.unwrap_or_default() });
            }
            // Its supervisor is just beginning or just ending.
            if wait_cancelled(&self.cancel, left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN))) {
                return Err(EngineError::Cancelled);
            }
        }
    }
}

/// Returns why a machine without a supervisor is not ready.
fn not_ready(entry: MachineEntry) -> EngineError {
    let name = entry.record.name.to_string();
    match entry.status.end {
        Some(cause) if entry.status.phase != Phase::Suspended => {
            // A console that cannot be read takes nothing from the reason.
            let console = kiln_vmm::console::tail(&entry.dir, kiln_vmm::CONSOLE_LOG, CONSOLE_TAIL_BYTES);
            let console = last_lines(&String::from_utf8_lossy(&console.unwrap_or_default()));
            EngineError::Ended { name, cause, console }
        }
        _ => EngineError::Phase { name, phase: entry.status.phase.as_str(), action: "waited for" },
    }
}
