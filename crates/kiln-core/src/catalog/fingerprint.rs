//! Fingerprints of OpenPGP keys.

use crate::text::hex_bytes;
use std::fmt;
use std::str::FromStr;

/// The whole fingerprint of a key: 40 hexadecimal digits, or 64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fingerprint {
    /// Of a key of version 4: SHA-1 of it.
    V4([u8; 20]),
    /// Of a key of version 6: SHA-256 of it.
    V6([u8; 32]),
}

/// A text that is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the fingerprint of a key: 40 or 64 hexadecimal digits")]
pub struct InvalidFingerprint(String);

impl Fingerprint {
    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    /// Spaces, by which people group the digits, have no meaning; nor has case.
    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let digits: String = text.chars().filter(|c| *c != ' ').collect();
        let parsed = hex_bytes(&digits).map(Self::V4).or_else(|| hex_bytes(&digits).map(Self::V6));
        parsed.ok_or_else(|| InvalidFingerprint(crate::text::clip(text)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_whole() {
        let v4 = "4CB50190207B4758A3F73A796ED0E7B82643E131";
        assert_eq!(v4.parse::<Fingerprint>().unwrap().to_string(), v4);
        let grouped = "4cb5 0190 207b 4758 a3f7  3a79 6ed0 e7b8 2643 e131";
        assert_eq!(grouped.parse::<Fingerprint>().unwrap(), v4.parse().unwrap());
        let v6 = "AB".repeat(32);
        assert_eq!(v6.parse::<Fingerprint>().unwrap().to_string(), v6);
        for text in ["", "2643E131", "6ED0E7B82643E131", &v4[1..], &format!("0x{v4}"), &v4.replace('4', "G")]
        {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
