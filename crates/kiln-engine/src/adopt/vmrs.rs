//! Images of distributions that vm-rs fetched, read into templates of the store and written from them.
//! `docs/formats/vmrs.md` describes the layout.
//!
//! ```text
//! DIR/images/<distribution>/<release>/<architecture>/vmlinuz
//!                                                    initramfs
//!                                                    disk.img
//! ```
//!
//! Names are as somebody typed them: they are the same in upper and lower case.

mod export;
mod find;
mod import;

pub use export::{ExportVmrs, ExportedVmrs};
pub use find::ImageFilesError;
pub use import::{FailedVmrs, ImportVmrs, ImportedVmrs, ImportedVmrsImage};

/// What it says of a revision that it came from this layout.
const PROGRAM: &str = "vm-rs";
const IMAGES: &str = "images";
const KERNEL_FILE: &str = "vmlinuz";
const INITRD_FILE: &str = "initramfs";
const DISK_FILE: &str = "disk.img";
/// The disk image converted, which some hosts need.
const RAW_FILE: &str = "disk.raw";
/// A disk image whose download did not end.
const PARTIAL_FILE: &str = "disk.tmp";
