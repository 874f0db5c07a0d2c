//! Layers fetched into the cache, a few at a time. What a broken connection left is kept and gone on with.

use super::super::cache::BlobCache;
use super::super::error::{OciError, Unreachable};
use super::super::image::Layer;
use super::client::{Client, RegistryOptions};
use crate::hash::Hasher;
use kiln_core::image::{ContentDigest, RegistryReference};
use kiln_sys::commit::{self, Existing};
use kiln_sys::lock::{FileLock, Holder, LockError};
use kiln_sys::{Cancel, IoResultExt, fs};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use ureq::http::StatusCode;

/// Layers fetched at a time.
const AT_ONCE: usize = 3;
/// Tries in a row that bring nothing.
const TRIES_MAX: u32 = 3;

pub(super) fn all(
    reference: &RegistryReference,
    layers: &[Layer],
    cache: &BlobCache,
    options: &RegistryOptions<'_>,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<(), OciError> {
    let mut missing: Vec<(ContentDigest, u64)> = Vec::new();
    for layer in layers {
        let Some(digest) = &layer.blob.digest else { continue };
        let there = fs::optional(fs::metadata(&cache.path(digest)))?
            .is_some_and(|meta| meta.len() == layer.blob.place.len);
        if !there && missing.iter().all(|(known, _)| known != digest) {
            missing.push((digest.clone(), layer.blob.place.len));
        }
    }
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<OciError>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(missing.len()) {
            scope.spawn(|| {
                let mut client = Client::new(reference, options);
                while let Some((digest, size)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match one(&mut client, digest, *size, cache, progress) {
                        Ok(()) => progress(&format!("{digest} {size}")),
                        Err(error) => {
                            next.store(missing.len(), Ordering::Relaxed);
                            if let Ok(mut failed) = failed.lock() {
                                failed.get_or_insert(error);
                            }
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

fn one(
    client: &mut Client<'_>,
    digest: &ContentDigest,
    size: u64,
    cache: &BlobCache,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<(), OciError> {
    let (partial, lock) = cache.partial(digest);
    let work = format!("fetching {digest}");
    let mut waiting = |holder: &Holder| progress(&format!("waiting for {}", holder.text));
    let _lock =
        FileLock::take(&lock, &work, client.options.cancel, &mut waiting).map_err(|error| match error {
            LockError::Cancelled { .. } => OciError::Cancelled,
            error => OciError::Lock(error),
        })?;
    let target = cache.path(digest);
    if fs::optional(fs::metadata(&target))?.is_some_and(|meta| meta.len() == size) {
        return Ok(());
    }
    let file = fs::append(&partial)?;
    let mut have = file.metadata().at("inspect", &partial)?.len();
    let mut hasher = Hasher::new(digest.algorithm());
    if have > size {
        file.set_len(0).at("write", &partial)?;
        have = 0;
    }
    hash(&partial, &mut hasher, client.options.cancel)?;
    let mut tries = 0;
    while have < size {
        let before = have;
        match more(client, digest, size, &file, &partial, &mut have, &mut hasher) {
            Ok(()) => {}
            Err(OciError::Registry { .. }) if have > before || tries + 1 < TRIES_MAX => {}
            Err(error) => return Err(error),
        }
        tries = if have > before { 0 } else { tries + 1 };
        if tries >= TRIES_MAX {
            let source = Unreachable::Short { have, size };
            return Err(client.unreachable(&format!("blobs/{digest}"), source));
        }
    }
    let actual = hasher.finish();
    if actual != *digest {
        fs::remove_file(&partial)?;
        return Err(OciError::Digest { what: "the layer".to_owned(), expected: digest.clone(), actual });
    }
    // One of another size may stand there damaged.
    commit::commit_file(&file, &partial, &target, 0o444, Existing::Replace)?;
    Ok(fs::remove_file(&lock)?)
}

fn hash(path: &Path, hasher: &mut Hasher, cancel: &Cancel) -> Result<(), OciError> {
    let mut file = fs::open(path)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        cancel.check()?;
        match file.read(&mut buffer).at("read", path)? {
            0 => return Ok(()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Asks for what is missing and takes what comes.
fn more(
    client: &mut Client<'_>,
    digest: &ContentDigest,
    size: u64,
    mut file: &File,
    partial: &Path,
    have: &mut u64,
    hasher: &mut Hasher,
) -> Result<(), OciError> {
    let path = format!("blobs/{digest}");
    let mut response = client.get(&path, (*have > 0).then_some(*have))?;
    let begins = format!("bytes {have}-");
    let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get("content-range")
            .is_some_and(|value| value.as_bytes().starts_with(begins.as_bytes()));
    if *have > 0 && !goes_on {
        // It does not know ranges, or not this one: from the beginning.
        file.set_len(0).at("write", partial)?;
        (*have, *hasher) = (0, Hasher::new(digest.algorithm()));
        if response.status() != StatusCode::OK {
            response = client.get(&path, None)?;
        }
    }
    let cancel = client.options.cancel;
    let mut body = response.body_mut().as_reader();
    let mut buffer = vec![0; 256 << 10];
    loop {
        cancel.check()?;
        let read =
            body.read(&mut buffer).map_err(|error| client.unreachable(&path, Unreachable::Read(error)))?;
        if read == 0 {
            return Ok(());
        }
        if *have + read as u64 > size {
            let (what, digest, actual) = ("the layer".to_owned(), digest.clone(), *have + read as u64);
            return Err(OciError::Size { what, digest, expected: size, actual });
        }
        file.write_all(&buffer[..read]).at("write", partial)?;
        hasher.update(&buffer[..read]);
        *have += read as u64;
    }
}
