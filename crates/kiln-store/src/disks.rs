//! Private disks for programs that bring their own machine monitor: one for each owner, made once, found again by name.
//!
//! A disk lies in `clones/<owner>/` with its record beside it, and its revision stays for as long as it is there. The
//! directory appears in one step, so a disk is whole or not there. Whoever runs a machine on a disk holds
//! [`Disk::lock`] meanwhile: nobody else gets it then, and it is not released.

mod found;
mod record;

pub use self::record::{DISK_RECORD_VERSION, DiskRecord};
use self::record::{RECORD_FILE, not_found, read_record};
use crate::clone::{CLONE_MODE, CloneOptions, CloneRequest};
use crate::error::{StoreError, StoreResult};
use crate::file_hash::{FileHash, hash_plain};
use crate::grow::Growth;
use crate::layout::Store;
use crate::revision::Revision;
use crate::staging::Staging;
use crate::tag::TagEntry;
use kiln_core::machine::{CloneMethod, CloneRecord};
use kiln_core::revision::{Artifact, InvalidManifest};
use kiln_core::{ArtifactRole, ByteSize, Digest, DiskOwner, Reference, Tag, TemplateName};
use kiln_sys::commit::{commit_dir, write_staged};
use kiln_sys::lock::{FileLock, Share};
use kiln_sys::{Cancel, IoResultExt as _, copy, fail, fs};
use std::path::{Path, PathBuf};

/// Room that every disk needs for its record and directory, in bytes.
const RECORD_SPACE_BYTES: u64 = 64 << 10;
const LOCK_FILE: &str = "lock";
const DISK_STEM: &str = "disk";

/// A private disk that is there, whole as far as a cheap look tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    record: DiskRecord,
    dir: PathBuf,
}

/// A disk that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClonedDisk {
    /// The disk.
    pub disk: Disk,
    /// Whether it was there already, with whatever its owner wrote to it.
    pub existed: bool,
    /// What was grown, where it was made now and is longer than its template's. The file system on it was not.
    pub growth: Option<Growth>,
}

/// The right to use a disk, alone. Dropping it, or the end of the process, lets go.
#[derive(Debug)]
pub struct DiskLock {
    _lock: FileLock,
}

/// A tag and the root file system that a disk of it begins with.
#[derive(Debug)]
pub struct DiskTemplate {
    /// The template.
    pub template: TemplateName,
    /// The tag.
    pub tag: Tag,
    /// The revision it points to; none when that cannot be read.
    pub revision: Option<Digest>,
    /// The root file system, with digest and size, or what is wrong with this tag or revision.
    pub rootfs: StoreResult<Artifact>,
}

/// A disk to be taken over from elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct AdoptDisk<'a> {
    /// Whose it is.
    pub owner: &'a DiskOwner,
    /// What it goes by as a reference.
    pub reference: &'a Reference,
    /// The revision it was made from.
    pub revision: Digest,
    /// The raw disk, which stays as it is and must not change meanwhile.
    pub file: &'a Path,
}

/// The disks of a store.
#[derive(Debug, Clone, Copy)]
pub struct Disks<'a> {
    store: &'a Store,
    cancel: &'a Cancel,
}

impl Store {
    /// Returns the disks of programs that bring their own machine monitor. `cancel` ends waits and long copies.
    pub fn disks<'a>(&'a self, cancel: &'a Cancel) -> Disks<'a> {
        Disks { store: self, cancel }
    }

    /// Lists the owners of disks, readable or not. A collector keeps what [`Store::disk_record`] of each refers to, and
    /// everything while there is one that cannot be read.
    pub fn disk_owners(&self) -> StoreResult<Vec<DiskOwner>> {
        let names = fs::list_dir(&self.root().join("clones"))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Lists the owners of disks with the revision of each.
    ///
    /// # Errors
    /// When a record cannot be read: the disk may be of any revision.
    pub(crate) fn disk_revisions(&self) -> StoreResult<Vec<(DiskOwner, Digest)>> {
        let mut found = Vec::new();
        for owner in self.disk_owners()? {
            match read_record(&self.disk_dir(&owner), &owner) {
                Ok(record) => found.push((owner, record.revision)),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Reads what is recorded of an owner's disk, without a look at the disk itself.
    pub fn disk_record(&self, owner: &DiskOwner) -> StoreResult<DiskRecord> {
        read_record(&self.disk_dir(owner), owner)
    }

    /// Returns the owners of the disks that were made from a revision or could be: one whose record cannot be read
    /// may use anything.
    pub fn disks_of(&self, revision: &Digest) -> StoreResult<Vec<DiskOwner>> {
        let mut owners = Vec::new();
        for owner in self.disk_owners()? {
            match self.disk_record(&owner) {
                Ok(record) if record.revision != *revision => {}
                Err(StoreError::NotFound { .. }) => {}
                _ => owners.push(owner),
            }
        }
        Ok(owners)
    }
}

impl Disk {
    /// Returns what is recorded of it.
    pub fn record(&self) -> &DiskRecord {
        &self.record
    }

    /// Returns its file: raw, or qcow2 where [`DiskRecord::method`] is an overlay.
    pub fn path(&self) -> PathBuf {
        self.dir.join(DISK_STEM).with_extension(self.record.method.extension())
    }

    /// Takes the disk for use, alone: to be held for as long as a machine runs on it. `work` names the use to others.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while somebody holds it; [`StoreError::NotFound`] when it was released since it was found.
    pub fn lock(&self, work: &str) -> StoreResult<DiskLock> {
        let lock = take(&self.dir, &self.record.owner, work)?;
        // Another disk may have come in its place.
        match lock {
            Some(lock) if read_record(&self.dir, &self.record.owner)? == self.record => {
                Ok(DiskLock { _lock: lock })
            }
            _ => Err(not_found(&self.record.owner)),
        }
    }
}

impl Disks<'_> {
    /// Lists all tags with the root file systems that disks of them begin with. A damaged tag or revision is an error in
    /// its place, not the end of the list.
    pub fn templates(&self) -> StoreResult<Vec<DiskTemplate>> {
        let mut found = Vec::new();
        for TagEntry { template, tag, record } in self.store.tags()? {
            let (revision, rootfs) = match record {
                Ok(record) => (Some(record.revision), self.rootfs(&record.revision)),
                Err(error) => (None, Err(error)),
            };
            found.push(DiskTemplate { template, tag, revision, rootfs });
        }
        Ok(found)
    }

    /// Looks up a reference: its revision, and the root file system that a disk of it begins with.
    pub fn template(&self, reference: &Reference) -> StoreResult<(Digest, Artifact)> {
        let revision = self.store.resolve(reference)?;
        Ok((revision.id, self.rootfs_of(&revision)?))
    }

    fn rootfs(&self, revision: &Digest) -> StoreResult<Artifact> {
        self.rootfs_of(&self.store.revision(revision)?)
    }

    fn rootfs_of(&self, revision: &Revision) -> StoreResult<Artifact> {
        let role = ArtifactRole::rootfs();
        let artifact = revision
            .manifest
            .artifact(&role)
            .cloned()
            .ok_or(StoreError::BadManifest { id: revision.id, source: InvalidManifest::Missing(role) })?;
        match self.store.check_artifact(&artifact.digest, artifact.size) {
            // Making a disk reads it first.
            Ok(()) | Err(StoreError::Unsealed { .. }) => Ok(artifact),
            Err(error) => Err(error),
        }
    }

    /// Returns the owner's disk of a revision, making it when the owner has none. A disk that is there is returned as
    /// it is, in whatever way it was made; of whatever length, unless one is asked for. `options` may be a
    /// [`CloneChoice`](crate::CloneChoice) alone.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when the owner's disk is of another revision, [`StoreError::SizeMismatch`] when it is of
    /// another length, [`StoreError::Damaged`] when it is not as recorded, [`StoreError::Shrink`] and
    /// [`StoreError::CannotGrow`] for a length that no disk of this template can have, [`StoreError::NoSpace`] before
    /// anything is written.
    pub fn clone_for(
        &self,
        owner: &DiskOwner,
        reference: &Reference,
        options: impl Into<CloneOptions>,
    ) -> StoreResult<ClonedDisk> {
        let CloneOptions { choice, disk: size } = options.into();
        let _store = self.hold(owner)?;
        let (revision, rootfs) = self.template(reference)?;
        if let Some(disk) = self.existing_of(owner, &revision, size)? {
            return Ok(disk);
        }
        let (staging, dir) = self.stage(owner)?;
        let request =
            CloneRequest { digest: rootfs.digest, size: rootfs.size, dir: &dir, stem: DISK_STEM, choice };
        let (clone, growth) =
            self.store.clone_with_growth(&request, size.unwrap_or(rootfs.size), self.cancel)?;
        let record = DiskRecord::new(owner, reference, revision, &clone);
        match self.publish(&staging, &dir, record)? {
            Some(disk) => Ok(ClonedDisk { disk, existed: false, growth }),
            // Somebody else made one meanwhile.
            None => self.existing_of(owner, &revision, size)?.ok_or_else(|| not_found(owner)),
        }
    }

    /// Takes over a raw disk that another program made from the content of a revision: it is copied, with shared
    /// extents where the file system can, and may be longer than what it was made from.
    ///
    /// # Errors
    /// [`StoreError::Exists`] or [`StoreError::Mismatch`] when the owner has a disk, [`StoreError::Changed`] when the
    /// file is written to meanwhile.
    pub fn adopt(&self, request: &AdoptDisk<'_>) -> StoreResult<Disk> {
        let AdoptDisk { owner, reference, revision, file } = *request;
        let _store = self.hold(owner)?;
        let rootfs = self.rootfs(&revision)?;
        if let Some(disk) = self.existing(owner, &revision)? {
            return Err(StoreError::Exists { path: disk.path() });
        }
        let source = fs::open(file)?;
        let before = crate::file_hash::stamp(&source, file)?;
        let (staging, dir) = self.stage(owner)?;
        let path = dir.join(DISK_STEM).with_extension(CloneMethod::Copy.extension());
        let target = fs::create_new(&path)?;
        let method = if copy::reflink(&source, &target, &path)? {
            CloneMethod::Reflink
        } else {
            self.store.need_space(copy::allocated_bytes(file)?)?;
            copy::sparse_copy(&source, &target, &path, Some(self.cancel))?;
            CloneMethod::Copy
        };
        fs::set_mode(&path, CLONE_MODE)?;
        if crate::file_hash::stamp(&source, file)? != before {
            return Err(StoreError::Changed { path: file.to_owned() });
        }
        let size = ByteSize::from_bytes(target.metadata().at("inspect", &path)?.len());
        let record = CloneRecord { artifact: rootfs.digest, size, method };
        let record = DiskRecord::new(owner, reference, revision, &record);
        self.publish(&staging, &dir, record)?
            .ok_or_else(|| StoreError::Exists { path: self.store.disk_dir(owner) })
    }

    /// Returns the owner's disk, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is not as recorded: it has to be released.
    pub fn get(&self, owner: &DiskOwner) -> StoreResult<Option<Disk>> {
        let dir = self.store.disk_dir(owner);
        if !fs::exists(&dir)? {
            return Ok(None);
        }
        match read_record(&dir, owner) {
            Ok(record) => self.check(Disk { record, dir }).map(Some),
            // It was released meanwhile.
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists all disks; one that is not as recorded is an error in its place.
    pub fn list(&self) -> StoreResult<Vec<(DiskOwner, StoreResult<Disk>)>> {
        let mut disks = Vec::new();
        for owner in self.store.disk_owners()? {
            if let Some(disk) = self.get(&owner).transpose() {
                disks.push((owner, disk));
            }
        }
        Ok(disks)
    }

    /// Removes the owner's disk with all that was written to it; returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while somebody holds its lock.
    pub fn release(&self, owner: &DiskOwner) -> StoreResult<bool> {
        let dir = self.store.disk_dir(owner);
        let Some(_lock) = take(&dir, owner, "releasing it")? else { return Ok(false) };
        self.store.discard_dir(&dir)?;
        fs::sync_dir(&self.store.root().join("clones"))?;
        Ok(true)
    }

    /// Hashes a file: SHA-256 of its bytes, and the digest that the store would know it by.
    pub fn hash(&self, path: &Path) -> StoreResult<FileHash> {
        hash_plain(path, self.cancel)
    }

    /// Keeps revisions from going while a disk of one is made.
    fn hold(&self, owner: &DiskOwner) -> StoreResult<crate::StoreLock> {
        // What ended programs left costs room; failing to remove it fails nothing else.
        let _ = self.store.sweep_staging();
        self.store.lock(Share::Shared, &format!("making the disk of {owner}"), self.cancel, &mut |_| ())
    }

    fn stage(&self, owner: &DiskOwner) -> StoreResult<(Staging, PathBuf)> {
        self.store.need_space(RECORD_SPACE_BYTES)?;
        let staging = self.store.stage(&format!("making the disk of {owner}"))?;
        let dir = staging.path().join("clone");
        fs::create_dir(&dir)?;
        Ok((staging, dir))
    }

    /// Makes a staged disk visible; none when the owner has got one meanwhile.
    fn publish(&self, _staging: &Staging, dir: &Path, record: DiskRecord) -> StoreResult<Option<Disk>> {
        let staged = Disk { record, dir: dir.to_owned() };
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec_pretty(&staged.record).unwrap();
        // Everything is made before anything is synced: a file system with one log writes it out once for all of it.
        write_staged(&dir.join(RECORD_FILE), &bytes, 0o600)?;
        let path = staged.path();
        fail::point("disk.sync", &path)?;
        fs::open(&path)?.sync_all().at("sync", &path)?;
        self.cancel.check()?;
        let clones = self.store.root().join("clones");
        if !fs::exists(&clones)? {
            fs::create_dir_all(&clones)?;
            fs::sync_dir(self.store.root())?;
        }
        let home = self.store.disk_dir(&staged.record.owner);
        match commit_dir(dir, &home) {
            Ok(()) => Ok(Some(Disk { dir: home, ..staged })),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes the lock in a disk's directory; none when the directory is gone.
fn take(dir: &Path, owner: &DiskOwner, work: &str) -> StoreResult<Option<FileLock>> {
    match fs::optional(FileLock::try_take(&dir.join(LOCK_FILE), work))? {
        None => Ok(None),
        Some(Ok(lock)) => Ok(Some(lock)),
        Some(Err(holder)) => Err(StoreError::Busy { owner: owner.clone(), holder: holder.text }),
    }
}
