//! Why it was not found what an image is.

use super::shelf::ShelfError;
use crate::checksum::{ChecksumError, NotListed};
use crate::download::DownloadError;
use crate::openpgp::{KeyringError, SignatureError};
use kiln_core::image::ContentDigest;
use kiln_sys::IoError;
use std::path::PathBuf;

/// Why it was not found what an image is, or why it was not fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookUpError {
    /// A text of the catalog that is no address of the web, nor of a local file.
    #[error("`{address}` is no address of the web, nor of a local file")]
    Address {
        /// The text.
        address: String,
    },
    /// Something that was not fetched.
    #[error(transparent)]
    Download(Box<DownloadError>),
    /// A signature was asked for, and the catalog knows no signer.
    #[error("nobody signs it")]
    NobodySigns,
    /// A signer without a key.
    #[error("the catalog says nowhere where its signers' keys are")]
    NoKeys,
    /// A catalog that has to be signed and carries no signature, nor has one beside it.
    #[error("{place} is not signed")]
    NotSigned {
        /// Where it is.
        place: String,
    },
    /// A catalog that is no text.
    #[error("{place} is not text in UTF-8")]
    NotText {
        /// Where it is.
        place: String,
    },
    /// Keys that are too many to be kept.
    #[error("the keys of {place} have more than {max} bytes, armoured")]
    KeysTooLarge {
        /// Where they are from.
        place: String,
        /// The most bytes they may have.
        max: usize,
    },
    /// A local file with other content than expected.
    #[error("{} is {actual}; {expected} was expected", path.display())]
    LocalDigest {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: ContentDigest,
        /// What is there.
        actual: ContentDigest,
    },
    /// A local file with more bytes than there may be.
    #[error("{} has more than {max} bytes", path.display())]
    LocalTooLarge {
        /// The file.
        path: PathBuf,
        /// The most there may be.
        max: u64,
    },
    /// Keys that are not understood.
    #[error("the keys of {place} cannot be used")]
    Keys {
        /// Where they are from.
        place: String,
        /// Why not.
        #[source]
        source: KeyringError,
    },
    /// A signature that is not good.
    #[error("the signature of {place} is not good")]
    Signature {
        /// Where it is.
        place: String,
        /// Why not.
        #[source]
        source: Box<SignatureError>,
    },
    /// Checksums that are not understood.
    #[error("the checksums of {place} cannot be used")]
    Checksums {
        /// Where they are.
        place: String,
        /// Why not.
        #[source]
        source: Box<ChecksumError>,
    },
    /// Checksums of other files.
    #[error("the checksums of {place} are of other files")]
    NotListed {
        /// Where they are.
        place: String,
        /// What is missing.
        #[source]
        source: NotListed,
    },
    /// A text that a mirror does not have.
    #[error("{address} is not in the mirror")]
    NotMirrored {
        /// Its address there.
        address: String,
    },
    /// A mirror that cannot be read or written.
    #[error(transparent)]
    Shelf(Box<ShelfError>),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A file of the cache cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl From<ShelfError> for LookUpError {
    fn from(error: ShelfError) -> Self {
        match error {
            ShelfError::Cancelled => Self::Cancelled,
            ShelfError::Io(error) => Self::Io(error),
            error => Self::Shelf(Box::new(error)),
        }
    }
}
