//! Who asks, where an origin has to be told by other means than its address.

use super::error::DownloadError;
use std::fmt;

/// Tells one origin who asks. All connections of a download share it.
pub trait Authorize: fmt::Debug + Send + Sync {
    /// Returns the header `Authorization` as it is at present. It goes to scheme, host and port of what is asked for; no
    /// redirection takes it elsewhere.
    fn header(&self) -> Option<String>;

    /// Does what the challenges of an answer 401 ask for. That answered a request with the header `sent`, which may be older
    /// than the present one. Returns whether to ask once more.
    ///
    /// # Errors
    /// When who asks cannot be told; one that passes is tried again as if the origin had answered with it.
    fn answer(&self, sent: Option<&str>, challenges: &[String]) -> Result<bool, DownloadError>;
}
