//! Partition tables: where partitions lie, and which of them is the root. Every number is a stranger's.

use super::filesystem::FileSystem;
use super::format::HEAD_BYTES;
use super::{DiskError, DiskResult};
use kiln_core::ByteSize;
use kiln_core::arch::Arch;
use kiln_sys::IoResultExt as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The most entries that a GUID partition table may have.
pub const GPT_ENTRIES_MAX: u32 = 1024;
/// The largest partition that is looked into for a kernel, in bytes.
pub const BOOT_BYTES_MAX: u64 = 8 << 30;
/// The most logical partitions of an MBR.
pub const LOGICAL_MAX: u32 = 60;

const SECTOR: u64 = 512;
const SECTOR_SIZES: [u64; 2] = [512, 4096];
const MBR_ENTRIES: [usize; 4] = [446, 462, 478, 494];
/// Types of the MBR that hold other partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;

/// The types of root partitions, as their first 16 bytes stand on a disk, and what they are for.
const ROOT_AMD64: [u8; 16] =
    [0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09];
const ROOT_ARM64: [u8; 16] =
    [0x45, 0xb0, 0x21, 0xb9, 0xf0, 0x1d, 0xc3, 0x41, 0xaf, 0x44, 0x4c, 0x6f, 0x28, 0x0d, 0x3f, 0xae];

/// The type of the partition with the boot loaders that UEFI firmware starts.
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number in the table, from 1.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it holds, where that is known.
    pub content: Option<FileSystem>,
    /// Its type in a GUID partition table.
    kind: Option<[u8; 16]>,
}

impl Partition {
    /// Returns whether it is typed, in a GUID partition table, as the one with the boot loaders of UEFI firmware.
    pub fn is_efi_system(&self) -> bool {
        self.kind == Some(EFI_SYSTEM)
    }
}

/// Reads the partitions of a raw disk in order; none where it has no table.
///
/// # Errors
/// When the table is damaged.
pub fn partitions(disk: &File, path: &Path) -> DiskResult<Option<Vec<Partition>>> {
    let size = disk.metadata().at("inspect", path)?.len();
    let first = read(disk, path, 0, SECTOR, size)?;
    if first.len() < 512 || first[510..512] != [0x55, 0xaa] {
        return Ok(None);
    }
    let entries = MBR_ENTRIES.map(|at| MbrEntry::parse(&first[at..at + 16]));
    let mut found = if entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        gpt(disk, path, size)?
    } else {
        // Boot code of a file system ends with the same two bytes: one nonsensical entry and there is no table.
        let used: Vec<&MbrEntry> = entries.iter().filter(|entry| !entry.is_empty).collect();
        if used.is_empty() || used.iter().any(|entry| !entry.is_sensible(size)) {
            return Ok(None);
        }
        mbr(disk, path, size, &entries)?
    };
    for partition in &mut found {
        let len = partition.len.min(HEAD_BYTES as u64);
        partition.content = FileSystem::detect(&read(disk, path, partition.start, len, size)?);
    }
    Ok(Some(found))
}

/// Chooses the root: the partition asked for, else the one typed as root for this architecture, else the only ext4
/// file system where nothing else on the disk could be the root, of which it would be what is mounted at `/boot`.
///
/// # Errors
/// When there is no such partition, and when it cannot be told.
pub fn choose_root<'a>(
    all: &'a [Partition],
    wanted: Option<u32>,
    arch: Arch,
    path: &Path,
) -> DiskResult<&'a Partition> {
    let path = path.to_owned();
    if let Some(number) = wanted {
        let there = describe(all);
        let found = all.iter().find(|partition| partition.number == number);
        return found.ok_or(DiskError::NoPartition { path, number, there });
    }
    let kind = if arch == Arch::X86_64 { ROOT_AMD64 } else { ROOT_ARM64 };
    let typed: Vec<&Partition> = all.iter().filter(|partition| partition.kind == Some(kind)).collect();
    if let [root] = typed.as_slice() {
        return Ok(root);
    }
    let other = |content| matches!(content, None | Some(FileSystem::Fat | FileSystem::Swap));
    let roots: Vec<&Partition> = all.iter().filter(|partition| !other(partition.content)).collect();
    match roots.as_slice() {
        [root] if root.content == Some(FileSystem::Ext4) => Ok(root),
        _ => Err(DiskError::WhichPartition { path, there: describe(all) }),
    }
}

/// Returns the partition that may be what is mounted at `/boot`: the only other ext4, of at most [`BOOT_BYTES_MAX`]. Of
/// several none is known to be.
pub fn choose_boot<'a>(all: &'a [Partition], root: &Partition) -> Option<&'a Partition> {
    let is_boot = |other: &&Partition| {
        other.number != root.number && other.content == Some(FileSystem::Ext4) && other.len <= BOOT_BYTES_MAX
    };
    let mut others = all.iter().filter(is_boot);
    others.next().filter(|_| others.next().is_none())
}

/// Returns a list of partitions for people.
pub fn describe(all: &[Partition]) -> String {
    let each = |partition: &Partition| {
        let content = partition.content.map_or("unknown", FileSystem::name);
        format!("{} ({content}, {})", partition.number, ByteSize::from_bytes(partition.len).human())
    };
    if all.is_empty() { "none".to_owned() } else { all.iter().map(each).collect::<Vec<_>>().join(", ") }
}

/// Reads up to `len` bytes at `at`, fewer at the end of the disk.
fn read(disk: &File, path: &Path, at: u64, len: u64, size: u64) -> DiskResult<Vec<u8>> {
    let len = len.min(size.saturating_sub(at));
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    disk.read_exact_at(&mut bytes, at).at("read", path)?;
    Ok(bytes)
}

fn damaged(path: &Path, reason: impl Into<String>) -> DiskError {
    DiskError::Table { path: path.to_owned(), reason: reason.into() }
}

#[derive(Debug, Clone, Copy)]
struct MbrEntry {
    is_empty: bool,
    flag: u8,
    kind: u8,
    start: u64,
    count: u64,
}

impl MbrEntry {
    fn parse(bytes: &[u8]) -> Self {
        let number = |at: usize| u64::from(u32_at(bytes, at));
        Self {
            is_empty: bytes.iter().all(|byte| *byte == 0),
            flag: bytes[0],
            kind: bytes[4],
            start: number(8),
            count: number(12),
        }
    }

    fn is_sensible(&self, size: u64) -> bool {
        matches!(self.flag, 0 | 0x80)
            && self.kind != 0
            && self.start != 0
            && self.count != 0
            && self.start * SECTOR < size
    }
}

fn mbr(disk: &File, path: &Path, size: u64, entries: &[MbrEntry; 4]) -> DiskResult<Vec<Partition>> {
    let mut found = Vec::new();
    for (entry, number) in entries.iter().zip(1..).filter(|(entry, _)| !entry.is_empty) {
        if EXTENDED.contains(&entry.kind) {
            logical(disk, path, size, entry.start, &mut found)?;
        } else {
            found.push(placed(path, size, number, entry.start, entry.count)?);
        }
    }
    found.sort_by_key(|partition| partition.number);
    Ok(found)
}

/// Follows the list of an extended partition, whose places count from its own begin.
fn logical(disk: &File, path: &Path, size: u64, base: u64, found: &mut Vec<Partition>) -> DiskResult<()> {
    let mut at = base;
    for number in 5..=LOGICAL_MAX + 4 {
        let sector = read(disk, path, at * SECTOR, SECTOR, size)?;
        if sector.len() < 512 || sector[510..512] != [0x55, 0xaa] {
            return Err(damaged(path, "the list of its logical partitions breaks off"));
        }
        let [own, next] = [446, 462].map(|from: usize| MbrEntry::parse(&sector[from..from + 16]));
        if own.count != 0 {
            found.push(placed(path, size, number, at + own.start, own.count)?);
        }
        if next.count == 0 {
            return Ok(());
        }
        let following = base + next.start;
        if following <= at {
            return Err(damaged(path, "the list of its logical partitions leads back"));
        }
        at = following;
    }
    Err(damaged(path, format!("it has more than {LOGICAL_MAX} logical partitions")))
}

fn placed(path: &Path, size: u64, number: u32, start: u64, count: u64) -> DiskResult<Partition> {
    let (start, len) = (start * SECTOR, count * SECTOR);
    if start + len > size {
        return Err(damaged(path, format!("partition {number} reaches beyond the disk's end")));
    }
    Ok(Partition { number, start, len, content: None, kind: None })
}

/// Reads a GUID partition table. The backup at the disk's end is not read: an image is taken as it begins.
fn gpt(disk: &File, path: &Path, size: u64) -> DiskResult<Vec<Partition>> {
    let head = read(disk, path, 0, 8192, size)?;
    let mark = |sector: &u64| {
        let at = usize::try_from(*sector).unwrap_or(0);
        head.get(at..at + 8) == Some(b"EFI PART") && head.len() >= at + 92
    };
    let Some(sector) = SECTOR_SIZES.into_iter().find(mark) else {
        return Err(damaged(path, "its MBR announces a GUID partition table that is not there"));
    };
    let header = &head[usize::try_from(sector).unwrap_or(0)..];
    let header_len = u32_at(header, 12) as usize;
    if !(92..=512).contains(&header_len) || header.len() < header_len {
        return Err(damaged(path, format!("its header has {header_len} bytes")));
    }
    let mut checked = header[..header_len].to_vec();
    checked[16..20].fill(0);
    if libdeflater::crc32(&checked) != u32_at(header, 16) {
        return Err(damaged(path, "the check sum of its header is wrong"));
    }
    let (entries_at, count, entry) = (u64_at(header, 72), u32_at(header, 80), u32_at(header, 84));
    if !(1..=GPT_ENTRIES_MAX).contains(&count) || entry != 128 {
        return Err(damaged(path, format!("it has {count} entries of {entry} bytes")));
    }
    let len = u64::from(count) * u64::from(entry);
    let at = entries_at.checked_mul(sector).filter(|at| at.checked_add(len).is_some_and(|end| end <= size));
    let Some(at) = at else {
        return Err(damaged(path, "its entries do not lie on the disk"));
    };
    let entries = read(disk, path, at, len, size)?;
    if libdeflater::crc32(&entries) != u32_at(header, 88) {
        return Err(damaged(path, "the check sum of its entries is wrong"));
    }
    let mut found = Vec::new();
    for (entry, number) in entries.chunks_exact(128).zip(1..) {
        let mut kind = [0; 16];
        kind.copy_from_slice(&entry[..16]);
        if kind == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let start = first.checked_mul(sector);
        let end = last.checked_add(1).and_then(|end| end.checked_mul(sector));
        match (start, end) {
            (Some(start), Some(end)) if first <= last && end <= size => {
                found.push(Partition { number, start, len: end - start, content: None, kind: Some(kind) });
            }
            _ => {
                let reason = format!("partition {number} reaches from sector {first} to {last}");
                return Err(damaged(path, reason));
            }
        }
    }
    Ok(found)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
