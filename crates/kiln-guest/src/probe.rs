//! Checks the agent makes inside the guest without a program of the image: the wire types.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::name::GuestPath;

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeCheck {
    /// A port of the guest's loopback address takes connections.
    Tcp {
        /// The port.
        port: NonZeroU16,
    },
    /// A GET over plain HTTP to the guest's loopback address is answered, with whatever status.
    Http {
        /// The port.
        port: NonZeroU16,
        /// What is requested: begins with `/`, printable ASCII without spaces, at most
        /// [`HTTP_PATH_BYTES_MAX`](crate::limits::HTTP_PATH_BYTES_MAX) bytes.
        path: String,
    },
    /// A path exists, links followed.
    File {
        /// The path.
        path: GuestPath,
    },
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Probed {
    /// Why it did not succeed, in words; none when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The status of the answer, for `Http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}
