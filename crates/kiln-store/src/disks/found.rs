//! A disk that is there: whether it is the one that is asked for, and whether it is as recorded.

use super::record::read_record;
use super::{ClonedDisk, Disk, Disks};
use crate::error::{StoreError, StoreResult};
use crate::overlay;
use kiln_core::machine::CloneMethod;
use kiln_core::{ByteSize, Digest, DiskOwner};
use kiln_sys::fs;

impl Disks<'_> {
    /// Returns the owner's disk when it is of this revision.
    pub(super) fn existing(&self, owner: &DiskOwner, revision: &Digest) -> StoreResult<Option<Disk>> {
        let dir = self.store.disk_dir(owner);
        if !fs::exists(&dir)? {
            return Ok(None);
        }
        match read_record(&dir, owner) {
            Ok(record) if record.revision != *revision => {
                Err(StoreError::Mismatch { owner: owner.clone(), have: record.revision, want: *revision })
            }
            _ => self.get(owner),
        }
    }

    /// Returns the owner's disk when it is of this revision and, where that is asked for, of this length.
    pub(super) fn existing_of(
        &self,
        owner: &DiskOwner,
        revision: &Digest,
        size: Option<ByteSize>,
    ) -> StoreResult<Option<ClonedDisk>> {
        let Some(disk) = self.existing(owner, revision)? else { return Ok(None) };
        match size {
            Some(want) if want != disk.record.size => {
                Err(StoreError::SizeMismatch { owner: owner.clone(), have: disk.record.size, want })
            }
            _ => Ok(Some(ClonedDisk { disk, existed: true, growth: None })),
        }
    }

    /// Compares a disk with its record, without reading its content.
    pub(super) fn check(&self, disk: Disk) -> StoreResult<Disk> {
        let (path, record) = (disk.path(), &disk.record);
        let damaged = |reason: String| Err(StoreError::Damaged { path: path.clone(), reason });
        let Some(meta) = fs::optional(fs::symlink_metadata(&path))? else {
            return damaged("it is not there, but its record is".to_owned());
        };
        if !meta.is_file() {
            return damaged("it is not a regular file".to_owned());
        }
        let len = match record.method {
            CloneMethod::Overlay => {
                let Some(len) = overlay::virtual_size(&fs::open(&path)?, &path)? else {
                    return damaged("it is not a qcow2 file".to_owned());
                };
                // The disk may be longer than what it lies over.
                let below = self.store.revision(&record.revision)?.manifest;
                let below = below.artifacts.iter().find(|artifact| artifact.digest == record.artifact);
                let size = below.map_or(record.size, |artifact| artifact.size);
                self.store.ensure_artifact(&record.artifact, size, self.cancel, &mut |_| {})?;
                len
            }
            _ => meta.len(),
        };
        if len != record.size.bytes() {
            return damaged(format!("it has {len} bytes, its record says {}", record.size.bytes()));
        }
        Ok(disk)
    }
}
