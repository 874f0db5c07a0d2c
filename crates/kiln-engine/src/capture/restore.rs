//! Machines made of a snapshot, and a machine put back to one.

use crate::create::{CreateRequest, START_LOCK};
use crate::progress::{Reporter, waiting};
use crate::restore::RestoreChoice;
use crate::supervisor::SUPERVISOR_LOCK;
use crate::{Engine, EngineError, EngineResult, private};
use kiln_core::machine::MachineRecord;
use kiln_core::{Reference, RevisionSelector};
use kiln_store::{MachineEntry, Snapshot};
use kiln_sys::commit::commit_dir_over;
use kiln_sys::fs;
use kiln_sys::lock::{FileLock, Share};

impl Engine {
    /// Returns what is asked for to have a machine that begins as a snapshot: with its memory where it has any and `boots`
    /// is not wanted, else by a boot from its disk.
    ///
    /// # Errors
    /// When there is no such snapshot, or its revision cannot be read.
    pub fn machine_of_snapshot(&self, wanted: &str, boots: bool) -> EngineResult<(Snapshot, CreateRequest)> {
        let snapshot = self.store.find_snapshot(wanted)?;
        let mut record = self.captured_record(&snapshot)?;
        if let Some(tag) = self.store.tags()?.into_iter().find(|entry| {
            entry.record.as_ref().is_ok_and(|record| record.revision == snapshot.manifest.subject)
        }) {
            let (template, tag) = (tag.template, tag.tag);
            let revision = RevisionSelector::Tagged { template, tag, digest: None };
            record.reference = Reference { revision, variant: record.variant.clone() }.to_string();
        }
        let boots = boots || snapshot.manifest.memory.is_none();
        let mut request = self.like(&record, snapshot.id);
        if boots {
            request.restore = RestoreChoice::DiskOf(snapshot.id);
        }
        Ok((snapshot, request))
    }

    /// Puts a machine that does not run back to a snapshot: from its next start on it goes on as it was captured, under its
    /// name and with its own settings. What it was is gone.
    ///
    /// # Errors
    /// [`EngineError::NotRestorable`] when the snapshot is of another revision or shape, or does not fit this host;
    /// [`EngineError::Phase`] when the machine runs. The machine is as it was then.
    pub fn put_back(
        &self,
        machine: &str,
        wanted: &str,
        boots: bool,
        reporter: &dyn Reporter,
    ) -> EngineResult<MachineEntry> {
        let entry = self.find_machine(machine)?;
        let name = entry.record.name.to_string();
        if entry.status.phase.is_live() {
            let phase = entry.status.phase.as_str();
            return Err(EngineError::Phase { name, phase, action: "put back" });
        }
        let mut waiting = waiting(reporter);
        let _store = self.store.lock(Share::Shared, "putting a machine back", &self.cancel, &mut waiting)?;
        let (snapshot, mut request) = self.machine_of_snapshot(wanted, boots)?;
        self.refuse_another(&entry.record, &snapshot)?;
        let mut held = Vec::new();
        for lock in [START_LOCK, SUPERVISOR_LOCK] {
            let taken = FileLock::try_take(&entry.dir.join(lock), "putting a machine back")?;
            held.push(taken.map_err(|holder| EngineError::SupervisorRefused {
                name: name.clone(),
                reason: format!("{} has it", holder.text),
            })?);
        }
        request.network = entry.record.network.clone();
        request.accelerator = entry.record.accelerator.clone();
        let staging = self.store.stage("putting a machine back")?;
        let dir = staging.path().join("machine");
        fs::create_dir(&dir)?;
        let revision = self.store.resolve(&Reference {
            revision: RevisionSelector::Digest(entry.record.revision),
            variant: entry.record.variant.clone(),
        })?;
        let made = self.record(&request, &revision, entry.record.id.clone(), &dir, reporter)?;
        let of = snapshot.record.as_ref().and_then(|record| record.machine.clone());
        let record = MachineRecord {
            clone: made.clone,
            snapshot: made.snapshot,
            must_restore: made.must_restore,
            boots: made.boots,
            put_back: of.as_deref() == Some(entry.record.name.as_str()),
            ..entry.record.clone()
        };
        private::write(&dir, &private::read(&entry.dir)?)?;
        self.write_machine(&dir, &record)?;
        self.cancel.check()?;
        commit_dir_over(&dir, &entry.dir)?;
        Ok(self.store.machine(&record.id)?)
    }

    /// Refuses a snapshot that is not of the machine's revision.
    fn refuse_another(&self, record: &MachineRecord, snapshot: &Snapshot) -> EngineResult<()> {
        let there = &snapshot.manifest;
        if there.subject == record.revision && there.machine == record.shape {
            return Ok(());
        }
        let what = if there.subject == record.revision {
            "of a machine of another shape"
        } else {
            "of another revision"
        };
        Err(EngineError::NotRestorable {
            reference: record.name.to_string(),
            reason: format!("snapshot {} is {what}", snapshot.label()),
        })
    }
}
