//! Hashing a file into its index: on all cores, holes skipped.

use crate::error::{StoreError, StoreResult};
use crate::index::{Index, LENGTH_MAX, SEGMENT_BYTES, SegmentDigest, segment_count, segment_digest};
use kiln_sys::copy::DataExtents;
use kiln_sys::{Cancel, IoResultExt as _};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Segments that one thread takes at a time.
const BATCH_SEGMENTS: u64 = 64;
/// The most threads.
const THREADS_MAX: usize = 16;

/// Hashes a file. `path` is for errors. A file that changes meanwhile is an error.
pub fn hash_file(file: &File, path: &Path, cancel: &Cancel) -> StoreResult<Index> {
    let before = file.metadata().at("inspect", path)?;
    let length = before.len();
    if length > LENGTH_MAX {
        return Err(StoreError::TooLarge { path: path.to_owned(), len: length });
    }
    let batches = batches(file, path, length)?;
    let done: Mutex<Vec<(u64, Vec<Option<SegmentDigest>>)>> = Mutex::new(Vec::with_capacity(batches.len()));
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
                    match hash_batch(file, length, batch.clone(), &mut buffer) {
                        Ok(digests) => lock(&done).push((batch.start, digests)),
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
    done.sort_unstable_by_key(|(start, _)| *start);
    Ok(assemble(length, &done))
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
    batch: Range<u64>,
    buffer: &mut [u8],
) -> io::Result<Vec<Option<SegmentDigest>>> {
    batch
        .map(|segment| {
            let start = segment * SEGMENT_BYTES;
            let bytes = usize::try_from((length - start).min(SEGMENT_BYTES)).unwrap_or(buffer.len());
            file.read_exact_at(&mut buffer[..bytes], start)?;
            Ok(segment_digest(&buffer[..bytes]))
        })
        .collect()
}

fn assemble(length: u64, done: &[(u64, Vec<Option<SegmentDigest>>)]) -> Index {
    let mut position = 0;
    let mut segments = Vec::new();
    for (start, digests) in done {
        segments.extend((position..*start).map(|_| None));
        segments.extend_from_slice(digests);
        position = start + digests.len() as u64;
    }
    segments.extend((position..segment_count(length)).map(|_| None));
    Index::from_segments(length, segments)
}
