//! Hooks of an image and what they say: the wire types. The contract is in `docs/hooks.md`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{ErrorKind, RemoteError};
use crate::limits::{HOOK_TIMEOUT_DEFAULT, HOOK_TIMEOUT_MAX};
use crate::token::{EventName, HookName};

/// When hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookStage {
    /// Before a capture, part of `Quiesce`.
    PreSnapshot,
    /// After a restore, the last part of `Identity`.
    PostRestore,
}

impl HookStage {
    /// Returns the name that hooks see as `KILN_HOOK`; their directory is this and `.d`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreSnapshot => "pre-snapshot",
            Self::PostRestore => "post-restore",
        }
    }
}

impl fmt::Display for HookStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Time each hook may take, in whole milliseconds from 1 to [`HOOK_TIMEOUT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct HookTimeout(u32);

impl HookTimeout {
    /// Takes a time.
    ///
    /// # Errors
    /// Refuses less than a millisecond and more than [`HOOK_TIMEOUT_MAX`].
    pub fn new(time: Duration) -> Result<Self, RemoteError> {
        u32::try_from(time.as_millis()).map_err(|_| Self::refused(time.as_millis())).and_then(Self::try_from)
    }

    /// Returns the time.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0.into())
    }

    fn refused(millis: u128) -> RemoteError {
        let max = HOOK_TIMEOUT_MAX.as_millis();
        RemoteError::new(ErrorKind::Invalid, format!("a hook's time of {millis} ms is not 1 to {max} ms"))
    }
}

impl TryFrom<u32> for HookTimeout {
    type Error = RemoteError;

    fn try_from(millis: u32) -> Result<Self, RemoteError> {
        let valid = millis > 0 && u128::from(millis) <= HOOK_TIMEOUT_MAX.as_millis();
        if valid { Ok(Self(millis)) } else { Err(Self::refused(millis.into())) }
    }
}

impl From<HookTimeout> for u32 {
    fn from(timeout: HookTimeout) -> Self {
        timeout.0
    }
}

impl Default for HookTimeout {
    fn default() -> Self {
        Self(u32::try_from(HOOK_TIMEOUT_DEFAULT.as_millis()).unwrap_or(u32::MAX))
    }
}

/// What the hooks of one stage did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HookReport {
    /// Hooks that succeeded, in the order they ran.
    #[serde(default)]
    pub ran: Vec<HookRun>,
    /// The hook that failed; those behind it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<HookFailure>,
    /// What hooks said, in order.
    #[serde(default)]
    pub facts: Vec<Fact>,
    /// Facts over a limit, or with a name that is none.
    #[serde(default)]
    pub facts_dropped: u32,
}

/// One hook that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRun {
    /// The hook.
    pub hook: HookName,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// One hook that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{stage} hook {hook} {cause}")]
pub struct HookFailure {
    /// When it ran.
    pub stage: HookStage,
    /// The hook.
    pub hook: HookName,
    /// How it failed. It is told here, and is no error of its own.
    pub cause: HookCause,
    /// The end of its stdout; what is not text is replaced.
    #[serde(default)]
    pub stdout_tail: String,
    /// The end of its stderr; what is not text is replaced.
    #[serde(default)]
    pub stderr_tail: String,
}

/// How a hook failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[non_exhaustive]
pub enum HookCause {
    /// It ended with a code other than 0.
    Exited {
        /// The code.
        code: i32,
    },
    /// A signal ended it.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It did not end in time and was killed with its process group.
    TimedOut {
        /// The time it had, in milliseconds.
        limit_ms: u32,
    },
    /// It did not start, or was not allowed to.
    NotStarted {
        /// Why, in words.
        reason: String,
    },
    /// The host gave up the request; it was killed with its process group.
    Abandoned,
    /// A cause this version does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for HookCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "ended with exit code {code}"),
            Self::Killed { signal } => write!(f, "was ended by signal {signal}"),
            Self::TimedOut { limit_ms } => write!(f, "did not end within {limit_ms} ms and was killed"),
            Self::NotStarted { reason } => write!(f, "was not started: {reason}"),
            Self::Abandoned => f.write_str("was killed because the host gave up"),
            Self::Unknown => f.write_str("failed in a way this version does not know"),
        }
    }
}

/// One line a hook printed for the host. It comes from the image: nothing is to be believed of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The hook.
    pub hook: HookName,
    /// The fact's name.
    pub event: EventName,
    /// Its other fields.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub fields: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_bounds() {
        assert_eq!(HookTimeout::default().duration(), HOOK_TIMEOUT_DEFAULT);
        assert!(HookTimeout::new(Duration::from_millis(1)).is_ok());
        assert!(HookTimeout::new(HOOK_TIMEOUT_MAX).is_ok());
        for bad in [Duration::ZERO, HOOK_TIMEOUT_MAX + Duration::from_millis(1), Duration::MAX] {
            assert!(HookTimeout::new(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<HookTimeout>("0").is_err());
        assert!(serde_json::from_str::<HookTimeout>("600001").is_err());
    }

    #[test]
    fn a_failure_names_the_hook() {
        let text = r#"{"stage":"pre-snapshot","hook":"10-db","cause":{"name":"timed_out","limit_ms":5}}"#;
        let failure: HookFailure = serde_json::from_str(text).unwrap();
        assert_eq!(failure.to_string(), "pre-snapshot hook 10-db did not end within 5 ms and was killed");
        let text = text.replace("timed_out", "vanished");
        assert_eq!(serde_json::from_str::<HookFailure>(&text).unwrap().cause, HookCause::Unknown);
    }
}
