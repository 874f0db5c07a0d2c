//! What an image may have: everything in one comes from a stranger.

/// The most bytes of an index, a manifest or a `manifest.json`.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// The most bytes of an image's configuration.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// The most manifests an index names.
pub const INDEX_ENTRIES_MAX: usize = 1024;
/// The most indexes within one another.
pub const INDEX_DEPTH_MAX: usize = 4;
/// The most layers of an image.
pub const LAYERS_MAX: usize = 1024;
/// The most entries of an archive that holds an image.
pub const ARCHIVE_ENTRIES_MAX: u64 = 65_536;
/// The most bytes of an image's archive on standard input (256 GiB).
pub const ARCHIVE_BYTES_MAX: u64 = 256 << 30;
/// The most bytes of a layer, as it is stored (256 GiB).
pub const LAYER_BYTES_MAX: u64 = 256 << 30;
/// The most bytes of a layer once uncompressed, for each byte it is stored in, beyond [`LAYER_BYTES_FREE`].
pub const LAYER_RATIO_MAX: u64 = 256;
/// The bytes any layer may have once uncompressed, however few it is stored in.
pub const LAYER_BYTES_FREE: u64 = 256 << 20;
/// The most entries of all layers together.
pub const ENTRIES_MAX: u64 = 4_000_000;
/// The most names of a tree that layers come to, directories that no entry says anything of among them, hidden ones too.
pub const NODES_MAX: usize = 8_000_000;
/// The most bytes of an entry's extended headers.
pub const EXTENDED_BYTES_MAX: u64 = 1 << 20;
/// The most bytes of paths, link targets and extended attributes of all layers together, which are kept in memory.
pub const METADATA_BYTES_MAX: u64 = 512 << 20;
/// The most bytes of a path, and of a link's target.
pub const PATH_BYTES_MAX: usize = 4095;
/// The most bytes of a part of a path.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// The most directories within one another.
pub const DEPTH_MAX: usize = 512;
/// The most symbolic links followed in one path.
pub const LINKS_MAX: usize = 40;
