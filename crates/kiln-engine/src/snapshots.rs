//! Snapshots as things of the store: listing and removing them, and saying what has their files. Capturing and restoring
//! them is not here.

use crate::collect::Reasons;
use crate::progress::{Reporter, waiting};
use crate::{Engine, EngineResult};
use kiln_core::snapshot::{SnapshotFile, SnapshotKeep};
use kiln_core::{ByteSize, Digest, Reference, RevisionSelector};
use kiln_store::{CollectPolicy, Removed, Root, Snapshot, StoreError, StoreResult, Survey};
use kiln_sys::lock::Share;
use kiln_sys::{copy, fs};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A snapshot, with what else the store knows of it.
#[derive(Debug)]
pub struct SnapshotEntry {
    /// Its id.
    pub id: Digest,
    /// What it is, or why it cannot be read.
    pub content: Result<Snapshot, StoreError>,
    /// The tags that point to its revision, each with its template.
    pub tags: Vec<String>,
    /// The machines that continue it, or could: one whose record cannot be read may.
    pub machines: Vec<String>,
    /// Its files; none where it cannot be read.
    pub files: Vec<SnapshotPart>,
}

/// A file of a snapshot as the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotPart {
    /// The field of the manifest that names it: `disk`, `data_disk`, `ram` or `state`.
    pub role: &'static str,
    /// The artifact and its length.
    pub file: SnapshotFile,
    /// The bytes it takes up; none where the file is missing.
    pub allocated: Option<ByteSize>,
}

impl SnapshotEntry {
    /// Returns the length of its files, holes included.
    pub fn apparent(&self) -> ByteSize {
        ByteSize::from_bytes(self.files.iter().map(|part| part.file.size.bytes()).sum())
    }

    /// Returns what its files take up, each counted once.
    pub fn allocated(&self) -> ByteSize {
        let once: BTreeMap<Digest, u64> = self
            .files
            .iter()
            .map(|part| (part.file.digest, part.allocated.map_or(0, ByteSize::bytes)))
            .collect();
        ByteSize::from_bytes(once.values().sum())
    }
}

/// What the snapshots of one revision take up.
#[derive(Debug)]
pub struct SnapshotUsage {
    /// The revision.
    pub revision: Digest,
    /// A template that has or had it, the first by name; none for one without.
    pub template: Option<String>,
    /// How many there are.
    pub snapshots: usize,
    /// The length of their files, each once.
    pub apparent: ByteSize,
    /// What they take up.
    pub allocated: ByteSize,
    /// What of it templates, or snapshots of other revisions, have too.
    pub shared: ByteSize,
}

impl SnapshotUsage {
    /// Returns what would be free without these snapshots.
    pub fn exclusive(&self) -> ByteSize {
        ByteSize::from_bytes(self.allocated.bytes().saturating_sub(self.shared.bytes()))
    }
}

impl Engine {
    /// Lists the snapshots, or those of one revision, the oldest first. One that cannot be read has its error in its place;
    /// it is of no revision.
    pub fn snapshots(&self, of: Option<&Reference>) -> EngineResult<Vec<SnapshotEntry>> {
        let of = of.map(|reference| self.store.resolve(reference)).transpose()?.map(|revision| revision.id);
        let mut found = self.store.snapshots()?;
        if let Some(of) = of {
            found.retain(|(_, snapshot)| snapshot.as_ref().is_ok_and(|known| known.manifest.subject == of));
        }
        self.entries(found)
    }

    /// Returns one snapshot by its name, its id, or the beginning of that.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::AmbiguousSnapshot`], and what is wrong with one that cannot be read.
    pub fn snapshot(&self, wanted: &str) -> EngineResult<(SnapshotEntry, Snapshot)> {
        let snapshot = self.store.find_snapshot(wanted)?;
        let mut entries = self.entries(vec![(snapshot.id, Ok(snapshot.clone()))])?;
        match entries.pop() {
            Some(entry) => Ok((entry, snapshot)),
            None => Err(StoreError::NotFound {
                kind: "snapshot",
                name: snapshot.id.to_string(),
                similar: Vec::new(),
            }
            .into()),
        }
    }

    /// Removes a snapshot that no machine continues, and the files only it had.
    ///
    /// # Errors
    /// [`StoreError::SnapshotInUse`] with the machines' names; [`StoreError::NotFound`];
    /// [`StoreError::AmbiguousSnapshot`].
    pub fn remove_snapshot(&self, wanted: &str, reporter: &dyn Reporter) -> EngineResult<(Digest, Removed)> {
        let mut waiting = waiting(reporter);
        let alone = self.store.lock(Share::Exclusive, "removing a snapshot", &self.cancel, &mut waiting)?;
        let id = self.store.snapshot_id(wanted)?;
        Ok((id, self.store.remove_snapshot(&id, &alone)?))
    }

    fn entries(&self, found: Vec<(Digest, StoreResult<Snapshot>)>) -> EngineResult<Vec<SnapshotEntry>> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let mut tags: HashMap<Digest, Vec<String>> = HashMap::new();
        for entry in self.store.tags()? {
            // A tag that cannot be read is told by the list of tags.
            let Ok(record) = entry.record else { continue };
            tags.entry(record.revision).or_default().push(format!("{}:{}", entry.template, entry.tag));
        }
        let (mut continued, mut any): (HashMap<Digest, Vec<String>>, Vec<String>) = Default::default();
        for (id, entry) in self.store.machines()? {
            match entry.map(|entry| (entry.record.snapshot, entry.record.name)) {
                Ok((Some(of), name)) => continued.entry(of).or_default().push(name.to_string()),
                Ok((None, _)) => {}
                Err(_) => any.push(id.to_string()),
            }
        }
        let mut entries = Vec::with_capacity(found.len());
        for (id, content) in found {
            let mut machines = continued.remove(&id).unwrap_or_default();
            machines.extend(any.iter().cloned());
            machines.sort();
            let mut entry = SnapshotEntry { id, content, tags: Vec::new(), machines, files: Vec::new() };
            if let Ok(snapshot) = &entry.content {
                entry.tags = tags.get(&snapshot.manifest.subject).cloned().unwrap_or_default();
                for (role, file) in snapshot.manifest.parts() {
                    let bytes = copy::allocated_bytes(&self.store.artifact_path(&file.digest));
                    let allocated = fs::optional(bytes)?.map(ByteSize::from_bytes);
                    entry.files.push(SnapshotPart { role, file, allocated });
                }
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Returns the snapshots that a digest means, or that have the artifact it means, with what keeps each. A snapshot that
    /// its user made keeps itself.
    pub(crate) fn why_snapshots(&self, wanted: &Reference) -> EngineResult<Vec<Reasons>> {
        let fits = |digest: &Digest| match &wanted.revision {
            RevisionSelector::Digest(id) => digest == id,
            RevisionSelector::DigestPrefix(prefix) => digest.hex().starts_with(prefix.as_str()),
            _ => false,
        };
        let mut found: Vec<(Snapshot, Option<String>)> = Vec::new();
        for (id, snapshot) in self.store.snapshots()? {
            // What cannot be read names no file.
            let Ok(snapshot) = snapshot else { continue };
            if fits(&id) {
                found.push((snapshot.clone(), None));
            }
            let parts = snapshot.manifest.parts().filter(|(_, file)| fits(&file.digest));
            found.extend(parts.map(|(role, _)| (snapshot.clone(), Some(role.to_owned()))));
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let of_revisions = self.store.roots(CollectPolicy::default().keep_last)?;
        let mut all = Vec::with_capacity(found.len());
        for (snapshot, role) in found {
            let mut roots: Vec<Root> = Vec::new();
            match snapshot.keep() {
                SnapshotKeep::Always => roots.push(Root::Snapshot { name: snapshot.label() }),
                SnapshotKeep::Machines => {}
                _ => {
                    let roots_of_it = of_revisions.iter().filter(|(_, id)| *id == snapshot.manifest.subject);
                    roots.extend(roots_of_it.map(|(root, _)| root.clone()));
                }
            }
            for name in self.store.machines_from(&snapshot.id)? {
                let root = Root::Machine { name };
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
            all.push(Reasons {
                revision: snapshot.manifest.subject,
                role,
                snapshot: Some((snapshot.id, snapshot.label())),
                roots,
            });
        }
        Ok(all)
    }
}

/// The files of the snapshots of each revision.
pub(crate) fn files_by_revision(survey: &Survey) -> BTreeMap<Digest, (usize, HashSet<Digest>)> {
    let mut files: BTreeMap<Digest, (usize, HashSet<Digest>)> = BTreeMap::new();
    // One that cannot be read is of no revision.
    for content in survey.snapshots.iter().filter_map(|of| of.content.as_ref()) {
        let of = files.entry(content.subject).or_default();
        of.0 += 1;
        of.1.extend(content.files.iter().copied());
    }
    files
}
