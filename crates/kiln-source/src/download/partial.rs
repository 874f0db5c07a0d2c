//! What has come so far: a file, and a note beside it of what its origin calls this version.
//!
//! A file that comes by one connection is there as far as it is long. One that comes by several has its whole length
//! from the start, and the note says which parts are there. A part is noted after it was written, and neither it nor
//! the note is synced: a process that is killed leaves both. After a loss of power a part that was noted may be zeros,
//! or the note none at all. Nothing trusts them further than that: what is there is hashed again when it is gone on
//! with, the whole is what was expected or is fetched anew, and only then is it synced and renamed.

use super::error::DownloadError;
use super::there::{PARTS_MAX, There};
use crate::hash::Hasher;
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::commit::{self, Existing};
use kiln_sys::{Cancel, IoResultExt, fs};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The version of the note that is written, and the only one read.
const NOTE_VERSION: u32 = 2;
/// The most bytes of a note.
pub const NOTE_BYTES_MAX: usize = 16 << 10;
/// The most bytes of a validator that is kept.
pub const VALIDATOR_BYTES_MAX: usize = 1024;
/// The bytes that are read and written at a time.
pub(super) const BUFFER_BYTES: usize = 256 << 10;

/// What an origin calls a version of a file, such that equal names mean equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Validator {
    Etag(String),
    LastModified(String),
    /// The address itself, which names the bytes by their digest.
    Digest,
}

impl Validator {
    /// Returns the validator among an answer's headers, if it has a strong one.
    pub(super) fn of(header: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let fits = |value: &String| !value.is_empty() && value.len() <= VALIDATOR_BYTES_MAX;
        match header("etag").filter(|etag| !etag.starts_with("W/")) {
            Some(etag) => Some(etag).filter(fits).map(Self::Etag),
            None => header("last-modified").filter(fits).map(Self::LastModified),
        }
    }

    /// Returns the headers of a request for a part of this version.
    pub(super) fn of_part<'a>(&'a self, range: &'a str) -> Vec<(&'static str, &'a str)> {
        let condition = self.value().map(|value| ("If-Range", value));
        [("Range", range)].into_iter().chain(condition).collect()
    }

    fn value(&self) -> Option<&str> {
        match self {
            Self::Etag(value) | Self::LastModified(value) => Some(value),
            Self::Digest => None,
        }
    }

    /// Returns whether an answer's headers name another version.
    pub(super) fn is_contradicted(&self, header: impl Fn(&str) -> Option<String>) -> bool {
        let (name, own) = match self {
            Self::Etag(value) => ("etag", value),
            Self::LastModified(value) => ("last-modified", value),
            Self::Digest => return false,
        };
        header(name).is_some_and(|other| other != *own)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    validator: Validator,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    /// What is there, by the first byte and the one after the last; without, all there is of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    there: Option<Vec<(u64, u64)>>,
}

/// What has come so far.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    note: PathBuf,
    algorithm: Algorithm,
    hasher: Hasher,
    /// The bytes from the start on that were hashed.
    hashed: u64,
    /// What is there, where it comes by several connections.
    there: Option<There>,
    /// The bytes that have come.
    pub(super) have: u64,
    /// The bytes there are, where the origin says.
    pub(super) total: Option<u64>,
    /// What the origin calls the version that they are of.
    pub(super) validator: Option<Validator>,
    /// Whether a later process may go on with it: what is in it after a crash is only known by the digest.
    kept: bool,
}

impl Partial {
    /// Opens what an earlier try left at `path`, or begins.
    pub(super) fn open(
        path: &Path,
        algorithm: Algorithm,
        kept: bool,
        cancel: &Cancel,
    ) -> Result<Self, DownloadError> {
        let note = path.with_extension("json");
        let file = fs::open_or_create(path)?;
        let mut partial = Self {
            file,
            path: path.to_owned(),
            note,
            algorithm,
            hasher: Hasher::new(algorithm),
            hashed: 0,
            there: None,
            have: 0,
            total: None,
            validator: None,
            kept,
        };
        let length = partial.file.metadata().at("inspect", path)?.len();
        let note = read_note(&partial.note)?.filter(|_| kept && length > 0);
        let note = note.filter(|note| note.total.is_none_or(|total| length <= total));
        // Parts that cannot be there make it a note that says nothing.
        let there = note.as_ref().and_then(|note| match &note.there {
            Some(parts) => There::of(parts, length).map(Some),
            None => Some(None),
        });
        match note.zip(there) {
            Some((note, there)) => {
                let end = there.as_ref().map_or(length, There::prefix);
                partial.have = there.as_ref().map_or(length, There::bytes);
                (partial.validator, partial.total, partial.there) = (Some(note.validator), note.total, there);
                partial.hash_to(end, cancel)?;
            }
            None => partial.begin(None, None)?,
        }
        Ok(partial)
    }

    /// Begins anew with a version.
    pub(super) fn begin(
        &mut self,
        validator: Option<Validator>,
        total: Option<u64>,
    ) -> Result<(), DownloadError> {
        // Emptied first: no bytes are ever there with another version's note.
        // An empty one stays as it is: what has once been cut to nothing, ext4 sends to the disk when it is closed.
        if self.file.metadata().at("inspect", &self.path)?.len() > 0 {
            self.file.set_len(0).at("write", &self.path)?;
        }
        fs::remove_file(&self.note)?;
        (self.have, self.hashed, self.hasher) = (0, 0, Hasher::new(self.algorithm));
        (self.validator, self.total, self.there) = (validator, total, None);
        if let Some(text) = self.note_text()? {
            commit::write_file(&self.note, &text, 0o600, Existing::Replace)?;
        }
        Ok(())
    }

    /// Adds to what came by one connection.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file.write_all_at(bytes, self.have).at("write", &self.path)?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        self.hashed = self.have;
        Ok(())
    }

    /// Returns what writes parts of it, which are not there before [`Partial::keep`] says so.
    pub(super) fn writer(&self) -> Result<Writer, DownloadError> {
        let file = self.file.try_clone().at("open", &self.path)?;
        Ok(Writer { file, path: self.path.clone() })
    }

    /// Returns the first byte that is missing.
    pub(super) fn missing(&self) -> u64 {
        self.there.as_ref().map_or(self.have, There::prefix)
    }

    /// Returns how far it is hashed.
    pub(super) fn hashed(&self) -> u64 {
        self.hashed
    }

    /// Returns what is there, where it comes by several connections.
    pub(super) fn there(&self) -> Option<&There> {
        self.there.as_ref()
    }

    /// Goes on by several connections, with the space for all of it.
    pub(super) fn widen(&mut self, total: u64) -> Result<There, DownloadError> {
        let there = self.there.take().unwrap_or_else(|| There::up_to(self.have));
        // Noted first: a file as long as all of it would otherwise be taken for all of it.
        self.keep(there.clone())?;
        fs::reserve(&self.file, &self.path, total)?;
        Ok(there)
    }

    /// Goes on by one connection, from where it is hashed.
    pub(super) fn narrow(&mut self) -> Result<(), DownloadError> {
        // Cut first: the note speaks of no more than there is.
        self.file.set_len(self.hashed).at("write", &self.path)?;
        (self.there, self.have) = (None, self.hashed);
        self.write_note()
    }

    /// Notes what is there. It was written before.
    pub(super) fn keep(&mut self, there: There) -> Result<(), DownloadError> {
        self.have = there.bytes();
        self.there = Some(there);
        self.write_note()
    }

    /// Hashes on to `end`. What is there up to it stays as it is.
    pub(super) fn hash_to(&mut self, end: u64, cancel: &Cancel) -> Result<(), DownloadError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        while self.hashed < end {
            cancel.check()?;
            let most = usize::try_from(end - self.hashed).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            self.file.read_exact_at(&mut buffer[..most], self.hashed).at("read", &self.path)?;
            self.hasher.update(&buffer[..most]);
            self.hashed += most as u64;
        }
        Ok(())
    }

    fn note_text(&self) -> Result<Option<Vec<u8>>, DownloadError> {
        let Some(validator) = self.validator.clone().filter(|_| self.kept) else { return Ok(None) };
        let there = self.there.as_ref().map(|there| there.parts().take(PARTS_MAX).collect());
        let note = Note { version: NOTE_VERSION, validator, total: self.total, there };
        Ok(Some(serde_json::to_vec(&note).map_err(std::io::Error::from).at("write", &self.note)?))
    }

    fn aside(&self) -> PathBuf {
        self.note.with_extension("note")
    }

    /// Writes the note in one step, and leaves it to the file system when it is kept.
    fn write_note(&self) -> Result<(), DownloadError> {
        let Some(text) = self.note_text()? else { return Ok(()) };
        // Whoever fetches it holds its lock: nobody else writes here, and what a kill left is written over.
        let aside = self.aside();
        let mut file = fs::open_or_create(&aside)?;
        file.set_len(0).at("write", &aside)?;
        file.write_all(&text).at("write", &aside)?;
        Ok(fs::rename(&aside, &self.note)?)
    }

    pub(super) fn digest(&self) -> ContentDigest {
        self.hasher.clone().finish()
    }

    /// Makes it what stands at `target`.
    pub(super) fn commit(self, target: &Path, durable: bool) -> Result<(), DownloadError> {
        // One that failed its check may stand there.
        if durable {
            commit::commit_file(&self.file, &self.path, target, 0o444, Existing::Replace)?;
        } else {
            fs::set_mode(&self.path, 0o444)?;
            fs::rename(&self.path, target)?;
        }
        fs::remove_file(&self.aside())?;
        Ok(fs::remove_file(&self.note)?)
    }
}

/// Writes parts of what comes.
pub(super) struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    pub(super) fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), DownloadError> {
        Ok(self.file.write_all_at(bytes, at).at("write", &self.path)?)
    }
}

/// Reads a note; one that is not understood is none.
fn read_note(path: &Path) -> Result<Option<Note>, DownloadError> {
    let text = match fs::read_optional(path, NOTE_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
        other => other?,
    };
    let note = text.and_then(|text| serde_json::from_slice::<Note>(&text).ok());
    let fits = |note: &Note| note.validator.value().is_none_or(|value| value.len() <= VALIDATOR_BYTES_MAX);
    Ok(note.filter(|note| note.version == NOTE_VERSION && fits(note)))
}

/// Hashes a file; returns its length.
pub(super) fn hash(path: &Path, hasher: &mut Hasher, cancel: &Cancel) -> Result<u64, DownloadError> {
    let mut file = fs::open(path)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut length = 0;
    loop {
        cancel.check()?;
        let read = file.read(&mut buffer).at("read", path)?;
        if read == 0 {
            return Ok(length);
        }
        hasher.update(&buffer[..read]);
        length += read as u64;
    }
}
