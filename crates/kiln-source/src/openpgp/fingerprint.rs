//! Fingerprints of keys, and pins made of them.

use crate::checksum::hex_bytes;
use pgp::types::{Fingerprint as PgpFingerprint, KeyDetails};
use std::fmt;
use std::str::FromStr;

/// The whole fingerprint of a key or subkey.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fingerprint {
    /// Of a key of version 4: SHA-1 of it.
    V4([u8; 20]),
    /// Of a key of version 6: SHA-256 of it.
    V6([u8; 32]),
}

impl Fingerprint {
    /// Returns the fingerprint of a key; none for versions that are not used here.
    pub(super) fn of(key: &impl KeyDetails) -> Option<Self> {
        match key.fingerprint() {
            PgpFingerprint::V4(bytes) => Some(Self::V4(bytes)),
            PgpFingerprint::V6(bytes) => Some(Self::V6(bytes)),
            _ => None,
        }
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A signer that is believed: the fingerprint of a primary key, written as 40 or 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SignerPin(Fingerprint);

/// A text that is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the fingerprint of a key: 40 or 64 hexadecimal digits are")]
pub struct InvalidPin(String);

impl SignerPin {
    /// Returns the fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0
    }
}

impl FromStr for SignerPin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        let parsed = hex_bytes(text).map(Fingerprint::V4).or_else(|| hex_bytes(text).map(Fingerprint::V6));
        parsed.map(Self).ok_or_else(|| InvalidPin(kiln_core::text::clip(text)))
    }
}

impl fmt::Display for SignerPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_a_whole_fingerprint() {
        let v4 = "4CB50190207B4758A3F73A796ED0E7B82643E131";
        assert_eq!(v4.parse::<SignerPin>().unwrap().to_string(), v4);
        assert_eq!(v4.to_lowercase().parse::<SignerPin>().unwrap(), v4.parse().unwrap());
        let v6 = "AB".repeat(32);
        assert_eq!(v6.parse::<SignerPin>().unwrap().to_string(), v6);
        for text in [
            "",
            "2643E131",
            "6ED0E7B82643E131",
            &v4[1..],
            &format!("0x{v4}"),
            &format!(" {v4}"),
            &v4.replace('4', "G"),
        ] {
            assert!(text.parse::<SignerPin>().is_err(), "{text}");
        }
    }
}
