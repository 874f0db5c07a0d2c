//! Mapping copies: files of an artifact's content for programs that open what they map for writing, which an artifact
//! does not let them do. One for each artifact, shared by all who map it; a part of the cache, so any may be lost.

use crate::clone::{CloneChoice, CopyOut};
use crate::error::StoreResult;
use crate::layout::{Store, StoreLock};
use kiln_core::{ByteSize, Digest};
use kiln_sys::commit::{Existing, is_aside, write_file};
use kiln_sys::lock::{FileLock, Holder};
use kiln_sys::stamp::Stamp;
use kiln_sys::{Cancel, fs};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const DIRECTORY: &str = "cache/v1/memory";
/// Held by whoever makes a copy, or sweeps the directory: everybody shares one copy.
const LOCK: &str = "lock";
/// What only the owner reads, and may open for writing.
const MODE: u32 = 0o600;
const STAMP_VERSION: u32 = 1;
/// The largest stamp that is read, in bytes.
const STAMP_BYTES_MAX: usize = 4096;

/// What the file system said of a copy when it was made.
#[derive(Serialize, Deserialize)]
struct StampFile {
    version: u32,
    stamp: Stamp,
}

impl Store {
    fn mapping_path(&self, digest: &Digest) -> PathBuf {
        self.root().join(DIRECTORY).join(digest.hex())
    }

    fn mapping_stamp_path(&self, digest: &Digest) -> PathBuf {
        self.root().join(DIRECTORY).join(format!("{}.stamp", digest.hex()))
    }

    /// Returns a file with an artifact's content that its owner may open for writing. It is made by the first who asks,
    /// by reflink where possible, and again when it was touched; whoever has the older one mapped keeps that.
    ///
    /// The caller keeps the artifact: by the store's lock, or by what refers to it.
    ///
    /// # Errors
    /// As [`Store::copy_out`], when it has to be made.
    pub fn mapping_copy(
        &self,
        digest: &Digest,
        size: ByteSize,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(&Holder),
    ) -> StoreResult<PathBuf> {
        let path = self.mapping_path(digest);
        if self.is_untouched_mapping(digest)? {
            return Ok(path);
        }
        let directory = self.root().join(DIRECTORY);
        fs::create_dir_all(&directory)?;
        let work = "copying memory to be mapped";
        let _lock = FileLock::take(&directory.join(LOCK), work, cancel, waiting)?;
        // Whoever was waited for may have made it.
        if self.is_untouched_mapping(digest)? {
            return Ok(path);
        }
        fs::remove_file(&self.mapping_stamp_path(digest))?;
        fs::remove_file(&path)?;
        let (digest, size, dest) = (*digest, size, path.as_path());
        self.copy_out(&CopyOut { digest, size, dest, mode: MODE, choice: CloneChoice::Auto }, cancel)?;
        let stamp = Stamp::of(&fs::symlink_metadata(&path)?);
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec(&StampFile { version: STAMP_VERSION, stamp }).unwrap();
        write_file(&self.mapping_stamp_path(&digest), &bytes, 0o644, Existing::Replace)?;
        Ok(path)
    }

    /// Returns whether there is a copy that is as it was when it was made.
    fn is_untouched_mapping(&self, digest: &Digest) -> StoreResult<bool> {
        let Some(meta) = fs::optional(fs::symlink_metadata(&self.mapping_path(digest)))? else {
            return Ok(false);
        };
        let bytes = match fs::read_optional(&self.mapping_stamp_path(digest), STAMP_BYTES_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
            read => read?,
        };
        let made = bytes.and_then(|bytes| serde_json::from_slice::<StampFile>(&bytes).ok());
        let same = |made: StampFile| made.version == STAMP_VERSION && made.stamp == Stamp::of(&meta);
        Ok(meta.is_file() && made.is_some_and(same))
    }

    /// Removes the copies of artifacts that are gone, and what dead processes left beside them. `_alone` is the store's
    /// lock, held exclusively.
    pub(crate) fn forget_mappings(&self, _alone: &StoreLock) -> StoreResult<()> {
        let directory = self.root().join(DIRECTORY);
        if !fs::exists(&directory)? {
            return Ok(());
        }
        // Who makes one now works for a machine, whose artifact stays.
        let Ok(_lock) = FileLock::try_take(&directory.join(LOCK), "removing copies of memory")? else {
            return Ok(());
        };
        for name in fs::list_dir(&directory)? {
            let text = name.to_string_lossy();
            let digest = Digest::from_hex(text.strip_suffix(".stamp").unwrap_or(&text));
            let is_loose = digest.is_ok_and(|digest| {
                // What cannot be asked about stays.
                fs::exists(&self.artifact_path(&digest)).is_ok_and(|there| !there)
            });
            if is_loose || is_aside(&name) {
                fs::remove_file(&directory.join(&name))?;
            }
        }
        Ok(())
    }
}
