//! Where the files of a mirror are: a directory, or a bucket.

mod bucket;
mod directory;

pub use directory::Directory;

use crate::bucket::BucketError;
use kiln_core::image::ContentDigest;
use kiln_sys::{Cancel, IoError, cancel::Cancelled};
use std::fmt;
use std::path::{Path, PathBuf};

/// Where the files of a mirror are, each by its path below it: parts between slashes, of which none is empty, `.` or
/// `..`.
///
/// A file is there whole or not at all, whoever looks at it and when.
pub trait Shelf: fmt::Debug {
    /// Returns whether the file of a digest is at a path, and has at most so many bytes.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn has(
        &self,
        path: &str,
        digest: &ContentDigest,
        bytes_max: u64,
        cancel: &Cancel,
    ) -> Result<bool, ShelfError>;

    /// Reads a text; none where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or has more bytes.
    fn read(&self, path: &str, bytes_max: usize) -> Result<Option<Text>, ShelfError>;

    /// Writes a text.
    ///
    /// # Errors
    /// When it cannot be written. [`ShelfError::Changed`] where `over` is a version that is not there any more; a shelf
    /// without versions has to be locked by whoever changes it.
    fn write(&self, path: &str, text: &[u8], over: Over<'_>) -> Result<(), ShelfError>;

    /// Has a text be there: one that is there already is not written again.
    ///
    /// # Errors
    /// When what is there cannot be read, and when it cannot be written.
    fn keep(&self, path: &str, text: &[u8]) -> Result<(), ShelfError> {
        let there = match self.read(path, text.len()) {
            // One that is longer is another.
            Err(error) if error.is_too_large() => None,
            there => there?,
        };
        if there.is_some_and(|there| there.bytes == text) {
            return Ok(());
        }
        self.write(path, text, Over::Anything)
    }

    /// Puts a file of this digest there, which is gone from where it was then. `progress` is told how many bytes of how
    /// many are there.
    ///
    /// # Errors
    /// When it cannot be put there; it is where it was then.
    fn put(
        &self,
        path: &str,
        from: &Path,
        digest: &ContentDigest,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ShelfError>;

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove(&self, path: &str) -> Result<(), ShelfError>;

    /// Returns where this host has the file of a path, if it does.
    fn local(&self, path: &str) -> Option<PathBuf>;

    /// Returns how the file of a path is called for a reader.
    fn shown(&self, path: &str) -> String;
}

/// A text of a shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What the shelf calls this version of it, where it knows versions.
    pub version: Option<String>,
}

/// What a text is written over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over<'a> {
    /// Whatever is there.
    Anything,
    /// What was read, or nothing where nothing was.
    Read(Option<&'a Text>),
}

/// Why something of a shelf was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShelfError {
    /// Somebody else wrote it since it was read.
    #[error("{path} was changed by somebody else meanwhile")]
    Changed {
        /// What it is.
        path: String,
    },
    /// A bucket that cannot be used.
    #[error(transparent)]
    Bucket(Box<BucketError>),
    /// A file of this host that cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl ShelfError {
    /// Returns whether something is there and has more bytes than were to be read.
    pub fn is_too_large(&self) -> bool {
        match self {
            Self::Bucket(error) => matches!(**error, BucketError::TooLarge { .. }),
            Self::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

impl From<Cancelled> for ShelfError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<BucketError> for ShelfError {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::Changed { address } => Self::Changed { path: address },
            BucketError::Cancelled => Self::Cancelled,
            BucketError::Io(error) => Self::Io(error),
            error => Self::Bucket(Box::new(error)),
        }
    }
}
