//! Cheap identities of inputs: what the file system says of a file, so that a plan reads no content.

use kiln_core::digest::Digest;
use kiln_sys::{IoResult, fs};
use serde::Serialize;
use sha2::Digest as _;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A digest of fields, each with its length before it.
#[derive(Default)]
pub(crate) struct Hasher(sha2::Sha256);

impl Hasher {
    pub(crate) fn text(&mut self, bytes: &[u8]) {
        self.numbers(&[bytes.len() as u64]);
        self.0.update(bytes);
    }

    pub(crate) fn numbers(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.0.update(number.to_le_bytes());
        }
    }

    /// Adds the identity of a file: it changes whenever content, mode, owner or attributes do.
    pub(crate) fn file(&mut self, meta: &Metadata) {
        let FileIdentity { device, inode, size, mode, owner, mtime, ctime } = FileIdentity::of(meta);
        // Listing a directory changes neither its times nor its size; reading a file changes only its access time.
        self.numbers(&[device, inode, size, u64::from(mode), u64::from(owner.0), u64::from(owner.1)]);
        for (seconds, nanoseconds) in [mtime, ctime] {
            self.numbers(&[seconds.cast_unsigned(), nanoseconds.cast_unsigned()]);
        }
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::from_bytes(self.0.finalize().into())
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileIdentity {
    pub(crate) fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Returns the identity of the file a path leads to.
    pub(crate) fn at(path: &Path) -> IoResult<Self> {
        fs::metadata(path).map(|meta| Self::of(&meta))
    }
}
