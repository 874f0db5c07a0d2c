//! Private disks: each machine gets its own file, never a link to the artifact.

use crate::error::{StoreError, StoreResult};
use crate::layout::Store;
use crate::overlay;
use kiln_core::machine::{CloneMethod, CloneRecord};
use kiln_core::{ByteSize, Digest};
use kiln_sys::copy::{allocated_bytes, reflink, sparse_copy};
use kiln_sys::{Cancel, fs};
use std::fs::File;
use std::path::Path;

/// The mode of a private disk.
const CLONE_MODE: u32 = 0o600;
/// Bytes an empty overlay takes up, with room to spare.
const OVERLAY_BYTES: u64 = 64 << 10;

/// How a private disk is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CloneChoice {
    /// By shared extents where the file system can, else as an overlay, else as a copy.
    #[default]
    Auto,
    /// In this way, or not at all.
    Exactly(CloneMethod),
}

/// What is to be cloned, and to where.
#[derive(Debug, Clone, Copy)]
pub struct CloneRequest<'a> {
    /// The artifact.
    pub digest: Digest,
    /// Its length.
    pub size: ByteSize,
    /// A directory that nobody else sees yet.
    pub dir: &'a Path,
    /// The file's name without [`CloneMethod::extension`].
    pub stem: &'a str,
    /// How it is to be made.
    pub choice: CloneChoice,
}

impl Store {
    /// Makes a private, writable disk of an artifact's content for a machine, in a file that must not exist. An overlay
    /// needs the artifact for as long as it lives. After an error nothing is left.
    pub fn clone_artifact(&self, request: &CloneRequest<'_>, cancel: &Cancel) -> StoreResult<CloneRecord> {
        self.ensure_artifact(&request.digest, request.size, cancel, &mut |_| {})?;
        let source = fs::open(&self.artifact_path(&request.digest))?;
        let method = match request.choice {
            CloneChoice::Exactly(method) => self
                .clone_by(method, &source, request, cancel)?
                .ok_or_else(|| StoreError::CloneUnsupported { path: request.dir.to_owned(), method })?,
            CloneChoice::Auto => 'made: {
                for method in [CloneMethod::Reflink, CloneMethod::Overlay] {
                    if let Some(method) = self.clone_by(method, &source, request, cancel)? {
                        break 'made method;
                    }
                }
                self.clone_by(CloneMethod::Copy, &source, request, cancel)?.unwrap_or(CloneMethod::Copy)
            }
        };
        Ok(CloneRecord { artifact: request.digest, size: request.size, method })
    }

    /// Makes a disk in one way; none when that way is not to be had here.
    fn clone_by(
        &self,
        method: CloneMethod,
        source: &File,
        request: &CloneRequest<'_>,
        cancel: &Cancel,
    ) -> StoreResult<Option<CloneMethod>> {
        let dest = request.dir.join(request.stem).with_extension(method.extension());
        let target = fs::create_new(&dest)?;
        let made = self.fill(method, source, &target, &dest, request, cancel).and_then(|made| {
            fs::set_mode(&dest, CLONE_MODE)?;
            Ok(made)
        });
        if !matches!(made, Ok(true)) {
            // The first error is the one that matters; the directory is staged, so nothing becomes visible.
            let _ = fs::remove_file(&dest);
        }
        Ok(made?.then_some(method))
    }

    fn fill(
        &self,
        method: CloneMethod,
        source: &File,
        target: &File,
        dest: &Path,
        request: &CloneRequest<'_>,
        cancel: &Cancel,
    ) -> StoreResult<bool> {
        match method {
            CloneMethod::Reflink => Ok(reflink(source, target)),
            CloneMethod::Overlay => {
                let (size, backing) = (request.size.bytes(), backing_name(&request.digest));
                if !overlay::fits(size, &backing) {
                    return Ok(false);
                }
                self.need_space(OVERLAY_BYTES)?;
                overlay::write(target, dest, size, &backing)?;
                Ok(true)
            }
            CloneMethod::Copy => {
                self.need_space(allocated_bytes(&self.artifact_path(&request.digest))?)?;
                sparse_copy(source, target, dest, Some(cancel))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// Returns an artifact's name as seen from the directory of a machine.
fn backing_name(digest: &Digest) -> String {
    format!("../../artifacts/{}", digest.hex())
}
