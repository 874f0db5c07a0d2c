//! Hashing a file into its index and its block table: one pass, on all cores, holes skipped.
//!
//! Each thread holds one segment's bytes. What is kept is 32 bytes for each data segment and, with a block table, up to
//! 16 bytes for each data block while the table is made; an artifact with more than [`BLOCKS_MAX`] of them has none.

use crate::blocks::{BLOCK_BYTES, BLOCKS_MAX, BlockTable, Fingerprint, SEGMENT_BLOCKS};
use crate::error::{StoreError, StoreResult};
use crate::index::{Index, LENGTH_MAX, SEGMENT_BYTES, SegmentDigest, segment_count, segment_digest};
use kiln_sys::copy::DataExtents;
use kiln_sys::protect::is_unreadable;
use kiln_sys::{Cancel, IoResultExt as _};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Segments that one thread takes at a time.
const BATCH_SEGMENTS: u64 = 64;
/// The most threads.
const THREADS_MAX: usize = 16;

/// Reads all bytes at an offset.
type Read = fn(&File, &mut [u8], u64) -> io::Result<()>;

/// How a file is read, and what is made of it.
#[derive(Clone, Copy)]
struct Task<'a> {
    read: Read,
    /// Whether segments that the kernel cannot read, or holds for changed, are noted and are no error.
    tolerant: bool,
    /// Where data blocks are counted, for a block table.
    counted: Option<&'a AtomicU64>,
}

/// What is known of a file, parts of which may not be readable.
#[derive(Debug)]
pub(crate) struct Content {
    /// The index of what could be read; what could not be is a hole in it.
    pub(crate) index: Index,
    /// The segments that could not be read, in order.
    pub(crate) unreadable: Vec<u64>,
}

/// Hashes a file. `path` is for errors. A file that changes meanwhile is an error.
pub fn hash_file(file: &File, path: &Path, cancel: &Cancel) -> StoreResult<Index> {
    let task = Task { read: File::read_exact_at, tolerant: false, counted: None };
    let (length, batches) = hash(file, path, task, cancel)?;
    Ok(Index::from_data_segments(length, segments(&batches)))
}

/// Hashes a file of which parts may be lost: what a bad disk or fs-verity makes unreadable is noted, and the rest is read.
pub(crate) fn hash_readable(file: &File, path: &Path, cancel: &Cancel) -> StoreResult<Content> {
    hash_readable_by(File::read_exact_at, file, path, cancel)
}

fn hash_readable_by(read: Read, file: &File, path: &Path, cancel: &Cancel) -> StoreResult<Content> {
    let task = Task { read, tolerant: true, counted: None };
    let (length, batches) = hash(file, path, task, cancel)?;
    let unreadable = batches.iter().flat_map(|batch| &batch.unreadable).copied().collect();
    Ok(Content { index: Index::from_data_segments(length, segments(&batches)), unreadable })
}

/// Hashes a file as [`hash_file`] does and makes its block table in the same pass; no table when it has more than
/// [`BLOCKS_MAX`] data blocks.
pub fn hash_file_with_blocks(
    file: &File,
    path: &Path,
    cancel: &Cancel,
) -> StoreResult<(Index, Option<BlockTable>)> {
    let counted = AtomicU64::new(0);
    let task = Task { read: File::read_exact_at, tolerant: false, counted: Some(&counted) };
    let (length, batches) = hash(file, path, task, cancel)?;
    let index = Index::from_data_segments(length, segments(&batches));
    if counted.into_inner() > BLOCKS_MAX {
        return Ok((index, None));
    }
    let blocks = batches.into_iter().flat_map(Batch::into_blocks);
    let table = BlockTable::from_blocks(index.digest(), length, blocks);
    Ok((index, table))
}

/// What is found in neighbouring segments, without those that are all zero.
#[derive(Debug, Default)]
struct Batch {
    /// Number, digest, and a bit for each block that has data, the first block's the lowest.
    segments: Vec<(u64, SegmentDigest, u16)>,
    /// One for each bit, in order.
    fingerprints: Vec<Fingerprint>,
    /// Segments that could not be read.
    unreadable: Vec<u64>,
}

impl Batch {
    /// Returns the first segment that it tells of.
    fn first(&self) -> Option<u64> {
        let hashed = self.segments.first().map(|(segment, _, _)| segment);
        hashed.into_iter().chain(self.unreadable.first()).min().copied()
    }

    fn into_blocks(self) -> impl Iterator<Item = (u64, Fingerprint)> {
        let numbers = self.segments.into_iter().flat_map(|(segment, _, mask)| {
            (0..SEGMENT_BLOCKS)
                .filter(move |at| mask >> at & 1 == 1)
                .map(move |at| segment * SEGMENT_BLOCKS + at)
        });
        numbers.zip(self.fingerprints)
    }
}

/// Returns a file's length and what its segments hold, with fingerprints while the blocks counted are not too many.
fn hash(file: &File, path: &Path, task: Task<'_>, cancel: &Cancel) -> StoreResult<(u64, Vec<Batch>)> {
    let before = file.metadata().at("inspect", path)?;
    let length = before.len();
    check_length(length, path)?;
    let batches = batches(file, path, length)?;
    let done: Mutex<Vec<Batch>> = Mutex::new(Vec::with_capacity(batches.len()));
    let failed: Mutex<Option<io::Error>> = Mutex::new(None);
    let cursor = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS_MAX)
        .min(batches.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buffer = vec![0; usize::try_from(SEGMENT_BYTES).unwrap_or(1 << 16)];
                while let Some(batch) = batches.get(cursor.fetch_add(1, Ordering::Relaxed)) {
                    if cancel.is_cancelled() {
                        return;
                    }
                    match hash_batch(file, length, batch.clone(), task, &mut buffer) {
                        Ok(batch) => lock(&done).push(batch),
                        Err(error) => {
                            lock(&failed).get_or_insert(error);
                            return;
                        }
                    }
                }
            });
        }
    });
    cancel.check()?;
    if let Some(error) = lock(&failed).take() {
        return Err(error).at("read", path).map_err(Into::into);
    }
    let after = file.metadata().at("inspect", path)?;
    let stamp = |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec());
    if stamp(&before) != stamp(&after) {
        return Err(StoreError::Changed { path: path.to_owned() });
    }
    let mut done = std::mem::take(&mut *lock(&done));
    done.retain(|batch| batch.first().is_some());
    done.sort_unstable_by_key(Batch::first);
    Ok((length, done))
}

/// Checks that an index can hold a file of this length.
fn check_length(len: u64, path: &Path) -> StoreResult<()> {
    if len > LENGTH_MAX { Err(StoreError::TooLarge { path: path.to_owned(), len }) } else { Ok(()) }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Returns the segments that may hold data, in batches that do not overlap.
fn batches(file: &File, path: &Path, length: u64) -> StoreResult<Vec<Range<u64>>> {
    let mut batches = Vec::new();
    let mut next = 0;
    for extent in DataExtents::new(file, length) {
        let (start, end) = extent.at("find the data of", path)?;
        let mut segment = (start / SEGMENT_BYTES).max(next);
        let last = segment_count(end);
        while segment < last {
            let stop = last.min(segment + BATCH_SEGMENTS);
            batches.push(segment..stop);
            segment = stop;
        }
        next = next.max(last);
    }
    Ok(batches)
}

fn hash_batch(
    file: &File,
    length: u64,
    segments: Range<u64>,
    task: Task<'_>,
    buffer: &mut [u8],
) -> io::Result<Batch> {
    let mut batch = Batch::default();
    for segment in segments {
        let start = segment * SEGMENT_BYTES;
        let bytes = usize::try_from((length - start).min(SEGMENT_BYTES)).unwrap_or(buffer.len());
        let bytes = &mut buffer[..bytes];
        match (task.read)(file, bytes, start) {
            Err(error) if task.tolerant && is_unreadable(&error) => {
                batch.unreadable.push(segment);
                continue;
            }
            read => read?,
        }
        let Some(digest) = segment_digest(bytes) else { continue };
        let mut mask = 0;
        if task.counted.is_some_and(|counted| counted.load(Ordering::Relaxed) <= BLOCKS_MAX) {
            for (at, block) in bytes.chunks(usize::try_from(BLOCK_BYTES).unwrap_or(4 << 10)).enumerate() {
                if let Some(fingerprint) = Fingerprint::of(block) {
                    mask |= 1 << at;
                    batch.fingerprints.push(fingerprint);
                }
            }
        }
        batch.segments.push((segment, digest, mask));
    }
    if let Some(counted) = task.counted {
        counted.fetch_add(batch.fingerprints.len() as u64, Ordering::Relaxed);
    }
    Ok(batch)
}

fn segments(batches: &[Batch]) -> impl Iterator<Item = (u64, SegmentDigest)> {
    batches.iter().flat_map(|batch| &batch.segments).map(|(number, digest, _)| (*number, *digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_cannot_be_read_are_noted_and_the_rest_is_read() {
        const EIO: i32 = 5;
        let dir = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("file");
        let file = kiln_sys::fs::create_new(&path).unwrap();
        file.write_all_at(&vec![7; 70 * 65536], 0).unwrap();
        let read: Read = |file, bytes, at| match at / SEGMENT_BYTES {
            0 | 3 | 69 => Err(io::Error::from_raw_os_error(EIO)),
            _ => file.read_exact_at(bytes, at),
        };
        let cancel = Cancel::new().unwrap();
        let content = hash_readable_by(read, &file, &path, &cancel).unwrap();
        assert_eq!(content.unreadable, [0, 3, 69]);
        assert_eq!(content.index.segments().count(), 67);
        let whole = hash_readable(&file, &path, &cancel).unwrap();
        assert_eq!(whole.index, hash_file(&file, &path, &cancel).unwrap());
        assert!(whole.unreadable.is_empty());
        let strict = Task { read, tolerant: false, counted: None };
        let Err(StoreError::Io(error)) = hash(&file, &path, strict, &cancel) else { panic!("it was read") };
        assert_eq!(error.source.raw_os_error(), Some(EIO));
    }

    #[test]
    fn an_artifact_has_a_largest_length() {
        let path = Path::new("/images/vast");
        check_length(64 << 40, path).unwrap();
        let error = check_length((64 << 40) + 1, path).unwrap_err();
        assert_eq!(error.to_string(), "/images/vast has 70368744177665 bytes, more than 70368744177664");
    }
}
