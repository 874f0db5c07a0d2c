//! Bytes that are not shown: in hex on the wire, as a count in debug output.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{ENTROPY_BYTES_MAX, ENTROPY_BYTES_MIN, SECRETS_BYTES_MAX};
use crate::name::NameError;

/// Fresh random bytes, at least [`ENTROPY_BYTES_MIN`] and at most [`ENTROPY_BYTES_MAX`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Entropy(Vec<u8>);

/// A secret's content, at most [`SECRETS_BYTES_MAX`] bytes, any of them zero.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretValue(Vec<u8>);

impl Entropy {
    /// Takes random bytes.
    ///
    /// # Errors
    /// Refuses too few and too many.
    pub fn new(bytes: Vec<u8>) -> Result<Self, NameError> {
        if bytes.len() < ENTROPY_BYTES_MIN {
            let text = format!("of {} bytes", bytes.len());
            return Err(NameError::NotAllowed { what: "entropy", text, rule: "at least 32 bytes" });
        }
        limit("entropy", bytes.len(), ENTROPY_BYTES_MAX)?;
        Ok(Self(bytes))
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl SecretValue {
    /// Takes a secret's content.
    ///
    /// # Errors
    /// Refuses too many bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, NameError> {
        limit("secret", bytes.len(), SECRETS_BYTES_MAX)?;
        Ok(Self(bytes))
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn limit(what: &'static str, size: usize, limit: usize) -> Result<(), NameError> {
    if size > limit { Err(NameError::TooLong { what, size, limit }) } else { Ok(()) }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entropy({} bytes)", self.0.len())
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretValue({} bytes)", self.0.len())
    }
}

impl TryFrom<String> for Entropy {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(parse_hex("entropy", &text)?)
    }
}

impl TryFrom<String> for SecretValue {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(parse_hex("secret", &text)?)
    }
}

impl From<Entropy> for String {
    fn from(entropy: Entropy) -> Self {
        print_hex(&entropy.0)
    }
}

impl From<SecretValue> for String {
    fn from(secret: SecretValue) -> Self {
        print_hex(&secret.0)
    }
}

fn print_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Parses lower-case hex; an error does not show the text, which may be a secret.
fn parse_hex(what: &'static str, text: &str) -> Result<Vec<u8>, NameError> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes.filter(|_| rest.is_empty()).ok_or_else(|| NameError::NotAllowed {
        what,
        text: format!("of {} characters", text.len()),
        rule: "lower-case hex",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_checked() {
        assert!(Entropy::new(vec![1; ENTROPY_BYTES_MIN]).is_ok());
        assert!(Entropy::new(vec![1; ENTROPY_BYTES_MIN - 1]).is_err());
        assert!(Entropy::new(vec![1; ENTROPY_BYTES_MAX]).is_ok());
        assert!(Entropy::new(vec![1; ENTROPY_BYTES_MAX + 1]).is_err());
        assert!(SecretValue::new(vec![0; SECRETS_BYTES_MAX]).is_ok());
        assert!(SecretValue::new(vec![0; SECRETS_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn nothing_is_shown() {
        let secret = SecretValue::new(b"hunter2".to_vec()).unwrap();
        assert_eq!(format!("{secret:?}"), "SecretValue(7 bytes)");
        let error = SecretValue::try_from("hunter2".to_owned()).unwrap_err();
        assert!(!error.to_string().contains("hunter"), "{error}");
    }

    proptest! {
        #[test]
        fn hex_survives_printing_and_parsing(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let secret = SecretValue::new(bytes).unwrap();
            prop_assert_eq!(SecretValue::try_from(String::from(secret.clone())).unwrap(), secret);
        }

        #[test]
        fn what_is_no_hex_is_refused(text in "[0-9a-fA-F ]{0,20}") {
            let parsed = SecretValue::try_from(text.clone()).map(String::from);
            prop_assert!(parsed.is_err() || parsed.unwrap() == text);
        }
    }
}
