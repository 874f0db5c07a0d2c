//! Digests computed on the way.

use crate::catalog::LookUpError;
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::{Cancel, IoResultExt as _, fs};
use sha2::Digest as _;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a file that are read at once.
const STEP_BYTES: usize = 1 << 20;

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

/// Returns the digest of a file of at most `bytes_max` bytes.
///
/// # Errors
/// When it cannot be read, and when it is longer.
pub fn digest_of(
    path: &Path,
    algorithm: Algorithm,
    bytes_max: u64,
    cancel: &Cancel,
) -> Result<ContentDigest, LookUpError> {
    let mut file = fs::open(path)?;
    let mut hasher = Hasher::new(algorithm);
    let (mut buffer, mut total) = (vec![0; STEP_BYTES], 0);
    loop {
        cancel.check().map_err(|_| LookUpError::Cancelled)?;
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.at("read", path)?,
        };
        total += read as u64;
        if total > bytes_max {
            let error = io::Error::new(io::ErrorKind::InvalidData, format!("more than {bytes_max} bytes"));
            return Err(error).at("read", path).map_err(LookUpError::from);
        }
        hasher.update(&buffer[..read]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    #[test]
    fn a_file_that_is_hashed_has_a_largest_size() {
        let (scratch, cancel) = (ScratchDir::new(&std::env::temp_dir()).unwrap(), Cancel::new().unwrap());
        let path = scratch.path().join("file");
        write_file(&path, b"text", 0o600, Existing::Refuse).unwrap();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = digest_of(&path, algorithm, 4, &cancel).unwrap();
            assert_eq!(digest, Hasher::of(algorithm, b"text"));
        }
        let error = digest_of(&path, Algorithm::Sha256, 3, &cancel).unwrap_err();
        assert!(matches!(&error, LookUpError::Io(_)), "{error}");
        cancel.cancel();
        let error = digest_of(&path, Algorithm::Sha256, 4, &cancel).unwrap_err();
        assert!(matches!(error, LookUpError::Cancelled), "{error}");
    }
}
