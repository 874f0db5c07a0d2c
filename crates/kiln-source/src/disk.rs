//! Disk images: formats, partitions, file systems.
//!
//! [`Image`] is a file of any format, which becomes a raw one; [`partition`] finds the root in that, and
//! [`FileSystem`] says what it holds. Nothing is mounted, and nothing of what is read is trusted.

pub mod boot;
mod error;
mod filesystem;
mod foreign;
mod format;
mod image;
pub mod partition;
pub mod qcow2;
mod sparse;

pub use error::{DiskError, DiskResult};
pub use filesystem::{FILE_SYSTEM_HEAD_BYTES, FileSystem};
pub use image::{Image, Reading};
