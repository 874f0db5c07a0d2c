//! Pauses in a life.

use super::{Life, World};
use crate::EngineError;
use kiln_core::machine::{MachineStatus, Phase};
use kiln_core::text::chain;
use kiln_vmm::Machine;
use kiln_vmm::lifecycle::Event;

impl<W: World> Life<W> {
    /// Stops the guest's processors; tells whether they stood already.
    pub(super) fn pause(&mut self, machine: &mut dyn Machine) -> Result<bool, String> {
        if self.status.phase == Phase::Paused {
            return Ok(true);
        }
        self.refuse_unless(Phase::Running)?;
        machine.pause().map_err(|error| chain(&error))?;
        let before = self.status.clone();
        self.status.paused_unix_ms = Some(self.world.now_unix_ms());
        self.take(&Event::Paused).map_err(|error| {
            // What cannot be written down is not done.
            self.restore(before);
            chain(&machine.resume().map_or_else(EngineError::from, |()| error))
        })?;
        Ok(false)
    }

    /// Lets the guest's processors go on; tells whether they did already.
    pub(super) fn resume(&mut self, machine: &mut dyn Machine) -> Result<bool, String> {
        if self.status.phase == Phase::Running {
            return Ok(true);
        }
        self.refuse_unless(Phase::Paused)?;
        machine.resume().map_err(|error| chain(&error))?;
        let before = self.status.clone();
        self.status.paused_unix_ms = None;
        self.take(&Event::Resumed).map_err(|error| {
            self.restore(before);
            chain(&machine.pause().map_or_else(EngineError::from, |()| error))
        })?;
        self.world.set_clock();
        Ok(false)
    }

    fn restore(&mut self, status: MachineStatus) {
        self.desk.set_phase(status.phase);
        self.status = status;
    }

    fn refuse_unless(&self, phase: Phase) -> Result<(), String> {
        if self.status.phase == phase { Ok(()) } else { Err(format!("it is {}", self.status.phase)) }
    }
}
