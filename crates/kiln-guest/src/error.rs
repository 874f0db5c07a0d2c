//! Errors of a session and of the requests made on it.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::frame::FrameError;
use crate::hook::HookFailure;
use crate::identity::{IdentityReport, PartResult};

/// What went wrong inside the guest, named by what a caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The program, file, directory, user or interface does not exist.
    NotFound,
    /// The guest refuses the access, or the file is not executable.
    Permission,
    /// The request itself is wrong.
    Invalid,
    /// The agent cannot serve this now: it is booting, shutting down or has too many streams.
    Busy,
    /// Anything else the guest's kernel reported.
    Io,
    /// This agent, or the mode it runs in, does not do this.
    Unsupported,
    /// The agent saw bytes that break the protocol.
    Protocol,
    /// A kind this version does not know.
    #[serde(other)]
    Unknown,
}

/// An error reported by the agent; this is also the `ERROR` payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// What a caller can do about it.
    pub kind: ErrorKind,
    /// The object and the path, in words.
    pub message: String,
    /// The guest kernel's error number, when one caused this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

impl RemoteError {
    /// Makes an error with no error number.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), errno: None }
    }

    /// Makes an error from an I/O error: `message` names the action and the object, the cause is appended
    /// because an error number is all that crosses the channel.
    #[must_use]
    pub fn from_io(message: impl AsRef<str>, source: &io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Permission,
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => ErrorKind::Invalid,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self { kind, message: format!("{}: {source}", message.as_ref()), errno: source.raw_os_error() }
    }
}

/// An error of a session or of a request made on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The agent refused or failed the request.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The connection to the agent is gone; every stream ends with this.
    #[error("the connection to the guest agent is lost: {reason}")]
    SessionLost {
        /// Why, in words.
        reason: String,
    },
    /// The other side ended one stream.
    #[error("the stream was reset: {reason}")]
    Reset {
        /// Why, in words.
        reason: String,
    },
    /// The agent speaks another major version.
    #[error("the guest agent speaks protocol {theirs}, not {ours}")]
    ProtocolMismatch {
        /// The version of this library.
        ours: u32,
        /// The version of the agent.
        theirs: u32,
    },
    /// A deadline passed.
    #[error("{action} took longer than {} ms", waited.as_millis())]
    Timeout {
        /// What was waited for.
        action: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The guest reported that it cannot boot.
    #[error("the guest failed to boot: {reason}")]
    BootFailed {
        /// The agent's reason.
        reason: String,
    },
    /// The other side broke the protocol.
    #[error("the guest agent broke the protocol: {what}")]
    Violation {
        /// The rule that was broken.
        what: &'static str,
    },
    /// A request is larger than the channel allows.
    #[error("{what} has {size} bytes, more than {limit}")]
    TooLarge {
        /// The object.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The agent is of a version that does not do this.
    #[error("the guest agent does not do {feature:?}")]
    Lacks {
        /// What was asked, as the agent would name it among its features.
        feature: &'static str,
    },
    /// A hook of the image failed before a capture; the guest must not be captured.
    #[error(transparent)]
    Hook(Box<HookFailure>),
    /// The guest is not the machine it was to become and must not be handed over.
    #[error("the guest's identity is not complete: {}", reason(.report))]
    NotIdentified {
        /// What became of each part.
        report: Box<IdentityReport>,
    },
    /// A frame could not be decoded.
    #[error("undecodable frame from the guest agent")]
    Frame(#[from] FrameError),
    /// The transport failed before a session existed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Names the first part that is not as asked.
fn reason(report: &IdentityReport) -> String {
    match report.failed() {
        Some(failed) => match &failed.result {
            PartResult::Failed { error } => format!("{}: {error}", failed.part),
            _ => format!("{} was not done", failed.part),
        },
        None => "parts are missing in the answer".to_owned(),
    }
}

impl SessionError {
    /// Returns whether the agent said that something does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Remote(RemoteError { kind: ErrorKind::NotFound, .. }))
    }

    /// Returns whether a port of the guest refused a connection: nothing listens there.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        let refused = Some(rustix::io::Errno::CONNREFUSED.raw_os_error());
        matches!(self, Self::Remote(RemoteError { errno, .. }) if *errno == refused)
    }

    /// Returns whether the connection to the agent is gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::SessionLost { .. })
    }

    pub(crate) fn lost(reason: impl Into<String>) -> Self {
        Self::SessionLost { reason: reason.into() }
    }

    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Remote(RemoteError { kind: ErrorKind::NotFound, .. }) => io::ErrorKind::NotFound,
            Self::Remote(RemoteError { kind: ErrorKind::Permission, .. }) => io::ErrorKind::PermissionDenied,
            Self::Timeout { .. } => io::ErrorKind::TimedOut,
            Self::SessionLost { .. } => io::ErrorKind::ConnectionAborted,
            Self::Reset { .. } => io::ErrorKind::ConnectionReset,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}
