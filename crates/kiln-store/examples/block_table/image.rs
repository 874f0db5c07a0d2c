//! An image in memory with the full hashes of its blocks.

use crate::Failure;
use kiln_store::blocks::BLOCK_BYTES;
use kiln_store::{BlockTable, Index, hash_file_with_blocks};
use kiln_sys::{Cancel, fs};
use std::io::{Read as _, Seek as _};
use std::path::Path;

/// The hash of a block before it is cut to a fingerprint.
pub(crate) type Hash = [u8; 32];

/// An image.
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    /// Number and hash of each data block.
    pub(crate) blocks: Vec<(u64, Hash)>,
    pub(crate) index: Index,
    pub(crate) table: BlockTable,
}

impl Image {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let mut file = fs::open(path)?;
        let (index, table) = hash_file_with_blocks(&file, path, &Cancel::new()?)?;
        let table = table.ok_or("the image has too many data blocks for a table")?;
        // The search for holes moved the place in the file.
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let blocks = table.blocks().map(|(number, _)| number);
        let blocks = blocks.map(|number| (number, *blake3::hash(block(&bytes, number)).as_bytes()));
        let blocks = blocks.collect();
        Ok(Self { bytes, blocks, index, table })
    }

    /// Returns the bytes of a block.
    pub(crate) fn block(&self, number: u64) -> &[u8] {
        block(&self.bytes, number)
    }
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runs = self.blocks.windows(2).filter(|pair| pair[0].0 + 1 != pair[1].0).count() + 1;
        let table = self.table.to_bytes().len();
        let count = self.blocks.len();
        write!(
            f,
            "{} bytes, {count} data blocks in {runs} runs, index {} bytes, table {table} bytes, {:.2} a block",
            self.bytes.len(),
            self.index.to_bytes().len(),
            ratio(table, count),
        )
    }
}

fn block(bytes: &[u8], number: u64) -> &[u8] {
    let start = usize::try_from(number * BLOCK_BYTES).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[start..bytes.len().min(start + (4 << 10))]
}

/// Divides counts.
#[expect(clippy::cast_precision_loss, reason = "counts of blocks and bytes are far below 2^53")]
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
