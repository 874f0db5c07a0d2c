//! Layers: uncompressed, read, overlaid, and given out as one tar stream.

mod entry;
mod header;
mod stream;
mod tree;
mod uncompress;
mod union;

pub use stream::{Merged, MergedReader};
pub use uncompress::{UncompressOptions, Uncompressed, uncompress};
pub use union::merge;

pub(super) use entry::{Kind, TarReader};
pub(super) use union::Totals;
