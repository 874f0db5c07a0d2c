//! Private disks: each machine gets its own file, never a link to the artifact.

use crate::error::StoreResult;
use crate::layout::Store;
use kiln_core::machine::{CloneMethod, CloneRecord};
use kiln_core::{ByteSize, Digest};
use kiln_sys::copy::{allocated_bytes, reflink, sparse_copy};
use kiln_sys::{Cancel, fs};
use std::path::Path;

/// The mode of a private disk.
const CLONE_MODE: u32 = 0o600;

impl Store {
    /// Makes a private, writable copy of an artifact at `dest`, which must not exist and lies in a directory nobody
    /// else sees yet. After an error nothing is left there.
    pub fn clone_artifact(
        &self,
        digest: &Digest,
        size: ByteSize,
        dest: &Path,
        cancel: &Cancel,
    ) -> StoreResult<CloneRecord> {
        self.check_artifact(digest, size)?;
        let source_path = self.artifact_path(digest);
        let source = fs::open(&source_path)?;
        let target = fs::create_new(dest)?;
        let made = (|| {
            if reflink(&source, &target) {
                return Ok(CloneMethod::Reflink);
            }
            self.need_space(allocated_bytes(&source_path)?)?;
            sparse_copy(&source, &target, dest, Some(cancel))?;
            Ok(CloneMethod::Copy)
        })();
        let method = match made
            .and_then(|method| fs::set_mode(dest, CLONE_MODE).map(|()| method).map_err(Into::into))
        {
            Ok(method) => method,
            Err(error) => {
                // The first error is the one that matters; the directory is staged, so nothing becomes visible.
                let _ = fs::remove_file(dest);
                return Err(error);
            }
        };
        Ok(CloneRecord { artifact: *digest, size, method })
    }
}
