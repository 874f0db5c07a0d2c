//! Block tables in the store: beside the index of their artifact, and made again when they are missing or damaged.

use super::{BlockTable, SharedBlocks, TABLE_BYTES_MAX};
use crate::error::{StoreError, StoreResult};
use crate::hash::hash_file_with_blocks;
use crate::layout::Store;
use kiln_core::Digest;
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::{Cancel, fs};
use std::fs::File;

/// The mode of tables: they are replaced, never written to.
const TABLE_MODE: u32 = 0o444;

impl Store {
    /// Returns the block table of an artifact as it lies in the store. `None` when there is none, or one that is
    /// damaged or cannot be read: all are mended by [`Store::rebuild_block_table`].
    pub fn block_table(&self, artifact: &Digest) -> Option<BlockTable> {
        let bytes = fs::read_optional(&self.block_table_path(artifact), TABLE_BYTES_MAX).ok()??;
        let table = BlockTable::parse(&bytes).ok()?;
        let length = fs::metadata(&self.artifact_path(artifact)).ok()?.len();
        (table.artifact() == artifact && table.length() == length).then_some(table)
    }

    /// Makes the block table of an artifact again from its content, writes it and returns it; `None` for an artifact
    /// with too many data blocks. The content is verified on the way: damage is an error. Takes no lock.
    pub fn rebuild_block_table(&self, artifact: &Digest, cancel: &Cancel) -> StoreResult<Option<BlockTable>> {
        let table = self.make_block_table(artifact, cancel)?;
        self.write_block_table(artifact, table.as_ref())?;
        // Whoever removed the artifact meanwhile may have looked for its table before this one was there.
        if !fs::exists(&self.artifact_path(artifact))? {
            fs::remove_file(&self.block_table_path(artifact))?;
        }
        Ok(table)
    }

    /// Returns the block table of an artifact, made again when the store has no good one. It is then written too, where
    /// the store can be written to.
    pub fn ensure_block_table(&self, artifact: &Digest, cancel: &Cancel) -> StoreResult<Option<BlockTable>> {
        if let Some(table) = self.block_table(artifact) {
            return Ok(Some(table));
        }
        match self.rebuild_block_table(artifact, cancel) {
            Err(StoreError::Io(_)) => self.make_block_table(artifact, cancel),
            other => other,
        }
    }

    fn make_block_table(&self, artifact: &Digest, cancel: &Cancel) -> StoreResult<Option<BlockTable>> {
        let path = self.artifact_path(artifact);
        let (index, table) = hash_file_with_blocks(&self.open_artifact(artifact)?, &path, cancel)?;
        if index.digest() != *artifact {
            return Err(StoreError::Damaged { path, reason: "its content has another digest".to_owned() });
        }
        Ok(table)
    }

    /// Finds the data blocks of `b` whose content is in `a` too. Every one is confirmed by comparing bytes. Tables that
    /// are missing or damaged are made again; an artifact without a table shares nothing.
    pub fn shared_blocks(&self, a: &Digest, b: &Digest, cancel: &Cancel) -> StoreResult<SharedBlocks> {
        let (Some(table_a), Some(table_b)) =
            (self.ensure_block_table(a, cancel)?, self.ensure_block_table(b, cancel)?)
        else {
            return Ok(SharedBlocks::default());
        };
        let (path_a, path_b) = (self.artifact_path(a), self.artifact_path(b));
        let (file_a, file_b) = (self.open_artifact(a)?, self.open_artifact(b)?);
        super::shared::find((&table_a, &file_a, &path_a), (&table_b, &file_b, &path_b), cancel)
    }

    /// Writes a table, or removes the one that is there when there is to be none.
    pub(crate) fn write_block_table(&self, artifact: &Digest, table: Option<&BlockTable>) -> StoreResult<()> {
        let path = self.block_table_path(artifact);
        match table {
            Some(table) => write_file(&path, &table.to_bytes(), TABLE_MODE, Existing::Replace)?,
            None => fs::remove_file(&path)?,
        }
        Ok(())
    }

    fn open_artifact(&self, artifact: &Digest) -> StoreResult<File> {
        fs::optional(fs::open(&self.artifact_path(artifact)))?.ok_or_else(|| StoreError::NotFound {
            kind: "artifact",
            name: artifact.to_string(),
            similar: Vec::new(),
        })
    }
}
