//! The GUID partition table of a disk that gets longer. Reading and writing of header and entries are `gptman`'s; its
//! functions allocate and multiply by what a header says, so nothing is handed to it unchecked.

use super::{CannotGrow, GrownContent, Growth, Patch, Plan};
use crate::error::StoreResult;
use gptman::{GPTHeader, GPTPartitionEntry};
use kiln_core::ByteSize;
use kiln_sys::IoResult;
use std::io::{Cursor, Seek, SeekFrom, Write};

/// The most entries a table may have; others have 128.
pub(crate) const ENTRIES_MAX: u32 = 1024;
/// The only length of an entry that is in use, in bytes.
const ENTRY_BYTES: u32 = 128;
/// Bytes behind the entries that their reader may touch: it takes more than an entry at once, and uses only that.
const SLACK_BYTES: usize = 512;
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// The sizes of a sector that disks have, in bytes.
const SECTOR_SIZES: [usize; 2] = [512, 4096];

/// A partition's type: any Linux file system.
const LINUX: [u8; 16] = guid(0x0fc6_3daf, 0x8483, 0x4772, [0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);
/// A partition's types: the root file system, of one architecture each.
const ROOTS: [[u8; 16]; 5] = [
    guid(0x4f68_bce3, 0xe8cd, 0x4db1, [0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09]),
    guid(0xb921_b045, 0x1df0, 0x41c3, [0xaf, 0x44, 0x4c, 0x6f, 0x28, 0x0d, 0x3f, 0xae]),
    guid(0x4447_9540, 0xf297, 0x41b2, [0x9a, 0xf7, 0xd1, 0x31, 0xd5, 0xf0, 0x45, 0x8a]),
    guid(0x69da_d710, 0x2ce4, 0x4e3c, [0xb1, 0x6c, 0x21, 0xa1, 0xd4, 0x9a, 0xbe, 0xd3]),
    guid(0x72ec_70a6, 0xcf74, 0x40e6, [0xbd, 0x49, 0x4b, 0xda, 0x08, 0xe8, 0xf2, 0x24]),
];

/// Returns the bytes that a GUID has on a disk.
const fn guid(first: u32, second: u16, third: u16, rest: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes());
    let [d, e, f, g, h, i, j, k] = rest;
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d, e, f, g, h, i, j, k]
}

/// Returns the size of a sector, where a table's header stands in the second one.
pub(super) fn header_at(head: &[u8]) -> Option<usize> {
    SECTOR_SIZES.into_iter().find(|sector| head.get(*sector..sector + 8) == Some(SIGNATURE))
}

/// A table that was checked.
struct Table {
    header: GPTHeader,
    entries: Vec<GPTPartitionEntry>,
    sector: u64,
    /// Sectors that the entries take up.
    entry_sectors: u64,
}

/// Works out the growth of a table. `mbr_entry` is where the protective entry stands in `head`.
pub(super) fn plan(
    from: ByteSize,
    to: ByteSize,
    head: &[u8],
    mbr_entry: usize,
    read: &dyn Fn(u64, usize) -> IoResult<Vec<u8>>,
) -> StoreResult<Result<Plan, CannotGrow>> {
    let checked = match header(head, from) {
        Ok(checked) => checked,
        Err(refused) => return Ok(Err(refused)),
    };
    let (header, sector) = checked;
    let len = (header.number_of_partition_entries * ENTRY_BYTES) as usize;
    let mut bytes = read(header.partition_entry_lba * sector, len)?;
    bytes.resize(len + SLACK_BYTES, 0);
    let table = entries(header, sector, &bytes);
    Ok(table.and_then(|table| grow(table, from, to, head, mbr_entry)))
}

fn invalid(reason: impl Into<String>) -> CannotGrow {
    CannotGrow::Table { reason: reason.into() }
}

/// Reads and checks the header; returns it with the size of a sector.
fn header(head: &[u8], size: ByteSize) -> Result<(GPTHeader, u64), CannotGrow> {
    let Some(at) = header_at(head) else {
        return Err(invalid("its header is missing"));
    };
    let header = head.get(at..).unwrap_or_default();
    let header =
        GPTHeader::read_from(&mut Cursor::new(header)).map_err(|error| invalid(error.to_string()))?;
    let sector = at as u64;
    let sectors = size.bytes() / sector;
    let (count, entry) = (header.number_of_partition_entries, header.size_of_partition_entry);
    if header.primary_lba != 1 {
        return Err(invalid(format!("its header says it stands in sector {}", header.primary_lba)));
    }
    if !(1..=ENTRIES_MAX).contains(&count) || entry != ENTRY_BYTES {
        return Err(invalid(format!("it has {count} entries of {entry} bytes")));
    }
    let entries_end = header.partition_entry_lba.checked_add(entry_sectors(count, sector));
    if header.partition_entry_lba < 2 || entries_end.is_none_or(|end| end > header.first_usable_lba) {
        return Err(invalid("its entries do not lie between header and partitions"));
    }
    if header.first_usable_lba > header.last_usable_lba || header.last_usable_lba >= sectors {
        return Err(invalid("the space for its partitions is not on the disk"));
    }
    Ok((header, sector))
}

fn entry_sectors(count: u32, sector: u64) -> u64 {
    (u64::from(count) * u64::from(ENTRY_BYTES)).div_ceil(sector)
}

/// Reads and checks the entries of a checked header.
fn entries(header: GPTHeader, sector: u64, bytes: &[u8]) -> Result<Table, CannotGrow> {
    // They were read from where they lie: for the reader that is the beginning.
    let here = GPTHeader { partition_entry_lba: 0, ..header.clone() };
    let entries =
        here.read_partitions(&mut Cursor::new(bytes), sector).map_err(|error| invalid(error.to_string()))?;
    let mut used: Vec<&GPTPartitionEntry> = entries.iter().filter(|entry| entry.is_used()).collect();
    used.sort_unstable_by_key(|entry| entry.starting_lba);
    let mut free = header.first_usable_lba;
    for entry in used {
        let (start, end) = (entry.starting_lba, entry.ending_lba);
        if end < start || end > header.last_usable_lba {
            return Err(invalid(format!("a partition reaches from sector {start} to {end}")));
        }
        if start < free {
            return Err(invalid(format!("the partition from sector {start} overlaps what is before it")));
        }
        // No partition ends at the last number there is: the disk ends before.
        free = end + 1;
    }
    let entry_sectors = entry_sectors(header.number_of_partition_entries, sector);
    Ok(Table { header, entries, sector, entry_sectors })
}

fn grow(
    mut table: Table,
    from: ByteSize,
    to: ByteSize,
    head: &[u8],
    mbr_entry: usize,
) -> Result<Plan, CannotGrow> {
    let sector = table.sector;
    if !to.bytes().is_multiple_of(sector) {
        return Err(CannotGrow::Sectors { wanted: to, sector });
    }
    let sectors = to.bytes() / sector;
    let has_root = table.entries.iter().any(|entry| ROOTS.contains(&entry.partition_type_guid));
    let last = table.entries.iter_mut().zip(1_u32..).filter(|(entry, _)| entry.is_used());
    let Some((last, number)) = last.max_by_key(|(entry, _)| entry.ending_lba) else {
        return Err(CannotGrow::Empty);
    };
    let kind = last.partition_type_guid;
    if !(ROOTS.contains(&kind) || kind == LINUX && !has_root) {
        return Err(CannotGrow::LastPartition { number, kind: guid_text(&kind) });
    }
    // The disk ends with the backup's entries and its header.
    let behind = table.entry_sectors + 1;
    let end = sectors.saturating_sub(behind + 1);
    if end <= last.ending_lba {
        let least = (last.ending_lba + 1 + behind + 1).saturating_mul(sector);
        return Err(CannotGrow::Room { least: ByteSize::from_bytes(least) });
    }
    last.ending_lba = end;
    let mut primary = table.header;
    primary.last_usable_lba = end;
    primary.backup_lba = sectors - 1;
    let mut backup = primary.clone();
    backup.primary_lba = primary.backup_lba;
    backup.backup_lba = primary.primary_lba;
    backup.partition_entry_lba = end + 1;
    let mut primary = record(&mut primary, sector, &table.entries)?;
    primary.push(protective(head, mbr_entry, sectors));
    Ok(Plan {
        growth: Growth { from, to, content: GrownContent::Partition { number } },
        backup: record(&mut backup, sector, &table.entries)?,
        primary,
    })
}

/// Returns what a header and its entries are on the disk, entries first: a header counts only with its entries.
fn record(
    header: &mut GPTHeader,
    sector: u64,
    entries: &[GPTPartitionEntry],
) -> Result<Vec<Patch>, CannotGrow> {
    let mut recorder = Recorder::default();
    header.write_into(&mut recorder, sector, entries).map_err(|error| invalid(error.to_string()))?;
    recorder.patches.reverse();
    Ok(recorder.patches)
}

/// Returns the protective entry's length for a disk of this many sectors.
fn protective(head: &[u8], entry: usize, sectors: u64) -> Patch {
    let start =
        head.get(entry + 8..entry + 12).and_then(|bytes| bytes.try_into().ok()).map_or(1, u32::from_le_bytes);
    let count = u32::try_from(sectors.saturating_sub(u64::from(start))).unwrap_or(u32::MAX);
    Patch { at: entry as u64 + 12, bytes: count.to_le_bytes().to_vec() }
}

/// Keeps what is written to it, by place.
#[derive(Debug, Default)]
struct Recorder {
    at: u64,
    patches: Vec<Patch>,
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.patches.last_mut() {
            Some(last) if last.at + last.bytes.len() as u64 == self.at => last.bytes.extend_from_slice(bytes),
            _ => self.patches.push(Patch { at: self.at, bytes: bytes.to_vec() }),
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Recorder {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let SeekFrom::Start(at) = to else {
            return Err(std::io::Error::from(std::io::ErrorKind::Unsupported));
        };
        self.at = at;
        Ok(at)
    }
}

/// Writes a GUID as people do.
fn guid_text(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *bytes;
    let (first, second, third) =
        (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
    let tail: String = rest[2..].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{first:08x}-{second:04x}-{third:04x}-{:02x}{:02x}-{tail}", rest[0], rest[1])
}
