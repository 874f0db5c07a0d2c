//! A disk for somebody who brings a machine monitor: written outside the store, and kiln knows nothing of it after.

use crate::grow::{self, FileSystemSize};
use crate::progress::{Reporter, step, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::CloneMethod;
use kiln_core::{ByteSize, Digest, Reference};
use kiln_store::{CloneChoice, CloneOptions, CopyOut};
use kiln_sys::lock::Share;
use kiln_sys::{copy, fs};
use std::path::{Path, PathBuf};

/// The mode of a disk outside the store: its owner's alone.
const MODE: u32 = 0o600;

/// A disk that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneReport {
    /// Its file.
    pub path: PathBuf,
    /// The revision it was made from.
    pub revision: Digest,
    /// The artifact it is a copy of.
    pub artifact: Digest,
    /// Its length as a guest sees it.
    pub size: ByteSize,
    /// How it was made: an overlay needs the artifact for as long as it lives.
    pub method: CloneMethod,
    /// What it takes up now; shared blocks count.
    pub allocated: ByteSize,
    /// What became of the file system on it.
    pub file_system: FileSystemSize,
}

impl Engine {
    /// Writes a private, writable disk of a reference's root file system to `dest`: a file that must not exist, or a
    /// directory, where it is named after the reference. Nothing of the store changes. One longer than its template has
    /// its partition table grown, and its file system where this host can; the report tells.
    pub fn clone_disk(
        &self,
        reference: &Reference,
        dest: &Path,
        options: impl Into<CloneOptions>,
        reporter: &dyn Reporter,
    ) -> EngineResult<CloneReport> {
        let CloneOptions { choice, disk } = options.into();
        let mut waiting = waiting(reporter);
        let work = format!("cloning {reference}");
        let _store = self.store.lock(Share::Shared, &work, &self.cancel, &mut waiting)?;
        let (revision, rootfs) = self.store.disks(&self.cancel).template(reference)?;
        let extension = match choice {
            CloneChoice::Exactly(method) => method.extension(),
            CloneChoice::Auto => CloneMethod::Copy.extension(),
        };
        let stem = reference.template().map_or_else(|| revision.short(), ToString::to_string);
        let path = self.place(dest, &format!("{stem}.{extension}"))?;
        let (record, file_system) = step(reporter, "clone", || {
            let request =
                CopyOut { digest: rootfs.digest, size: rootfs.size, dest: &path, mode: MODE, choice };
            let aside = self.store.copy_aside(&request, disk, &self.cancel)?;
            let file_system = grow::file_system(&self.settings.toolbox, &aside, reporter, &self.cancel)?;
            let record = aside.commit(&self.cancel)?;
            let result = format!("{} by {}", record.size.human(), record.method);
            EngineResult::Ok(((record, file_system), result))
        })?;
        let allocated = ByteSize::from_bytes(copy::allocated_bytes(&path)?);
        let (size, method) = (record.size, record.method);
        let artifact = rootfs.digest;
        Ok(CloneReport { path, revision, artifact, size, method, allocated, file_system })
    }

    /// Returns the file that `dest` means: itself, or `name` in the directory that it is.
    fn place(&self, dest: &Path, name: &str) -> EngineResult<PathBuf> {
        let is_dir = fs::optional(fs::metadata(dest))?.is_some_and(|meta| meta.is_dir());
        let path = if is_dir { dest.join(name) } else { dest.to_owned() };
        let text = dest.as_os_str().as_encoded_bytes();
        let parent = match path.parent() {
            // `new/` means a directory that would have to be made.
            _ if !is_dir && text.ends_with(b"/") => dest,
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let Some(home) = fs::optional(fs::canonicalize(parent))? else {
            return Err(EngineError::NoDirectory { path: parent.to_owned() });
        };
        if path.file_name().is_none() {
            return Err(EngineError::HostPath { path, reason: "is no name of a file".to_owned() });
        }
        if home.starts_with(fs::canonicalize(self.store.root())?) {
            return Err(EngineError::HostPath { path, reason: "lies in the store".to_owned() });
        }
        Ok(path)
    }
}
