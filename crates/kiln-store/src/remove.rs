//! Removing revisions: only what nothing else refers to goes.

use crate::error::{StoreError, StoreResult};
use crate::layout::{Store, StoreLock};
use crate::snapshot::Snapshot;
use crate::summary::Remember;
use kiln_core::Digest;
use kiln_core::snapshot::SnapshotKeep;
use kiln_sys::{clock, fail, fs};
use std::collections::HashSet;

/// What a removal freed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// The artifacts that went.
    pub artifacts: Vec<Digest>,
    /// The bytes they took up.
    pub bytes: u64,
}

impl Store {
    /// Returns the names of the machines that run a revision or could.
    pub fn machines_of(&self, revision: &Digest) -> StoreResult<Vec<String>> {
        let mut names = Vec::new();
        for (id, entry) in self.machines()? {
            match entry {
                Ok(entry) if entry.record.revision == *revision => names.push(entry.record.name.to_string()),
                Ok(_) => {}
                // A machine that cannot be read may use anything.
                Err(_) => names.push(id.to_string()),
            }
        }
        Ok(names)
    }

    /// Refuses when a machine or a disk uses a revision, or could, or a lease keeps it.
    pub fn check_unused(&self, revision: &Digest) -> StoreResult<()> {
        let machines = self.machines_of(revision)?;
        if !machines.is_empty() {
            return Err(StoreError::InUse { revision: *revision, machines });
        }
        let owners = self.disks_of(revision)?;
        if !owners.is_empty() {
            return Err(StoreError::HasDisks { revision: *revision, owners });
        }
        let now = clock::now_unix_ms();
        let leases = self.leases()?.into_iter();
        let leases: Vec<String> = leases
            .filter(|lease| lease.revision == *revision && lease.holds_at(now))
            .map(|lease| lease.id)
            .collect();
        if !leases.is_empty() {
            return Err(StoreError::Leased { revision: *revision, leases });
        }
        let snapshots: Vec<String> = self
            .snapshots_of(revision)?
            .iter()
            .filter(|snapshot| snapshot.keep() == SnapshotKeep::Always)
            .map(Snapshot::label)
            .collect();
        if !snapshots.is_empty() {
            return Err(StoreError::HasSnapshots { revision: *revision, snapshots });
        }
        Ok(())
    }

    /// Removes a revision without tags, machines, disks and leases, and the artifacts only it had. `alone` is the store's lock,
    /// held exclusively: nobody can begin to use them meanwhile.
    pub fn remove_revision(&self, id: &Digest, alone: &StoreLock) -> StoreResult<Removed> {
        self.check_unused(id)?;
        let tags: Vec<String> =
            self.tags_of(id)?.into_iter().map(|(template, tag)| format!("{template}:{tag}")).collect();
        if !tags.is_empty() {
            return Err(StoreError::Tagged { revision: *id, tags });
        }
        let mut artifacts = match self.revision(id) {
            Ok(revision) => revision.manifest.artifacts.iter().map(|artifact| artifact.digest).collect(),
            // What it referred to is unknown: its files stay for a collector.
            Err(StoreError::Damaged { .. } | StoreError::BadManifest { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let snapshots = self.snapshots_of(id)?;
        artifacts.extend(snapshots.iter().flat_map(|of| of.manifest.files()).map(|file| file.digest));
        let snapshots: Vec<Digest> = snapshots.iter().map(|snapshot| snapshot.id).collect();
        let gone = self.unused(artifacts, Some(id), &snapshots)?;
        // They are nothing without it.
        self.forget_snapshots(&snapshots)?;
        fail::point("remove.manifest", &self.revision_path(id))?;
        fs::remove_file(&self.revision_path(id))?;
        fail::point("remove.record", &self.build_record_path(id))?;
        fs::remove_file(&self.build_record_path(id))?;
        fail::point("remove.sync", &self.revision_path(id))?;
        fs::sync_dir(&self.root().join("revisions"))?;
        self.remove_artifacts(gone, alone)
    }

    /// Returns those of some artifacts that nothing but this revision and these snapshots refers to, ready to be removed.
    pub(crate) fn unused(
        &self,
        artifacts: Vec<Digest>,
        but_for: Option<&Digest>,
        but_for_snapshots: &[Digest],
    ) -> StoreResult<Vec<Digest>> {
        let mut kept = HashSet::new();
        let mut all_kept = false;
        let others: Vec<Digest> =
            self.revision_ids()?.into_iter().filter(|other| Some(other) != but_for).collect();
        let others = self.summarize(&others, Remember::No);
        for other in &others.revisions {
            match &other.content {
                Ok(content) => kept.extend(others.artifacts(content).copied()),
                // It may refer to anything: everything is kept until it is gone.
                Err(StoreError::Damaged { .. } | StoreError::BadManifest { .. }) => all_kept = true,
                Err(_) => all_kept = self.revision(&other.id).map(|_| true)?,
            }
        }
        for snapshot in self.snapshot_uses()? {
            match snapshot.content {
                _ if but_for_snapshots.contains(&snapshot.id) => {}
                Some(content) => kept.extend(content.files),
                None => all_kept = true,
            }
        }
        let mut gone: Vec<Digest> =
            artifacts.into_iter().filter(|digest| !all_kept && !kept.contains(digest)).collect();
        gone.sort_unstable();
        gone.dedup();
        // First, so that who may not do this loses nothing by it.
        for digest in &gone {
            self.unprotect(digest)?;
        }
        Ok(gone)
    }

    /// Removes artifacts that nothing refers to.
    pub(crate) fn remove_artifacts(&self, gone: Vec<Digest>, alone: &StoreLock) -> StoreResult<Removed> {
        let mut removed = Removed::default();
        for digest in gone {
            let path = self.artifact_path(&digest);
            removed.bytes += kiln_sys::copy::allocated_bytes(&path).unwrap_or(0);
            fail::point("remove.artifact", &path)?;
            fs::remove_file(&path)?;
            fail::point("remove.index", &path)?;
            fs::remove_file(&self.index_path(&digest))?;
            fs::remove_file(&self.seal_path(&digest))?;
            // After the artifact: who makes the table again meanwhile looks for the artifact last.
            fs::remove_file(&self.block_table_path(&digest))?;
            removed.artifacts.push(digest);
        }
        // What dead processes left, and the cache, are not what was asked for: a later removal gets them.
        let _ = self.sweep_asides(alone);
        let _ = self.forget_mappings(alone);
        Ok(removed)
    }
}
