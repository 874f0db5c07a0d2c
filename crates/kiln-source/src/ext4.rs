//! Reads an ext4 file system from an artifact: inodes, directories, extents. No mount, no privilege, no writes.
//!
//! An image is a stranger's. Each number in it is checked before it is used, each walk makes progress by its own rules,
//! and [`Image::spend`] bounds the whole: an honest image refers to each of its blocks about once, so one that makes
//! its reader read several times what it holds is refused. Time and memory are thereby bounded by its size.
//!
//! Checksums of metadata are not looked at: an artifact's index speaks for all of its bytes.

mod dir;
mod extents;
mod inode;
mod path;

pub use dir::Entry;
pub use extents::Extent;
pub use inode::{Inode, Kind};

use kiln_sys::{Cancel, IoError, IoResultExt as _};
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// How many times the data of the larger of two images either may make its reader read. An honest one stays below: a name
/// in a directory costs some 200 bytes of reading, and content that one image holds once and the other under many
/// names as often is read as often as the other holds it.
const READ_FACTOR: u64 = 8;
/// Bytes that may be read of the smallest image.
const READ_BYTES_MIN: u64 = 64 << 20;
/// The most entries of one directory.
const DIR_ENTRIES_MAX: usize = 1 << 20;
/// The most bytes of one directory.
const DIR_BYTES_MAX: u64 = 256 << 20;
/// The most extents of one file.
const EXTENTS_MAX: usize = 1 << 20;
/// The longest symbolic link, in bytes.
const LINK_BYTES_MAX: u64 = 4096;
/// The root directory.
const ROOT_INODE: u32 = 2;

const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;
/// The largest block: 64 KiB.
const LOG_BLOCK_MAX: u32 = 6;

/// Incompatible features that a reader of names, owners and content need not know more of: file type in entries,
/// extents, 64 bit, multi-mount protection, flexible groups, values in inodes, checksum seed, large directories.
const INCOMPATIBLE_KNOWN: u32 = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000;
const INCOMPATIBLE_RECOVER: u32 = 0x4;
const INCOMPATIBLE_64BIT: u32 = 0x80;

/// Why a file system could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Something else than ext4.
    #[error("it holds no ext4 file system")]
    NotExt4,
    /// A file system that is fine and is not understood.
    #[error("its file system uses {0}, which kiln does not read")]
    Unsupported(&'static str),
    /// Features that are not understood.
    #[error("its file system has features kiln does not read: {0:#x}")]
    Features(u32),
    /// The file system itself is not sound.
    #[error("its superblock is damaged: {0}")]
    Superblock(&'static str),
    /// Something is said to lie where the file system is not.
    #[error("it refers to offset {0}, which is outside its file system")]
    Outside(u64),
    /// A file or directory is not sound.
    #[error("inode {inode} is damaged: {reason}")]
    Inode {
        /// The inode's number.
        inode: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More than a stranger's image may have.
    #[error("it has {what} above the limit of {max}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most there may be.
        max: u64,
    },
    /// A file that is read whole is too large for it.
    #[error("its file {path} has {size} bytes, more than {max}")]
    FileTooLarge {
        /// The file.
        path: String,
        /// Its length in bytes.
        size: u64,
        /// The most that is read.
        max: u64,
    },
    /// The artifact could not be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled(#[from] kiln_sys::cancel::Cancelled),
}

/// The result of reading an image.
pub type ImageResult<T> = Result<T, ImageError>;

/// An ext4 file system in a file.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    cancel: Cancel,
    /// Bytes that may yet be read.
    allowance: Cell<u64>,
    allowance_full: u64,
    block_bytes: u32,
    block_count: u64,
    first_data_block: u32,
    inode_count: u32,
    inodes_per_group: u32,
    inode_bytes: u16,
    descriptor_bytes: u16,
}

impl Image {
    /// Opens the file system in `file`, which is `length` bytes long. What may be read of it follows from `data_bytes`,
    /// the bytes beside holes of the larger of the images compared. `path` is for errors.
    pub fn open(
        file: File,
        path: PathBuf,
        length: u64,
        data_bytes: u64,
        cancel: Cancel,
    ) -> ImageResult<Self> {
        if length < SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES as u64 {
            return Err(ImageError::NotExt4);
        }
        let mut bytes = [0; SUPERBLOCK_BYTES];
        file.read_exact_at(&mut bytes, SUPERBLOCK_OFFSET).at("read", &path)?;
        if u16_at(&bytes, 0x38) != MAGIC {
            return Err(ImageError::NotExt4);
        }
        let features = u32_at(&bytes, 0x60);
        if features & INCOMPATIBLE_RECOVER != 0 {
            return Err(ImageError::Unsupported("a journal that was not played back"));
        }
        if features & !INCOMPATIBLE_KNOWN != 0 {
            return Err(ImageError::Features(features & !INCOMPATIBLE_KNOWN));
        }
        let log_block = u32_at(&bytes, 0x18);
        if log_block > LOG_BLOCK_MAX {
            return Err(ImageError::Superblock("block size"));
        }
        let wide = features & INCOMPATIBLE_64BIT != 0;
        let count_high = if wide { u32_at(&bytes, 0x150) } else { 0 };
        let full = data_bytes.saturating_mul(READ_FACTOR).saturating_add(READ_BYTES_MIN);
        let image = Self {
            allowance: Cell::new(full),
            allowance_full: full,
            block_bytes: 1024 << log_block,
            block_count: u64::from(count_high) << 32 | u64::from(u32_at(&bytes, 4)),
            first_data_block: u32_at(&bytes, 0x14),
            inode_count: u32_at(&bytes, 0),
            inodes_per_group: u32_at(&bytes, 0x28),
            inode_bytes: if u32_at(&bytes, 0x4c) == 0 { 128 } else { u16_at(&bytes, 0x58) },
            descriptor_bytes: if wide { u16_at(&bytes, 0xfe) } else { 32 },
            file,
            path,
            cancel,
        };
        image.checked(length)
    }

    fn checked(self, length: u64) -> ImageResult<Self> {
        let wrong = |reason| Err(ImageError::Superblock(reason));
        let blocks = length / u64::from(self.block_bytes);
        if self.block_count == 0 || self.block_count > blocks {
            return wrong("more blocks than the artifact has");
        }
        if self.first_data_block > 1 {
            return wrong("first data block");
        }
        if self.inodes_per_group == 0 || self.inode_count == 0 {
            return wrong("no inodes");
        }
        let inode = u32::from(self.inode_bytes);
        if inode < 128 || !inode.is_power_of_two() || inode > self.block_bytes {
            return wrong("inode size");
        }
        if self.descriptor_bytes < 32
            || !self.descriptor_bytes.is_power_of_two()
            || self.descriptor_bytes > 1024
        {
            return wrong("descriptor size");
        }
        Ok(self)
    }

    /// Returns the size of a block in bytes.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.block_bytes)
    }

    /// Reads bytes at an offset of the artifact, which must lie within the file system.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> ImageResult<()> {
        self.cancel.check()?;
        self.spend(buffer.len() as u64)?;
        let end = self.block_count * self.block_bytes();
        if offset.checked_add(buffer.len() as u64).is_none_or(|stop| stop > end) {
            return Err(ImageError::Outside(offset));
        }
        Ok(self.file.read_exact_at(buffer, offset).at("read", &self.path)?)
    }

    fn read_block(&self, block: u64) -> ImageResult<Vec<u8>> {
        let mut bytes = vec![0; self.block_bytes as usize];
        let offset = block.saturating_mul(self.block_bytes());
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Takes `bytes` from what may be read of this image.
    pub fn spend(&self, bytes: u64) -> ImageResult<()> {
        match self.allowance.get().checked_sub(bytes) {
            Some(left) => {
                self.allowance.set(left);
                Ok(())
            }
            None => Err(ImageError::Limit {
                what: "references to its blocks that make for more bytes to read",
                max: self.allowance_full,
            }),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
