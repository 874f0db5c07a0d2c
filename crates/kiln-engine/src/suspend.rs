//! Suspended machines: memory and processors in a file, nothing running, and what must hold so that they go on.
//!
//! The state belongs to the disks as they are. So it has two files in the machine's directory: `suspended.state`, and
//! `suspended.json`, which makes it count and is written last and removed first. While that one is there, the guest has
//! not run since.

use crate::control::ask_suspend;
use crate::create::START_LOCK;
use crate::machines::LOOK_AGAIN;
use crate::progress::Reporter;
use crate::supervisor::SUPERVISOR_LOCK;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::{EndCause, MachineStatus, Phase};
use kiln_core::snapshot::Compatibility;
use kiln_core::{ByteSize, Digest};
use kiln_store::MachineEntry;
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::lock::{FileLock, wait_cancelled};
use kiln_sys::{clock, fs};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// Memory, processors and devices of a suspended machine, in its directory.
pub const SAVED_STATE_FILE: &str = "suspended.state";
/// What must hold to load it, in the machine's directory.
pub const SAVED_RECORD_FILE: &str = "suspended.json";
/// The version of the record this program writes and reads.
pub const SAVED_VERSION: u32 = 1;
/// The largest record that is written or read, in bytes.
pub const SAVED_BYTES_MAX: usize = 64 << 10;
/// Space that a suspended machine takes beside its memory, at most, in bytes.
pub(crate) const SAVE_SPACE: u64 = 64 << 20;
/// Time to save a machine with no memory.
const SAVE_WITHIN: Duration = Duration::from_secs(60);
/// Memory that is saved in a second at least, on the slowest disk that is waited for.
const SAVED_A_SECOND: u64 = 64 << 20;
/// Time between what a monitor has to save a machine and what a client waits for it.
const ANSWER_AFTER: Duration = Duration::from_secs(60);

/// Returns the time a monitor has to save a machine with so much memory.
pub(crate) fn save_within(memory: ByteSize) -> Duration {
    SAVE_WITHIN + Duration::from_secs(memory.bytes() / SAVED_A_SECOND)
}

/// What must hold to load a saved state: the file `suspended.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedRecord {
    /// [`SAVED_VERSION`].
    pub(crate) version: u32,
    /// When it was saved, in milliseconds since 1970 (UTC).
    pub(crate) suspended_unix_ms: u64,
    /// The state's length.
    pub(crate) state_bytes: u64,
    /// The digest of its content, made as an artifact's is.
    pub(crate) state_digest: Digest,
    /// What the machine was, as it was launched.
    pub(crate) compatibility: Compatibility,
    /// Its disks when its guest stood, in the order of the machine.
    pub(crate) disks: Vec<SavedDisk>,
}

/// A disk that a saved state belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedDisk {
    /// Its file's name in the machine's directory.
    pub(crate) file: String,
    /// The file's length.
    pub(crate) bytes: u64,
    /// When it was last written to, in nanoseconds since 1970 (UTC).
    pub(crate) written_unix_ns: u64,
}

impl SavedDisk {
    /// Describes a disk as it is now.
    pub(crate) fn of(path: &Path) -> EngineResult<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = fs::metadata(path)?;
        let nanoseconds = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Ok(Self {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: meta.len(),
            written_unix_ns: u64::try_from(nanoseconds).unwrap_or(0),
        })
    }
}

impl SavedRecord {
    /// Reads the record of a machine's directory.
    ///
    /// # Errors
    /// [`EngineError::Saved`] when there is none, or none that can be used.
    pub(crate) fn read(dir: &Path) -> EngineResult<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let unusable = |reason: String| EngineError::Saved { reason };
        let bytes = fs::read_optional(&dir.join(SAVED_RECORD_FILE), SAVED_BYTES_MAX)?
            .ok_or_else(|| unusable("its saved state is gone".to_owned()))?;
        let parsed =
            |error: serde_json::Error| unusable(format!("{SAVED_RECORD_FILE} does not parse: {error}"));
        let Version { version } = serde_json::from_slice(&bytes).map_err(parsed)?;
        if version != SAVED_VERSION {
            let reason =
                format!("{SAVED_RECORD_FILE} has version {version}, this kiln reads {SAVED_VERSION}");
            return Err(unusable(reason));
        }
        serde_json::from_slice(&bytes).map_err(parsed)
    }

    /// Makes the state beside it count. It and the disks are synced.
    pub(crate) fn commit(&self, dir: &Path) -> EngineResult<()> {
        #[expect(clippy::unwrap_used, reason = "the type has no map and no failing serializer")]
        let bytes = serde_json::to_vec_pretty(self).unwrap();
        let path = dir.join(SAVED_RECORD_FILE);
        if bytes.len() > SAVED_BYTES_MAX {
            let reason = format!("would have {} bytes, more than {SAVED_BYTES_MAX}", bytes.len());
            return Err(EngineError::HostPath { path, reason });
        }
        Ok(write_file(&path, &bytes, 0o600, Existing::Replace)?)
    }

    /// Compares with the machine that is to go on here; the error names the first difference.
    pub(crate) fn first_difference(&self, here: &Compatibility, disks: &[SavedDisk]) -> Option<String> {
        if let Some(fact) = self.compatibility.first_difference(here) {
            let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
            let (there, here) = (word(&fact.snapshot), word(&fact.here));
            return Some(format!("{} was {there} when it was suspended and is {here} here", fact.name));
        }
        if self.disks.len() != disks.len() {
            return Some(format!(
                "it had {} disks when it was suspended and has {}",
                self.disks.len(),
                disks.len()
            ));
        }
        let changed = self.disks.iter().zip(disks).find(|(there, here)| there != here);
        changed.map(|(_, here)| format!("{} was written to since it was suspended", here.file))
    }
}

/// Returns since when a machine's state is saved, in milliseconds since 1970 (UTC); none when none is.
pub(crate) fn saved_since(dir: &Path) -> EngineResult<Option<u64>> {
    if !fs::exists(&dir.join(SAVED_RECORD_FILE))? {
        return Ok(None);
    }
    // What cannot be read is kept all the same, and told when the machine is to go on.
    Ok(Some(SavedRecord::read(dir).map_or_else(|_| clock::now_unix_ms(), |saved| saved.suspended_unix_ms)))
}

/// Removes a machine's saved state, of which nothing counts from the first step on.
pub(crate) fn discard(dir: &Path) -> EngineResult<()> {
    fs::remove_file(&dir.join(SAVED_RECORD_FILE))?;
    fs::sync_dir(dir)?;
    Ok(fs::remove_file(&dir.join(SAVED_STATE_FILE))?)
}

/// A machine that was suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspended {
    /// What its state takes up on disk.
    pub state: ByteSize,
    /// How long it took until nothing ran any more.
    pub took: Duration,
}

/// A machine that was woken because somebody asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Woken {
    /// Its name.
    pub name: String,
    /// Milliseconds until it was ready.
    pub after_ms: u64,
}

impl Engine {
    /// Saves a machine that is ready, or paused, and ends its processes. It goes on with [`Engine::start`].
    ///
    /// # Errors
    /// [`EngineError::Phase`] in any other phase; [`EngineError::NotSuspended`] when it could not be saved: it goes on then.
    pub fn suspend(&self, name: &str) -> EngineResult<Suspended> {
        let begun = Instant::now();
        let entry = self.find_machine(name)?;
        let refuse = |entry: &MachineEntry| {
            let phase = entry.status.phase;
            let name = entry.record.name.to_string();
            match phase {
                Phase::Running | Phase::Paused => Ok(()),
                _ => Err(EngineError::Phase { name, phase: phase.as_str(), action: "suspended" }),
            }
        };
        refuse(&entry)?;
        let within = save_within(entry.record.shape.memory) + ANSWER_AFTER;
        if let Err(error) = ask_suspend(&entry.dir, entry.record.name.as_str(), within) {
            // Its own phase says more than a connection that failed, where it ended meanwhile.
            refuse(&self.find_machine(entry.record.id.as_str())?)?;
            return Err(error);
        }
        let gone = || EngineError::NoMachine { name: entry.record.name.to_string(), similar: None };
        let ended = self.wait_ended(&entry)?.ok_or_else(gone)?;
        if ended.status.phase != Phase::Suspended {
            let (name, phase) = (ended.record.name.to_string(), ended.status.phase.as_str());
            return Err(EngineError::Phase { name, phase, action: "suspended" });
        }
        let state = fs::optional(kiln_sys::copy::allocated_bytes(&ended.dir.join(SAVED_STATE_FILE)))?;
        Ok(Suspended { state: ByteSize::from_bytes(state.unwrap_or(0)), took: begun.elapsed() })
    }

    /// Discards what was saved of a suspended machine: it boots when it is started. Of any other there is nothing to discard.
    pub fn discard_saved(&self, name: &str) -> EngineResult<()> {
        let entry = self.find_machine(name)?;
        if entry.status.phase != Phase::Suspended {
            return Ok(());
        }
        let taken = |what: &str| {
            FileLock::try_take(&entry.dir.join(what), "discarding what was saved")?.map_err(|holder| {
                EngineError::SupervisorRefused { name: entry.record.name.to_string(), reason: holder.text }
            })
        };
        let (_start, _lock) = (taken(START_LOCK)?, taken(SUPERVISOR_LOCK)?);
        let MachineEntry { status, dir, .. } = self.store.machine(&entry.record.id)?;
        if status.phase == Phase::Suspended {
            self.end_suspended(&dir, &status, EndCause::Requested)?;
        }
        Ok(())
    }

    /// Turns a suspended machine into one that ended. The caller holds its supervisor's lock.
    pub(crate) fn end_suspended(
        &self,
        dir: &Path,
        status: &MachineStatus,
        end: EndCause,
    ) -> EngineResult<()> {
        discard(dir)?;
        let status = MachineStatus {
            phase: kiln_vmm::lifecycle::phase_after(&end),
            suspended_unix_ms: None,
            ended_unix_ms: Some(clock::now_unix_ms()),
            end: Some(end),
            ..status.clone()
        };
        Ok(self.store.write_status(dir, &status)?)
    }

    /// Starts a machine that was suspended because nobody wanted anything of it, and waits until it is ready. None for any
    /// other, which is left as it is.
    ///
    /// # Errors
    /// As those of [`Engine::start`].
    pub fn wake(&self, name: &str, reporter: &dyn Reporter) -> EngineResult<Option<Woken>> {
        self.wake_entry(&self.find_machine(name)?, reporter)
    }

    /// Like [`Engine::wake`], for a machine that was just looked up.
    pub(crate) fn wake_entry(
        &self,
        entry: &MachineEntry,
        reporter: &dyn Reporter,
    ) -> EngineResult<Option<Woken>> {
        let (id, name) = (entry.record.id.as_str(), entry.record.name.to_string());
        let sleeps = |phase| matches!(phase, Phase::Suspended | Phase::Starting);
        if entry.record.idle_suspend_ms.is_none() || !sleeps(entry.status.phase) {
            return Ok(None);
        }
        let begun = Instant::now();
        loop {
            let woken = match self.find_machine(id)?.status.phase {
                // Its supervisor is just beginning or just ending.
                Phase::Suspended if self.has_supervisor(entry)? => Err(None),
                Phase::Suspended => self.start(id, reporter).map(drop).map_err(Some),
                // Nobody has to find out that somebody else is waking it.
                Phase::Starting => self.wait_ready(id, None).map_err(Some),
                _ => Ok(()),
            };
            match woken {
                Ok(()) => break,
                Err(None | Some(EngineError::Phase { .. })) => {}
                Err(Some(EngineError::SupervisorRefused { .. })) if self.has_supervisor(entry)? => {}
                Err(Some(error)) => return Err(error),
            }
            if wait_cancelled(&self.cancel, LOOK_AGAIN) {
                return Err(EngineError::Cancelled);
            }
        }
        let after_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Some(Woken { name, after_ms }))
    }

    /// Returns how much a suspended machine's state takes up on disk; none for one that is not suspended.
    pub fn saved_bytes(&self, entry: &MachineEntry) -> EngineResult<Option<ByteSize>> {
        if entry.status.phase != Phase::Suspended {
            return Ok(None);
        }
        let bytes = fs::optional(kiln_sys::copy::allocated_bytes(&entry.dir.join(SAVED_STATE_FILE)))?;
        Ok(bytes.map(ByteSize::from_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::tool::ScratchDir;

    fn record() -> SavedRecord {
        let mut compatibility = Compatibility::default();
        compatibility.insert("vmm", "qemu");
        compatibility.insert("vcpus", 1);
        let disk = SavedDisk { file: "disk.raw".to_owned(), bytes: 7, written_unix_ns: 8 };
        SavedRecord {
            version: SAVED_VERSION,
            suspended_unix_ms: 5,
            state_bytes: 6,
            state_digest: Digest::of(b"state"),
            compatibility,
            disks: vec![disk],
        }
    }

    #[test]
    fn a_saved_record_counts_until_it_is_discarded_and_has_a_largest_size() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let (dir, path) = (scratch.path(), scratch.path().join(SAVED_RECORD_FILE));
        let said = || SavedRecord::read(dir).unwrap_err().to_string();
        assert_eq!((saved_since(dir).unwrap(), said()), (None, "its saved state is gone".to_owned()));
        record().commit(dir).unwrap();
        assert_eq!(SavedRecord::read(dir).unwrap(), record());
        assert_eq!(saved_since(dir).unwrap(), Some(5));
        let mut bytes = fs::read_limited(&path, SAVED_BYTES_MAX).unwrap();
        bytes.resize(SAVED_BYTES_MAX, b' ');
        write_file(&path, &bytes, 0o600, Existing::Replace).unwrap();
        assert_eq!(SavedRecord::read(dir).unwrap(), record());
        bytes.push(b' ');
        write_file(&path, &bytes, 0o600, Existing::Replace).unwrap();
        assert!(
            kiln_core::text::chain(&SavedRecord::read(dir).unwrap_err()).contains("more than 65536 bytes")
        );
        let mut large = record();
        large.disks[0].file = "x".repeat(SAVED_BYTES_MAX);
        assert!(large.commit(dir).is_err());
        // What cannot be read is kept: the machine is told of, and not booted by the way.
        assert!(saved_since(dir).unwrap().is_some());
        SavedRecord { version: 2, ..record() }.commit(dir).unwrap();
        assert_eq!(said(), "suspended.json has version 2, this kiln reads 1");
        drop(fs::create_new(&dir.join(SAVED_STATE_FILE)).unwrap());
        discard(dir).unwrap();
        assert_eq!(fs::list_dir(dir).unwrap(), Vec::<std::ffi::OsString>::new());
        discard(dir).unwrap();
    }

    #[test]
    fn the_first_difference_is_named_and_a_disk_that_was_written_to_is_one() {
        let saved = record();
        let told = |change: fn(&mut SavedRecord)| {
            let mut here = record();
            change(&mut here);
            saved.first_difference(&here.compatibility, &here.disks)
        };
        assert_eq!(told(|_| {}), None);
        let words = told(|here| here.compatibility.insert("vcpus", 2)).unwrap();
        assert_eq!(words, "vcpus was 1 when it was suspended and is 2 here");
        let words = told(|here| here.compatibility.insert("new", 2)).unwrap();
        assert_eq!(words, "new was unknown when it was suspended and is 2 here");
        let longer = told(|here| here.disks[0].bytes = 1);
        let later = told(|here| here.disks[0].written_unix_ns = 1);
        assert_eq!(longer.unwrap(), "disk.raw was written to since it was suspended");
        assert_eq!(later.unwrap(), "disk.raw was written to since it was suspended");
        let words = told(|here| here.disks.clear()).unwrap();
        assert_eq!(words, "it had 1 disks when it was suspended and has 0");
    }

    #[test]
    fn so_much_memory_has_so_much_time() {
        assert_eq!(save_within(ByteSize::from_mib(63)), Duration::from_secs(60));
        assert_eq!(save_within(ByteSize::from_mib(6400)), Duration::from_secs(160));
    }
}
