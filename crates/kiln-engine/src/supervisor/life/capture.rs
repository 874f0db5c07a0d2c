//! Captures in a life: each is its end.

use super::{Life, World};
use crate::{EngineError, EngineResult};
use kiln_core::machine::{EndCause, Phase};
use kiln_core::text::chain;
use kiln_vmm::{Captured, Machine, VmmExit};
use std::path::Path;
use std::sync::mpsc::Sender;

/// Why a machine was not captured.
#[derive(Debug)]
pub(in crate::supervisor) enum CaptureError {
    /// It goes on as before.
    GoesOn(EngineError),
    /// It cannot go on.
    Lost(EngineError),
}

impl<W: World> Life<W> {
    /// Captures the machine; returns how it ended, where it did.
    pub(super) fn capture(
        &mut self,
        machine: &mut dyn Machine,
        into: &Path,
        reply: &Sender<Result<Captured, String>>,
    ) -> EngineResult<Option<VmmExit>> {
        // Whoever asked may have gone.
        let say = |said: Result<Captured, String>| {
            let _ = reply.send(said);
        };
        if self.status.phase != Phase::Running {
            say(Err(format!("it is {}", self.status.phase)));
            return Ok(None);
        }
        match self.world.capture(machine, into) {
            Ok((captured, exit)) => {
                self.unwanted = true;
                self.verdict = Some(EndCause::Requested);
                say(Ok(captured));
                Ok(Some(exit))
            }
            Err(CaptureError::GoesOn(error)) => {
                say(Err(chain(&error)));
                Ok(None)
            }
            Err(CaptureError::Lost(error)) => {
                self.unwanted = true;
                say(Err(chain(&error)));
                Err(error)
            }
        }
    }
}
