//! Digests computed on the way.

use kiln_core::image::{Algorithm, ContentDigest};
use sha2::Digest as _;
use std::io::{self, Read};

/// A digest in the making.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
            _ => Self::Sha256(sha2::Sha256::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> ContentDigest {
        let digest = match self {
            Self::Sha256(hasher) => ContentDigest::from_bytes(Algorithm::Sha256, &hasher.finalize()),
            Self::Sha512(hasher) => ContentDigest::from_bytes(Algorithm::Sha512, &hasher.finalize()),
        };
        #[expect(clippy::expect_used, reason = "each algorithm gives as many bytes as its digests have")]
        digest.expect("a computed digest has its length")
    }

    pub(crate) fn of(algorithm: Algorithm, bytes: &[u8]) -> ContentDigest {
        let mut hasher = Self::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }
}

/// A reader that counts and hashes what passes.
pub(crate) struct Hashing<R> {
    pub(crate) inner: R,
    pub(crate) hasher: Hasher,
    pub(crate) count: u64,
}

impl<R> Hashing<R> {
    pub(crate) fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), count: 0 }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.count += read as u64;
        Ok(read)
    }
}
