//! Why a disk image is not read.

use super::qcow2::Qcow2Error;
use kiln_sys::{IoError, ToolError};
use std::path::PathBuf;

/// The result of reading a disk image.
pub type DiskResult<T> = Result<T, DiskError>;

/// Why a disk image is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// A qcow2 image that is not read.
    #[error("qcow2 image {} cannot be used", path.display())]
    Qcow2 {
        /// The image, or the file it is based on.
        path: PathBuf,
        /// Why.
        #[source]
        source: Qcow2Error,
    },
    /// Not an image of a format that is read.
    #[error("{} is {found}, not a disk image that kiln reads (raw, qcow2, vmdk, vhdx)", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// An image of another format than it was said to be.
    #[error("{} is {found}, and the recipe says {wanted}", path.display())]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// An image that needs a program to be read, which is not there.
    #[error("{} is {format}, which is read with `qemu-img`, and that is not installed", path.display())]
    NoConverter {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
    },
    /// An image that the converter says something of that is not understood or not allowed.
    #[error("{format} image {} cannot be used: {problem}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A raw image larger than any disk.
    #[error("disk image {} has {size} bytes, more than {}", path.display(), super::qcow2::VIRTUAL_BYTES_MAX)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its virtual size in bytes.
        size: u64,
    },
    /// The partition table is not sound.
    #[error("the partition table of {} is damaged: {reason}", path.display())]
    Table {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no partition of this number.
    #[error("{} has no partition {number}; it has {there}", path.display())]
    NoPartition {
        /// The image.
        path: PathBuf,
        /// What was asked for, from 1.
        number: u32,
        /// The partitions there are.
        there: String,
    },
    /// It cannot be told which partition is the root.
    #[error("which partition of {} is the root cannot be told: it has {there}", path.display())]
    WhichPartition {
        /// The image.
        path: PathBuf,
        /// The partitions there are.
        there: String,
    },
    /// The root file system is none that guests are started from.
    #[error("the root file system in {} is {found}; guests start from ext4", path.display())]
    FileSystem {
        /// The image.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A tool did not do its work.
    #[error(transparent)]
    Tool(ToolError),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl From<ToolError> for DiskError {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::Cancelled { .. } => Self::Cancelled,
            other => Self::Tool(other),
        }
    }
}
