//! A survey: templates, revisions and artifacts of a store, each looked at once, for accounting and collection.

use crate::error::StoreResult;
use crate::layout::{Store, StoreLock};
use crate::parallel;
use crate::snapshot::SnapshotUse;
use crate::summary::{Remember, Summaries};
use crate::tag::TagEntry;
use kiln_core::Digest;
use kiln_sys::stamp::OpenDir;

/// What the file of an artifact takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArtifactUse {
    /// The artifact.
    pub digest: Digest,
    /// Its length in bytes, holes included.
    pub length: u64,
    /// The bytes it takes up.
    pub allocated: u64,
}

/// What is in a store.
#[derive(Debug)]
pub struct Survey {
    /// All tags, by template and tag.
    pub tags: Vec<TagEntry>,
    /// All revisions, by id.
    pub summaries: Summaries,
    /// All artifacts, by digest, whether a revision has them or not.
    pub artifacts: Vec<ArtifactUse>,
    /// All snapshots.
    pub snapshots: Vec<SnapshotUse>,
}

impl Store {
    /// Looks at everything in the store, without a lock: what changes meanwhile is seen as it was or as it is.
    pub fn survey(&self) -> StoreResult<Survey> {
        self.look(Remember::Yes)
    }

    /// Like [`Store::survey`], for who holds the store's lock exclusively: nothing is written while others wait.
    pub fn survey_alone(&self, _alone: &StoreLock) -> StoreResult<Survey> {
        self.look(Remember::No)
    }

    fn look(&self, remember: Remember) -> StoreResult<Survey> {
        // Tags with long logs take as long to read as everything else.
        std::thread::scope(|scope| {
            let tags = std::thread::Builder::new().spawn_scoped(scope, || self.tags());
            let (summaries, artifacts) = self.look_at_content(remember)?;
            let tags = match tags {
                Ok(tags) => tags.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // Where the host has no thread to give, this one does the work.
                Err(_) => self.tags(),
            };
            Ok(Survey { tags: tags?, summaries, artifacts, snapshots: self.snapshot_uses()? })
        })
    }

    fn look_at_content(&self, remember: Remember) -> StoreResult<(Summaries, Vec<ArtifactUse>)> {
        let summaries = self.summarize_all(remember)?;
        let directory = OpenDir::open(&self.root().join("artifacts"))?;
        let artifacts = parallel::map(&self.artifact_ids()?, |digest| -> StoreResult<Option<ArtifactUse>> {
            let sizes = directory.sizes(&digest.hex())?;
            Ok(sizes.map(|(length, allocated)| ArtifactUse { digest: *digest, length, allocated }))
        });
        let artifacts = artifacts.into_iter().filter_map(Result::transpose).collect::<StoreResult<_>>()?;
        Ok((summaries, artifacts))
    }
}
