//! Verification: an artifact's content is read and compared with its index, and what is damaged is set aside.

use crate::error::{StoreError, StoreResult};
use crate::hash::Content;
use crate::index::{Index, SEGMENT_BYTES};
use crate::layout::Store;
use kiln_core::text::count;
use kiln_core::{ByteSize, Digest};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::{Cancel, clock, fs};
use std::ops::Range;
use std::path::PathBuf;

/// The most damaged ranges that are listed; the count goes on.
pub const DAMAGED_RANGES_MAX: usize = 1000;
/// Where damaged artifacts go.
const QUARANTINE: &str = "quarantine";

/// What became of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Its content is what its name says.
    Intact {
        /// Its length.
        size: ByteSize,
        /// The bytes of its segments that are not all zero.
        data: ByteSize,
        /// Whether its index was lost or damaged, and made anew.
        index_rebuilt: bool,
    },
    /// Its content is another.
    Damaged(Damage),
    /// There is no such file.
    Missing,
}

/// What is wrong with an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where it was moved to.
    pub quarantined: PathBuf,
    /// What is wrong, in one line.
    pub reason: String,
    /// The byte ranges of damaged segments, joined, at most [`DAMAGED_RANGES_MAX`]; none when the index is lost too.
    pub ranges: Vec<Range<u64>>,
    /// The damaged segments.
    pub segments: u64,
}

impl Store {
    /// Lists the digests of all artifacts, in order.
    pub fn artifact_ids(&self) -> StoreResult<Vec<Digest>> {
        let directory = self.root().join("artifacts");
        Ok(fs::list_dir_where(&directory, |name| Digest::from_hex(name.to_str()?).ok())?)
    }

    /// Reads an artifact and compares it with its index. A damaged one is moved to `quarantine/`, never deleted; an
    /// intact one is sealed. A lost index of an intact artifact is written anew.
    pub fn verify_artifact(&self, digest: &Digest, cancel: &Cancel) -> StoreResult<Verdict> {
        match self.read_and_compare(digest, cancel) {
            // Another verification set it aside meanwhile.
            Err(StoreError::NotFound { kind: "artifact", .. }) => Ok(Verdict::Missing),
            other => other,
        }
    }

    fn read_and_compare(&self, digest: &Digest, cancel: &Cancel) -> StoreResult<Verdict> {
        let path = self.artifact_path(digest);
        let Some(meta) = fs::optional(fs::symlink_metadata(&path))? else { return Ok(Verdict::Missing) };
        let index = match self.index(digest) {
            Ok(index) => Some(index),
            Err(StoreError::NotFound { .. } | StoreError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        if !meta.is_file() {
            return self.set_aside(digest, "it is not a regular file".to_owned(), Vec::new(), 0);
        }
        let (Content { index: found, unreadable }, seal) = self.read_artifact(digest, cancel)?;
        if found.digest() == *digest && unreadable.is_empty() {
            let index_rebuilt = index.is_none();
            if index_rebuilt {
                write_file(&self.index_path(digest), &found.to_bytes(), 0o444, Existing::Replace)?;
            }
            self.write_seal(digest, &seal)?;
            return Ok(Verdict::Intact {
                size: ByteSize::from_bytes(found.length()),
                data: ByteSize::from_bytes(found.data_bytes()),
                index_rebuilt,
            });
        }
        let Some(index) = index else {
            let reason = "its content has another digest, and its index is lost".to_owned();
            let (ranges, segments) = joined(&unreadable, found.length());
            return self.set_aside(digest, reason, ranges, segments);
        };
        let (ranges, segments) = difference(&index, &found, &unreadable);
        let differ =
            format!("{} {}", count(segments, "segment"), if segments == 1 { "differs" } else { "differ" });
        let reason = if let Some(first) = unreadable.first() {
            let (unread, at) = (count(unreadable.len(), "segment"), first * SEGMENT_BYTES);
            format!("{unread} cannot be read, the first at byte {at}; {differ} in all")
        } else if index.length() == found.length() {
            differ
        } else {
            let (have, want) = (found.length(), index.length());
            format!("it has {have} bytes instead of {want}, and {differ}")
        };
        self.set_aside(digest, reason, ranges, segments)
    }

    fn set_aside(
        &self,
        digest: &Digest,
        reason: String,
        ranges: Vec<Range<u64>>,
        segments: u64,
    ) -> StoreResult<Verdict> {
        let directory = self.root().join(QUARANTINE);
        fs::create_dir_all(&directory)?;
        self.unprotect(digest)?;
        let quarantined = directory.join(format!("{}.{}", digest.hex(), clock::now_unix_ms()));
        if fs::optional(fs::rename_new(&self.artifact_path(digest), &quarantined))?.is_none() {
            return Ok(Verdict::Missing);
        }
        fs::remove_file(&self.seal_path(digest))?;
        fs::sync_dir(&directory)?;
        fs::sync_dir(&self.root().join("artifacts"))?;
        Ok(Verdict::Damaged(Damage { quarantined, reason, ranges, segments }))
    }
}

/// Returns the byte ranges of the segments that differ or could not be read, and their count.
fn difference(want: &Index, have: &Index, unreadable: &[u64]) -> (Vec<Range<u64>>, u64) {
    let (mut wanted, mut found) = (want.segments().peekable(), have.segments().peekable());
    let mut bad: Vec<u64> = Vec::new();
    loop {
        let number = match (wanted.peek(), found.peek()) {
            (Some((want, _)), Some((have, _))) => *want.min(have),
            (Some((number, _)), None) | (None, Some((number, _))) => *number,
            (None, None) => break,
        };
        let want = wanted.next_if(|(at, _)| *at == number).map(|(_, digest)| digest);
        let have = found.next_if(|(at, _)| *at == number).map(|(_, digest)| digest);
        if want != have {
            bad.push(number);
        }
    }
    bad.extend(unreadable);
    bad.sort_unstable();
    bad.dedup();
    joined(&bad, want.length().max(have.length()))
}

/// Returns the byte ranges of segments, in order, of a file that ends at `end`, and their count.
fn joined(bad: &[u64], end: u64) -> (Vec<Range<u64>>, u64) {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for number in bad {
        let range = number * SEGMENT_BYTES..((number + 1) * SEGMENT_BYTES).min(end);
        let full = ranges.len() == DAMAGED_RANGES_MAX;
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if full => {}
            _ => ranges.push(range),
        }
    }
    (ranges, bad.len() as u64)
}
