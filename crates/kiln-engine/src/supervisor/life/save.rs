//! Saves in a life: the machine goes on.

use super::capture::CaptureError;
use super::{Life, World};
use crate::EngineResult;
use crate::control::SavedMachine;
use kiln_core::machine::Phase;
use kiln_core::text::chain;
use kiln_vmm::Machine;
use std::path::Path;
use std::sync::mpsc::Sender;

impl<W: World> Life<W> {
    /// Saves the machine, which goes on as it was.
    pub(super) fn save(
        &mut self,
        machine: &mut dyn Machine,
        into: &Path,
        memory: bool,
        reply: &Sender<Result<SavedMachine, String>>,
    ) -> EngineResult<()> {
        // Whoever asked may have gone.
        let say = |said: Result<SavedMachine, String>| {
            let _ = reply.send(said);
        };
        let runs = match self.status.phase {
            Phase::Running => true,
            Phase::Paused => false,
            phase => {
                say(Err(format!("it is {phase}")));
                return Ok(());
            }
        };
        match self.world.save(machine, into, memory, runs) {
            Ok(saved) => {
                if runs {
                    self.world.set_clock();
                }
                say(Ok(saved));
                Ok(())
            }
            Err(CaptureError::GoesOn(error)) => {
                say(Err(chain(&error)));
                Ok(())
            }
            Err(CaptureError::Lost(error)) => {
                say(Err(chain(&error)));
                Err(error)
            }
        }
    }
}
