//! Private disks: everybody gets a file of their own, never a link to the artifact.

use crate::artifact::need_space_in;
use crate::error::{StoreError, StoreResult};
use crate::layout::Store;
use crate::overlay;
use kiln_core::machine::{CloneMethod, CloneRecord};
use kiln_core::{ByteSize, Digest};
use kiln_sys::commit::{Existing, aside, commit_file};
use kiln_sys::copy::{allocated_bytes, reflink, sparse_copy};
use kiln_sys::{Cancel, IoResultExt as _, fail, fs};
use std::fs::File;
use std::path::Path;

/// The mode of a private disk.
pub(crate) const CLONE_MODE: u32 = 0o600;
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

/// What is to be copied out of the store, and to where.
#[derive(Debug, Clone, Copy)]
pub struct CopyOut<'a> {
    /// The artifact.
    pub digest: Digest,
    /// Its length.
    pub size: ByteSize,
    /// The file, which must not exist.
    pub dest: &'a Path,
    /// Its permission bits.
    pub mode: u32,
    /// How it is to be made; [`CloneChoice::Auto`] never means an overlay here.
    pub choice: CloneChoice,
}

/// A disk about to be made from an artifact.
struct Target<'a> {
    digest: &'a Digest,
    size: ByteSize,
    /// The disk's length, no less than the artifact's; what is beyond that reads as zeros.
    grown: ByteSize,
    /// The file, which must not exist.
    path: &'a Path,
    /// A directory on the file system that the disk takes its room from.
    dir: &'a Path,
    /// The artifact's name in an overlay.
    backing: &'a str,
}

impl Store {
    /// Makes a private, writable disk of an artifact's content for a machine, in a file that must not exist. An overlay
    /// needs the artifact for as long as it lives. After an error nothing is left.
    pub fn clone_artifact(&self, request: &CloneRequest<'_>, cancel: &Cancel) -> StoreResult<CloneRecord> {
        self.clone_grown(request, request.size, cancel)
    }

    /// Like [`Store::clone_artifact`], with a disk of another length: what lies beyond the artifact reads as zeros.
    ///
    /// # Errors
    /// [`StoreError::Shrink`] for a length below the artifact's.
    pub fn clone_grown(
        &self,
        request: &CloneRequest<'_>,
        grown: ByteSize,
        cancel: &Cancel,
    ) -> StoreResult<CloneRecord> {
        if grown < request.size {
            return Err(StoreError::Shrink { wanted: grown, least: request.size });
        }
        self.ensure_artifact(&request.digest, request.size, cancel, &mut |_| {})?;
        let source = fs::open(&self.artifact_path(&request.digest))?;
        let make = |method: CloneMethod| {
            let path = request.dir.join(request.stem).with_extension(method.extension());
            let (digest, size, dir) = (&request.digest, request.size, request.dir);
            let backing = backing_name(digest);
            self.clone_by(
                method,
                &source,
                &Target { digest, size, grown, path: &path, dir, backing: &backing },
                cancel,
            )
        };
        let method = match request.choice {
            CloneChoice::Exactly(method) => exactly(method, request.dir, make)?,
            CloneChoice::Auto => first([CloneMethod::Reflink, CloneMethod::Overlay], make)?,
        };
        Ok(CloneRecord { artifact: request.digest, size: grown, method })
    }

    /// Writes a private, writable disk of an artifact's content to a file outside the store, in one step: it is there
    /// whole, durable and with its mode, or not at all.
    pub fn copy_out(&self, request: &CopyOut<'_>, cancel: &Cancel) -> StoreResult<CloneRecord> {
        let dest = request.dest;
        if fs::exists(dest)? {
            return Err(StoreError::Exists { path: dest.to_owned() });
        }
        self.ensure_artifact(&request.digest, request.size, cancel, &mut |_| {})?;
        let artifact = fs::canonicalize(&self.artifact_path(&request.digest))?;
        let source = fs::open(&artifact)?;
        let dir = match dest.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let aside = aside(dest);
        let make = |method: CloneMethod| {
            // An empty name fits no overlay: a path that is no text is refused there.
            let backing = artifact.to_str().unwrap_or_default();
            let (digest, size) = (&request.digest, request.size);
            let target = Target { digest, size, grown: size, path: &aside, dir, backing };
            self.clone_by(method, &source, &target, cancel)
        };
        let method = match request.choice {
            CloneChoice::Exactly(method) => exactly(method, dir, make)?,
            CloneChoice::Auto => first([CloneMethod::Reflink], make)?,
        };
        let committed = cancel.check().map_err(StoreError::from).and_then(|()| {
            let file = fs::open(&aside)?;
            commit_file(&file, &aside, dest, request.mode, Existing::Refuse).map_err(|error| {
                match error.kind() {
                    std::io::ErrorKind::AlreadyExists => StoreError::Exists { path: dest.to_owned() },
                    _ => error.into(),
                }
            })
        });
        if committed.is_err() {
            // The error that is returned says more than a failed clean-up would.
            let _ = fs::remove_file(&aside);
        }
        committed?;
        Ok(CloneRecord { artifact: request.digest, size: request.size, method })
    }

    /// Makes a disk in one way; none when that way is not to be had here.
    fn clone_by(
        &self,
        method: CloneMethod,
        source: &File,
        target: &Target<'_>,
        cancel: &Cancel,
    ) -> StoreResult<Option<CloneMethod>> {
        fail::point("clone.create", target.path)?;
        let file = fs::create_new(target.path)?;
        let made = self.fill(method, source, &file, target, cancel).and_then(|made| {
            fail::point("clone.mode", target.path)?;
            fs::set_mode(target.path, CLONE_MODE)?;
            Ok(made)
        });
        if !matches!(made, Ok(true)) {
            // The first error is the one that matters; the file is staged, so nothing becomes visible.
            let _ = fs::remove_file(target.path);
        }
        Ok(made?.then_some(method))
    }

    fn fill(
        &self,
        method: CloneMethod,
        source: &File,
        file: &File,
        target: &Target<'_>,
        cancel: &Cancel,
    ) -> StoreResult<bool> {
        let lengthen = || -> StoreResult<bool> {
            if target.grown > target.size {
                file.set_len(target.grown.bytes()).at("set the length of", target.path)?;
            }
            Ok(true)
        };
        fail::point("clone.fill", target.path)?;
        match method {
            CloneMethod::Reflink if reflink(source, file, target.path)? => lengthen(),
            CloneMethod::Reflink => Ok(false),
            CloneMethod::Overlay => {
                let size = target.grown.bytes();
                if !overlay::fits(size, target.backing) {
                    return Ok(false);
                }
                need_space_in(target.dir, OVERLAY_BYTES)?;
                fail::point("clone.overlay", target.path)?;
                overlay::write(file, target.path, size, target.backing)?;
                Ok(true)
            }
            CloneMethod::Copy => {
                need_space_in(target.dir, allocated_bytes(&self.artifact_path(target.digest))?)?;
                fail::point("clone.copy", target.path)?;
                sparse_copy(source, file, target.path, Some(cancel))?;
                lengthen()
            }
            _ => Ok(false),
        }
    }
}

/// Makes a disk in one way or refuses.
fn exactly(
    method: CloneMethod,
    dir: &Path,
    make: impl Fn(CloneMethod) -> StoreResult<Option<CloneMethod>>,
) -> StoreResult<CloneMethod> {
    make(method)?.ok_or_else(|| StoreError::CloneUnsupported { path: dir.to_owned(), method })
}

/// Makes a disk in the first way that is to be had, a copy at last.
fn first<const N: usize>(
    methods: [CloneMethod; N],
    make: impl Fn(CloneMethod) -> StoreResult<Option<CloneMethod>>,
) -> StoreResult<CloneMethod> {
    for method in methods {
        if let Some(method) = make(method)? {
            return Ok(method);
        }
    }
    Ok(make(CloneMethod::Copy)?.unwrap_or(CloneMethod::Copy))
}

/// Returns an artifact's name as seen from the directory of a machine, or of an embedder's disk.
fn backing_name(digest: &Digest) -> String {
    format!("../../artifacts/{}", digest.hex())
}
