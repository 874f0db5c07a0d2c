//! Checksum manifests: lists of digests of files, as distributions publish them beside their images.
//!
//! [`Checksums::parse`] reads a list, [`Checksums::parse_of`] a file that is about one other file and may hold nothing
//! but its digest. Whether a list is its signer's is settled before (see [`crate::openpgp`]): a clear-signed one comes
//! here verified, without its armour.
//!
//! Each line is understood or the list is refused:
//!
//! - `HEX  NAME` and `HEX *NAME`, as `sha256sum` writes them; the number of digits tells the algorithm. One `./` before
//!   a name is left out.
//! - `SHA256 (NAME) = HEX` and `SHA512 (NAME) = HEX`, as BSD and `sha256sum --tag` write them.
//! - `# NAME: N bytes` gives the length of a file; every other line that starts with `#` says nothing, nor does a blank
//!   one.
//! - Digests of another known algorithm (MD5, SHA-1, SHA-224, SHA-384, RIPEMD-160, BLAKE2, SHA-3, SM3) are passed over, provided
//!   that the same list has a SHA-256 or SHA-512 digest for the name; a name that has none is an error, so that no file
//!   seems not to be listed because its digest is of no use. In the first form only lengths that are neither SHA-256's nor
//!   SHA-512's tell another algorithm: a BLAKE2b digest of 64 bytes is taken for SHA-512 and then matches nothing.
//!
//! A name that has two digests of one algorithm is an error, whether they agree or not. Names are compared as they stand,
//! byte for byte; they are never used as paths here.

mod error;
mod line;

pub use error::{ChecksumError, NotListed};

use kiln_core::image::{Algorithm, ContentDigest};
use kiln_core::text::nearest;
use line::{Found, Line};
use std::collections::BTreeMap;

/// The longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 1024 * 1024;

/// The most lines of a manifest.
pub const LINES_MAX: usize = 16_384;

/// The longest name of a file in a manifest, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The most similar names that are told when one is not listed.
const SIMILAR_MAX: usize = 3;

/// The digests of files, by name, of a manifest that was understood as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    files: BTreeMap<String, Entry>,
}

/// What is said of one file, and in which lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    sha256: Option<(ContentDigest, usize)>,
    sha512: Option<(ContentDigest, usize)>,
    others: Vec<(&'static str, usize)>,
    size: Option<(u64, usize)>,
}

impl Checksums {
    /// Reads a list of digests.
    ///
    /// # Errors
    ///
    /// [`ChecksumError`] for the first line that is not understood or contradicts another, for a list over a limit and
    /// for one without a digest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ChecksumError> {
        Self::read(bytes, None)
    }

    /// Reads the digest of the file `name` from a manifest that is about this file only: the digest alone, or followed
    /// by the name, or a line of any other form with it.
    ///
    /// # Errors
    ///
    /// As [`Checksums::parse`], and [`ChecksumError::OtherFile`] when another file is named.
    pub fn parse_of(name: &str, bytes: &[u8]) -> Result<Self, ChecksumError> {
        Self::read(bytes, Some(name))
    }

    fn read(bytes: &[u8], only: Option<&str>) -> Result<Self, ChecksumError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ChecksumError::TooLong);
        }
        let mut files = BTreeMap::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            if number > LINES_MAX {
                return Err(ChecksumError::TooManyLines);
            }
            let line = std::str::from_utf8(line).map_err(|_| ChecksumError::NotText { line: number })?;
            let Some(line) = line::parse(number, line, only)? else { continue };
            let about = only.filter(|_| !matches!(line.found, Found::Size(_)));
            if let Some(wanted) = about.filter(|wanted| *wanted != line.name) {
                return Err(ChecksumError::OtherFile {
                    line: number,
                    name: line.name.to_owned(),
                    wanted: wanted.to_owned(),
                });
            }
            add(&mut files, number, line)?;
        }
        check_others(&files)?;
        files.retain(|_, entry| entry.sha256.is_some() || entry.sha512.is_some());
        if files.is_empty() {
            return Err(ChecksumError::Empty);
        }
        Ok(Self { files })
    }

    /// Returns the digest of the file `name`, the strongest that is listed: SHA-512 before SHA-256.
    ///
    /// # Errors
    ///
    /// [`NotListed`], with similar names that are.
    pub fn digest(&self, name: &str) -> Result<&ContentDigest, NotListed> {
        let entry = self.files.get(name).and_then(|entry| entry.sha512.as_ref().or(entry.sha256.as_ref()));
        entry.map(|(digest, _)| digest).ok_or_else(|| self.not_listed(name))
    }

    /// Returns the length in bytes that a comment gives the file `name`, when one does.
    pub fn size_bytes(&self, name: &str) -> Option<u64> {
        self.files.get(name)?.size.map(|(size, _)| size)
    }

    /// Returns the names that have a digest, sorted by byte.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    fn not_listed(&self, name: &str) -> NotListed {
        let mut similar: Vec<String> = Vec::new();
        // A name over the limit is like none that is listed, and comparing takes time by its length.
        while similar.len() < SIMILAR_MAX && name.len() <= NAME_BYTES_MAX {
            let Some(next) =
                nearest(name, self.names().filter(|name| !similar.iter().any(|known| known == name)))
            else {
                break;
            };
            similar.push(next.to_owned());
        }
        NotListed { name: kiln_core::text::clip(name), similar }
    }
}

/// Adds what a line says to what is known of its name.
fn add(files: &mut BTreeMap<String, Entry>, number: usize, line: Line<'_>) -> Result<(), ChecksumError> {
    let entry = files.entry(line.name.to_owned()).or_default();
    let twice = |algorithm, first| {
        let name = line.name.to_owned();
        Err(ChecksumError::Twice { name, algorithm, first, second: number })
    };
    match line.found {
        Found::Digest(digest) => {
            let (slot, algorithm) = match digest.algorithm() {
                Algorithm::Sha512 => (&mut entry.sha512, "SHA512"),
                _ => (&mut entry.sha256, "SHA256"),
            };
            if let Some((_, first)) = slot {
                return twice(algorithm, *first);
            }
            *slot = Some((digest, number));
        }
        Found::Other(algorithm) => {
            if let Some((_, first)) = entry.others.iter().find(|(known, _)| *known == algorithm) {
                return twice(algorithm, *first);
            }
            entry.others.push((algorithm, number));
        }
        Found::Size(size) => match entry.size {
            Some((known, first)) if known != size => {
                let name = line.name.to_owned();
                return Err(ChecksumError::SizeTwice { name, first, second: number });
            }
            _ => entry.size = Some((size, number)),
        },
    }
    Ok(())
}

/// Refuses names that have digests, but none that is computed here.
fn check_others(files: &BTreeMap<String, Entry>) -> Result<(), ChecksumError> {
    let lone = files
        .iter()
        .filter(|(_, entry)| entry.sha256.is_none() && entry.sha512.is_none())
        .filter_map(|(name, entry)| entry.others.first().map(|(algorithm, line)| (name, *algorithm, *line)))
        .min_by_key(|(_, _, line)| *line);
    match lone {
        Some((name, algorithm, line)) => {
            Err(ChecksumError::OnlyOther { line, name: name.clone(), algorithm })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
