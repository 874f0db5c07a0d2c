//! Artifacts: files named by the digest of their index.

use crate::error::{StoreError, StoreResult};
use crate::file_hash::stamp;
use crate::hash::hash_file_with_blocks;
use crate::index::{INDEX_BYTES_MAX, Index};
use crate::layout::Store;
use crate::seal::ARTIFACT_MODE;
use crate::staging::Staging;
use kiln_core::{ByteSize, Digest};
use kiln_sys::commit::{Existing, commit_file, write_file};
use kiln_sys::{Cancel, copy, fail, fs};
use std::path::Path;

/// Free space that stays after a copy, in bytes.
pub const SPACE_MARGIN: u64 = 16 << 20;

/// Needless pieces of a file that are no harm: sharing them takes some 5 ms.
const FRAGMENTS_FEW: u64 = 256;
/// The least mean length of the pieces of a file that lies well enough, in bytes.
const FRAGMENT_BYTES: u64 = 1 << 20;

/// What becomes of the source of an ingest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IngestFrom {
    /// A file in a staging directory of this store: it is moved.
    Staging,
    /// Anybody's file: it is copied, with shared extents where the file system can and it does not lie in many small
    /// pieces.
    Outside,
}

/// What an ingest found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingested {
    /// The artifact's digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: ByteSize,
    /// The bytes of its segments that are not all zero.
    pub data: ByteSize,
    /// Whether the store had it already.
    pub known: bool,
}

impl Store {
    /// Takes a file into the store. The caller holds the store's lock until a revision refers to the artifact.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when a file from outside is written to meanwhile: a copy of it may be of neither content.
    pub fn ingest(
        &self,
        path: &Path,
        from: IngestFrom,
        staging: &Staging,
        cancel: &Cancel,
    ) -> StoreResult<Ingested> {
        let own = match from {
            IngestFrom::Staging => path.to_owned(),
            IngestFrom::Outside => self.copy_in(path, staging, cancel)?,
        };
        let file = fs::open(&own)?;
        let (index, table) = hash_file_with_blocks(&file, &own, cancel)?;
        let digest = index.digest();
        let ingested = Ingested {
            digest,
            size: ByteSize::from_bytes(index.length()),
            data: ByteSize::from_bytes(index.data_bytes()),
            known: self.is_whole(&digest, ByteSize::from_bytes(index.length()))?,
        };
        if ingested.known {
            fail::point("ingest.known", &own)?;
            if self.block_table(&digest) != table {
                self.write_block_table(&digest, table.as_ref())?;
            }
            fs::remove_file(&own)?;
            return Ok(ingested);
        }
        // What is there and not whole is replaced: the content is known by its name.
        fail::point("ingest.index", &own)?;
        write_file(&self.index_path(&digest), &index.to_bytes(), ARTIFACT_MODE, Existing::Replace)?;
        fail::point("ingest.artifact", &own)?;
        self.write_block_table(&digest, table.as_ref())?;
        self.protect_staged(&file, &own, index.length())?;
        self.unprotect(&digest)?;
        let artifact = self.artifact_path(&digest);
        commit_file(&file, &own, &artifact, ARTIFACT_MODE, Existing::Replace)?;
        self.protect_published(&file, &artifact)?;
        fail::point("ingest.seal", path)?;
        self.seal(&digest)?;
        fail::point("ingest.done", path)?;
        Ok(ingested)
    }

    fn copy_in(&self, path: &Path, staging: &Staging, cancel: &Cancel) -> StoreResult<std::path::PathBuf> {
        let source = fs::open(path)?;
        let before = stamp(&source, path)?;
        let own = staging.path().join(format!("in-{}", kiln_sys::clock::random_hex::<8>()));
        fail::point("ingest.create", &own)?;
        let target = fs::create_new(&own)?;
        fail::point("ingest.copy", &own)?;
        let data = copy::allocated_bytes(path)?;
        // Clones by reflink cost by the piece, for as long as the artifact lives.
        if copy::layout(&source).is_some_and(|layout| is_fragmented(layout, data)) {
            self.need_space(data)?;
            copy::compacting_copy(&source, &target, &own, Some(cancel))?;
        } else if !copy::reflink(&source, &target, &own)? {
            self.need_space(data)?;
            copy::sparse_copy(&source, &target, &own, Some(cancel))?;
        }
        if stamp(&source, path)? != before {
            return Err(StoreError::Changed { path: path.to_owned() });
        }
        Ok(own)
    }

    /// Returns whether the store has an artifact.
    pub fn has_artifact(&self, digest: &Digest) -> StoreResult<bool> {
        Ok(fs::exists(&self.artifact_path(digest))? && fs::exists(&self.index_path(digest))?)
    }

    /// Returns whether an artifact is there with its index, as far as a cheap look tells.
    fn is_whole(&self, digest: &Digest, size: ByteSize) -> StoreResult<bool> {
        match self.check_artifact(digest, size).and_then(|()| self.index(digest)) {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. } | StoreError::Damaged { .. } | StoreError::Unsealed { .. }) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the index of an artifact and checks that it is the one.
    pub fn index(&self, digest: &Digest) -> StoreResult<Index> {
        let path = self.index_path(digest);
        let Some(bytes) = fs::read_optional(&path, INDEX_BYTES_MAX)? else {
            return Err(StoreError::NotFound {
                kind: "index",
                name: digest.to_string(),
                similar: Vec::new(),
            });
        };
        if Digest::of(&bytes) != *digest {
            return Err(StoreError::Damaged { path, reason: "its content has another digest".to_owned() });
        }
        Index::parse(&bytes).map_err(|error| StoreError::Damaged { path, reason: error.to_string() })
    }

    /// Checks that the store's file system has room for `need` more bytes.
    pub fn need_space(&self, need: u64) -> StoreResult<()> {
        need_space_in(self.root(), need)
    }
}

/// Whether a file of `data` bytes is better copied than shared: it lies in far more pieces than its holes make, and in
/// small ones.
fn is_fragmented(layout: copy::Layout, data: u64) -> bool {
    let needless = layout.extents.saturating_sub(layout.ranges);
    needless > FRAGMENTS_FEW && data / layout.extents.max(1) < FRAGMENT_BYTES
}

/// Checks that the file system of a directory has room for `need` more bytes.
pub(crate) fn need_space_in(dir: &Path, need: u64) -> StoreResult<()> {
    need_space_of(dir, fs::space(dir)?.available, need)
}

fn need_space_of(dir: &Path, have: u64, need: u64) -> StoreResult<()> {
    if have < need.saturating_add(SPACE_MARGIN) {
        return Err(StoreError::NoSpace { path: dir.to_owned(), need, have });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_leaves_some_space() {
        let dir = Path::new("/store");
        need_space_of(dir, (16 << 20) + 5, 5).unwrap();
        let error = need_space_of(dir, (16 << 20) + 4, 5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not enough space in /store: 5 bytes needed and 16777216 to spare, 16777220 free"
        );
        need_space_of(dir, u64::MAX - 1, u64::MAX).unwrap_err();
    }

    #[test]
    fn many_small_pieces_that_holes_do_not_explain_are_fragments() {
        let fragmented = |extents, ranges, data| is_fragmented(copy::Layout { extents, ranges }, data);
        assert!(fragmented(5000, 1, 20 << 20));
        assert!(!fragmented(5000, 4990, 20 << 20), "holes make them");
        assert!(!fragmented(5000, 1, 20 << 30), "they are long");
        assert!(!fragmented(200, 1, 1 << 20), "they are few");
        assert!(!fragmented(0, 0, 0));
    }
}
