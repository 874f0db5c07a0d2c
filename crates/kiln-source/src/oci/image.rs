//! An image: what its documents say, and where its layers lie.

use super::archive::Archive;
use super::cache::BlobCache;
use super::choose;
use super::error::OciError;
use super::limits::{
    CONFIG_BYTES_MAX, INDEX_DEPTH_MAX, INDEX_ENTRIES_MAX, LAYER_BYTES_MAX, LAYERS_MAX, MANIFEST_BYTES_MAX,
};
use super::wire::{ConfigDocument, Descriptor, Document, ImageConfig, parse};
use crate::hash::Hasher;
use kiln_core::image::{Algorithm, ContentDigest, Platform};
use kiln_sys::{IoResultExt, fs};
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};

/// A part of a file.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Where the part begins.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A part of an image, as it is stored.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Where its bytes are.
    pub place: Place,
    /// The digest of the bytes as they are stored; none where the image tells none.
    pub digest: Option<ContentDigest>,
}

/// A layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its tar file, compressed or not.
    pub blob: Blob,
    /// The digest of the tar file once uncompressed.
    pub diff_id: ContentDigest,
}

/// An image for one platform.
#[derive(Debug, Clone)]
pub struct Image {
    /// What names it: the digest of its manifest. `docker save` writes none, and the digest of its configuration, which
    /// names all layers, stands for it.
    pub id: ContentDigest,
    /// What it says of the process it is made for.
    pub config: ImageConfig,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// Where the parts of an image are found by their digest.
pub(super) enum Blobs<'a> {
    Layout(&'a Path),
    Archive(&'a Archive),
    Cache(&'a BlobCache),
}

impl Blobs<'_> {
    fn place(&self, what: &'static str, digest: &ContentDigest) -> Result<Place, OciError> {
        let missing = || OciError::BlobMissing { what, digest: digest.clone() };
        let name = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        let path = match self {
            Self::Archive(archive) => return archive.place(name.as_bytes()).ok_or_else(missing),
            Self::Layout(directory) => directory.join(name),
            Self::Cache(cache) => cache.path(digest),
        };
        let len = fs::optional(fs::metadata(&path))?.filter(|meta| meta.is_file()).ok_or_else(missing)?.len();
        Ok(Place { path, offset: 0, len })
    }

    /// Reads a document after checking its size, and checks its digest.
    pub(super) fn document(
        &self,
        what: &'static str,
        of: &Descriptor,
        max: u64,
    ) -> Result<Vec<u8>, OciError> {
        let place = self.sized(what, of)?;
        let bytes = place.read(what, max)?;
        let actual = Hasher::of(of.digest.algorithm(), &bytes);
        if actual != of.digest {
            return Err(OciError::Digest {
                what: format!("the {what}"),
                expected: of.digest.clone(),
                actual,
            });
        }
        Ok(bytes)
    }

    fn sized(&self, what: &'static str, of: &Descriptor) -> Result<Place, OciError> {
        let place = match self {
            // Layers come later.
            Self::Cache(cache) if what == "layer" => {
                return Ok(Place { path: cache.path(&of.digest), offset: 0, len: of.size });
            }
            _ => self.place(what, &of.digest)?,
        };
        if place.len != of.size {
            let (digest, expected, actual) = (of.digest.clone(), of.size, place.len);
            return Err(OciError::Size { what: format!("the {what}"), digest, expected, actual });
        }
        Ok(place)
    }
}

impl Place {
    /// Reads the part, which has to have at most `max` bytes.
    pub(super) fn read(&self, what: &'static str, max: u64) -> Result<Vec<u8>, OciError> {
        if self.len > max {
            return Err(OciError::TooLarge { what: limit_name(what), max });
        }
        let mut file = fs::open(&self.path)?;
        file.seek(io::SeekFrom::Start(self.offset)).at("read", &self.path)?;
        let mut bytes = Vec::new();
        file.take(self.len).read_to_end(&mut bytes).at("read", &self.path)?;
        Ok(bytes)
    }
}

fn limit_name(what: &str) -> &'static str {
    match what {
        "configuration" => "bytes of configuration",
        _ => "bytes of manifest",
    }
}

impl Image {
    /// Opens an image of a directory in OCI layout.
    pub fn layout(directory: &Path, name: Option<&str>, platform: &Platform) -> Result<Self, OciError> {
        let wanted = "an OCI layout";
        let path = directory.join("index.json");
        let Some(meta) = fs::optional(fs::metadata(&path))? else {
            let problem = "it has no index.json".to_owned();
            return Err(OciError::NotAnImage { path: directory.to_owned(), wanted, problem });
        };
        let index = Place { path, offset: 0, len: meta.len() }.read("index", MANIFEST_BYTES_MAX)?;
        Self::in_layout(&Blobs::Layout(directory), directory, &index, name, platform)
    }

    /// Opens an image of a tar file: one of `docker save`, or one that holds an OCI layout. A kind that is wanted says which.
    pub fn archive(
        path: &Path,
        kind: Option<ArchiveKind>,
        name: Option<&str>,
        platform: &Platform,
    ) -> Result<Self, OciError> {
        let archive = Archive::open(path)?;
        let docker = archive.place(b"manifest.json");
        let layout = archive.place(b"index.json").filter(|_| archive.place(b"oci-layout").is_some());
        let wanted = match kind {
            Some(ArchiveKind::Docker) => "an archive of `docker save`",
            Some(ArchiveKind::Oci) => "an archive of an OCI layout",
            None => "an image's archive",
        };
        // An archive of a newer docker is both, and its index tells more.
        match (layout, docker) {
            (Some(index), _) if kind != Some(ArchiveKind::Docker) => {
                let index = index.read("index", MANIFEST_BYTES_MAX)?;
                Self::in_layout(&Blobs::Archive(&archive), path, &index, name, platform)
            }
            (_, Some(list)) if kind != Some(ArchiveKind::Oci) => archive.docker_image(&list, name, platform),
            _ => {
                let missing = match kind {
                    Some(ArchiveKind::Docker) => "it has no manifest.json",
                    Some(ArchiveKind::Oci) => "it has no oci-layout and index.json",
                    None => "it has neither manifest.json nor index.json",
                };
                Err(OciError::NotAnImage { path: path.to_owned(), wanted, problem: missing.to_owned() })
            }
        }
    }

    /// Opens an image whose documents a cache holds, by the digest of its index or manifest. Its layers may be missing.
    pub fn cached(cache: &BlobCache, digest: &ContentDigest, platform: &Platform) -> Result<Self, OciError> {
        let blobs = Blobs::Cache(cache);
        let size = blobs.place("manifest", digest)?.len;
        let annotations = Default::default();
        let top = Descriptor {
            media_type: String::new(),
            digest: digest.clone(),
            size,
            platform: None,
            annotations,
        };
        Self::resolve(&blobs, top, platform)
    }

    fn in_layout(
        blobs: &Blobs<'_>,
        path: &Path,
        index: &[u8],
        name: Option<&str>,
        platform: &Platform,
    ) -> Result<Self, OciError> {
        let document: Document = parse("index", index)?;
        let entries = entries(document.manifests.unwrap_or_default())?;
        let named = choose::by_name(entries, name, path)?;
        match <[Descriptor; 1]>::try_from(named) {
            Ok([one]) => Self::resolve(blobs, one, platform),
            Err(several) => Self::resolve(blobs, choose::by_platform(several, platform)?, platform),
        }
    }

    /// Follows indexes to the manifest for a platform.
    fn resolve(blobs: &Blobs<'_>, mut at: Descriptor, platform: &Platform) -> Result<Self, OciError> {
        for _ in 0..=INDEX_DEPTH_MAX {
            let bytes = blobs.document("manifest", &at, MANIFEST_BYTES_MAX)?;
            let document: Document = parse("manifest", &bytes)?;
            match (document.manifests, document.config) {
                (Some(list), None) => at = choose::by_platform(entries(list)?, platform)?,
                (None, Some(config)) => {
                    return Self::manifest(blobs, at.digest, &config, document.layers, platform);
                }
                _ => {
                    let problem = match document.schema_version {
                        Some(1) => "is of schema 1, which nobody writes any more",
                        _ => "names neither manifests nor a configuration, or both",
                    };
                    return Err(OciError::Form { what: "manifest", problem: problem.to_owned() });
                }
            }
        }
        Err(OciError::TooLarge { what: "indexes within one another", max: INDEX_DEPTH_MAX as u64 })
    }

    fn manifest(
        blobs: &Blobs<'_>,
        id: ContentDigest,
        config: &Descriptor,
        layers: Vec<Descriptor>,
        platform: &Platform,
    ) -> Result<Self, OciError> {
        count_layers(layers.len())?;
        let bytes = blobs.document("configuration", config, CONFIG_BYTES_MAX)?;
        let (config, diff_ids) = configuration(&bytes, layers.len(), platform)?;
        let mut found = Vec::with_capacity(layers.len());
        for (layer, diff_id) in layers.into_iter().zip(diff_ids) {
            if layer.size > LAYER_BYTES_MAX {
                return Err(OciError::TooLarge { what: "bytes in a layer", max: LAYER_BYTES_MAX });
            }
            let place = blobs.sized("layer", &layer)?;
            found.push(Layer { blob: Blob { place, digest: Some(layer.digest) }, diff_id });
        }
        Ok(Self { id, config, layers: found })
    }
}

/// A kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchiveKind {
    /// What `docker save` writes.
    Docker,
    /// An OCI layout.
    Oci,
}

pub(super) fn count_layers(count: usize) -> Result<(), OciError> {
    if count > LAYERS_MAX {
        return Err(OciError::TooLarge { what: "layers", max: LAYERS_MAX as u64 });
    }
    Ok(())
}

fn entries(list: Vec<Descriptor>) -> Result<Vec<Descriptor>, OciError> {
    if list.len() > INDEX_ENTRIES_MAX {
        return Err(OciError::TooLarge { what: "manifests in an index", max: INDEX_ENTRIES_MAX as u64 });
    }
    Ok(list)
}

/// Reads a configuration: it has to be for the platform and to name as many layers as there are.
pub(super) fn configuration(
    bytes: &[u8],
    layers: usize,
    platform: &Platform,
) -> Result<(ImageConfig, Vec<ContentDigest>), OciError> {
    let document: ConfigDocument = parse("configuration", bytes)?;
    let diff_ids = document.rootfs.diff_ids;
    if diff_ids.len() != layers {
        let problem = format!("names {} layers, and there are {layers}", diff_ids.len());
        return Err(OciError::Form { what: "configuration", problem });
    }
    let (os, arch) = (document.os.as_str(), document.architecture.as_str());
    // Old images say nothing of it.
    if !arch.is_empty() && (arch != platform.architecture() || !matches!(os, "" | "linux")) {
        let found = choose::platform_text(os, arch, document.variant.as_deref());
        return Err(OciError::Platform { wanted: platform.clone(), found: vec![found] });
    }
    Ok((document.config.into_config(), diff_ids))
}

/// The digest that stands for the manifest of an image that has none.
pub(super) fn id_of(config: &[u8]) -> ContentDigest {
    Hasher::of(Algorithm::Sha256, config)
}
