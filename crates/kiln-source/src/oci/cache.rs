//! Parts of images by their digest, shared by all builds of a store. Whoever uses one checks it again: anybody may write
//! there, and may empty it between two builds.

use super::error::OciError;
use super::limits::ARCHIVE_BYTES_MAX;
use crate::hash::Hashing;
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::commit::{self, Existing};
use kiln_sys::{Cancel, IoResultExt, fs};
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

/// A directory of blobs.
#[derive(Debug, Clone)]
pub struct BlobCache {
    directory: PathBuf,
}

impl BlobCache {
    /// Opens the cache below a directory that exists.
    pub fn open(below: &Path) -> Result<Self, OciError> {
        let directory = below.join("oci/v1");
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            fs::create_dir_all(&directory.join("blobs").join(algorithm.as_str()))?;
        }
        Ok(Self { directory })
    }

    /// Returns where a blob lies, if it is there.
    pub fn path(&self, digest: &ContentDigest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Puts a document there, whose digest the caller has checked.
    pub(super) fn put(&self, digest: &ContentDigest, bytes: &[u8]) -> Result<(), OciError> {
        let path = self.path(digest);
        Ok(commit::write_file(&path, bytes, 0o444, Existing::Replace)?)
    }

    /// Returns the directory of what has come so far of blobs that are fetched.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes a part that turned out to be damaged.
    pub fn forget(&self, digest: &ContentDigest) -> Result<(), OciError> {
        fs::optional(fs::remove_file(&self.path(digest)))?;
        Ok(())
    }

    /// Takes a stream of unknown content, such as an archive on standard input; returns its digest.
    pub fn take(&self, input: impl Read, cancel: &Cancel) -> Result<ContentDigest, OciError> {
        let aside = commit::aside(&self.directory.join("incoming"));
        let file = fs::create_new(&aside)?;
        let done = self.copy(input, &file, &aside, cancel);
        let committed = done.and_then(|digest| {
            commit::commit_file(&file, &aside, &self.path(&digest), 0o444, Existing::Keep)?;
            Ok(digest)
        });
        if committed.is_err() {
            // The error that is returned says more than a failed clean-up would.
            let _ = fs::remove_file(&aside);
        }
        committed
    }

    fn copy(
        &self,
        input: impl Read,
        mut file: &File,
        aside: &Path,
        cancel: &Cancel,
    ) -> Result<ContentDigest, OciError> {
        let mut input = Hashing::new(input.take(ARCHIVE_BYTES_MAX + 1), Algorithm::Sha256);
        let mut buffer = vec![0; 256 << 10];
        loop {
            cancel.check()?;
            let read = input.read(&mut buffer).at("read", Path::new("-"))?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read]).at("write", aside)?;
        }
        if input.count > ARCHIVE_BYTES_MAX {
            return Err(OciError::TooLarge { what: "bytes", max: ARCHIVE_BYTES_MAX });
        }
        Ok(input.hasher.finish())
    }
}
