//! Fingerprints of OpenPGP keys.

use std::fmt;
use std::str::FromStr;

/// The fingerprint of a primary key: 40 hexadecimal digits (version 4), or 64 (versions 5 and 6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(String);

/// A text that is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the fingerprint of a key: 40 or 64 hexadecimal digits")]
pub struct InvalidFingerprint(String);

impl Fingerprint {
    /// Returns the digits, in upper case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    /// Spaces, by which people group the digits, have no meaning.
    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let digits: String = text.chars().filter(|c| *c != ' ').collect();
        if !matches!(digits.len(), 40 | 64) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidFingerprint(crate::text::clip(text)));
        }
        Ok(Self(digits.to_ascii_uppercase()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
