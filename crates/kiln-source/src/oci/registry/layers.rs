//! Layers fetched into the cache, a few at a time.

use super::super::cache::BlobCache;
use super::super::error::OciError;
use super::super::image::Layer;
use super::repository::{RegistryOptions, Repository};
use crate::download::{Download, DownloadError, Origin, Progress};
use kiln_core::image::{ContentDigest, RegistryReference};
use kiln_sys::fs;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Layers fetched at a time.
const AT_ONCE: usize = 3;

/// How layers come.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fetching<'a> {
    /// How their download goes; bytes are those of all that were missing.
    Download(Progress<'a>),
    /// One is there.
    Layer {
        /// Which.
        digest: &'a ContentDigest,
        /// Its bytes.
        bytes: u64,
    },
}

/// A layer that the cache lacks.
struct Missing<'a> {
    digest: &'a ContentDigest,
    size: u64,
    /// The bytes of it that have come.
    have: AtomicU64,
}

pub(super) fn fetch(
    reference: &RegistryReference,
    layers: &[Layer],
    cache: &BlobCache,
    options: &RegistryOptions<'_>,
    progress: &(dyn Fn(Fetching<'_>) + Sync),
) -> Result<(), OciError> {
    let missing = missing(layers, cache)?;
    let repository = Repository::new(reference, options);
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<OciError>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(missing.len()) {
            scope.spawn(|| {
                while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = layer.fetch(&repository, cache, &missing, progress) {
                        next.store(missing.len(), Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Returns each layer once of those that are not there with the size they have.
fn missing<'a>(layers: &'a [Layer], cache: &BlobCache) -> Result<Vec<Missing<'a>>, OciError> {
    let mut missing: Vec<Missing<'_>> = Vec::new();
    for layer in layers {
        let (size, Some(digest)) = (layer.blob.place.len, &layer.blob.digest) else { continue };
        let there = fs::optional(fs::metadata(&cache.path(digest)))?.is_some_and(|meta| meta.len() == size);
        if !there && missing.iter().all(|known| known.digest != digest) {
            missing.push(Missing { digest, size, have: AtomicU64::new(0) });
        }
    }
    Ok(missing)
}

impl Missing<'_> {
    /// Fetches it; `all` are those that bytes are told of together.
    fn fetch(
        &self,
        repository: &Repository<'_>,
        cache: &BlobCache,
        all: &[Missing<'_>],
        progress: &(dyn Fn(Fetching<'_>) + Sync),
    ) -> Result<(), OciError> {
        let url = repository.url(&format!("blobs/{}", self.digest))?;
        let download = Download {
            urls: &[url],
            digest: Some(self.digest),
            bytes_max: self.size,
            cache: cache.directory(),
            target: &cache.path(self.digest),
            // Whoever uses a layer checks it again, and fetches one that is damaged anew.
            durable: false,
            origin: Origin::Registry(&repository.authority),
        };
        let mut tell = |event: Progress<'_>| {
            progress(Fetching::Download(match event {
                Progress::Bytes { have, .. } => {
                    self.have.store(have, Ordering::Relaxed);
                    let have = all.iter().map(|layer| layer.have.load(Ordering::Relaxed)).sum();
                    Progress::Bytes { have, total: Some(all.iter().map(|layer| layer.size).sum()) }
                }
                other => other,
            }));
        };
        let RegistryOptions { client, cancel, .. } = repository.options;
        let fetched = download.run(client, &mut tell, cancel).map_err(|error| match error {
            DownloadError::Digest { expected, actual, .. } => {
                OciError::Digest { what: "the layer".to_owned(), expected, actual }
            }
            DownloadError::TooLarge { said, max, .. } => OciError::Size {
                what: "the layer".to_owned(),
                digest: self.digest.clone(),
                expected: self.size,
                actual: said.unwrap_or(max.saturating_add(1)),
            },
            error => repository.refusal(error),
        })?;
        progress(Fetching::Layer { digest: self.digest, bytes: fetched.bytes });
        Ok(())
    }
}
