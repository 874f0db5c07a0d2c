//! Growth of the root filesystem to its disk, while it is mounted: the kernel's own way, journalled, so that a guest
//! that ends in the middle goes on at its next start.
//!
//! The device may be a disk or a partition of one. Its length is asked of the device, so a partition that the host made
//! longer is grown into as a disk is; the partition table is the host's matter.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::raw;
use crate::config::RootDevice;

/// Where the superblock of ext4 starts, and how much of it is read.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;
/// Incompatible feature: block numbers of 64 bits.
const INCOMPAT_64BIT: u32 = 0x80;
/// The largest logarithm of the block size above 1 KiB that ext4 has.
const LOG_BLOCK_MAX: u32 = 6;

/// Blocks of a filesystem, as its superblock tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    blocks: u64,
    block_bytes: u64,
}

/// Grows the mounted root to its device, where that is larger.
pub(super) fn root(root: &RootDevice, mounted: &str) -> Result<(), String> {
    if root.read_only || root.fstype != "ext4" {
        return Ok(());
    }
    let Some((extent, wanted)) = room(root.device.as_str())? else { return Ok(()) };
    let grown = File::open(mounted).and_then(|root| raw::resize_ext4(&root, wanted));
    grown.map_err(|error| {
        let (have, want) = (extent.blocks * extent.block_bytes, wanted * extent.block_bytes);
        format!("cannot grow the root filesystem from {have} to {want} bytes: {error}")
    })
}

/// Returns the filesystem on a device and the blocks it could have; none where it has them.
fn room(device: &str) -> Result<Option<(Extent, u64)>, String> {
    let failed = |what: &str, error: io::Error| format!("cannot {what} {device}: {error}");
    let mut file = File::open(device).map_err(|error| failed("open", error))?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| failed("measure", error))?;
    let mut superblock = [0; SUPERBLOCK_BYTES];
    file.read_exact_at(&mut superblock, SUPERBLOCK_AT).map_err(|error| failed("read", error))?;
    // What was mounted has a superblock; one that is not understood is left as it is.
    let Some(extent) = parse(&superblock) else { return Ok(None) };
    let wanted = bytes / extent.block_bytes;
    Ok((wanted > extent.blocks).then_some((extent, wanted)))
}

fn parse(superblock: &[u8; SUPERBLOCK_BYTES]) -> Option<Extent> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(superblock.get(at..at + 4)?.try_into().ok()?));
    let magic = u16::from_le_bytes(superblock.get(0x38..0x3a)?.try_into().ok()?);
    let log_block = u32_at(0x18)?;
    if magic != MAGIC || log_block > LOG_BLOCK_MAX {
        return None;
    }
    let high = if u32_at(0x60)? & INCOMPAT_64BIT == 0 { 0 } else { u32_at(0x150)? };
    Some(Extent { blocks: u64::from(high) << 32 | u64::from(u32_at(0x4)?), block_bytes: 1024 << log_block })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u64, log_block: u32, incompat: u32) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[0x4..0x8].copy_from_slice(&blocks.to_le_bytes()[..4]);
        bytes[0x18..0x1c].copy_from_slice(&log_block.to_le_bytes());
        bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[0x60..0x64].copy_from_slice(&incompat.to_le_bytes());
        bytes[0x150..0x154].copy_from_slice(&blocks.to_le_bytes()[4..]);
        bytes
    }

    #[test]
    fn the_device_tells_the_room_be_it_a_disk_or_a_partition() {
        let path = std::env::temp_dir().join(format!("kiln-grow-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(10 * 4096 + 512).unwrap();
        let room = |blocks| {
            file.write_all_at(&superblock(blocks, 2, 0), SUPERBLOCK_AT).unwrap();
            room(path.to_str().unwrap())
        };
        let found = [9, 10, 11].map(room);
        std::fs::remove_file(&path).unwrap();
        let extent = Extent { blocks: 9, block_bytes: 4096 };
        assert_eq!(found, [Ok(Some((extent, 10))), Ok(None), Ok(None)]);
        assert!(super::room(path.to_str().unwrap()).unwrap_err().starts_with("cannot open "));
    }

    #[test]
    fn a_superblock_tells_the_size() {
        let large = (7 << 32) + 5;
        assert_eq!(parse(&superblock(large, 2, 0x80)), Some(Extent { blocks: large, block_bytes: 4096 }));
        assert_eq!(parse(&superblock(large, 0, 0)), Some(Extent { blocks: 5, block_bytes: 1024 }));
        assert_eq!(parse(&superblock(5, 7, 0)), None);
        assert_eq!(parse(&[0; SUPERBLOCK_BYTES]), None);
    }
}
