//! Snapshots: manifests named by their own digest, and beside each a record of how it was made that is not part of it.
//! Their files are artifacts.

use crate::artifact::need_space_in;
use crate::error::{StoreError, StoreResult};
use crate::layout::{Store, StoreLock};
use crate::remove::Removed;
use kiln_core::reference::DIGEST_PREFIX_CHARS_MIN;
use kiln_core::snapshot::{
    SNAPSHOT_BYTES_MAX, SNAPSHOT_RECORD_VERSION, SnapshotFile, SnapshotKeep, SnapshotManifest, SnapshotRecord,
};
use kiln_core::template_test::{SnapshotTest, TEST_BYTES_MAX};
use kiln_core::{Digest, VariantName};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::{fail, fs};
use serde::Deserialize;
use std::collections::HashSet;
use std::path::PathBuf;

/// The largest snapshot record that is read, in bytes.
const RECORD_BYTES_MAX: usize = 16 << 10;
/// The most snapshots that are named when nothing has the wanted name.
const SIMILAR_MAX: usize = 3;

/// A snapshot: its id, its content, and how it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The digest of the manifest.
    pub id: Digest,
    /// The manifest.
    pub manifest: SnapshotManifest,
    /// How it was made; none where the record is lost or of a newer kiln: such a snapshot stays until it is removed.
    pub record: Option<SnapshotRecord>,
}

impl Snapshot {
    /// Returns for how long it stays.
    pub fn keep(&self) -> SnapshotKeep {
        self.record.as_ref().map_or(SnapshotKeep::Always, |record| record.keep)
    }

    /// Returns the name its maker gave it, or the beginning of its id.
    pub fn label(&self) -> String {
        let name = self.record.as_ref().and_then(|record| record.name.as_ref());
        name.map_or_else(|| self.id.short(), VariantName::to_string)
    }
}

/// What accounting and collection need of a snapshot.
#[derive(Debug)]
pub struct SnapshotUse {
    /// The snapshot.
    pub id: Digest,
    /// None where it cannot be read: it may be of any revision and have any file.
    pub content: Option<SnapshotContent>,
}

/// What a snapshot's manifest and record say, in short.
#[derive(Debug)]
pub struct SnapshotContent {
    /// The revision whose machine was captured.
    pub subject: Digest,
    /// For how long it stays.
    pub keep: SnapshotKeep,
    /// When it was captured, where that is known, in milliseconds since 1970 (UTC).
    pub created_unix_ms: Option<u64>,
    /// Its files: artifacts.
    pub files: Vec<Digest>,
}

impl Store {
    pub(crate) fn snapshot_path(&self, id: &Digest) -> PathBuf {
        self.root().join("snapshots").join(format!("{}.json", id.hex()))
    }

    pub(crate) fn snapshot_record_path(&self, id: &Digest) -> PathBuf {
        self.root().join("snapshots").join(format!("{}.made.json", id.hex()))
    }

    pub(crate) fn snapshot_test_path(&self, id: &Digest) -> PathBuf {
        self.root().join("snapshots").join(format!("{}.test.json", id.hex()))
    }

    /// Publishes a snapshot whose files are in the store, and returns its id. The caller holds the store's lock since
    /// before they were taken in.
    ///
    /// # Errors
    /// [`StoreError::BadSnapshot`] for a manifest that could not be read again; [`StoreError::NotFound`] and
    /// [`StoreError::Damaged`] for a revision or file that is not there whole.
    pub fn commit_snapshot(
        &self,
        manifest: &SnapshotManifest,
        record: &SnapshotRecord,
    ) -> StoreResult<Digest> {
        let bytes = manifest.to_bytes();
        let id = Digest::of(&bytes);
        SnapshotManifest::parse(&bytes).map_err(|source| StoreError::BadSnapshot { id, source })?;
        self.revision(&manifest.subject)?;
        for SnapshotFile { digest, size } in manifest.files() {
            match self.check_artifact(&digest, size) {
                Ok(()) | Err(StoreError::Unsealed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        need_space_in(self.root(), (SNAPSHOT_BYTES_MAX + RECORD_BYTES_MAX) as u64)?;
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let record = serde_json::to_vec_pretty(record).unwrap();
        fail::point("snapshot.record", &self.snapshot_record_path(&id))?;
        write_file(&self.snapshot_record_path(&id), &record, 0o644, Existing::Replace)?;
        fail::point("snapshot.manifest", &self.snapshot_path(&id))?;
        write_file(&self.snapshot_path(&id), &bytes, 0o444, Existing::Replace)?;
        fail::point("snapshot.done", &self.snapshot_path(&id))?;
        Ok(id)
    }

    /// Reads a snapshot and checks it against its id.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Damaged`] and [`StoreError::BadSnapshot`] for one that is not what was
    /// written.
    pub fn snapshot(&self, id: &Digest) -> StoreResult<Snapshot> {
        let path = self.snapshot_path(id);
        let Some(bytes) = fs::read_optional(&path, SNAPSHOT_BYTES_MAX)? else {
            return Err(StoreError::NotFound { kind: "snapshot", name: id.to_string(), similar: Vec::new() });
        };
        if Digest::of(&bytes) != *id {
            return Err(StoreError::Damaged { path, reason: "its content has another digest".to_owned() });
        }
        let manifest =
            SnapshotManifest::parse(&bytes).map_err(|source| StoreError::BadSnapshot { id: *id, source })?;
        Ok(Snapshot { id: *id, manifest, record: self.snapshot_record(id)? })
    }

    /// Reads how a snapshot was made; none where nothing that this kiln knows says so.
    fn snapshot_record(&self, id: &Digest) -> StoreResult<Option<SnapshotRecord>> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bytes = match fs::read_optional(&self.snapshot_record_path(id), RECORD_BYTES_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
            read => read?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let version = serde_json::from_slice::<Version>(&bytes).ok().map(|version| version.version);
        Ok((version == Some(SNAPSHOT_RECORD_VERSION)).then(|| serde_json::from_slice(&bytes).ok()).flatten())
    }

    /// Keeps what a test of a snapshot found, in place of the last one's. The caller holds the store's lock.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a snapshot that is gone; [`StoreError::BadTest`] for a result that could not be read
    /// again.
    pub fn save_snapshot_test(&self, id: &Digest, test: &SnapshotTest) -> StoreResult<()> {
        self.snapshot(id)?;
        let bytes = test.to_bytes().map_err(|source| StoreError::BadTest { id: *id, source })?;
        need_space_in(self.root(), TEST_BYTES_MAX as u64)?;
        Ok(write_file(&self.snapshot_test_path(id), &bytes, 0o644, Existing::Replace)?)
    }

    /// Reads what the last test of a snapshot found; none where nothing that this kiln knows says so.
    pub fn snapshot_test(&self, id: &Digest) -> StoreResult<Option<SnapshotTest>> {
        let bytes = match fs::read_optional(&self.snapshot_test_path(id), TEST_BYTES_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
            read => read?,
        };
        Ok(bytes.and_then(|bytes| SnapshotTest::parse(&bytes).ok()))
    }

    /// Lists the ids of all snapshots.
    pub fn snapshot_ids(&self) -> StoreResult<Vec<Digest>> {
        Ok(fs::list_dir_where(&self.root().join("snapshots"), |name| {
            Digest::from_hex(name.to_str()?.strip_suffix(".json")?).ok()
        })?)
    }

    /// Reads all snapshots, the oldest first; one that vanishes meanwhile is left out, one that cannot be read is an error
    /// in its place.
    pub fn snapshots(&self) -> StoreResult<Vec<(Digest, StoreResult<Snapshot>)>> {
        let mut found = Vec::new();
        for id in self.snapshot_ids()? {
            match self.snapshot(&id) {
                Err(StoreError::NotFound { .. }) => {}
                snapshot => found.push((id, snapshot)),
            }
        }
        let made = |snapshot: &StoreResult<Snapshot>| {
            snapshot.as_ref().ok().and_then(|s| s.record.as_ref()).map(|record| record.created_unix_ms)
        };
        found.sort_by_key(|(id, snapshot)| (made(snapshot), *id));
        Ok(found)
    }

    /// Returns the snapshots of a revision that can be read, the youngest first.
    pub fn snapshots_of(&self, revision: &Digest) -> StoreResult<Vec<Snapshot>> {
        let all = self.snapshots()?.into_iter().rev().filter_map(|(_, snapshot)| snapshot.ok());
        Ok(all.filter(|snapshot| snapshot.manifest.subject == *revision).collect())
    }

    /// Finds a snapshot by its name, its id, or the beginning of that.
    ///
    /// # Errors
    /// As [`Store::snapshot_id`] and [`Store::snapshot`].
    pub fn find_snapshot(&self, wanted: &str) -> StoreResult<Snapshot> {
        self.snapshot(&self.snapshot_id(wanted)?)
    }

    /// Finds the id of a snapshot by its name, its id, or the beginning of that. One that cannot be read is found by its id.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] with names like it; [`StoreError::AmbiguousSnapshot`].
    pub fn snapshot_id(&self, wanted: &str) -> StoreResult<Digest> {
        let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        let all = self.snapshots()?;
        let named = |entry: &&(Digest, StoreResult<Snapshot>)| {
            let record = entry.1.as_ref().ok().and_then(|snapshot| snapshot.record.as_ref());
            record.and_then(|record| record.name.as_ref()).is_some_and(|name| name.as_str() == wanted)
        };
        let begins = |entry: &&(Digest, StoreResult<Snapshot>)| {
            digits.len() >= DIGEST_PREFIX_CHARS_MIN && entry.0.hex().starts_with(digits)
        };
        let mut fits: Vec<Digest> = all.iter().filter(named).map(|(id, _)| *id).collect();
        if fits.is_empty() {
            fits = all.iter().filter(begins).map(|(id, _)| *id).collect();
        }
        match fits.as_slice() {
            [id] => Ok(*id),
            [] => {
                let known: Vec<String> =
                    all.iter().filter_map(|(_, s)| Some(s.as_ref().ok()?.label())).collect();
                let near = kiln_core::text::nearest(wanted, known.iter().map(String::as_str));
                let similar = near.map(str::to_owned).into_iter().take(SIMILAR_MAX).collect();
                let name = kiln_core::text::clip(wanted);
                Err(StoreError::NotFound { kind: "snapshot", name, similar })
            }
            _ => {
                Err(StoreError::AmbiguousSnapshot { wanted: kiln_core::text::clip(wanted), candidates: fits })
            }
        }
    }

    /// Returns the names of the machines that continue a snapshot, or could: one whose record cannot be read may.
    pub fn machines_from(&self, snapshot: &Digest) -> StoreResult<Vec<String>> {
        let mut names = Vec::new();
        for (id, entry) in self.machines()? {
            match entry {
                Ok(entry) if entry.record.snapshot == Some(*snapshot) => {
                    names.push(entry.record.name.to_string());
                }
                Ok(_) => {}
                Err(_) => names.push(id.to_string()),
            }
        }
        Ok(names)
    }

    /// Removes a snapshot that no machine continues, and the files only it had. `alone` is the store's lock, held
    /// exclusively.
    ///
    /// # Errors
    /// [`StoreError::SnapshotInUse`] with the names of the machines.
    pub fn remove_snapshot(&self, id: &Digest, alone: &StoreLock) -> StoreResult<Removed> {
        let machines = self.machines_from(id)?;
        if !machines.is_empty() {
            return Err(StoreError::SnapshotInUse { snapshot: *id, machines });
        }
        let files = match self.snapshot(id) {
            Ok(snapshot) => snapshot.manifest.files().map(|file| file.digest).collect(),
            // What it referred to is unknown: its files stay for a collector.
            Err(StoreError::Damaged { .. } | StoreError::BadSnapshot { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let gone = self.unused(files, None, &[*id])?;
        self.forget_snapshots(&[*id])?;
        self.remove_artifacts(gone, alone)
    }

    /// Takes the names of snapshots away; their files stay.
    pub(crate) fn forget_snapshots(&self, ids: &[Digest]) -> StoreResult<()> {
        for id in ids {
            fail::point("remove.snapshot", &self.snapshot_path(id))?;
            // Before its snapshot: a result alone would be found by the next one of that id.
            fs::remove_file(&self.snapshot_test_path(id))?;
            fs::remove_file(&self.snapshot_path(id))?;
            fs::remove_file(&self.snapshot_record_path(id))?;
        }
        if ids.is_empty() { Ok(()) } else { Ok(fs::sync_dir(&self.root().join("snapshots"))?) }
    }

    /// Looks at what collection needs of all snapshots.
    pub(crate) fn snapshot_uses(&self) -> StoreResult<Vec<SnapshotUse>> {
        let mut uses = Vec::new();
        for id in self.snapshot_ids()? {
            let content = match self.snapshot(&id) {
                Ok(snapshot) => Some(SnapshotContent {
                    subject: snapshot.manifest.subject,
                    keep: snapshot.keep(),
                    created_unix_ms: snapshot.record.as_ref().map(|record| record.created_unix_ms),
                    files: snapshot.manifest.files().map(|file| file.digest).collect(),
                }),
                Err(StoreError::NotFound { .. }) => continue,
                Err(StoreError::Damaged { .. } | StoreError::BadSnapshot { .. }) => None,
                Err(error) => return Err(error),
            };
            uses.push(SnapshotUse { id, content });
        }
        Ok(uses)
    }

    /// Returns the snapshots that machines continue.
    pub(crate) fn machine_snapshots(&self) -> StoreResult<HashSet<Digest>> {
        let mut used = HashSet::new();
        for (_, entry) in self.machines()? {
            used.extend(entry?.record.snapshot);
        }
        Ok(used)
    }
}
