//! The block table of an artifact: a short fingerprint of each 4 KiB block that is not all zero, sorted for lookup.
//!
//! It finds blocks that are already here. A match is a hint: nothing may rely on it before the contents were compared
//! or a segment's digest was checked. The table is no part of an artifact's identity and can be made again from the
//! artifact at any time. `docs/formats/blocks.md` describes the bytes; the constants are part of the format.

mod bits;
mod code;
mod shared;
mod stored;
#[cfg(test)]
mod tests;

pub use code::InvalidBlockTable;
pub use shared::{SharedBlocks, SharedRun};

use crate::index::{SEGMENT_BYTES, is_zero};
use kiln_core::Digest;
use std::ops::Range;

/// The unit of sharing, in bytes.
pub const BLOCK_BYTES: u64 = 4 << 10;
/// Blocks in a segment.
pub const SEGMENT_BLOCKS: u64 = SEGMENT_BYTES / BLOCK_BYTES;
/// The width of a fingerprint in bytes.
pub const FINGERPRINT_BYTES: usize = 5;
/// The first bytes of a table of version 1.
pub const MAGIC: [u8; 8] = *b"KILNBLK1";
/// The most data blocks a table names, those of 64 GiB. An artifact with more has no table.
pub const BLOCKS_MAX: u64 = 1 << RANK_BITS;
/// The largest table that is read or written, in bytes.
pub const TABLE_BYTES_MAX: usize = 256 << 20;

/// Bits of a fingerprint.
const FINGERPRINT_BITS: u32 = 40;
const _: () = assert!(FINGERPRINT_BITS as usize == 8 * FINGERPRINT_BYTES);
/// Bits of a rank in a key: what a fingerprint leaves of 64.
const RANK_BITS: u32 = 64 - FINGERPRINT_BITS;

/// A block's fingerprint: the first [`FINGERPRINT_BYTES`] bytes of the BLAKE3 of its bytes, read as a big-endian number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Returns the fingerprint of a block, or `None` when all its bytes are zero. The last block of an artifact has the
    /// bytes up to the artifact's length and no more.
    pub fn of(block: &[u8]) -> Option<Self> {
        (!is_zero(block)).then(|| {
            let hash = blake3::hash(block);
            let number = hash.as_bytes()[..FINGERPRINT_BYTES].iter();
            Self(number.fold(0, |number, byte| number << 8 | u64::from(*byte)))
        })
    }

    /// Returns the number.
    pub fn to_u64(self) -> u64 {
        self.0
    }
}

/// The block table of an artifact. In memory it takes 8 bytes for each data block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTable {
    artifact: Digest,
    length: u64,
    runs: Vec<DataRun>,
    /// The fingerprint of each data block above its rank, its place among the data blocks; in order.
    keys: Vec<u64>,
}

/// Blocks that hold data, one after another; never touching the next run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DataRun {
    blocks: Range<u64>,
    /// The rank of the first block.
    rank: u64,
}

impl BlockTable {
    /// Makes the table of an artifact from its data blocks in order. `None` when there are more than [`BLOCKS_MAX`].
    ///
    /// # Panics
    /// When the blocks are out of order or beyond the length.
    pub fn from_blocks(
        artifact: Digest,
        length: u64,
        blocks: impl IntoIterator<Item = (u64, Fingerprint)>,
    ) -> Option<Self> {
        Self::from_blocks_up_to(BLOCKS_MAX, artifact, length, blocks)
    }

    fn from_blocks_up_to(
        most: u64,
        artifact: Digest,
        length: u64,
        blocks: impl IntoIterator<Item = (u64, Fingerprint)>,
    ) -> Option<Self> {
        let mut runs: Vec<DataRun> = Vec::new();
        let mut keys = Vec::new();
        for (rank, (block, fingerprint)) in (0_u64..).zip(blocks) {
            if rank == most {
                return None;
            }
            match runs.last_mut() {
                Some(run) if run.blocks.end == block => run.blocks.end += 1,
                last => {
                    assert!(last.is_none_or(|run| run.blocks.end < block), "blocks come in order");
                    runs.push(DataRun { blocks: block..block + 1, rank });
                }
            }
            keys.push(key(fingerprint, rank));
        }
        let end = runs.last().map_or(0, |run| run.blocks.end);
        assert!(end <= block_count(length), "blocks lie in the artifact");
        keys.sort_unstable();
        Some(Self { artifact, length, runs, keys })
    }

    /// Returns the digest of the artifact that the table describes.
    pub fn artifact(&self) -> &Digest {
        &self.artifact
    }

    /// Returns the artifact's length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Returns how many blocks hold data.
    pub fn data_blocks(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Returns the bytes of a block: fewer than [`BLOCK_BYTES`] only for the last, none beyond it.
    pub fn block_bytes(&self, block: u64) -> u64 {
        self.length.saturating_sub(block.saturating_mul(BLOCK_BYTES)).min(BLOCK_BYTES)
    }

    /// Returns the numbers of the blocks that may have the content of this fingerprint, lowest first.
    pub fn candidates(&self, fingerprint: Fingerprint) -> impl Iterator<Item = u64> {
        let first = self.keys.partition_point(|other| *other < key(fingerprint, 0));
        self.keys[first..]
            .iter()
            .take_while(move |key| fingerprint_of(**key) == fingerprint)
            .map(|key| self.block_of(rank_of(*key)))
    }

    /// Returns the data blocks with their fingerprints, in the artifact's order. Takes another 8 bytes a block.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, Fingerprint)> {
        let mut by_rank = vec![Fingerprint(0); self.keys.len()];
        for key in &self.keys {
            if let Some(slot) = usize::try_from(rank_of(*key)).ok().and_then(|rank| by_rank.get_mut(rank)) {
                *slot = fingerprint_of(*key);
            }
        }
        self.runs.iter().flat_map(|run| run.blocks.clone()).zip(by_rank)
    }

    /// Returns whether a block is one of those with this fingerprint.
    fn has(&self, block: u64, fingerprint: Fingerprint) -> bool {
        self.rank_at(block).is_some_and(|rank| self.keys.binary_search(&key(fingerprint, rank)).is_ok())
    }

    fn block_of(&self, rank: u64) -> u64 {
        let after = self.runs.partition_point(|run| run.rank <= rank);
        let run = &self.runs[after.saturating_sub(1)];
        run.blocks.start + (rank - run.rank)
    }

    fn rank_at(&self, block: u64) -> Option<u64> {
        let after = self.runs.partition_point(|run| run.blocks.start <= block);
        let run = self.runs.get(after.checked_sub(1)?)?;
        run.blocks.contains(&block).then(|| run.rank + (block - run.blocks.start))
    }
}

/// Returns how many blocks a file of `length` bytes has.
pub fn block_count(length: u64) -> u64 {
    length.div_ceil(BLOCK_BYTES)
}

fn key(fingerprint: Fingerprint, rank: u64) -> u64 {
    fingerprint.0 << RANK_BITS | rank
}

fn fingerprint_of(key: u64) -> Fingerprint {
    Fingerprint(key >> RANK_BITS)
}

fn rank_of(key: u64) -> u64 {
    key & ((1 << RANK_BITS) - 1)
}
