//! Plain SHA-256 of a file, for formats and programs that name files so. Nothing is remembered: an answer is always
//! of the bytes that are there.

use crate::error::{StoreError, StoreResult};
use crate::hash::hash_file;
use kiln_core::{ByteSize, Digest};
use kiln_sys::stamp::Stamp;
use kiln_sys::{Cancel, IoResult, IoResultExt as _, fs};
use sha2::Digest as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes read at once.
const STEP_BYTES: usize = 1 << 20;

/// The digests of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHash {
    /// Its length in bytes.
    pub size: ByteSize,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// The digest of its index, by which the store names an artifact of this content.
    pub artifact: Digest,
}

/// Returns what changes when an open file does.
pub(crate) fn stamp(file: &File, path: &Path) -> IoResult<Stamp> {
    Ok(Stamp::of(&file.metadata().at("inspect", path)?))
}

/// Hashes a regular file, reading it in steps. One that changes meanwhile is an error.
pub(crate) fn hash_plain(path: &Path, cancel: &Cancel) -> StoreResult<FileHash> {
    let file = fs::open(path)?;
    let before = stamp(&file, path)?;
    let index = hash_file(&file, path, cancel)?;
    let sha256 = sha256(&file, path, cancel)?;
    if stamp(&file, path)? != before {
        return Err(StoreError::Changed { path: path.to_owned() });
    }
    Ok(FileHash { size: ByteSize::from_bytes(index.length()), sha256, artifact: index.digest() })
}

fn sha256(file: &File, path: &Path, cancel: &Cancel) -> StoreResult<Digest> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; STEP_BYTES];
    let mut offset = 0;
    loop {
        cancel.check()?;
        let read = match file.read_at(&mut buffer, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.at("read", path)?,
        };
        if read == 0 {
            return Ok(Digest::from_bytes(hasher.finalize().into()));
        }
        hasher.update(&buffer[..read]);
        offset += read as u64;
    }
}
