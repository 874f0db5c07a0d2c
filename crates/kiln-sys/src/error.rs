//! I/O errors that say what was tried on which path.

use std::io;
use std::path::{Path, PathBuf};

/// An I/O error with the action and the path it concerns.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct IoError {
    /// What was tried: a verb that fits "cannot …".
    pub action: &'static str,
    /// The file or directory it was tried on.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// The result of an action on a file.
pub type IoResult<T> = Result<T, IoError>;

impl IoError {
    /// Returns the kind of the system's answer.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Returns whether the file system has no room left for it.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }
}

/// Adds action and path to a system error.
pub trait IoResultExt<T> {
    /// Adds action and path to the error, if it is one.
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> IoResult<T>;
}

impl<T, E: Into<io::Error>> IoResultExt<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> IoResult<T> {
        self.map_err(|source| IoError { action, path: path.as_ref().to_owned(), source: source.into() })
    }
}
