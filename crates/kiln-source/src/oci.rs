//! OCI images: read from a directory, an archive or a cache of what a registry gave, every hop checked by digest and
//! size, and made one root file system.
//!
//! [`Image::layout`] and [`Image::archive`] read the small parts (indexes, manifest, configuration) and say what the image is. [`uncompress`]
//! makes plain tar files of its layers in a directory of the caller's. [`merge`] reads their headers, computes what
//! overlaying them comes to, and gives one tar stream of it: nothing of a layer is ever written under its own name
//! here, and no path of a layer reaches the host's file system.

mod archive;
mod cache;
mod choose;
mod error;
mod image;
mod layer;
pub mod limits;
mod registry;
mod wire;

pub use cache::BlobCache;
pub use error::{LayerError, OciError, Unreachable};
pub use image::{ArchiveKind, Blob, Image, Layer, Place};
pub use layer::{Merged, MergedReader, UncompressOptions, Uncompressed, merge, uncompress};
pub use registry::{DockerConfig, Fetching, RegistryOptions, fetch_layers, resolve};
pub use wire::ImageConfig;
