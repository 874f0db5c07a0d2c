//! The head of a qcow2 overlay: a disk that reads as its backing file until it is written.
//!
//! Only an empty one is made here, or one with the few blocks that a grown partition table takes; the machine monitor
//! does the rest. Sub-clusters of 4 KiB, the block of most file systems: a first write then copies nothing from below.
//! Layout: QEMU's `docs/interop/qcow2.txt`, version 3.

use crate::grow::BLOCK_BYTES;
use kiln_sys::{IoResult, IoResultExt as _};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// A cluster is 2 to the power of this many bytes; its 32 sub-clusters have 4 KiB.
const CLUSTER_BITS: u32 = 17;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// An entry of a level 2 table: allocation and a bit map of sub-clusters.
const L2_ENTRY_BYTES: u64 = 16;
/// The bytes of a disk under one entry of the level 1 table.
const L1_SPAN: u64 = CLUSTER_BYTES / L2_ENTRY_BYTES * CLUSTER_BYTES;
/// Incompatible feature: extended level 2 entries. QEMU knows it since 5.2.
const EXTENDED_L2: u64 = 1 << 4;
/// References are counted in 2 to the power of this many bits.
const REFCOUNT_ORDER: u32 = 4;
const HEADER_BYTES: u32 = 112;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const BACKING_FORMAT: [u8; 8] = *b"raw\0\0\0\0\0";
/// The longest name of a backing file that the format allows, in bytes.
const BACKING_BYTES_MAX: usize = 1023;
/// The largest level 1 table that QEMU opens, in bytes.
const L1_BYTES_MAX: u64 = 32 << 20;
const SECTOR_BYTES: u64 = 512;
/// Sub-clusters of a cluster: the blocks that one entry of a level 2 table tells about.
const BLOCKS: u64 = CLUSTER_BYTES / BLOCK_BYTES;
/// Set in an entry whose cluster has exactly one reference.
const COPIED: u64 = 1 << 63;

/// Whether a disk of `size` bytes over a file named `backing` can be made.
pub(crate) fn fits(size: u64, backing: &str) -> bool {
    size > 0
        && size.is_multiple_of(SECTOR_BYTES)
        && size.div_ceil(L1_SPAN) * 8 <= L1_BYTES_MAX
        && (1..=BACKING_BYTES_MAX).contains(&backing.len())
}

/// Writes an overlay of `size` bytes to the empty `file`. `backing` names the raw file below, as seen from the
/// overlay's directory; `blocks` are what differs from it, by number, each whole and on the disk.
pub(crate) fn write(
    file: &File,
    path: &Path,
    size: u64,
    backing: &str,
    blocks: &BTreeMap<u64, Vec<u8>>,
) -> IoResult<()> {
    let l1_entries = size.div_ceil(L1_SPAN);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER_BYTES);
    let (written, clusters) = place(blocks, 3 + l1_clusters);
    // Clusters: header, table of reference blocks, one reference block, level 1 table, which stays a hole where
    // nothing is written, and what is.
    let mut head = Vec::with_capacity(256);
    head.extend(*b"QFI\xfb");
    put32(&mut head, 3);
    let name_at = u64::from(HEADER_BYTES) + 8 + 8 + 8;
    put64(&mut head, name_at);
    put32(&mut head, len32(backing));
    put32(&mut head, CLUSTER_BITS);
    put64(&mut head, size);
    put32(&mut head, 0); // no encryption
    put32(&mut head, u32::try_from(l1_entries).unwrap_or(u32::MAX));
    put64(&mut head, 3 * CLUSTER_BYTES);
    put64(&mut head, CLUSTER_BYTES);
    put32(&mut head, 1); // clusters of the table of reference blocks
    put32(&mut head, 0); // snapshots
    put64(&mut head, 0);
    put64(&mut head, EXTENDED_L2);
    put64(&mut head, 0); // compatible features
    put64(&mut head, 0); // features that a writer clears
    put32(&mut head, REFCOUNT_ORDER);
    put32(&mut head, HEADER_BYTES);
    put64(&mut head, 0); // compression: zlib, and padding
    put32(&mut head, EXTENSION_BACKING_FORMAT);
    put32(&mut head, 3);
    head.extend(BACKING_FORMAT);
    put64(&mut head, 0); // end of extensions
    head.extend(backing.as_bytes());
    let counts: Vec<u8> = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.set_len(clusters * CLUSTER_BYTES).at("set the length of", path)?;
    file.write_all_at(&head, 0).at("write", path)?;
    file.write_all_at(&(2 * CLUSTER_BYTES).to_be_bytes(), CLUSTER_BYTES).at("write", path)?;
    file.write_all_at(&counts, 2 * CLUSTER_BYTES).at("write", path)?;
    written.iter().try_for_each(|(at, bytes)| file.write_all_at(bytes, *at).at("write", path))
}

/// Gives the blocks clusters from number `free` on; returns what is written where, tables and data, and the first number
/// that is free after it. One reference block counts all: there are few.
fn place(blocks: &BTreeMap<u64, Vec<u8>>, mut free: u64) -> (Vec<(u64, Vec<u8>)>, u64) {
    let mut take = || {
        free += 1;
        (free - 1) * CLUSTER_BYTES
    };
    let mut tables: BTreeMap<u64, u64> = BTreeMap::new();
    let mut data: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    let mut written = Vec::new();
    for (number, bytes) in blocks {
        let (cluster, inside) = (number / BLOCKS, number % BLOCKS);
        let (at, present) = data.entry(cluster).or_insert_with(|| (take(), 0));
        *present |= 1 << inside;
        written.push((*at + inside * BLOCK_BYTES, bytes.clone()));
    }
    for (cluster, (at, present)) in &data {
        let (table, entry) = (cluster * CLUSTER_BYTES / L1_SPAN, cluster % (CLUSTER_BYTES / L2_ENTRY_BYTES));
        let table_at = *tables.entry(table).or_insert_with(&mut take);
        let mut bytes = (at | COPIED).to_be_bytes().to_vec();
        // The upper half would say which sub-clusters read as zeros.
        bytes.extend(u64::from(*present).to_be_bytes());
        written.push((table_at + entry * L2_ENTRY_BYTES, bytes));
    }
    for (table, at) in &tables {
        written.push((3 * CLUSTER_BYTES + table * 8, (at | COPIED).to_be_bytes().to_vec()));
    }
    (written, free)
}

/// Returns the size of the disk in a qcow2 file, in bytes; none where the file is no qcow2 file.
pub(crate) fn virtual_size(file: &File, path: &Path) -> IoResult<Option<u64>> {
    let mut head = [0; 32];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error).at("read", path),
    }
    let [magic, size] = [&head[..4], &head[24..]];
    Ok((magic == b"QFI\xfb").then(|| size.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))))
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_be_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_be_bytes());
}

fn len32(text: &str) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_sectors_and_short_names_fit() {
        assert!(fits(512, "x") && fits(16 << 40, &"x".repeat(BACKING_BYTES_MAX)));
        assert!(!fits(0, "x") && !fits(513, "x") && !fits(512, ""));
        assert!(!fits(512, &"x".repeat(BACKING_BYTES_MAX + 1)));
        assert!(!fits(8 << 50, "x"));
    }
}
