//! Why something was not fetched.

use super::url::Url;
use kiln_core::image::ContentDigest;
use kiln_sys::lock::LockError;
use kiln_sys::{IoError, cancel::Cancelled};
use std::error::Error;
use std::io;

/// Why a download failed. Addresses are shown without names, passwords and queries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// Nowhere to fetch from.
    #[error("there is no address to fetch from")]
    NoUrl,
    /// Not there, and nobody may be asked.
    #[error("{url} is not in the cache, and kiln is offline")]
    Offline {
        /// Where it would be fetched from.
        url: Url,
    },
    /// A proxy that is not understood.
    #[error("the proxy of {url} cannot be used")]
    Proxy {
        /// What would be fetched through it.
        url: Url,
        /// Why not.
        #[source]
        source: Box<ureq::Error>,
    },
    /// An answer that is an error.
    #[error("{url} answered with status {status}{}{said}", if said.is_empty() { "" } else { ": " })]
    Status {
        /// What was asked for.
        url: Url,
        /// The status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// No answer, or none to its end.
    #[error("{url} cannot be fetched")]
    Broken {
        /// What was asked for.
        url: Url,
        /// How it ended.
        #[source]
        source: Broken,
    },
    /// More bytes than there may be.
    #[error("{url} has {}, of at most {max}", said.map_or("too many bytes".to_owned(), |said| format!("{said} bytes")))]
    TooLarge {
        /// What was asked for.
        url: Url,
        /// The bytes it says it has, where it does.
        said: Option<u64>,
        /// The most there may be.
        max: u64,
    },
    /// Other content than expected, twice.
    #[error("{url} is {actual}; {expected} was expected")]
    Digest {
        /// Where it came from the last time.
        url: Url,
        /// What was expected.
        expected: ContentDigest,
        /// What came.
        actual: ContentDigest,
    },
    /// Who asks has to be told, and could not be.
    #[error("who asks has to be told, and cannot be")]
    Untold {
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A redirection that is not followed.
    #[error("{from} leads to {to}, {why}")]
    RedirectRefused {
        /// What was asked for.
        from: Url,
        /// Where it leads.
        to: String,
        /// Why it is not followed.
        why: Refusal,
    },
    /// Redirections without an end.
    #[error("{url} leads on more than {max} times")]
    TooManyRedirects {
        /// What was asked for.
        url: Url,
        /// The most redirections that are followed.
        max: u32,
    },
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A file of the cache cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The lock of whoever fetches it cannot be used.
    #[error(transparent)]
    Lock(LockError),
}

/// How a request ended without what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// No answer.
    #[error(transparent)]
    Http(Box<ureq::Error>),
    /// An answer that breaks off.
    #[error("the answer broke off")]
    Read(#[source] io::Error),
    /// Less than there should be.
    #[error("{have} bytes came of {total}")]
    Short {
        /// The bytes that came.
        have: u64,
        /// Those there should be.
        total: u64,
    },
}

/// Why a redirection is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not http or https, or no address at all.
    #[error("which is no address of http or https")]
    NotHttp,
    /// From https to http.
    #[error("which would be in clear")]
    InClear,
    /// From a public host to one of this host's own networks.
    #[error("which is in a private network")]
    Private,
}

impl From<Cancelled> for DownloadError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<LockError> for DownloadError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Cancelled { .. } => Self::Cancelled,
            error => Self::Lock(error),
        }
    }
}
