//! Images of registries: what a tag stands for is looked up, and the parts are fetched into the cache, each checked by the
//! digest it was asked for by.

mod auth;
mod layers;
mod repository;

pub use auth::DockerConfig;
pub use layers::Fetching;
pub use repository::RegistryOptions;

use super::cache::BlobCache;
use super::error::OciError;
use super::image::{Image, Layer};
use super::limits::{CONFIG_BYTES_MAX, INDEX_DEPTH_MAX, MANIFEST_BYTES_MAX};
use crate::download::Progress;
use crate::hash::Hasher;
use kiln_core::image::{Algorithm, ContentDigest, Platform, RegistryReference};
use repository::Repository;

/// Finds an image and fetches its documents; its layers come with [`fetch_layers`]. A reference without a digest is looked up
/// unless `pinned` says what it stands for. Returns what it stands for too: the digest of an index or a manifest.
pub fn resolve(
    reference: &RegistryReference,
    pinned: Option<&ContentDigest>,
    platform: &Platform,
    cache: &BlobCache,
    options: &RegistryOptions<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(ContentDigest, Image), OciError> {
    let repository = Repository::new(reference, options);
    let top = match reference.digest().or(pinned) {
        Some(digest) => digest.clone(),
        None => {
            let tag = reference.tag().unwrap_or_default();
            let path = format!("manifests/{tag}");
            let bytes = repository.document(&path, "manifest", MANIFEST_BYTES_MAX, progress)?;
            let digest = Hasher::of(Algorithm::Sha256, &bytes);
            cache.put(&digest, &bytes)?;
            digest
        }
    };
    let mut fetched: Vec<ContentDigest> = Vec::new();
    // An index, those within it, the manifest and the configuration, each perhaps damaged in the cache.
    for _ in 0..2 * (INDEX_DEPTH_MAX + 3) {
        let (what, digest) = match Image::cached(cache, &top, platform) {
            Err(OciError::BlobMissing { what, digest }) => (what, digest),
            Err(OciError::Digest { expected: digest, .. } | OciError::Size { digest, .. })
                if !options.client.is_offline() && !fetched.contains(&digest) =>
            {
                cache.forget(&digest)?;
                fetched.push(digest);
                continue;
            }
            Err(other) => return Err(other),
            Ok(image) => return Ok((top, image)),
        };
        let (path, max) = match what {
            "configuration" => (format!("blobs/{digest}"), CONFIG_BYTES_MAX),
            _ => (format!("manifests/{digest}"), MANIFEST_BYTES_MAX),
        };
        let bytes = repository.document(&path, what, max, progress)?;
        let actual = Hasher::of(digest.algorithm(), &bytes);
        if actual != digest {
            return Err(OciError::Digest { what: format!("the {what}"), expected: digest, actual });
        }
        cache.put(&digest, &bytes)?;
    }
    Err(OciError::TooLarge { what: "indexes within one another", max: INDEX_DEPTH_MAX as u64 })
}

/// Fetches the layers that the cache lacks. `progress` is told from any thread.
pub fn fetch_layers(
    reference: &RegistryReference,
    layers: &[Layer],
    cache: &BlobCache,
    options: &RegistryOptions<'_>,
    progress: &(dyn Fn(Fetching<'_>) + Sync),
) -> Result<(), OciError> {
    layers::fetch(reference, layers, cache, options, progress)
}
