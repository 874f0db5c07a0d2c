//! Tables that are grown, and tables that are refused.

use super::*;
use gptman::{GPT, GPTPartitionEntry};
use kiln_sys::tool::ScratchDir;
use proptest::prelude::*;
use std::io::Cursor;

const MIB: u64 = 1 << 20;
const LINUX: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];
const ROOT: [u8; 16] =
    [0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09];
const SWAP: [u8; 16] =
    [0x6d, 0xfd, 0x57, 0x06, 0xab, 0xa4, 0xc4, 0x43, 0x84, 0xe5, 0x09, 0x33, 0xc8, 0x4b, 0x4f, 0x4f];

/// A disk with these partitions: type, first and last sector.
fn disk(bytes: u64, sector: u64, partitions: &[([u8; 16], u64, u64)]) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(bytes).unwrap()];
    let mut gpt = GPT::new_from(&mut Cursor::new(&mut image), sector, [7; 16]).unwrap();
    for ((kind, starting_lba, ending_lba), number) in partitions.iter().zip(1_u8..) {
        gpt[u32::from(number)] = GPTPartitionEntry {
            partition_type_guid: *kind,
            unique_partition_guid: [number; 16],
            starting_lba: *starting_lba,
            ending_lba: *ending_lba,
            attribute_bits: 4,
            partition_name: "a name".into(),
        };
    }
    gpt.write_into(&mut Cursor::new(&mut image)).unwrap();
    GPT::write_protective_mbr_into(&mut Cursor::new(&mut image), sector).unwrap();
    image
}

fn planned(image: &[u8], to: u64) -> Result<Plan, CannotGrow> {
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        let rest = image.get(usize::try_from(at).unwrap()..).unwrap_or_default();
        let there = rest.len().min(len);
        bytes[..there].copy_from_slice(&rest[..there]);
        Ok(bytes)
    };
    plan(ByteSize::from_bytes(image.len() as u64), ByteSize::from_bytes(to), &read).unwrap()
}

fn patch(image: &mut [u8], patches: &[Patch]) {
    for patch in patches {
        let at = usize::try_from(patch.at).unwrap();
        image[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
}

fn read(image: &[u8], sector: u64) -> gptman::Result<GPT> {
    GPT::read_from(&mut Cursor::new(image), sector)
}

/// Returns the table that the end of a disk has.
fn backup(image: &[u8], sector: u64) -> gptman::Result<GPT> {
    let mut image = image.to_vec();
    let at = usize::try_from(sector).unwrap();
    image[at..at + 8].fill(0);
    read(&image, sector)
}

fn reason(result: Result<Plan, CannotGrow>) -> String {
    match result {
        Err(CannotGrow::Table { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_last_partition_takes_the_new_space_and_the_backup_moves_to_the_end() {
    for (sector, start) in [(512_u64, 2048), (4096, 256)] {
        // Cloud images have the root file system first in the table and last on the disk.
        let partitions = [
            (LINUX, start + 64, 4 * MIB / sector - 64),
            (SWAP, start, start + 31),
            (SWAP, start + 32, start + 63),
        ];
        let mut image = disk(4 * MIB, sector, &partitions);
        let old = read(&image, sector).unwrap();
        let plan = planned(&image, 9 * MIB).unwrap();
        assert_eq!(plan.growth.content, GrownContent::Partition { number: 1 });
        image.resize(9 << 20, 0);
        patch(&mut image, &plan.backup);
        assert_eq!(read(&image, sector).unwrap(), old, "the first table is as it was");
        patch(&mut image, &plan.primary);
        let sectors = 9 * MIB / sector;
        let entry_sectors = 128 * 128 / sector;
        let (new, end) = (read(&image, sector).unwrap(), backup(&image, sector).unwrap());
        assert_eq!(new.header.backup_lba, sectors - 1);
        assert_eq!(new.header.last_usable_lba, sectors - 2 - entry_sectors);
        assert_eq!((end.header.primary_lba, end.header.backup_lba), (sectors - 1, 1));
        assert_eq!(end.header.partition_entry_lba, sectors - 1 - entry_sectors);
        assert_eq!((new.header.disk_guid, end.header.disk_guid), ([7; 16], [7; 16]));
        for number in 1..=128 {
            let mut expected = old[number].clone();
            if number == 1 {
                expected.ending_lba = new.header.last_usable_lba;
            }
            assert_eq!((&new[number], &end[number]), (&expected, &expected));
        }
        assert_eq!(image[458..462], u32::try_from(sectors - 1).unwrap().to_le_bytes(), "the protective MBR");
    }
}

#[test]
fn a_table_is_whole_after_every_part_of_the_writing() {
    let mut image = disk(4 * MIB, 512, &[(ROOT, 2048, 4000)]);
    let plan = planned(&image, 5 * MIB).unwrap();
    image.resize(5 << 20, 0);
    for patch in plan.backup.iter().chain(&plan.primary) {
        // However little of a write arrived.
        for part in [0, 1, patch.bytes.len() / 2, patch.bytes.len()] {
            let at = usize::try_from(patch.at).unwrap();
            image[at..at + part].copy_from_slice(&patch.bytes[..part]);
            read(&image, 512).unwrap_or_else(|error| panic!("{part} bytes at {at}: {error}"));
        }
    }
}

#[test]
fn a_partition_that_is_not_the_roots_is_left_alone() {
    let grow = |partitions: &[_]| planned(&disk(4 * MIB, 512, partitions), 8 * MIB);
    assert_eq!(
        grow(&[(LINUX, 2048, 4000), (SWAP, 4001, 5000)]),
        Err(CannotGrow::LastPartition { number: 2, kind: "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f".to_owned() })
    );
    let data = grow(&[(ROOT, 2048, 4000), (LINUX, 4001, 5000)]);
    assert!(
        matches!(data, Err(CannotGrow::LastPartition { number: 2, .. })),
        "a root is there, and not last"
    );
    assert_eq!(grow(&[]), Err(CannotGrow::Empty));
    assert!(grow(&[(LINUX, 2048, 4000), (ROOT, 4001, 5000)]).is_ok());
}

#[test]
fn too_little_new_space_is_told_with_what_is_enough() {
    let mut image = disk(4 * MIB, 512, &[(LINUX, 2048, 8158)]);
    // As if another tool had given all to the partition, and its backup elsewhere.
    image.truncate(8160 * 512);
    let least = (8160 + 33) * 512;
    let refused = CannotGrow::Room { least: ByteSize::from_bytes(least) };
    assert_eq!(planned(&image, least - 512), Err(refused));
    assert_eq!(planned(&image, least).unwrap().growth.content, GrownContent::Partition { number: 1 });
    image.truncate(8158 * 512);
    assert!(reason(planned(&image, least)).contains("not on the disk"), "a disk that was cut off");
    let image = disk(4 * MIB, 512, &[(LINUX, 2048, 8158)]);
    assert_eq!(planned(&image, 4 * MIB + 512).unwrap().growth.content, GrownContent::Partition { number: 1 });
    let odd = CannotGrow::Sectors { wanted: ByteSize::from_bytes(5 * MIB + 1), sector: 512 };
    assert_eq!(planned(&image, 5 * MIB + 1), Err(odd));
    let large = disk(4 * MIB, 4096, &[(LINUX, 256, 500)]);
    assert!(matches!(planned(&large, 5 * MIB + 512), Err(CannotGrow::Sectors { sector: 4096, .. })));
}

#[test]
fn a_disk_is_known_by_its_first_sectors() {
    let content = |image: &[u8]| planned(image, 8 * MIB).map(|plan| plan.growth.content);
    let mut image = vec![0; 1 << 20];
    assert_eq!(content(&image), Ok(GrownContent::Other));
    assert_eq!(content(&[]), Ok(GrownContent::Other));
    image[EXT4_MAGIC_AT..EXT4_MAGIC_AT + 2].copy_from_slice(&EXT4_MAGIC);
    assert_eq!(content(&image), Ok(GrownContent::Ext4));
    // Boot code of a file system ends as an MBR does.
    image[440..512].fill(0x90);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(content(&image), Ok(GrownContent::Ext4));
    image[440..510].fill(0);
    assert_eq!(content(&image), Ok(GrownContent::Ext4), "an empty MBR is no table");
    image[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 0, 4, 0, 0]);
    assert_eq!(content(&image), Err(CannotGrow::Mbr));

    let good = disk(4 * MIB, 512, &[(LINUX, 2048, 4000)]);
    let mut hybrid = good.clone();
    hybrid[462..478].copy_from_slice(&image[446..462]);
    assert_eq!(content(&hybrid), Err(CannotGrow::Hybrid));
    let mut bare = good;
    bare[446..512].fill(0);
    assert!(reason(planned(&bare, 8 * MIB)).contains("no protective MBR"));
}

/// Writes a number into the header and makes its checksum right again.
fn forge(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[512 + at..512 + at + bytes.len()].copy_from_slice(bytes);
    checksum(image);
}

fn checksum(image: &mut [u8]) {
    image[512 + 16..512 + 20].fill(0);
    let sum = crc32(&image[512..604]);
    image[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[test]
fn lies_of_a_header_are_told() {
    let good = disk(4 * MIB, 512, &[(LINUX, 2048, 4000)]);
    let told = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        forge(&mut image, at, bytes);
        reason(planned(&image, 8 * MIB))
    };
    let far = u64::MAX.to_le_bytes();
    assert_eq!(told(80, &u32::MAX.to_le_bytes()), "it has 4294967295 entries of 128 bytes");
    assert_eq!(told(80, &(gpt::ENTRIES_MAX + 1).to_le_bytes()), "it has 1025 entries of 128 bytes");
    assert_eq!(told(84, &u32::MAX.to_le_bytes()), "it has 128 entries of 4294967295 bytes");
    assert_eq!(told(80, &[0; 4]), "it has 0 entries of 128 bytes");
    assert_eq!(told(24, &far), "its header says it stands in sector 18446744073709551615");
    assert_eq!(told(72, &far), "its entries do not lie between header and partitions");
    assert_eq!(told(40, &far), "the space for its partitions is not on the disk");
    assert_eq!(told(48, &far), "the space for its partitions is not on the disk");
    assert!(told(88, &[0; 4]).contains("checksum"), "of the entries");
    let mut image = good.clone();
    image[512 + 60] ^= 1;
    assert!(reason(planned(&image, 8 * MIB)).contains("checksum"), "of the header");
    image[512..520].fill(0);
    assert_eq!(reason(planned(&image, 8 * MIB)), "its header is missing");
}

#[test]
fn lies_of_entries_are_told() {
    let told = |change: &dyn Fn(&mut [u8])| {
        let mut image = disk(4 * MIB, 512, &[(SWAP, 2048, 3000), (LINUX, 3001, 4000)]);
        change(&mut image[1024..1024 + 128 * 128]);
        let sum = crc32(&image[1024..1024 + 128 * 128]);
        forge(&mut image, 88, &sum.to_le_bytes());
        reason(planned(&image, 8 * MIB))
    };
    assert!(
        told(&|entries| entries[32..40].copy_from_slice(&3999_u64.to_le_bytes()))
            .starts_with("a partition reaches")
    );
    assert!(told(&|entries| entries[40..48].fill(0xff)).starts_with("a partition reaches from sector 2048"));
    let overlaps = told(&|entries| entries[40..48].copy_from_slice(&3001_u64.to_le_bytes()));
    assert_eq!(overlaps, "the partition from sector 3001 overlaps what is before it");
    assert!(told(&|entries| entries[32..40].fill(0)).contains("overlaps"), "the table itself");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a table says, growing it is refused or gives a table that holds together and loses no partition.
    #[test]
    fn a_mutated_table_is_refused_or_grown_whole(
        changes in proptest::collection::vec(
            (prop_oneof![440..512_usize, 512..604_usize, 1024..1536_usize], prop_oneof![Just(0), Just(0xff), any::<u8>()]),
            0..12,
        ),
        sums in any::<bool>(),
        more in 1..20_000_u64,
    ) {
        let mut image = disk(4 * MIB, 512, &[(SWAP, 40, 2047), (LINUX, 2048, 4000)]);
        for (at, byte) in changes {
            image[at] = byte;
        }
        if sums {
            let sum = crc32(&image[1024..1024 + 128 * 128]);
            forge(&mut image, 88, &sum.to_le_bytes());
        }
        let to = 4 * MIB + more * 512;
        if let Ok(plan) = planned(&image, to) && !plan.primary.is_empty() {
            let old = read(&image, 512).unwrap();
            image.resize(usize::try_from(to).unwrap(), 0);
            patch(&mut image, &plan.backup);
            prop_assert_eq!(&read(&image, 512).unwrap(), &old);
            patch(&mut image, &plan.primary);
            let (new, end) = (read(&image, 512).unwrap(), backup(&image, 512).unwrap());
            for (number, entry) in old.iter() {
                prop_assert_eq!(&new[number], &end[number]);
                prop_assert_eq!(new[number].starting_lba, entry.starting_lba);
                prop_assert!(!entry.is_used() || new[number].ending_lba >= entry.ending_lba);
                prop_assert!(!entry.is_used() || new[number].ending_lba < to / 512 - 1);
            }
        }
    }
}

#[test]
fn what_is_written_to_a_file_and_over_one_is_the_same() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let image = disk(4 * MIB, 512, &[(LINUX, 2048, 4000)]);
    let path = dir.path().join("disk");
    let file = kiln_sys::fs::create_new(&path).unwrap();
    file.write_all_at(&image, 0).unwrap();
    let (from, to) = (ByteSize::from_bytes(4 * MIB), ByteSize::from_bytes(300 * MIB + 512));
    let digest = Digest::of(b"it");
    let plan = Plan::new(&digest, &file, &path, from, to).unwrap().unwrap();
    let blocks = plan.blocks(&file, &path).unwrap();
    plan.write(&file, &path).unwrap();
    for (number, bytes) in &blocks {
        let mut there = vec![0; 4096];
        let len = usize::try_from(to.bytes() - number * BLOCK_BYTES).unwrap_or(4096).min(4096);
        file.read_exact_at(&mut there[..len], number * BLOCK_BYTES).unwrap();
        assert!(&there == bytes, "block {number}");
    }
    assert_eq!(blocks.keys().copied().collect::<Vec<_>>()[..5], [0, 1, 2, 3, 4]);
    assert!(Plan::new(&digest, &file, &path, to, to).unwrap().is_none());
    assert!(matches!(Plan::new(&digest, &file, &path, to, from), Err(StoreError::Shrink { .. })));
}
