//! Private disks: everybody gets a file of their own, never a link to the artifact.

use crate::artifact::need_space_in;
use crate::error::{StoreError, StoreResult};
use crate::grow::{GROWTH_BYTES, Growth, Plan};
use crate::layout::Store;
use crate::overlay;
use crate::seal::PERMISSIONS;
use kiln_core::machine::{CloneMethod, CloneRecord};
use kiln_core::{ByteSize, Digest};
use kiln_sys::commit::{Existing, aside, commit_file};
use kiln_sys::copy::{allocated_bytes, reflink, sparse_copy};
use kiln_sys::{Cancel, IoResultExt as _, fail, fs};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

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

/// What a private disk is to be like. A [`CloneChoice`] alone makes one of its artifact's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CloneOptions {
    /// How it is made.
    pub choice: CloneChoice,
    /// Its length, where not the artifact's: no less, and whole sectors of 512 bytes.
    pub disk: Option<ByteSize>,
}

impl From<CloneChoice> for CloneOptions {
    fn from(choice: CloneChoice) -> Self {
        Self { choice, disk: None }
    }
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
    /// What makes it longer than the artifact, if it is.
    growth: Option<&'a Plan>,
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

    /// Like [`Store::clone_artifact`], with a disk of another length. A GUID partition table is grown with it; what else
    /// lies beyond the artifact reads as zeros.
    ///
    /// # Errors
    /// [`StoreError::Shrink`] for a length below the artifact's, [`StoreError::CannotGrow`] where what lies on the disk
    /// cannot be made longer.
    pub fn clone_grown(
        &self,
        request: &CloneRequest<'_>,
        grown: ByteSize,
        cancel: &Cancel,
    ) -> StoreResult<CloneRecord> {
        self.clone_with_growth(request, grown, cancel).map(|(record, _)| record)
    }

    /// Like [`Store::clone_grown`]; tells what was grown.
    pub(crate) fn clone_with_growth(
        &self,
        request: &CloneRequest<'_>,
        grown: ByteSize,
        cancel: &Cancel,
    ) -> StoreResult<(CloneRecord, Option<Growth>)> {
        self.ensure_artifact(&request.digest, request.size, cancel, &mut |_| {})?;
        let artifact = self.artifact_path(&request.digest);
        let source = fs::open(&artifact)?;
        let plan = Plan::new(&request.digest, &source, &artifact, request.size, grown)?;
        let make = |method: CloneMethod| {
            let path = request.dir.join(request.stem).with_extension(method.extension());
            let (digest, size, dir) = (&request.digest, request.size, request.dir);
            let (backing, growth) = (backing_name(digest), plan.as_ref());
            let target = Target { digest, size, growth, path: &path, dir, backing: &backing };
            self.clone_by(method, &source, &target, cancel)
        };
        let method = match request.choice {
            CloneChoice::Exactly(method) => exactly(method, request.dir, make)?,
            CloneChoice::Auto => first([CloneMethod::Reflink, CloneMethod::Overlay], make)?,
        };
        let record = CloneRecord { artifact: request.digest, size: grown, method };
        Ok((record, plan.map(|plan| plan.growth)))
    }

    /// Writes a private, writable disk of an artifact's content to a file outside the store, in one step: it is there
    /// whole, durable and with its mode, or not at all.
    pub fn copy_out(&self, request: &CopyOut<'_>, cancel: &Cancel) -> StoreResult<CloneRecord> {
        self.copy_aside(request, None, cancel)?.commit(cancel)
    }

    /// Makes what [`Store::copy_out`] would, beside its destination and under another name: its owner may work on it
    /// until [`CopyAside::commit`]. With `disk` it has that length, as [`Store::clone_grown`] makes it.
    ///
    /// # Errors
    /// As [`Store::clone_grown`], and [`StoreError::Exists`].
    pub fn copy_aside(
        &self,
        request: &CopyOut<'_>,
        disk: Option<ByteSize>,
        cancel: &Cancel,
    ) -> StoreResult<CopyAside> {
        let dest = request.dest;
        if fs::exists(dest)? {
            return Err(StoreError::Exists { path: dest.to_owned() });
        }
        self.ensure_artifact(&request.digest, request.size, cancel, &mut |_| {})?;
        let artifact = fs::canonicalize(&self.artifact_path(&request.digest))?;
        let source = fs::open(&artifact)?;
        let length = disk.unwrap_or(request.size);
        let plan = Plan::new(&request.digest, &source, &artifact, request.size, length)?;
        let dir = match dest.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let aside = aside(dest);
        let make = |method: CloneMethod| {
            // An empty name fits no overlay: a path that is no text is refused there.
            let backing = artifact.to_str().unwrap_or_default();
            let (digest, size, growth) = (&request.digest, request.size, plan.as_ref());
            let target = Target { digest, size, growth, path: &aside, dir, backing };
            self.clone_by(method, &source, &target, cancel)
        };
        let method = match request.choice {
            CloneChoice::Exactly(method) => exactly(method, dir, make)?,
            CloneChoice::Auto => first([CloneMethod::Reflink], make)?,
        };
        Ok(CopyAside {
            path: aside,
            dest: dest.to_owned(),
            mode: request.mode,
            record: CloneRecord { artifact: request.digest, size: length, method },
            growth: plan.map(|plan| plan.growth),
        })
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
            // It is created with this mode, unless the process masks bits of it.
            if file.metadata().at("inspect", target.path)?.mode() & PERMISSIONS != CLONE_MODE {
                fs::set_mode(target.path, CLONE_MODE)?;
            }
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
            if let Some(plan) = target.growth {
                plan.write(file, target.path)?;
            }
            Ok(true)
        };
        // Growth adds to what a disk takes up, at most this.
        let more = if target.growth.is_some() { GROWTH_BYTES } else { 0 };
        fail::point("clone.fill", target.path)?;
        match method {
            CloneMethod::Reflink if reflink(source, file, target.path)? => lengthen(),
            CloneMethod::Reflink => Ok(false),
            CloneMethod::Overlay => {
                let size = target.growth.map_or(target.size, |plan| plan.growth.to).bytes();
                if !overlay::fits(size, target.backing) {
                    return Ok(false);
                }
                need_space_in(target.dir, OVERLAY_BYTES + more)?;
                let artifact = self.artifact_path(target.digest);
                let blocks = target
                    .growth
                    .map_or_else(|| Ok(BTreeMap::new()), |plan| plan.blocks(source, &artifact))?;
                fail::point("clone.overlay", target.path)?;
                overlay::write(file, target.path, size, target.backing, &blocks)?;
                Ok(true)
            }
            CloneMethod::Copy => {
                need_space_in(target.dir, allocated_bytes(&self.artifact_path(target.digest))? + more)?;
                fail::point("clone.copy", target.path)?;
                sparse_copy(source, file, target.path, Some(cancel))?;
                lengthen()
            }
            _ => Ok(false),
        }
    }
}

/// A disk outside the store, made whole but not yet under its name. Dropping it removes it.
#[derive(Debug)]
pub struct CopyAside {
    path: PathBuf,
    dest: PathBuf,
    mode: u32,
    record: CloneRecord,
    growth: Option<Growth>,
}

impl CopyAside {
    /// Returns its file, which is its owner's alone to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns how it was made.
    pub fn record(&self) -> &CloneRecord {
        &self.record
    }

    /// Returns what was grown, where it is longer than its artifact.
    pub fn growth(&self) -> Option<Growth> {
        self.growth
    }

    /// Puts it under its name, synced and with its mode.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when something stands there by now, [`StoreError::Cancelled`]. After an error nothing is
    /// left.
    pub fn commit(self, cancel: &Cancel) -> StoreResult<CloneRecord> {
        cancel.check()?;
        let file = fs::open(&self.path)?;
        commit_file(&file, &self.path, &self.dest, self.mode, Existing::Refuse).map_err(
            |error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => StoreError::Exists { path: self.dest.clone() },
                _ => error.into(),
            },
        )?;
        Ok(self.record.clone())
    }
}

impl Drop for CopyAside {
    fn drop(&mut self) {
        // Once committed nothing has that name; and an error that is returned says more than a failed clean-up would.
        let _ = fs::remove_file(&self.path);
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
