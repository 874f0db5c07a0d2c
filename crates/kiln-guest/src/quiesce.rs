//! `Quiesce`, before a capture: the wire types.

use serde::{Deserialize, Serialize};

use crate::hook::{HookReport, HookTimeout};

/// Makes the guest ready to be captured: hooks, then the filesystems.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quiesce {
    /// Time each hook may take.
    #[serde(default)]
    pub hook_timeout_ms: HookTimeout,
    /// Drops clean page cache, dentries and inodes, so that they are not part of the capture.
    #[serde(default)]
    pub drop_caches: bool,
}

/// What `Quiesce` did. After a hook that failed nothing else is done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quiesced {
    /// The hooks `pre-snapshot`.
    #[serde(default)]
    pub hooks: HookReport,
    /// How long writing the filesystems took, in milliseconds; absent when it was not done.
    #[serde(default)]
    pub sync_ms: Option<u64>,
    /// How long dropping caches took, in milliseconds; absent when it was not done.
    #[serde(default)]
    pub drop_caches_ms: Option<u64>,
    /// What a caller may want to know, in words.
    #[serde(default)]
    pub notes: Vec<String>,
}
