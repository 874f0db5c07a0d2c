//! When a machine that ended is started again: `no`, `on-failure`, `on-failure:3`, `always`.

use crate::machine::EndCause;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// When a machine that ended is started again on its disk, without anybody asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When it failed.
    OnFailure {
        /// The most restarts since somebody started it; none means any number.
        max: Option<NonZeroU32>,
    },
    /// However it ended.
    Always,
}

/// A text that is not a restart policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a restart policy: no, on-failure, on-failure:N with N from 1, and always are")]
pub struct InvalidRestartPolicy(String);

impl RestartPolicy {
    /// Returns whether a machine that ended for `cause` and was started again `restarts` times already is to be
    /// started again. An end that somebody wanted is final by every policy.
    pub fn restarts(self, cause: &EndCause, restarts: u32) -> bool {
        if matches!(cause, EndCause::Requested | EndCause::Expired | EndCause::ClientLost) {
            return false;
        }
        let success = matches!(cause, EndCause::GuestShutdown | EndCause::EntrypointExited { code: 0 });
        match self {
            Self::No => false,
            Self::OnFailure { max } => !success && max.is_none_or(|max| restarts < max.get()),
            Self::Always => true,
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = InvalidRestartPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidRestartPolicy> {
        let invalid = || InvalidRestartPolicy(crate::text::clip(text));
        match text {
            "no" => Ok(Self::No),
            "always" => Ok(Self::Always),
            "on-failure" => Ok(Self::OnFailure { max: None }),
            _ => {
                let digits = text.strip_prefix("on-failure:").ok_or_else(invalid)?;
                let plain = digits.bytes().all(|b| b.is_ascii_digit());
                let max = plain.then(|| digits.parse().ok()).flatten().ok_or_else(invalid)?;
                Ok(Self::OnFailure { max: Some(max) })
            }
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = InvalidRestartPolicy;

    fn try_from(text: String) -> Result<Self, InvalidRestartPolicy> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure { max: None } => f.write_str("on-failure"),
            Self::OnFailure { max: Some(max) } => write!(f, "on-failure:{max}"),
            Self::Always => f.write_str("always"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_printed() {
        for text in ["no", "always", "on-failure", "on-failure:1", "on-failure:4294967295"] {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text);
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<RestartPolicy>(&json).unwrap(), policy);
        }
        for text in [
            "",
            "never",
            "Always",
            "unless-stopped",
            "on-failure:",
            "on-failure:0",
            "on-failure:+1",
            "on-failure:-1",
            "on-failure:4294967296",
            "always:3",
        ] {
            assert!(text.parse::<RestartPolicy>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<RestartPolicy>("\"sometimes\"").is_err());
    }

    #[test]
    fn an_end_that_was_wanted_is_final() {
        let always = RestartPolicy::Always;
        for cause in [EndCause::Requested, EndCause::Expired, EndCause::ClientLost] {
            assert!(!always.restarts(&cause, 0), "{cause}");
        }
        assert!(always.restarts(&EndCause::GuestShutdown, u32::MAX));
    }

    #[test]
    fn a_failure_is_what_is_no_success() {
        let on_failure = |text: &str| text.parse::<RestartPolicy>().unwrap();
        let killed = EndCause::VmmKilled { signal: 9 };
        assert!(!on_failure("on-failure").restarts(&EndCause::GuestShutdown, 0));
        assert!(!on_failure("on-failure").restarts(&EndCause::EntrypointExited { code: 0 }, 0));
        assert!(on_failure("on-failure").restarts(&EndCause::EntrypointExited { code: 1 }, 0));
        assert!(on_failure("on-failure").restarts(&killed, 1_000_000));
        assert!(on_failure("on-failure:2").restarts(&killed, 1));
        assert!(!on_failure("on-failure:2").restarts(&killed, 2));
        assert!(!on_failure("no").restarts(&killed, 0));
    }
}
