//! Why something of a bucket was not read or written.

use crate::download::DownloadError;
use kiln_sys::{IoError, cancel::Cancelled};

/// Why a request to a bucket failed. Addresses are shown as `s3://BUCKET/KEY`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// An address of a server that is none, or none that the bucket's name can be a part of.
    #[error("`{endpoint}` is no address of a server of buckets: http or https and a host are wanted")]
    Endpoint {
        /// The text.
        endpoint: String,
    },
    /// Nobody may be asked.
    #[error("{address} is on a server, and kiln is offline")]
    Offline {
        /// What would be asked for.
        address: String,
    },
    /// There is no such bucket.
    #[error("there is no bucket `{bucket}`")]
    NoBucket {
        /// Its name.
        bucket: String,
    },
    /// The bucket is in another region.
    #[error("the bucket `{bucket}` is in the region {region}")]
    Region {
        /// Its name.
        bucket: String,
        /// Its region.
        region: String,
    },
    /// Whoever asks may not.
    #[error("{address} may not be used{}{said}", colon(said))]
    Denied {
        /// What was asked for.
        address: String,
        /// What the server said.
        said: String,
    },
    /// Another error that a server answered.
    #[error("{address} was answered with status {status}{}{said}", colon(said))]
    Status {
        /// What was asked for.
        address: String,
        /// The status.
        status: u16,
        /// What the server said.
        said: String,
    },
    /// No answer, or none to its end.
    #[error("{address} cannot be reached")]
    Broken {
        /// What was asked for.
        address: String,
        /// How it ended.
        #[source]
        source: Box<ureq::Error>,
    },
    /// An answer that is not what it should be.
    #[error("the answer for {address} is not understood")]
    Answer {
        /// What was asked for.
        address: String,
    },
    /// Somebody else wrote it meanwhile.
    #[error("{address} was changed by somebody else meanwhile")]
    Changed {
        /// What was to be written.
        address: String,
    },
    /// More bytes than there may be.
    #[error("{address} has more than {max} bytes")]
    TooLarge {
        /// What it is.
        address: String,
        /// The most it may have.
        max: u64,
    },
    /// Proxies or certificates that cannot be used.
    #[error(transparent)]
    Client(Box<DownloadError>),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A file of this host cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn colon(said: &str) -> &'static str {
    if said.is_empty() { "" } else { ": " }
}

impl From<Cancelled> for BucketError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<DownloadError> for BucketError {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Cancelled => Self::Cancelled,
            DownloadError::Io(error) => Self::Io(error),
            error => Self::Client(Box::new(error)),
        }
    }
}
