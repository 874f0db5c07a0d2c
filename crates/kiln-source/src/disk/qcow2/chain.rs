//! An image with the files it is based on.

use super::error::Qcow2Error;
use super::{Qcow2, Qcow2Result};
use crate::disk::{DiskError, DiskResult, Reading};
use kiln_core::recipe::BackingFiles;
use kiln_sys::{Cancel, IoResultExt as _, copy, fs};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// The most backing files an image may have.
pub const BACKING_FILES_MAX: usize = 16;

/// A file of a chain.
#[derive(Debug)]
enum Layer {
    Qcow2(Qcow2),
    Raw(File, PathBuf),
}

/// An image and what it is based on, the lowest first.
#[derive(Debug)]
pub(crate) struct Chain {
    layers: Vec<Layer>,
}

impl Chain {
    /// Opens an image and, where that is allowed, what it is based on.
    pub(crate) fn open(path: &Path, backing: BackingFiles) -> DiskResult<Self> {
        let top = fs::canonicalize(path)?;
        let dir = top.parent().unwrap_or(Path::new("/")).to_owned();
        let mut seen = vec![top.clone()];
        let mut layers = Vec::new();
        let mut image = Qcow2::open(&top)?;
        loop {
            let Some(below) = image.header.backing.clone() else {
                layers.push(Layer::Qcow2(image));
                break;
            };
            if backing == BackingFiles::Refuse {
                return Err(image.refused(Qcow2Error::Backing(below.name)));
            }
            if seen.len() > BACKING_FILES_MAX {
                return Err(image.refused(Qcow2Error::ChainTooLong(BACKING_FILES_MAX)));
            }
            let refuse =
                |reason| image.refused(Qcow2Error::BackingRefused { name: below.name.clone(), reason });
            let named = named(&below.name).map_err(|source| image.refused(source))?;
            let here = image.path.parent().unwrap_or(&dir).join(named);
            let Some(_) = fs::optional(fs::metadata(&here))? else { return Err(refuse("does not exist")) };
            let here = fs::canonicalize(&here)?;
            if !here.starts_with(&dir) {
                return Err(refuse("lies outside the image's directory"));
            }
            if seen.contains(&here) {
                return Err(image.refused(Qcow2Error::ChainLoop(here)));
            }
            // The format is never guessed: a guest may write into a raw disk whatever it likes.
            match below.format.as_deref() {
                Some("qcow2") => {
                    seen.push(here.clone());
                    let next = Qcow2::open(&here)?;
                    layers.push(Layer::Qcow2(std::mem::replace(&mut image, next)));
                }
                Some("raw") => {
                    let file = fs::open(&here)?;
                    layers.push(Layer::Qcow2(image));
                    layers.push(Layer::Raw(file, here));
                    break;
                }
                Some(_) => return Err(refuse("is neither raw nor qcow2")),
                None => return Err(refuse("is of a format that the image does not tell")),
            }
        }
        layers.reverse();
        Ok(Self { layers })
    }

    /// Returns the image itself.
    pub(crate) fn top(&self) -> Option<&Qcow2> {
        match self.layers.last() {
            Some(Layer::Qcow2(image)) => Some(image),
            _ => None,
        }
    }

    /// Returns the files, the lowest first.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let path = |layer: &Layer| match layer {
            Layer::Qcow2(image) => image.path.clone(),
            Layer::Raw(_, path) => path.clone(),
        };
        self.layers.iter().map(path).collect()
    }

    /// Returns the most bytes that all data takes up in a raw file.
    pub(crate) fn data_bytes(&self, cancel: &Cancel) -> DiskResult<u64> {
        let mut bytes = 0_u64;
        for layer in &self.layers {
            bytes = bytes.saturating_add(match layer {
                Layer::Qcow2(image) => image.data_bytes(cancel)?,
                Layer::Raw(file, path) => data_bytes(file, path)?,
            });
        }
        Ok(bytes)
    }

    /// Writes the disk as the guest sees it to the empty file `to`.
    pub(crate) fn write(&self, to: &File, path: &Path, reading: &Reading<'_>) -> DiskResult<()> {
        for (number, layer) in self.layers.iter().enumerate() {
            match layer {
                Layer::Raw(file, _) => copy::copy_file(file, to, path, Some(reading.cancel)).map(|_| ())?,
                Layer::Qcow2(image) => {
                    let size = image.header.virtual_bytes;
                    // What a lower file has beyond the end of this one is not seen through it.
                    to.set_len(size).at("set the length of", path)?;
                    image.write(to, path, number > 0, reading)?;
                    to.set_len(size).at("set the length of", path)?;
                }
            }
        }
        Ok(())
    }
}

fn data_bytes(file: &File, path: &Path) -> DiskResult<u64> {
    let len = file.metadata().at("inspect", path)?.len();
    let mut bytes = 0;
    for extent in copy::DataExtents::new(file, len) {
        let (start, end) = extent.at("find the data of", path)?;
        bytes += end - start;
    }
    Ok(bytes)
}

/// Returns the path that a backing file's name is, if it is a plain one below the image's directory.
fn named(name: &str) -> Qcow2Result<&Path> {
    let refuse = |reason| Qcow2Error::BackingRefused { name: name.to_owned(), reason };
    let path = Path::new(name);
    if name.contains('\0') {
        return Err(refuse("is no name of a file"));
    }
    if path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(refuse("lies outside the image's directory"));
    }
    // QEMU takes what stands before a colon for a protocol.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(refuse("is not a file"));
    }
    Ok(path)
}

impl From<kiln_sys::cancel::Cancelled> for DiskError {
    fn from(_: kiln_sys::cancel::Cancelled) -> Self {
        Self::Cancelled
    }
}
