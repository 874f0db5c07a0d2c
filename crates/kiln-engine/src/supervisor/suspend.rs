//! Saving the machine whole, and letting a saved one go on.

use super::life::capture::CaptureError;
use super::life::idle::Activity;
use super::life::{Arrival, Launched};
use super::{Begin, Host};
use crate::create::disk_files;
use crate::suspend::{
    SAVE_SPACE, SAVED_STATE_FILE, SAVED_VERSION, SavedDisk, SavedRecord, discard, save_within,
};
use crate::{EngineError, EngineResult};
use kiln_core::Digest;
use kiln_core::machine::Network;
use kiln_core::snapshot::Compatibility;
use kiln_sys::commit::{Existing, commit_file};
use kiln_sys::memory::Process;
use kiln_sys::{IoResultExt as _, clock, fs, tcp};
use kiln_vmm::{CaptureTarget, Machine, Stop, VmmExit};
use std::path::{Path, PathBuf};

/// The name of the state where it is written.
const STAGED: &str = "state";

impl Host<'_> {
    /// Saves the machine and ends its monitor. `runs` says that its guest does.
    pub(super) fn save_and_end(
        &self,
        machine: &mut dyn Machine,
        runs: bool,
    ) -> Result<VmmExit, CaptureError> {
        if let Err(error) = self.write_saved(machine) {
            // Nothing may be left that could be taken for the machine once it goes on.
            let undone = discard(self.dir.path()).and_then(|()| match runs {
                true => Ok(machine.resume()?),
                false => Ok(()),
            });
            return Err(match undone {
                Ok(()) => CaptureError::GoesOn(error),
                // The first error says more than that the machine does not go on.
                Err(_) => CaptureError::Lost(error),
            });
        }
        machine.stop(Stop::Now).map_err(|error| CaptureError::Lost(error.into()))
    }

    fn write_saved(&self, machine: &mut dyn Machine) -> EngineResult<()> {
        let (store, memory, dir) = (&self.engine.store, self.record.shape.memory, self.dir.path());
        store.need_space(memory.bytes().saturating_add(SAVE_SPACE))?;
        let Some(compatibility) = self.facts.clone() else {
            return Err(EngineError::Saved { reason: "it is not known how it was launched".to_owned() });
        };
        let staging = store.stage("suspending a machine")?;
        let staged = staging.path().join(STAGED);
        let state = fs::create_new(&staged)?;
        let saved = machine.save(CaptureTarget { state: &state, within: save_within(memory) })?;
        let state_digest = self.state_digest(&staged)?;
        commit_file(&state, &staged, &dir.join(SAVED_STATE_FILE), 0o600, Existing::Replace)?;
        let mut disks = Vec::new();
        for path in self.disks() {
            fs::open(&path)?.sync_all().at("sync", &path)?;
            disks.push(SavedDisk::of(&path)?);
        }
        let record = SavedRecord {
            version: SAVED_VERSION,
            suspended_unix_ms: clock::now_unix_ms(),
            state_bytes: saved.bytes,
            state_digest,
            compatibility,
            disks,
        };
        record.commit(dir)
    }

    /// Returns the machine's disks, in its order.
    fn disks(&self) -> Vec<PathBuf> {
        disk_files(&self.record).into_iter().map(|file| self.dir.path().join(file)).collect()
    }

    /// Lets the saved machine go on. After an error its state is there as before, unless the guest may have run.
    pub(super) fn launch_saved(&mut self) -> EngineResult<Launched> {
        let saved = SavedRecord::read(self.dir.path())?;
        self.launch_as(&Begin::Saved(saved))
    }

    /// Refuses a saved machine that would not be what it was.
    pub(super) fn compare(&self, saved: &SavedRecord, here: &Compatibility) -> EngineResult<()> {
        let mut here = here.clone();
        crate::restore::same_clock(&saved.compatibility, &mut here);
        let disks: Vec<SavedDisk> =
            self.disks().iter().map(|path| SavedDisk::of(path)).collect::<EngineResult<_>>()?;
        let state = fs::metadata(&self.saved_state())?.len();
        let difference = saved.first_difference(&here, &disks).or_else(|| {
            (state != saved.state_bytes)
                .then(|| format!("{SAVED_STATE_FILE} has {state} bytes and not {}", saved.state_bytes))
        });
        if let Some(reason) = difference {
            return Err(EngineError::Saved { reason });
        }
        // QEMU loads a state with a changed byte and says nothing.
        if self.state_digest(&self.saved_state())? != saved.state_digest {
            return Err(EngineError::Saved { reason: format!("{SAVED_STATE_FILE} is not what was written") });
        }
        Ok(())
    }

    /// Returns the digest of a saved state.
    fn state_digest(&self, path: &Path) -> EngineResult<Digest> {
        Ok(kiln_store::hash_file(&fs::open(path)?, path, &self.engine.cancel)?.digest())
    }

    /// Returns what the machine does, as far as it can be seen.
    pub(super) fn activity(&self, pid: u32) -> Option<Activity> {
        let ports: Vec<u16> = match &self.record.network {
            Network::User { forwards, .. } => forwards.iter().map(|forward| forward.host).collect(),
            _ => Vec::new(),
        };
        // Counted first: whoever comes while the rest is looked at shows in the next look.
        let sessions = self.desk.sessions();
        let is_reached = self.desk.relay().is_some_and(|relay| relay.is_in_use());
        Some(Activity {
            in_use: is_reached || tcp::is_connected(&ports).ok()?,
            sessions,
            processor: Process::open(pid).ok()?.processor_time().ok()?,
        })
    }

    pub(super) fn saved_state(&self) -> PathBuf {
        self.dir.path().join(SAVED_STATE_FILE)
    }
}

impl Begin {
    /// Returns how the machine has arrived then.
    pub(super) fn arrival(&self) -> Arrival {
        match self {
            Self::Boot => Arrival::Booted,
            Self::Snapshot => Arrival::Restored,
            Self::Saved(_) => Arrival::Resumed,
        }
    }

    /// Does away with what is no longer true once the guest runs.
    pub(super) fn forget(&self, dir: &Path) -> EngineResult<()> {
        match self {
            Self::Saved(_) => discard(dir),
            Self::Boot | Self::Snapshot => Ok(()),
        }
    }
}
