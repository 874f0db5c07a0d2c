//! Why it was not found what an image is.

use crate::checksum::{ChecksumError, NotListed};
use crate::download::DownloadError;
use crate::openpgp::{KeyringError, SignatureError};
use kiln_sys::IoError;

/// Why it was not found what an image is, or why it was not fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookUpError {
    /// A text of the catalog that is no address of the web.
    #[error("`{address}` is no address of the web")]
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
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A file of the cache cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
}
