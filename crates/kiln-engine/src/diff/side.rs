//! One of the two root file systems, with errors that name its artifact.

use crate::{Engine, EngineError, EngineResult};
use kiln_core::Digest;
use kiln_core::revision::Artifact;
use kiln_source::ext4::{Entry, Extent, Image, ImageError, ImageResult, Inode};
use kiln_store::index::SegmentDigest;
use kiln_store::{Index, StoreError};
use std::fs::File;
use std::path::Path;

/// A root file system and the segments of its artifact.
#[derive(Debug)]
pub(super) struct Side {
    artifact: Digest,
    image: Image,
    /// Numbers and digests of the segments that hold data, in order.
    segments: Vec<(u64, SegmentDigest)>,
}

impl Side {
    /// Opens an artifact, read first where it was touched. `data_bytes` are those of the larger of the two.
    pub(super) fn open(engine: &Engine, artifact: &Artifact, data_bytes: u64) -> EngineResult<Self> {
        let store = engine.store();
        store.ensure_artifact(&artifact.digest, artifact.size, engine.cancel(), &mut |_| {})?;
        let index = store.index(&artifact.digest)?;
        let path = store.artifact_path(&artifact.digest);
        if index.length() != artifact.size.bytes() {
            let reason = "it has another length than its index".to_owned();
            return Err(StoreError::Damaged { path, reason }.into());
        }
        let file = kiln_sys::fs::open(&path)?;
        let image = Image::open(file, path, index.length(), data_bytes, engine.cancel().clone());
        let image = image.map_err(|error| blame(artifact.digest, error))?;
        Ok(Self::new(artifact.digest, image, &index))
    }

    /// Makes a side of an open file system and the index of its artifact.
    pub(super) fn new(artifact: Digest, image: Image, index: &Index) -> Self {
        let segments = index.segments().map(|(number, digest)| (number, *digest)).collect();
        Self { artifact, image, segments }
    }

    /// Returns an error about this side.
    pub(super) fn error(&self, error: ImageError) -> EngineError {
        blame(self.artifact, error)
    }

    fn wrap<T>(&self, result: ImageResult<T>) -> EngineResult<T> {
        result.map_err(|error| self.error(error))
    }

    pub(super) fn root(&self) -> EngineResult<Inode> {
        self.wrap(self.image.root())
    }

    pub(super) fn inode(&self, number: u32) -> EngineResult<Inode> {
        self.wrap(self.image.inode(number))
    }

    pub(super) fn entries(&self, dir: &Inode) -> EngineResult<Vec<Entry>> {
        self.wrap(self.image.entries(dir))
    }

    pub(super) fn extents(&self, inode: &Inode) -> EngineResult<Vec<Extent>> {
        self.wrap(self.image.extents(inode))
    }

    pub(super) fn link_target(&self, inode: &Inode) -> EngineResult<Vec<u8>> {
        self.wrap(self.image.link_target(inode))
    }

    pub(super) fn find(&self, path: &str) -> EngineResult<Option<Inode>> {
        self.wrap(self.image.find(path))
    }

    pub(super) fn read_file(&self, inode: &Inode, path: &str, max: u64) -> EngineResult<Vec<u8>> {
        self.wrap(self.image.read_file(inode, path, max))
    }

    pub(super) fn copy_file(&self, inode: &Inode, to: &File, path: &Path) -> EngineResult<()> {
        self.wrap(self.image.copy_file(inode, to, path))
    }

    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> EngineResult<()> {
        self.wrap(self.image.read_at(offset, buffer))
    }

    /// Counts work that reads nothing as if it read `bytes`.
    pub(super) fn spend(&self, bytes: u64) -> EngineResult<()> {
        self.wrap(self.image.spend(bytes))
    }

    /// Returns the digest of a segment, none for a hole.
    pub(super) fn segment(&self, number: u64) -> Option<&SegmentDigest> {
        let place = self.segments.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(&self.segments[place].1)
    }
}

fn blame(artifact: Digest, error: ImageError) -> EngineError {
    match error {
        ImageError::Cancelled(_) => EngineError::Cancelled,
        ImageError::Io(error) => error.into(),
        source => EngineError::Image { artifact, source },
    }
}
