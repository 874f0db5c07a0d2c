//! A bucket as a shelf.

use super::{Over, Shelf, ShelfError, Text};
use crate::bucket::{Bucket, When};
use kiln_core::image::ContentDigest;
use kiln_sys::{Cancel, fs};
use std::path::{Path, PathBuf};

impl Shelf for Bucket<'_> {
    /// What is there is told by whoever wrote it: it is not read again.
    fn has(
        &self,
        path: &str,
        digest: &ContentDigest,
        bytes_max: u64,
        cancel: &Cancel,
    ) -> Result<bool, ShelfError> {
        cancel.check()?;
        let head = self.head(path)?;
        Ok(head.is_some_and(|head| {
            head.digest.as_ref() == Some(digest) && head.bytes.is_none_or(|bytes| bytes <= bytes_max)
        }))
    }

    fn read(&self, path: &str, bytes_max: usize) -> Result<Option<Text>, ShelfError> {
        let object = self.get(path, bytes_max)?;
        Ok(object.map(|object| Text { bytes: object.bytes, version: object.version }))
    }

    fn write(&self, path: &str, text: &[u8], over: Over<'_>) -> Result<(), ShelfError> {
        let when = match over {
            Over::Anything => When::Always,
            Over::Read(None) => When::New,
            Over::Read(Some(read)) => read.version.as_deref().map_or(When::Always, When::Same),
        };
        Ok(Bucket::put(self, path, text, when)?)
    }

    fn put(
        &self,
        path: &str,
        from: &Path,
        digest: &ContentDigest,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ShelfError> {
        self.put_file(path, from, digest, progress)?;
        Ok(fs::remove_file(from)?)
    }

    fn remove(&self, path: &str) -> Result<(), ShelfError> {
        Ok(Bucket::remove(self, path)?)
    }

    fn local(&self, _: &str) -> Option<PathBuf> {
        None
    }

    fn shown(&self, path: &str) -> String {
        self.place().address(path)
    }
}
