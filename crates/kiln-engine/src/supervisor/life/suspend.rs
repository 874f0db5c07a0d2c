//! Suspensions in a life: each is its end, until somebody starts the machine again.

use super::capture::CaptureError;
use super::{Life, World};
use crate::EngineResult;
use crate::supervisor::desk::Reply;
use kiln_core::machine::{EndCause, Phase};
use kiln_core::text::chain;
use kiln_vmm::{Machine, VmmExit};

impl<W: World> Life<W> {
    /// Suspends the machine because somebody asks for it; returns how it ended, where it did.
    pub(super) fn suspend(
        &mut self,
        machine: &mut dyn Machine,
        reply: Reply,
    ) -> EngineResult<Option<VmmExit>> {
        let phase = self.status.phase;
        if !matches!(phase, Phase::Running | Phase::Paused) {
            reply.give(Err(format!("it is {phase}")));
            return Ok(None);
        }
        // Whoever comes from here on is not served halfway.
        self.desk.close_agent(self.desk.sessions());
        match self.save_to_end(machine) {
            Ok(exit) => {
                reply.give(Ok(false));
                Ok(Some(exit))
            }
            Err(CaptureError::GoesOn(error)) => {
                reply.give(Err(chain(&error)));
                Ok(None)
            }
            Err(CaptureError::Lost(error)) => {
                reply.give(Err(chain(&error)));
                Err(error)
            }
        }
    }

    /// Looks what the machine does, where it is to be suspended when that is nothing; returns how it ended, where it did.
    pub(super) fn look_idle(&mut self, machine: &mut dyn Machine) -> EngineResult<Option<VmmExit>> {
        let activity = self.world.activity(machine.pid());
        let now = self.world.now();
        let Some(idle) = &mut self.idle else { return Ok(None) };
        let due = idle.look(now, activity.as_ref().filter(|_| self.status.phase == Phase::Running));
        // Whoever comes from here on waits until it is saved, and wakes it.
        let sessions = activity.map_or(0, |activity| activity.sessions);
        if !due || !self.desk.close_agent(sessions) {
            return Ok(None);
        }
        match self.save_to_end(machine) {
            Ok(exit) => Ok(Some(exit)),
            Err(CaptureError::GoesOn(_)) => {
                // It is tried again after the same time.
                if let Some(idle) = &mut self.idle {
                    idle.worked(self.world.now());
                }
                Ok(None)
            }
            Err(CaptureError::Lost(error)) => Err(error),
        }
    }

    fn save_to_end(&mut self, machine: &mut dyn Machine) -> Result<VmmExit, CaptureError> {
        let runs = self.status.phase == Phase::Running;
        let saved = self.world.suspend(machine, runs);
        match &saved {
            Ok(_) => {
                self.unwanted = true;
                self.verdict = Some(EndCause::Suspended);
            }
            Err(CaptureError::GoesOn(_)) => {
                self.desk.open_agent();
                if runs {
                    // It stood for a while.
                    self.world.set_clock();
                }
            }
            Err(CaptureError::Lost(_)) => self.unwanted = true,
        }
        saved
    }
}
