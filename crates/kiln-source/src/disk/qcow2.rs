//! qcow2 images, read by the format's published description: versions 2 and 3, subclusters, zlib and zstd clusters,
//! backing files where the caller allows them.
//!
//! An image is a stranger's. Tables are read as a stream and checked entry by entry, so that neither their size nor
//! what they say decides over memory; what refers to the same data again and again is refused. Encryption, external
//! data files and images marked as corrupt are refused by name. Snapshots inside an image are not looked at: what is
//! read is its present state.

mod chain;
mod cluster;
mod convert;
mod error;
mod header;
mod table;

pub use chain::BACKING_FILES_MAX;
pub use error::Qcow2Error;
pub use header::{BACKING_NAME_MAX, L1_BYTES_MAX, SNAPSHOTS_MAX, VIRTUAL_BYTES_MAX};

pub(crate) use chain::Chain;
pub use convert::{MEMORY_BYTES_MAX, THREADS_MAX};

use super::{DiskError, DiskResult};
use header::Header;
use kiln_sys::{Cancel, IoResultExt as _, fs};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use table::{Content, Piece};

/// What a file takes up room in: the block size of most file systems.
const BLOCK_BYTES: u64 = 4096;

type Qcow2Result<T> = Result<T, Qcow2Error>;

/// An image whose header was checked.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
    pub(crate) header: Header,
}

impl Qcow2 {
    /// Opens an image. Its backing file, if it has one, is not looked at.
    pub(crate) fn open(path: &Path) -> DiskResult<Self> {
        let file = fs::open(path)?;
        let len = file.metadata().at("inspect", path)?.len();
        let head = usize::try_from(len).unwrap_or(usize::MAX).min(header::HEADER_BYTES_MAX);
        let mut bytes = vec![0; head];
        file.read_exact_at(&mut bytes, 0).at("read", path)?;
        let path = path.to_owned();
        match Header::parse(&bytes, len) {
            Ok(header) => Ok(Self { file, path, len, header }),
            Err(source) => Err(DiskError::Qcow2 { path, source }),
        }
    }

    /// Returns the most bytes that the image's own data takes up in a raw file.
    pub(crate) fn data_bytes(&self, cancel: &Cancel) -> DiskResult<u64> {
        let (mut blocks, mut next) = (0_u64, 0_u64);
        self.pieces(cancel, &mut |Piece { guest, len, content }| {
            if content != Content::Zeros {
                // A file has whole blocks, also where a cluster is a part of one. Pieces come in the guest's order.
                let first = (guest / BLOCK_BYTES).max(next);
                next = (guest + len).div_ceil(BLOCK_BYTES).max(next);
                blocks += next.saturating_sub(first);
            }
            Ok(())
        })?;
        Ok(blocks.saturating_mul(BLOCK_BYTES))
    }

    fn refused(&self, source: Qcow2Error) -> DiskError {
        DiskError::Qcow2 { path: self.path.clone(), source }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests;
