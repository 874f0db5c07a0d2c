//! Collection: what no root keeps is marked, moved to the trash, and deleted from there after a time of grace.

use crate::error::{StoreError, StoreResult};
use crate::layout::{Store, StoreLock};
use crate::mark::mark;
use crate::root::Root;
use crate::survey::Survey;
use kiln_core::{ByteSize, Digest};
use kiln_sys::commit::commit_dir;
use kiln_sys::copy::allocated_tree;
use kiln_sys::{clock, fs};
use std::path::PathBuf;
use std::time::Duration;

/// Where what was collected waits for its deletion.
const TRASH: &str = "trash";

/// What a collection keeps beside what roots keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectPolicy {
    /// Revisions that are kept for each tag, the current one among them; at least 1.
    pub keep_last: usize,
    /// Revisions built less than this ago are kept.
    pub older_than: Duration,
    /// Stops when the artifacts that stay take up no more than this; the oldest revisions go first.
    pub budget: Option<ByteSize>,
}

impl Default for CollectPolicy {
    fn default() -> Self {
        Self { keep_last: 2, older_than: Duration::ZERO, budget: None }
    }
}

/// A revision that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadRevision {
    /// Its id.
    pub id: Digest,
    /// When it was built, where that is known, in milliseconds since 1970 (UTC).
    pub built_unix_ms: Option<u64>,
    /// The bytes that only it and nothing that stays takes up.
    pub exclusive: ByteSize,
}

/// A snapshot that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadSnapshot {
    /// Its id.
    pub id: Digest,
    /// The revision whose machine was captured.
    pub subject: Digest,
    /// When it was captured, where that is known, in milliseconds since 1970 (UTC).
    pub created_unix_ms: Option<u64>,
    /// The bytes that only it takes up: no revision and no other snapshot has them.
    pub exclusive: ByteSize,
}

/// What a collection would do, or did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collection {
    /// Revisions that go, the oldest first.
    pub revisions: Vec<DeadRevision>,
    /// Snapshots that go, the oldest first.
    pub snapshots: Vec<DeadSnapshot>,
    /// Artifacts that go, with the bytes they take up: those of the revisions, and those no revision names.
    pub artifacts: Vec<(Digest, ByteSize)>,
    /// Revisions that stay.
    pub kept_revisions: usize,
    /// The bytes that the artifacts that stay take up.
    pub kept: ByteSize,
    /// Revisions that cannot be read. While there are any, no artifact goes: they may name it.
    pub unreadable: Vec<Digest>,
    /// Snapshots that cannot be read. While there are any, no artifact goes either.
    pub unreadable_snapshots: Vec<Digest>,
}

impl Collection {
    /// Returns the bytes of the artifacts that go.
    pub fn freed(&self) -> ByteSize {
        ByteSize::from_bytes(self.artifacts.iter().map(|(_, bytes)| bytes.bytes()).sum())
    }
}

impl Store {
    /// Returns the roots that keep a revision.
    pub fn why(&self, revision: &Digest, keep_last: usize) -> StoreResult<Vec<Root>> {
        let roots = self.roots(keep_last)?;
        Ok(roots.into_iter().filter(|(_, id)| id == revision).map(|(root, _)| root).collect())
    }

    /// Finds what a collection would remove, changing nothing.
    ///
    /// # Errors
    /// When a root cannot be read: it may keep anything.
    pub fn plan_collection(&self, policy: &CollectPolicy) -> StoreResult<Collection> {
        self.plan_surveyed(&self.survey()?, policy)
    }

    /// Like [`Store::plan_collection`], of a store that somebody looked through already.
    ///
    /// # Errors
    /// As [`Store::plan_collection`].
    pub fn plan_surveyed(&self, survey: &Survey, policy: &CollectPolicy) -> StoreResult<Collection> {
        let roots = self.root_revisions(&survey.tags, policy.keep_last)?;
        for summary in &survey.summaries.revisions {
            match summary.content {
                Ok(_) | Err(StoreError::Damaged { .. } | StoreError::BadManifest { .. }) => {}
                // The survey keeps its errors; reading again says this one. What can be read now is kept.
                Err(_) => drop(self.revision(&summary.id)?),
            }
        }
        let continued = self.machine_snapshots()?;
        Ok(mark(survey, roots, &continued, policy, clock::now_unix_ms()))
    }

    /// Moves what a plan names to the trash, in an order in which nothing that stays refers to anything that went.
    /// `alone` is the store's lock, held exclusively since before the plan was made.
    pub fn collect(&self, plan: &Collection, alone: &StoreLock) -> StoreResult<()> {
        if plan.revisions.is_empty() && plan.snapshots.is_empty() && plan.artifacts.is_empty() {
            // Failing at what dead processes left, or at what is only a cache, fails nothing.
            let _ = self.sweep_asides(alone);
            let _ = self.forget_mappings(alone);
            return Ok(());
        }
        // First, so that who may not do this loses nothing by it.
        for (digest, _) in &plan.artifacts {
            self.unprotect(digest)?;
        }
        let trash = self.root().join(TRASH);
        fs::create_dir_all(&trash)?;
        let bin = trash.join(format!("{}-{}", clock::now_unix_ms(), clock::random_hex::<4>()));
        let staging = self.stage("collecting")?;
        let aside = staging.path().join("bin");
        for part in ["", "snapshots", "revisions", "artifacts", "indexes"] {
            fs::create_dir(&aside.join(part))?;
        }
        // Made visible before anything is in it: what a crash leaves half moved is all in one place.
        commit_dir(&aside, &bin)?;
        let away = |from: PathBuf, part: &str| -> StoreResult<()> {
            let Some(name) = from.file_name().map(|name| bin.join(part).join(name)) else { return Ok(()) };
            fs::optional(fs::rename(&from, &name))?;
            Ok(())
        };
        for dead in &plan.snapshots {
            away(self.snapshot_test_path(&dead.id), "snapshots")?;
            away(self.snapshot_path(&dead.id), "snapshots")?;
            away(self.snapshot_record_path(&dead.id), "snapshots")?;
        }
        // No revision goes before the snapshots of it.
        fs::sync_dir(&self.root().join("snapshots"))?;
        for dead in &plan.revisions {
            away(self.revision_path(&dead.id), "revisions")?;
            away(self.build_record_path(&dead.id), "revisions")?;
        }
        // No artifact goes before the names of its revisions are gone for good.
        fs::sync_dir(&self.root().join("revisions"))?;
        for (digest, _) in &plan.artifacts {
            fs::remove_file(&self.seal_path(digest))?;
            away(self.artifact_path(digest), "artifacts")?;
            // After the artifact: who makes the table again meanwhile looks for the artifact last.
            fs::remove_file(&self.block_table_path(digest))?;
            away(self.index_path(digest), "indexes")?;
        }
        fs::sync_dir(&self.root().join("artifacts"))?;
        fs::sync_dir(&self.root().join("indexes"))?;
        // What dead processes left, and the cache, are not what was asked for: a later collection gets them.
        let _ = self.sweep_asides(alone);
        let _ = self.forget_mappings(alone);
        Ok(())
    }

    /// Deletes what has been in the trash for `grace`; returns the bytes that took up.
    pub fn empty_trash(&self, grace: Duration) -> StoreResult<ByteSize> {
        let trash = self.root().join(TRASH);
        let now = clock::now_unix_ms();
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let mut bytes = 0;
        for (name, moved) in self.trash()? {
            if now.saturating_sub(moved) >= grace {
                let path = trash.join(name);
                bytes += allocated_tree(&path)?;
                fs::remove_tree(&path)?;
            }
        }
        Ok(ByteSize::from_bytes(bytes))
    }

    /// Returns the bytes that the trash takes up.
    pub fn trash_bytes(&self) -> StoreResult<ByteSize> {
        let mut bytes = 0;
        for (name, _) in self.trash()? {
            bytes += allocated_tree(&self.root().join(TRASH).join(name))?;
        }
        Ok(ByteSize::from_bytes(bytes))
    }

    /// Lists what is in the trash, with the time it was moved there.
    fn trash(&self) -> StoreResult<Vec<(String, u64)>> {
        let names = fs::list_dir(&self.root().join(TRASH))?;
        Ok(names
            .into_iter()
            .filter_map(|name| {
                let name = name.into_string().ok()?;
                let moved = name.split_once('-')?.0.parse().ok()?;
                Some((name, moved))
            })
            .collect())
    }
}
