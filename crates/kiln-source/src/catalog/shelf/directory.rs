//! A directory as a shelf: everybody may read what is in it.

use super::super::LookUpError;
use super::super::place::is_there;
use super::{Over, Shelf, ShelfError, Text};
use kiln_core::image::ContentDigest;
use kiln_sys::commit::{self, Existing};
use kiln_sys::{Cancel, IoResult, fs};
use std::path::{Path, PathBuf};

/// The mode of directories: a server of files reads them.
const DIRECTORY_MODE: u32 = 0o755;
/// The mode of files.
const FILE_MODE: u32 = 0o644;

/// A directory. What is put there comes from the same file system.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Returns that of a path.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Returns the path of a file whose directory is there.
    fn with_parent(&self, path: &str) -> IoResult<PathBuf> {
        let path = self.root.join(path);
        let missing: Vec<&Path> =
            path.ancestors().skip(1).take_while(|directory| !fs::exists(directory).unwrap_or(true)).collect();
        for directory in missing.into_iter().rev() {
            match fs::create_dir(directory) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => {
                    made?;
                    fs::set_mode(directory, DIRECTORY_MODE)?;
                }
            }
        }
        Ok(path)
    }
}

impl Shelf for Directory {
    fn has(
        &self,
        path: &str,
        digest: &ContentDigest,
        bytes_max: u64,
        cancel: &Cancel,
    ) -> Result<bool, ShelfError> {
        match is_there(&self.root.join(path), digest, bytes_max, cancel) {
            Err(LookUpError::Io(error)) => Err(error.into()),
            Err(_) => Err(ShelfError::Cancelled),
            Ok(there) => Ok(there),
        }
    }

    fn read(&self, path: &str, bytes_max: usize) -> Result<Option<Text>, ShelfError> {
        let bytes = fs::read_optional(&self.root.join(path), bytes_max)?;
        Ok(bytes.map(|bytes| Text { bytes, version: None }))
    }

    fn write(&self, path: &str, text: &[u8], _: Over<'_>) -> Result<(), ShelfError> {
        Ok(commit::write_file(&self.with_parent(path)?, text, FILE_MODE, Existing::Replace)?)
    }

    fn put(
        &self,
        path: &str,
        from: &Path,
        _: &ContentDigest,
        _: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ShelfError> {
        let to = self.with_parent(path)?;
        Ok(commit::commit_file(&fs::open(from)?, from, &to, FILE_MODE, Existing::Replace)?)
    }

    fn remove(&self, path: &str) -> Result<(), ShelfError> {
        Ok(fs::remove_file(&self.root.join(path))?)
    }

    fn local(&self, path: &str) -> Option<PathBuf> {
        Some(self.root.join(path))
    }

    fn shown(&self, path: &str) -> String {
        self.root.join(path).display().to_string()
    }
}
