//! A disk image of any format, and the raw file made of it.

use super::qcow2::{Chain, VIRTUAL_BYTES_MAX};
use super::{DiskError, DiskResult, foreign, format};
use kiln_core::recipe::{BackingFiles, DiskFormat};
use kiln_sys::{Cancel, IoResultExt as _, Toolbox, copy, fs};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Times its own size that an image of a format that is not read here is taken to hold.
const FOREIGN_FACTOR: u64 = 4;

/// A disk image that was looked at.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Raw(File),
    Qcow2(Chain),
    Foreign(DiskFormat),
}

/// What images are read with.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// The programs: formats that kiln does not read itself are read with `qemu-img`.
    pub toolbox: &'a Toolbox,
    /// Threads that copy and uncompress.
    pub threads: usize,
    /// Whether what is written is to be synced: then it goes to the disk while more is made.
    pub kept: bool,
    /// Ends the work early.
    pub cancel: &'a Cancel,
}

impl Image {
    /// Opens an image and checks its header, and those of the files it is based on.
    ///
    /// # Errors
    /// When it is none, or of a format that is not read; when it is based on other files that may not be read.
    pub fn open(path: &Path, said: Option<DiskFormat>, backing: BackingFiles) -> DiskResult<Self> {
        let file = fs::open(path)?;
        let head = format::head(&file, path)?;
        let content = match format::settle(path, &head, said)? {
            DiskFormat::Raw => {
                let size = file.metadata().at("inspect", path)?.len();
                if size > VIRTUAL_BYTES_MAX {
                    return Err(DiskError::TooLarge { path: path.to_owned(), size });
                }
                Content::Raw(file)
            }
            DiskFormat::Qcow2 => Content::Qcow2(Chain::open(path, backing)?),
            other => {
                foreign::check_head(path, other, &head)?;
                Content::Foreign(other)
            }
        };
        Ok(Self { path: path.to_owned(), content })
    }

    /// Returns its format.
    pub fn format(&self) -> DiskFormat {
        match &self.content {
            Content::Raw(_) => DiskFormat::Raw,
            Content::Qcow2(_) => DiskFormat::Qcow2,
            Content::Foreign(format) => *format,
        }
    }

    /// Returns the files it is made of: itself, and those it is based on, the lowest first.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.content {
            Content::Qcow2(chain) => chain.files(),
            _ => vec![self.path.clone()],
        }
    }

    /// Returns how many snapshots lie inside it, which are not looked at.
    pub fn snapshots(&self) -> u32 {
        match &self.content {
            Content::Qcow2(chain) => chain.top().map_or(0, |image| image.header.snapshots),
            _ => 0,
        }
    }

    /// Returns the raw file itself, where the image is one.
    pub fn raw(&self) -> Option<&File> {
        match &self.content {
            Content::Raw(file) => Some(file),
            _ => None,
        }
    }

    /// Returns the bytes that a raw file of it takes up: the most, except where `qemu-img` reads it.
    pub fn data_bytes(&self, reading: &Reading<'_>) -> DiskResult<u64> {
        match &self.content {
            Content::Raw(_) => Ok(copy::allocated_bytes(&self.path)?),
            Content::Qcow2(chain) => chain.data_bytes(reading.cancel),
            Content::Foreign(format) => {
                // How much it is compressed only its reader knows; a disk that fills up later is told then.
                let virtual_bytes = foreign::info(&self.path, *format, reading)?;
                let guess = copy::allocated_bytes(&self.path)?.saturating_mul(FOREIGN_FACTOR);
                Ok(virtual_bytes.min(guess))
            }
        }
    }

    /// Writes the disk as a guest sees it to a new file, as far as it is not zeros.
    pub fn write_raw(&self, to: &Path, reading: &Reading<'_>) -> DiskResult<()> {
        match &self.content {
            Content::Raw(file) => {
                copy::copy_file(file, &fs::create_new(to)?, to, Some(reading.cancel))?;
                Ok(())
            }
            Content::Qcow2(chain) => chain.write(&fs::create_new(to)?, to, reading),
            Content::Foreign(format) => foreign::convert(&self.path, *format, to, reading),
        }
    }
}
