//! Digests as OCI writes them: an algorithm, a colon and lower-case hexadecimal digits.

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How a digest is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Returns the word used in digests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The digest of a part of an image, or of a file.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentDigest {
    algorithm: Algorithm,
    hex: String,
}

/// A text that is no digest, or one of an algorithm that is not computed here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: sha256: and 64 lower-case hexadecimal digits are, or sha512: and 128")]
pub struct InvalidContentDigest(String);

impl ContentDigest {
    /// Writes computed bytes as a digest; none when there are not as many as the algorithm gives.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        (hex.len() == algorithm.digits()).then_some(Self { algorithm, hex })
    }

    /// Reads the hexadecimal digits of a digest, of either case; their number tells the algorithm. None when there are
    /// not 64 or 128 of them.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.digits() == hex.len())?;
        let plain = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| Self { algorithm, hex: hex.to_ascii_lowercase() })
    }

    /// Returns the algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the hexadecimal digits: nothing but those, so that they can stand in a path.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for ContentDigest {
    type Err = InvalidContentDigest;

    fn from_str(text: &str) -> Result<Self, InvalidContentDigest> {
        let parsed = Algorithm::ALL.into_iter().find_map(|algorithm| {
            let hex = text.strip_prefix(algorithm.as_str())?.strip_prefix(':')?;
            let plain = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            (plain && hex.len() == algorithm.digits()).then(|| Self { algorithm, hex: hex.to_owned() })
        });
        parsed.ok_or_else(|| InvalidContentDigest(crate::text::clip(text)))
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ContentDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
