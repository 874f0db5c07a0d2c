//! Removing revisions: only what nothing else refers to goes.

use crate::error::{StoreError, StoreResult};
use crate::layout::{Store, StoreLock};
use crate::summary::Remember;
use kiln_core::Digest;
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
        let artifacts = match self.revision(id) {
            Ok(revision) => revision.manifest.artifacts,
            // What it referred to is unknown: its files stay for a collector.
            Err(StoreError::Damaged { .. } | StoreError::BadManifest { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut kept = HashSet::new();
        let mut all_kept = false;
        let others: Vec<Digest> = self.revision_ids()?.into_iter().filter(|other| other != id).collect();
        let others = self.summarize(&others, Remember::No);
        for other in &others.revisions {
            match &other.content {
                Ok(content) => kept.extend(others.artifacts(content).copied()),
                // It may refer to anything: everything is kept until it is gone.
                Err(StoreError::Damaged { .. } | StoreError::BadManifest { .. }) => all_kept = true,
                Err(_) => all_kept = self.revision(&other.id).map(|_| true)?,
            }
        }
        let gone: Vec<_> =
            artifacts.into_iter().filter(|artifact| !all_kept && !kept.contains(&artifact.digest)).collect();
        // First, so that who may not do this loses nothing by it.
        for artifact in &gone {
            self.unprotect(&artifact.digest)?;
        }
        fail::point("remove.manifest", &self.revision_path(id))?;
        fs::remove_file(&self.revision_path(id))?;
        fail::point("remove.record", &self.build_record_path(id))?;
        fs::remove_file(&self.build_record_path(id))?;
        fail::point("remove.sync", &self.revision_path(id))?;
        fs::sync_dir(&self.root().join("revisions"))?;
        let mut removed = Removed::default();
        for artifact in gone {
            let path = self.artifact_path(&artifact.digest);
            removed.bytes += kiln_sys::copy::allocated_bytes(&path).unwrap_or(0);
            fail::point("remove.artifact", &path)?;
            fs::remove_file(&path)?;
            fail::point("remove.index", &path)?;
            fs::remove_file(&self.index_path(&artifact.digest))?;
            fs::remove_file(&self.seal_path(&artifact.digest))?;
            // After the artifact: who makes the table again meanwhile looks for the artifact last.
            fs::remove_file(&self.block_table_path(&artifact.digest))?;
            removed.artifacts.push(artifact.digest);
        }
        // What dead processes left is not what was asked for: a later removal gets it.
        let _ = self.sweep_asides(alone);
        Ok(removed)
    }
}
