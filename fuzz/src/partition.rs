//! Partition tables: each partition lies on its disk, and no number is there twice.

use crate::{Bench, HOST};
use kiln_core::arch::Arch;
use kiln_source::disk::partition::{choose_root, describe, partitions};
use std::collections::HashSet;

/// Bit of the first byte: check sums are made to fit, as whoever means harm does.
const REPAIR: u8 = 1;
/// Bit of the first byte: the disk is longer than what is there of it.
const LONG: u8 = 2;
const LONG_BYTES: u64 = 64 << 20;

/// Reads bytes as a byte of options and a disk.
pub fn run(data: &[u8]) {
    let Some((options, disk)) = data.split_first() else { return };
    let mut disk = disk.to_vec();
    if options & REPAIR != 0 {
        for sector in [512, 4096] {
            repair(&mut disk, sector);
        }
    }
    let bench = Bench::shared();
    let (file, path) = bench.write("disk", &disk);
    if options & LONG != 0 {
        file.set_len(LONG_BYTES.max(disk.len() as u64)).expect(HOST);
    }
    let size = file.metadata().expect(HOST).len();
    let Ok(Some(found)) = partitions(&file, &path) else { return };
    let mut numbers = HashSet::new();
    for partition in &found {
        let end = partition.start.checked_add(partition.len);
        assert!(end.is_some_and(|end| end <= size), "{partition:?} on a disk of {size} bytes");
        assert!(partition.number > 0 && numbers.insert(partition.number), "{partition:?} is there twice");
        let wanted = Some(partition.number);
        let chosen = choose_root(&found, wanted, Arch::X86_64, &path).expect("it is there");
        assert_eq!(chosen, partition);
    }
    for arch in [Arch::X86_64, Arch::Aarch64] {
        if let Ok(root) = choose_root(&found, None, arch, &path) {
            assert!(found.contains(root));
        }
    }
    describe(&found);
}

/// Corrects the check sums of a GUID partition table whose header lies at `at`.
fn repair(disk: &mut [u8], at: usize) {
    let number = |disk: &[u8], at: usize| {
        disk.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
    };
    if disk.get(at..at + 8) != Some(b"EFI PART") {
        return;
    }
    let (Some(len), Some(from), Some(count), Some(size)) =
        (number(disk, at + 12), number(disk, at + 72), number(disk, at + 80), number(disk, at + 84))
    else {
        return;
    };
    let from = (from as usize).saturating_mul(at);
    let to = from.saturating_add((count as usize).saturating_mul(size as usize));
    if let Some(entries) = disk.get(from..to) {
        let sum = libdeflater::crc32(entries);
        disk[at + 88..].iter_mut().zip(sum.to_le_bytes()).for_each(|(byte, sum)| *byte = sum);
    }
    if let Some(header) =
        disk.get_mut(at..at.saturating_add(len as usize)).filter(|header| header.len() >= 20)
    {
        header[16..20].fill(0);
        let sum = libdeflater::crc32(header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
    }
}
