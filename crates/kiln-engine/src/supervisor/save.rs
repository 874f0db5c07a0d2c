//! Saving a machine that goes on: memory and state in one stream, and copies of its disks as of the same instant.

use super::life::capture::CaptureError;
use super::{CAPTURE_WITHIN, Host};
use crate::EngineResult;
use crate::control::SavedMachine;
use crate::create::disk_files;
use kiln_sys::{copy, fs};
use kiln_vmm::{CaptureTarget, Machine};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The memory and state of a saved machine, beside its disks.
const WHOLE_FILE: &str = "machine";

impl Host<'_> {
    pub(super) fn save_running(
        &self,
        machine: &mut dyn Machine,
        into: &Path,
        memory: bool,
        runs: bool,
    ) -> Result<SavedMachine, CaptureError> {
        let saved = self.copy_all(machine, into, memory, runs);
        // A machine that was not stopped takes this for nothing.
        let resumed = if runs { machine.resume() } else { Ok(()) };
        match (saved, resumed) {
            (Ok(stopped), Ok(())) => {
                let paused = stopped.filter(|_| runs).map(|at| at.elapsed()).unwrap_or_default();
                let paused_us = u64::try_from(paused.as_micros()).unwrap_or(u64::MAX);
                Ok(SavedMachine { paused_us, unplugged_nic: self.unplugged_nic })
            }
            (Err(error), Ok(())) => Err(CaptureError::GoesOn(error)),
            (Ok(_), Err(error)) => Err(CaptureError::Lost(error.into())),
            (Err(error), Err(_)) => Err(CaptureError::Lost(error)),
        }
    }

    /// Writes everything; the guest stands afterwards. Returns since when, where it ran.
    fn copy_all(
        &self,
        machine: &mut dyn Machine,
        into: &Path,
        memory: bool,
        runs: bool,
    ) -> EngineResult<Option<Instant>> {
        self.only_staging(into)?;
        let stopped = if memory {
            let state = fs::create_new(&whole_file(into))?;
            machine.save(CaptureTarget { state: &state, within: CAPTURE_WITHIN })?.stopped
        } else if runs {
            let now = Instant::now();
            // The monitor writes what it holds of the disks before it says that the guest stands.
            machine.pause()?;
            Some(now)
        } else {
            None
        };
        for file in disk_files(&self.record) {
            copy_disk(&self.dir.path().join(&file), &into.join(&file))?;
        }
        Ok(stopped)
    }
}

/// Returns the file with the memory and state of a machine that was saved into a directory.
pub(crate) fn whole_file(into: &Path) -> PathBuf {
    into.join(WHOLE_FILE)
}

/// Copies a disk that nobody writes to.
pub(crate) fn copy_disk(from: &Path, to: &Path) -> EngineResult<()> {
    let source = fs::open(from)?;
    let dest = fs::create_new(to)?;
    copy::copy_file(&source, &dest, to, None)?;
    Ok(())
}
