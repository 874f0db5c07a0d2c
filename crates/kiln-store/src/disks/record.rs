//! `clone.json`: what a disk is.

use crate::error::{StoreError, StoreResult};
use kiln_core::machine::{CloneMethod, CloneRecord};
use kiln_core::{ByteSize, Digest, DiskOwner, Reference};
use kiln_sys::{clock, fs};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of `clone.json` that this program writes and reads.
pub const DISK_RECORD_VERSION: u32 = 1;
/// The largest `clone.json` that is read, in bytes.
const RECORD_BYTES_MAX: usize = 64 << 10;
/// The record's file, in the disk's directory.
pub(super) const RECORD_FILE: &str = "clone.json";

/// What `clone.json` says of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// [`DISK_RECORD_VERSION`].
    pub version: u32,
    /// Whose disk it is, as its directory is called.
    pub owner: DiskOwner,
    /// What was asked for, such as `web:v1`.
    pub reference: String,
    /// The revision it was made from.
    pub revision: Digest,
    /// The artifact it is a copy of.
    pub artifact: Digest,
    /// The disk's length in bytes, as a guest sees it.
    pub size: ByteSize,
    /// How it was made.
    pub method: CloneMethod,
    /// When it was made, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
}

impl DiskRecord {
    /// Returns the record of a disk made now.
    pub(super) fn new(
        owner: &DiskOwner,
        reference: &Reference,
        revision: Digest,
        clone: &CloneRecord,
    ) -> Self {
        Self {
            version: DISK_RECORD_VERSION,
            owner: owner.clone(),
            reference: reference.to_string(),
            revision,
            artifact: clone.artifact,
            size: clone.size,
            method: clone.method,
            created_unix_ms: clock::now_unix_ms(),
        }
    }
}

/// Returns the error for an owner without a disk.
pub(super) fn not_found(owner: &DiskOwner) -> StoreError {
    StoreError::NotFound { kind: "disk", name: owner.to_string(), similar: Vec::new() }
}

/// Reads a disk's record. One that lacks in a directory that is there was never published that way: it is damaged.
pub(super) fn read_record(dir: &Path, owner: &DiskOwner) -> StoreResult<DiskRecord> {
    let path = dir.join(RECORD_FILE);
    let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
    let Some(bytes) = fs::read_optional(&path, RECORD_BYTES_MAX)? else {
        return Err(if fs::exists(dir)? {
            damaged("it is not there, but its directory is".to_owned())
        } else {
            not_found(owner)
        });
    };
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if version != DISK_RECORD_VERSION {
        return Err(damaged(format!("it has version {version}, this kiln knows {DISK_RECORD_VERSION}")));
    }
    let record: DiskRecord = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if record.owner != *owner {
        return Err(damaged(format!("it is the record of `{}`", record.owner)));
    }
    Ok(record)
}
