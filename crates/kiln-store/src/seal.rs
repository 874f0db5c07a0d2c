//! Seals: what an artifact's file looked like when its content was last known to be right. A file that still looks so
//! was not written to: the time of its last change cannot be set back. One that does not is read again before use.

use crate::error::{StoreError, StoreResult};
use crate::hash::{Content, hash_readable};
use crate::index::SEGMENT_BYTES;
use crate::layout::Store;
use kiln_core::{ByteSize, Digest};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::protect::{self, Look, Protection};
use kiln_sys::stamp::Stamp;
use kiln_sys::{Cancel, fs};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version of a seal that is written and known.
const SEAL_VERSION: u32 = 1;
/// The largest seal that is read, in bytes.
const SEAL_BYTES_MAX: usize = 4 << 10;
/// The mode of artifacts: nobody writes to them.
pub(crate) const ARTIFACT_MODE: u32 = 0o444;
/// The bits of a mode that are permissions.
pub(crate) const PERMISSIONS: u32 = 0o7777;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    version: u32,
    mode: u32,
    /// What protected it.
    #[serde(default, skip_serializing_if = "is_false")]
    verity: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    immutable: bool,
    #[serde(flatten)]
    stamp: Stamp,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Seal {
    fn of(look: &Look) -> Self {
        let Protection { verity, immutable } = look.protection;
        Self { version: SEAL_VERSION, mode: look.mode, verity, immutable, stamp: look.stamp }
    }

    fn protection(&self) -> Protection {
        Protection { verity: self.verity, immutable: self.immutable }
    }

    /// Returns why this seal does not hold of what somebody sees now.
    fn broken(&self, now: &Look) -> Option<&'static str> {
        if now.mode != ARTIFACT_MODE {
            Some("its mode was changed")
        } else if !self.protection().is_within(now.protection) {
            Some("what protected it was taken off")
        } else if (self.version, self.mode, self.stamp) != (SEAL_VERSION, now.mode, now.stamp) {
            Some("it was touched since its content was last checked")
        } else {
            None
        }
    }
}

impl Store {
    pub(crate) fn seal_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("indexes").join(format!("{}.seal", digest.hex()))
    }

    /// Seals an artifact whose content is known to be right and that nobody else has yet.
    pub(crate) fn seal(&self, digest: &Digest) -> StoreResult<()> {
        self.write_seal(digest, &Seal::of(&protect::look(&self.artifact_path(digest))?))
    }

    /// Protects an artifact as the store is set to, reads its content, and takes its seal from before that: what is
    /// written meanwhile breaks it. One that was removed since somebody looked is not found.
    pub(crate) fn read_artifact(&self, digest: &Digest, cancel: &Cancel) -> StoreResult<(Content, Seal)> {
        let path = self.artifact_path(digest);
        let Some(file) = fs::optional(fs::open(&path))? else {
            return Err(not_found(digest));
        };
        self.protect_again(&file, &path, &protect::look_at(&file, &path)?, ARTIFACT_MODE)?;
        let look = protect::look_at(&file, &path)?;
        let content = hash_readable(&file, &path, cancel)?;
        Ok((content, Seal::of(&look)))
    }

    pub(crate) fn write_seal(&self, digest: &Digest, seal: &Seal) -> StoreResult<()> {
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec(seal).unwrap();
        Ok(write_file(&self.seal_path(digest), &bytes, 0o644, Existing::Replace)?)
    }

    /// Checks in a few system calls that an artifact is there with the length a manifest states and was not touched
    /// since its content was last checked.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Damaged`] for another length or kind of file; [`StoreError::Unsealed`]
    /// when only its content can tell.
    pub fn check_artifact(&self, digest: &Digest, size: ByteSize) -> StoreResult<()> {
        let path = self.artifact_path(digest);
        let Some(look) = fs::optional(protect::look(&path))? else {
            return Err(not_found(digest));
        };
        if !look.is_file {
            return Err(StoreError::Damaged { path, reason: "it is not a regular file".to_owned() });
        }
        if look.stamp.size != size.bytes() {
            let reason = format!("it has {} bytes, its manifest says {}", look.stamp.size, size.bytes());
            return Err(StoreError::Damaged { path, reason });
        }
        let seal = match fs::read_optional(&self.seal_path(digest), SEAL_BYTES_MAX) {
            // Larger than a seal can be: it is none, as other bytes that are none.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
            read => read?,
        };
        let seal: Option<Seal> = seal.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let reason = seal.map_or(Some("it has no seal"), |seal| seal.broken(&look));
        reason.map_or(Ok(()), |reason| Err(StoreError::Unsealed { path, reason }))
    }

    /// Like [`Store::check_artifact`], and where that cannot tell reads the whole content and seals it again. `reading`
    /// is told why before that.
    ///
    /// # Errors
    /// As [`Store::check_artifact`], and [`StoreError::Damaged`] when the content is another.
    pub fn ensure_artifact(
        &self,
        digest: &Digest,
        size: ByteSize,
        cancel: &Cancel,
        reading: &mut dyn FnMut(&StoreError),
    ) -> StoreResult<()> {
        match self.check_artifact(digest, size) {
            Err(error @ StoreError::Unsealed { .. }) => reading(&error),
            other => return other,
        }
        let (content, seal) = self.read_artifact(digest, cancel)?;
        let path = || self.artifact_path(digest);
        if let Some(segment) = content.unreadable.first() {
            let reason = format!("it cannot be read at byte {}", segment * SEGMENT_BYTES);
            return Err(StoreError::Damaged { path: path(), reason });
        }
        if content.index.digest() != *digest {
            let path = path();
            return Err(StoreError::Damaged { path, reason: "its content has another digest".to_owned() });
        }
        self.write_seal(digest, &seal)
    }
}

fn not_found(digest: &Digest) -> StoreError {
    StoreError::NotFound { kind: "artifact", name: digest.to_string(), similar: Vec::new() }
}
