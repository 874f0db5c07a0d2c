//! Names that cross the channel, parsed once: a path, a user and a signal in the guest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::{PATH_BYTES_MAX, USER_BYTES_MAX};

/// A name that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// A guest path that is not absolute.
    #[error("guest path {path:?} is not absolute")]
    NotAbsolute {
        /// The text.
        path: String,
    },
    /// A text with a zero byte.
    #[error("{what} contains a zero byte")]
    ZeroByte {
        /// The object.
        what: &'static str,
    },
    /// A text over its limit.
    #[error("{what} has {size} bytes, more than {limit}")]
    TooLong {
        /// The object.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// An empty user or group.
    #[error("user {user:?} has an empty part")]
    EmptyUser {
        /// The text.
        user: String,
    },
    /// A signal that does not exist.
    #[error("unknown signal {signal:?}")]
    UnknownSignal {
        /// The text.
        signal: String,
    },
    /// A text that breaks the rule of its type.
    #[error("{what} {text:?} is not {rule}")]
    NotAllowed {
        /// The object.
        what: &'static str,
        /// The text, shortened.
        text: String,
        /// The rule.
        rule: &'static str,
    },
}

/// An absolute UTF-8 path inside the guest, at most [`PATH_BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestPath(String);

impl GuestPath {
    /// Parses a path.
    ///
    /// # Errors
    /// Refuses a path that is relative, too long or contains a zero byte.
    pub fn new(path: impl Into<String>) -> Result<Self, NameError> {
        let path = path.into();
        if path.len() > PATH_BYTES_MAX {
            return Err(NameError::TooLong { what: "guest path", size: path.len(), limit: PATH_BYTES_MAX });
        }
        if path.contains('\0') {
            return Err(NameError::ZeroByte { what: "guest path" });
        }
        if !path.starts_with('/') {
            return Err(NameError::NotAbsolute { path });
        }
        Ok(Self(path))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GuestPath {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for GuestPath {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<GuestPath> for String {
    fn from(path: GuestPath) -> Self {
        path.0
    }
}

impl AsRef<std::path::Path> for GuestPath {
    fn as_ref(&self) -> &std::path::Path {
        std::path::Path::new(&self.0)
    }
}

/// `user[:group]`, each a name or a number; resolved in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserSpec {
    user: String,
    group: Option<String>,
}

impl UserSpec {
    /// Returns the user's name or number.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the group's name or number.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }
}

impl fmt::Display for UserSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "{}:{group}", self.user),
            None => f.write_str(&self.user),
        }
    }
}

impl FromStr for UserSpec {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > USER_BYTES_MAX {
            return Err(NameError::TooLong { what: "user", size: text.len(), limit: USER_BYTES_MAX });
        }
        if text.contains('\0') {
            return Err(NameError::ZeroByte { what: "user" });
        }
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if user.is_empty() || group.is_some_and(|g| g.is_empty() || g.contains(':')) {
            return Err(NameError::EmptyUser { user: text.to_owned() });
        }
        Ok(Self { user: user.to_owned(), group: group.map(str::to_owned) })
    }
}

impl TryFrom<String> for UserSpec {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<UserSpec> for String {
    fn from(user: UserSpec) -> Self {
        user.to_string()
    }
}

/// A Linux signal number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct SignalNumber(i32);

const SIGNAL_MAX: i32 = 64;
const SIGNAL_NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

impl SignalNumber {
    /// Hang up.
    pub const HUP: Self = Self(1);
    /// Interrupt.
    pub const INT: Self = Self(2);
    /// Kill; cannot be caught.
    pub const KILL: Self = Self(9);
    /// Terminate.
    pub const TERM: Self = Self(15);

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> i32 {
        self.0
    }

    /// Returns the name without `SIG`; real-time signals have none.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let index = usize::try_from(self.0 - 1).ok()?;
        SIGNAL_NAMES.get(index).copied()
    }
}

impl fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl TryFrom<i32> for SignalNumber {
    type Error = NameError;

    fn try_from(number: i32) -> Result<Self, NameError> {
        if (1..=SIGNAL_MAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(NameError::UnknownSignal { signal: number.to_string() })
        }
    }
}

impl From<SignalNumber> for i32 {
    fn from(signal: SignalNumber) -> Self {
        signal.0
    }
}

impl FromStr for SignalNumber {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Ok(number) = text.parse::<i32>() {
            return Self::try_from(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        (1..)
            .zip(SIGNAL_NAMES)
            .find(|(_, known)| *known == name)
            .map(|(number, _)| Self(number))
            .ok_or_else(|| NameError::UnknownSignal { signal: text.chars().take(USER_BYTES_MAX).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_limited() {
        assert!(GuestPath::new("/etc/passwd").is_ok());
        assert!(matches!(GuestPath::new("etc"), Err(NameError::NotAbsolute { .. })));
        assert!(matches!(GuestPath::new("/a\0b"), Err(NameError::ZeroByte { .. })));
        assert!(matches!(GuestPath::new("/".repeat(PATH_BYTES_MAX + 1)), Err(NameError::TooLong { .. })));
    }

    #[test]
    fn paths_and_users_have_a_longest_form() {
        let path = |bytes| GuestPath::new("/".repeat(bytes));
        path(PATH_BYTES_MAX).unwrap();
        let error = path(PATH_BYTES_MAX + 1).unwrap_err().to_string();
        assert!(error.contains("4097") && error.contains("4096"), "{error}");
        let user = |bytes| "u".repeat(bytes).parse::<UserSpec>();
        user(USER_BYTES_MAX).unwrap();
        let error = user(USER_BYTES_MAX + 1).unwrap_err().to_string();
        assert!(error.contains("user") && error.contains("257") && error.contains("256"), "{error}");
    }

    #[test]
    fn users_split_once() {
        let user: UserSpec = "web:100".parse().unwrap();
        assert_eq!((user.user(), user.group()), ("web", Some("100")));
        for bad in ["", ":", "a:", ":b", "a:b:c"] {
            assert!(bad.parse::<UserSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["15", "TERM", "SIGTERM", "sigterm"] {
            assert_eq!(text.parse::<SignalNumber>(), Ok(SignalNumber::TERM));
        }
        assert_eq!(SignalNumber::KILL.to_string(), "SIGKILL");
        assert!("0".parse::<SignalNumber>().is_err());
        assert!("65".parse::<SignalNumber>().is_err());
        assert!("NOPE".parse::<SignalNumber>().is_err());
    }
}
