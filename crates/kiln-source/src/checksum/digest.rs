//! The digest of a file and how one is computed.

use crate::hash::Hasher;
use kiln_core::image::Algorithm;
use kiln_core::text::hex_bytes;
use std::fmt;
use std::io;

/// The digest of a whole file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileDigest {
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl FileDigest {
    /// Reads the hexadecimal digits of a digest, of either case; their number tells the algorithm. None when there are
    /// not 64 or 128 of them.
    pub fn from_hex(hex: &str) -> Option<Self> {
        match hex.len() {
            64 => hex_bytes(hex).map(Self::Sha256),
            128 => hex_bytes(hex).map(Self::Sha512),
            _ => None,
        }
    }

    /// Returns the algorithm.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }
}

impl fmt::Display for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.algorithm().as_str())?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes the digest of a file as it passes: written to, then finished.
#[derive(Debug, Clone)]
pub struct FileHasher(Hasher);

impl FileHasher {
    /// Starts one by the algorithm of the digest that is expected.
    pub fn like(expected: &FileDigest) -> Self {
        Self(Hasher::new(expected.algorithm()))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all bytes taken.
    pub fn finish(self) -> FileDigest {
        self.0.finish_file()
    }
}

impl io::Write for FileHasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
