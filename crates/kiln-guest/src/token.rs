//! Short names of identity and hooks, each parsed once into its type.
//!
//! A name is ASCII, so that it needs no escaping in a file, an environment or a payload, and none is `.`, `..`
//! or holds a `/`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::NameError;

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses the text.
            ///
            /// # Errors
            /// Refuses what breaks the rule of the type.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                if $check(text.as_bytes()) {
                    return Ok(Self(text));
                }
                let text = crate::message::clip_to(&text, SHOWN_BYTES_MAX);
                Err(NameError::NotAllowed { what: $what, text, rule: $rule })
            }

            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

/// Bytes of a refused text that an error shows.
const SHOWN_BYTES_MAX: usize = 128;

token! {
    /// A host name: 1 to 64 letters, digits, `-`, `.` or `_`.
    Hostname, "host name", "1 to 64 letters, digits, '-', '.' or '_'", hostname
}
token! {
    /// The value of `/etc/machine-id`: 32 lower-case hex digits, not all zero.
    MachineId, "machine id", "32 lower-case hex digits, not all zero", machine_id
}
token! {
    /// One life of a machine between two restores: a UUID in lower case.
    Epoch, "epoch", "a UUID in lower case", epoch
}
token! {
    /// A network interface: 1 to 15 letters, digits, `-`, `.` or `_`.
    InterfaceName, "interface", "1 to 15 letters, digits, '-', '.' or '_'", interface
}
token! {
    /// A secret, and the file it is in: 1 to 64 letters, digits, `-`, `.` or `_`, the first a letter, digit or `_`.
    SecretName, "secret name", "1 to 64 letters, digits, '-', '.' or '_', the first not '-' or '.'", secret
}
token! {
    /// A variable of a machine's environment: 1 to 128 letters, digits or `_`, the first no digit.
    VariableName, "variable name", "1 to 128 letters, digits or '_', the first no digit", variable
}
token! {
    /// A hook, and the file it is: 1 to 128 letters, digits, `-`, `.` or `_`, the first not `.`.
    HookName, "hook name", "1 to 128 letters, digits, '-', '.' or '_', the first not '.'", hook
}
token! {
    /// A fact's name: 1 to 64 letters, digits, `-`, `.` or `_`.
    EventName, "event name", "1 to 64 letters, digits, '-', '.' or '_'", event
}

fn word(text: &[u8], bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len())
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

fn hostname(text: &[u8]) -> bool {
    word(text, 64)
}

fn interface(text: &[u8]) -> bool {
    word(text, 15) && text.iter().any(|byte| *byte != b'.')
}

fn secret(text: &[u8]) -> bool {
    word(text, 64) && !text.starts_with(b"-") && !text.starts_with(b".")
}

fn hook(text: &[u8]) -> bool {
    word(text, 128) && !text.starts_with(b".")
}

fn event(text: &[u8]) -> bool {
    word(text, 64)
}

fn variable(text: &[u8]) -> bool {
    word(text, 128)
        && text.iter().all(|byte| !matches!(byte, b'-' | b'.'))
        && !text.first().is_some_and(u8::is_ascii_digit)
}

fn lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn machine_id(text: &[u8]) -> bool {
    text.len() == 32 && text.iter().all(|byte| lower_hex(*byte)) && text.iter().any(|byte| *byte != b'0')
}

fn epoch(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => lower_hex(*byte),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_parsed_strictly() {
        assert!(Hostname::new("web-1.example").is_ok());
        for bad in ["", "a b", "a/b", "\u{e9}", &"x".repeat(65)] {
            assert!(Hostname::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a\0", &"x".repeat(65)] {
            assert!(SecretName::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "1A", "A-B", "A.B", "A=B", &"A".repeat(129)] {
            assert!(VariableName::new(bad).is_err(), "{bad:?}");
        }
        for bad in [".", "..", "a/b", "eth0:1", "sixteen-letters-"] {
            assert!(InterfaceName::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["..", ".10-x", "a b"] {
            assert!(HookName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_have_one_spelling() {
        assert!(MachineId::new("0123456789abcdef0123456789abcdef").is_ok());
        for bad in ["0123456789ABCDEF0123456789abcdef", "0123", &"0".repeat(32)] {
            assert!(MachineId::new(bad).is_err(), "{bad:?}");
        }
        assert!(Epoch::new("0f8fad5b-d9cb-469f-a165-70867728950e").is_ok());
        for bad in ["0F8FAD5B-D9CB-469F-A165-70867728950E", "0f8fad5bd9cb469fa16570867728950e", "1700000000"]
        {
            assert!(Epoch::new(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_is_a_file_has_no_path(text in any::<String>()) {
            for name in [SecretName::new(text.clone()).map(String::from), HookName::new(text.clone()).map(String::from)].into_iter().flatten() {
                prop_assert_eq!(std::path::Path::new(&name).file_name(), Some(name.as_ref()));
                prop_assert_eq!(&name, &text);
            }
        }

        #[test]
        fn a_long_text_makes_a_short_error(text in "[ -~]{200,4000}") {
            prop_assert!(Hostname::new(text).unwrap_err().to_string().len() < 500);
        }
    }
}
