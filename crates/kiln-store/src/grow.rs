//! Growth of a private disk beyond its artifact: what lies on it, and what has to be written for the new end.
//!
//! A disk without a partition table only gets longer; its file system is grown by whoever can. A GUID partition table
//! gets its backup at the new end, and the last partition takes the new space. All of it is worked out from the artifact
//! before anything is written, and written to a disk that nobody sees yet. What is read is a stranger's: every number
//! of a table is checked before it is used.

pub(crate) mod gpt;

use crate::error::{StoreError, StoreResult};
use kiln_core::{ByteSize, Digest};
use kiln_sys::{IoResult, IoResultExt as _, fail};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// What is read to tell what a disk holds, in bytes: the first sectors, of either size, and a superblock of ext4.
const HEAD_BYTES: usize = 8192;
/// Disks are whole sectors of this many bytes.
const SECTOR_BYTES: u64 = 512;
/// The unit in which an overlay holds what was written, in bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// Room for what growth writes, in bytes: two tables of at most [`gpt::ENTRIES_MAX`] entries and a little.
pub(crate) const GROWTH_BYTES: u64 = 512 << 10;
/// Where ext4 has its superblock's magic number.
const EXT4_MAGIC_AT: usize = 1024 + 0x38;
const EXT4_MAGIC: [u8; 2] = [0x53, 0xef];
/// The four entries of an MBR, and their length.
const MBR_ENTRIES: [usize; 4] = [446, 462, 478, 494];
const MBR_ENTRY_BYTES: usize = 16;
/// The type of the entry that stands for a GUID partition table.
const MBR_PROTECTIVE: u8 = 0xee;

/// What was grown beyond its artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// The artifact's length.
    pub from: ByteSize,
    /// The disk's length.
    pub to: ByteSize,
    /// What lies on the disk. Its file system still has the size it had in the artifact.
    pub content: GrownContent,
}

/// What lies on a grown disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrownContent {
    /// An ext4 file system, without a partition table.
    Ext4,
    /// A GUID partition table, whose last partition took the new space.
    Partition {
        /// Its number in the table, from 1.
        number: u32,
    },
    /// Something else, without a partition table.
    Other,
}

/// Why a disk cannot be longer than its artifact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotGrow {
    /// The length is no whole number of sectors.
    #[error("{} bytes are not whole sectors of {sector} bytes", wanted.bytes())]
    Sectors {
        /// The length asked for.
        wanted: ByteSize,
        /// The bytes of a sector.
        sector: u64,
    },
    /// The table is of the old kind.
    #[error("it has an MBR partition table; only GUID partition tables are grown")]
    Mbr,
    /// It has a table of both kinds.
    #[error("its MBR has partitions beside the GUID partition table")]
    Hybrid,
    /// The table is damaged, or never was one.
    #[error("its GUID partition table is not valid: {reason}")]
    Table {
        /// What is wrong with it.
        reason: String,
    },
    /// The table is empty.
    #[error("its GUID partition table has no partition")]
    Empty,
    /// What could take the new space is something else than the root file system.
    #[error("its last partition, number {number} of type {kind}, is not that of the root file system")]
    LastPartition {
        /// The partition's number, from 1.
        number: u32,
        /// Its type, as a GUID.
        kind: String,
    },
    /// The backup table does not fit behind the last partition.
    #[error("the table's backup would not leave its last partition any new space: {} bytes are the least", least.bytes())]
    Room {
        /// The least length that grows it.
        least: ByteSize,
    },
}

/// Bytes that differ from the artifact's.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Their place on the disk.
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
}

impl std::fmt::Debug for Patch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {}", self.bytes.len(), self.at)
    }
}

/// What is to be written to make a disk longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) growth: Growth,
    /// The backup table at the new end, durable before anything of the first table is touched.
    pub(crate) backup: Vec<Patch>,
    /// The table at the beginning.
    pub(crate) primary: Vec<Patch>,
}

impl Plan {
    /// Works out how a disk of `to` bytes is made of an artifact; none where it has that length already.
    ///
    /// # Errors
    /// [`StoreError::Shrink`] for a length below the artifact's, [`StoreError::CannotGrow`] for a disk that cannot be
    /// made longer.
    pub(crate) fn new(
        artifact: &Digest,
        source: &File,
        path: &Path,
        from: ByteSize,
        to: ByteSize,
    ) -> StoreResult<Option<Self>> {
        match to.cmp(&from) {
            std::cmp::Ordering::Less => Err(StoreError::Shrink { wanted: to, least: from }),
            std::cmp::Ordering::Equal => Ok(None),
            std::cmp::Ordering::Greater => {
                let read = |at, len| read_at(source, path, from, at, len);
                let planned = plan(from, to, &read)?;
                planned.map(Some).map_err(|source| StoreError::CannotGrow {
                    artifact: *artifact,
                    wanted: to,
                    source,
                })
            }
        }
    }

    /// Makes the raw disk in `file`, which has the artifact's content, longer. At every moment one table is whole, so
    /// that an interrupted growth can be told from damage.
    pub(crate) fn write(&self, file: &File, path: &Path) -> IoResult<()> {
        fail::point("grow.length", path)?;
        file.set_len(self.growth.to.bytes()).at("set the length of", path)?;
        if self.primary.is_empty() {
            return Ok(());
        }
        fail::point("grow.backup", path)?;
        write_patches(file, path, &self.backup)?;
        fail::point("grow.backup-sync", path)?;
        file.sync_all().at("sync", path)?;
        fail::point("grow.primary", path)?;
        write_patches(file, path, &self.primary)?;
        fail::point("grow.primary-sync", path)?;
        file.sync_all().at("sync", path)
    }

    /// Returns the blocks of the disk that differ from the artifact, whole, by their number.
    pub(crate) fn blocks(&self, source: &File, path: &Path) -> IoResult<BTreeMap<u64, Vec<u8>>> {
        let mut blocks = BTreeMap::new();
        let block_bytes = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
        for patch in self.backup.iter().chain(&self.primary) {
            let mut at = patch.at;
            let mut rest = patch.bytes.as_slice();
            while !rest.is_empty() {
                let (number, inside) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
                let inside = usize::try_from(inside).unwrap_or(usize::MAX);
                let (now, later) = rest.split_at(rest.len().min(block_bytes - inside));
                let block = match blocks.entry(number) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        let below = number * BLOCK_BYTES;
                        entry.insert(read_at(source, path, self.growth.from, below, block_bytes)?)
                    }
                };
                block[inside..inside + now.len()].copy_from_slice(now);
                at += now.len() as u64;
                rest = later;
            }
        }
        Ok(blocks)
    }
}

fn write_patches(file: &File, path: &Path, patches: &[Patch]) -> IoResult<()> {
    patches.iter().try_for_each(|patch| file.write_all_at(&patch.bytes, patch.at).at("write", path))
}

/// Reads `len` bytes of a file of `size` bytes; what lies beyond its end is zeros.
fn read_at(source: &File, path: &Path, size: ByteSize, at: u64, len: usize) -> IoResult<Vec<u8>> {
    let mut bytes = vec![0; len];
    let there = usize::try_from(size.bytes().saturating_sub(at)).unwrap_or(usize::MAX).min(len);
    source.read_exact_at(&mut bytes[..there], at).at("read", path)?;
    Ok(bytes)
}

/// Works out a growth. `read` gives that many bytes of the artifact from a place on, zeros beyond its end.
pub(crate) fn plan(
    from: ByteSize,
    to: ByteSize,
    read: &dyn Fn(u64, usize) -> IoResult<Vec<u8>>,
) -> StoreResult<Result<Plan, CannotGrow>> {
    if !to.bytes().is_multiple_of(SECTOR_BYTES) {
        return Ok(Err(CannotGrow::Sectors { wanted: to, sector: SECTOR_BYTES }));
    }
    let head = read(0, HEAD_BYTES)?;
    let bare =
        |content| Plan { growth: Growth { from, to, content }, backup: Vec::new(), primary: Vec::new() };
    Ok(match mbr(&head, from) {
        Mbr::Partitions => Err(CannotGrow::Mbr),
        Mbr::Hybrid => Err(CannotGrow::Hybrid),
        Mbr::Protective(entry) => gpt::plan(from, to, &head, entry, read)?,
        Mbr::None if gpt::header_at(&head).is_some() => {
            Err(CannotGrow::Table { reason: "it has no protective MBR".to_owned() })
        }
        Mbr::None if head.get(EXT4_MAGIC_AT..EXT4_MAGIC_AT + 2) == Some(&EXT4_MAGIC) => {
            Ok(bare(GrownContent::Ext4))
        }
        Mbr::None => Ok(bare(GrownContent::Other)),
    })
}

/// What the first sector says of partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mbr {
    /// Nothing: it may be the boot sector of a file system.
    None,
    /// A GUID partition table follows; where the entry is that says so.
    Protective(usize),
    /// Both kinds of table.
    Hybrid,
    /// Partitions of its own.
    Partitions,
}

/// Reads the first sector. Boot code of a file system ends with the same two bytes as a partition table, so entries
/// must make sense: one nonsensical entry and there is no table.
fn mbr(head: &[u8], size: ByteSize) -> Mbr {
    if head[510..512] != [0x55, 0xaa] {
        return Mbr::None;
    }
    let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let used: Vec<usize> = MBR_ENTRIES
        .into_iter()
        .filter(|at| head[*at..at + MBR_ENTRY_BYTES] != [0; MBR_ENTRY_BYTES])
        .collect();
    let protective: Vec<usize> = used.iter().copied().filter(|at| head[at + 4] == MBR_PROTECTIVE).collect();
    match protective.as_slice() {
        [entry] if used.len() == 1 => return Mbr::Protective(*entry),
        [] => {}
        _ => return Mbr::Hybrid,
    }
    let sensible = |at: &usize| {
        let (flag, kind, start, count) = (head[*at], head[at + 4], u32_at(at + 8), u32_at(at + 12));
        matches!(flag, 0 | 0x80)
            && kind != 0
            && start != 0
            && count != 0
            && u64::from(start) < size.bytes() / SECTOR_BYTES
    };
    if !used.is_empty() && used.iter().all(sensible) { Mbr::Partitions } else { Mbr::None }
}

#[cfg(test)]
mod tests;
