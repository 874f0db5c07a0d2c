//! What has come so far: a file, and a note beside it of what its origin calls this version.

use super::error::DownloadError;
use crate::hash::Hasher;
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::commit::{self, Existing};
use kiln_sys::{Cancel, IoResultExt, fs};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The version of the note that is written, and the only one read.
const NOTE_VERSION: u32 = 1;
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

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Etag(value) | Self::LastModified(value) => value,
        }
    }

    /// Returns whether an answer's headers name another version.
    pub(super) fn is_contradicted(&self, header: impl Fn(&str) -> Option<String>) -> bool {
        let (name, own) = match self {
            Self::Etag(value) => ("etag", value),
            Self::LastModified(value) => ("last-modified", value),
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
}

/// What has come so far.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    note: PathBuf,
    algorithm: Algorithm,
    hasher: Hasher,
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
        let file = fs::append(path)?;
        let mut partial = Self {
            file,
            path: path.to_owned(),
            note,
            algorithm,
            hasher: Hasher::new(algorithm),
            have: 0,
            total: None,
            validator: None,
            kept,
        };
        let length = partial.file.metadata().at("inspect", path)?.len();
        match read_note(&partial.note)?.filter(|note| kept && note.total.is_none_or(|total| length <= total))
        {
            Some(note) if length > 0 => {
                partial.have = hash(path, &mut partial.hasher, cancel)?;
                (partial.validator, partial.total) = (Some(note.validator), note.total);
            }
            _ => partial.begin(None, None)?,
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
        self.file.set_len(0).at("write", &self.path)?;
        fs::remove_file(&self.note)?;
        (self.have, self.hasher) = (0, Hasher::new(self.algorithm));
        (self.validator, self.total) = (validator, total);
        if let Some(validator) = self.validator.clone().filter(|_| self.kept) {
            let note = Note { version: NOTE_VERSION, validator, total };
            let text = serde_json::to_vec(&note).map_err(std::io::Error::from).at("write", &self.note)?;
            commit::write_file(&self.note, &text, 0o600, Existing::Replace)?;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file.write_all(bytes).at("write", &self.path)?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn digest(&self) -> ContentDigest {
        self.hasher.clone().finish()
    }

    /// Makes it what stands at `target`.
    pub(super) fn commit(self, target: &Path) -> Result<(), DownloadError> {
        // One that failed its check may stand there.
        commit::commit_file(&self.file, &self.path, target, 0o444, Existing::Replace)?;
        Ok(fs::remove_file(&self.note)?)
    }
}

/// Reads a note; one that is not understood is none.
fn read_note(path: &Path) -> Result<Option<Note>, DownloadError> {
    let text = match fs::read_optional(path, NOTE_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
        other => other?,
    };
    let note = text.and_then(|text| serde_json::from_slice::<Note>(&text).ok());
    Ok(note
        .filter(|note| note.version == NOTE_VERSION && note.validator.as_str().len() <= VALIDATOR_BYTES_MAX))
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
