use super::*;
use crate::index::{Index, segment_digest};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The artifact of the committed fixture: twenty blocks and five bytes, in two segments.
fn fixture_bytes() -> Vec<u8> {
    let mut bytes = Vec::new();
    for fill in [1, 0, 2, 2, 0, 0, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 5_u8] {
        bytes.extend_from_slice(&[fill; 4096]);
    }
    bytes.extend_from_slice(b"ninth");
    bytes
}

fn table(bytes: &[u8]) -> BlockTable {
    let segments = bytes.chunks(64 << 10).map(segment_digest);
    let artifact = Index::from_segments(bytes.len() as u64, segments).digest();
    let blocks = (0_u64..).zip(bytes.chunks(4096));
    let blocks = blocks.filter_map(|(number, block)| Some((number, Fingerprint::of(block)?)));
    BlockTable::from_blocks(artifact, bytes.len() as u64, blocks).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives bytes the check sum they should have.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 16;
    let check = blake3::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(&check.as_bytes()[..16]);
    bytes
}

/// Vectors of `docs/formats/blocks.md`.
#[test]
fn vectors_are_pinned() {
    let hole_and_data = [vec![0; 196_608], b"abc".to_vec()].concat();
    let vectors: [(&[u8], &str); 4] = [
        (
            b"",
            "4b494c4e424c4b31 \
             0c05d7a58aa0a374a192e1daaa28b3ef12bc065fbc0939e7c762f51c863a91e6 \
             0000000000000000 \
             0000000000000000 \
             0000000000000000 \
             4baa8796458732a11c9221126a34b278",
        ),
        (
            &[0; 65_536],
            "4b494c4e424c4b31 \
             eba0579c9d02b5eb100cb983ddbd2ca3538832ee59d44eadede07bd3ce81b31b \
             0000010000000000 \
             0000000000000000 \
             0000000000000000 \
             a2a3bb2a0bcd94f62797255ffab6fc86",
        ),
        (
            b"abc",
            "4b494c4e424c4b31 \
             c9cbee4d022b617ffccd5f1b92043648c76e47d0a1b581f94304c5f3e95dc3d7 \
             0300000000000000 \
             0100000000000000 \
             0100000000000000 \
             00017058676fc8 \
             93ece9da26ff28aa64b3798f677d6a3d",
        ),
        (
            &hole_and_data,
            "4b494c4e424c4b31 \
             71be54e5d9c534d827323b5b43670dbf0aaa6649ffcc3726d9d60f1ee553691c \
             0300030000000000 \
             0100000000000000 \
             0100000000000000 \
             30017058676fc8 \
             98909b8e66eef433ba7f54a8d4a6bfaa",
        ),
    ];
    for (content, want) in vectors {
        assert_eq!(hex(&table(content).to_bytes()), want.replace(' ', ""));
    }
}

#[test]
fn the_fixture_is_what_this_program_writes_and_reads() {
    let fixture = include_bytes!("../../tests/fixtures/blocks-1.bin");
    let table = table(&fixture_bytes());
    assert_eq!(table.to_bytes(), fixture);
    assert_eq!(BlockTable::parse(fixture).unwrap(), table);
    assert_eq!(
        hex(blake3::hash(fixture).as_bytes()),
        "f669b9430ad0a0c676d21f9c7890775bd7197d2f36d0bddbb5d502ec56a23b70"
    );
    assert_eq!(table.data_blocks(), 9);
    let found = |fill: u8| table.candidates(Fingerprint::of(&[fill; 4096]).unwrap()).collect::<Vec<_>>();
    assert_eq!(found(1), [0, 6]);
    assert_eq!(found(2), [2, 3, 18]);
    assert!(found(9).is_empty());
    assert_eq!(table.candidates(Fingerprint::of(b"ninth").unwrap()).collect::<Vec<_>>(), [20]);
}

#[test]
fn a_fingerprint_is_the_beginning_of_blake3_and_zeros_have_none() {
    // BLAKE3 of `abc` begins 6437b3ac38.
    assert_eq!(Fingerprint::of(b"abc"), Some(Fingerprint(0x64_37b3_ac38)));
    assert_eq!(Fingerprint::of(&[0; 4096]), None);
    assert_eq!(Fingerprint::of(b""), None);
    assert_ne!(Fingerprint::of(b"abc"), Fingerprint::of(b"abc\0"), "the length counts");
}

#[test]
fn too_many_blocks_have_no_table() {
    let table = |count: u64| {
        let blocks = (0..count).map(|block| (block, Fingerprint(block % 7)));
        BlockTable::from_blocks_up_to(100, Digest::of(b""), 1 << 20, blocks)
    };
    assert_eq!(table(100).unwrap().data_blocks(), 100);
    assert!(table(101).is_none());
}

#[test]
fn a_table_has_a_largest_size() {
    // Zeros that are never touched take up no memory but for the first page, and those that are summed.
    let mut bytes = vec![0; TABLE_BYTES_MAX + 1];
    bytes[..8].copy_from_slice(&MAGIC);
    let error = BlockTable::parse(&bytes).unwrap_err().to_string();
    assert_eq!(error, "it has 268435457 bytes, more than 268435456");
    assert_eq!(BlockTable::parse(&bytes[..TABLE_BYTES_MAX]), Err(InvalidBlockTable::Check));
}

#[test]
fn a_table_names_so_many_blocks_at_most() {
    let with = |count: u64| {
        let mut bytes = table(&fixture_bytes()).to_bytes();
        bytes[40..48].copy_from_slice(&crate::index::LENGTH_MAX.to_le_bytes());
        bytes[48..56].copy_from_slice(&count.to_le_bytes());
        BlockTable::parse(&seal(bytes)).unwrap_err()
    };
    // At the limit the count is taken, and found not to be backed by bytes.
    assert!(matches!(with(BLOCKS_MAX), InvalidBlockTable::Size(_)));
    let error = with(BLOCKS_MAX + 1);
    assert_eq!(error, InvalidBlockTable::Blocks(BLOCKS_MAX + 1));
    assert!(error.to_string().ends_with("more than 16777216"), "{error}");
}

#[test]
fn counts_that_nothing_backs_are_refused_before_anything_is_allocated() {
    for (at, number) in [(40, u64::MAX), (48, BLOCKS_MAX), (48, u64::MAX), (56, u64::MAX / 2), (56, 1 << 30)]
    {
        let mut bytes = table(&fixture_bytes()).to_bytes();
        if at == 48 {
            bytes[40..48].copy_from_slice(&crate::index::LENGTH_MAX.to_le_bytes());
        }
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        assert!(BlockTable::parse(&seal(bytes)).is_err(), "{at} {number}");
    }
}

#[test]
fn what_is_not_canonical_is_refused() {
    let good = table(&fixture_bytes()).to_bytes();
    let body = &good[..good.len() - 16];
    // The first run's hole, 0, written in two bytes.
    let long_zero = [&body[..64], &[0x80, 0], &body[65..], &[0; 16]].concat();
    assert_eq!(BlockTable::parse(&seal(long_zero)), Err(InvalidBlockTable::Run(0)));
    let trailing = [body, &[0], &[0; 16]].concat();
    assert_eq!(BlockTable::parse(&seal(trailing)), Err(InvalidBlockTable::Trailing));
    let mut empty_run = good.clone();
    empty_run[65] = 0;
    assert_eq!(BlockTable::parse(&seal(empty_run)), Err(InvalidBlockTable::Run(0)));
    // Runs that touch: a hole of no blocks before the second.
    let mut touching = good.clone();
    (touching[65], touching[66]) = (2, 0);
    assert_eq!(BlockTable::parse(&seal(touching)), Err(InvalidBlockTable::Run(1)));
    let mut short = good.clone();
    short[40..48].copy_from_slice(&(20 * 4096_u64).to_le_bytes());
    assert!(matches!(BlockTable::parse(&seal(short)), Err(InvalidBlockTable::Run(_))));
    for cut in 0..good.len() {
        assert!(BlockTable::parse(&good[..cut]).is_err());
    }
}

/// A list of blocks of which some are zero and some are equal.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    let fills = proptest::collection::vec(prop_oneof![2 => Just(0_u8), 3 => any::<u8>()], 0..70);
    (fills, 0..4096_usize).prop_map(|(fills, cut)| {
        let mut bytes: Vec<u8> = fills.iter().flat_map(|fill| [*fill; 4096]).collect();
        bytes.truncate(bytes.len().saturating_sub(cut));
        bytes
    })
}

/// Tables with any fingerprints at all, many of them equal.
fn tables() -> impl Strategy<Value = BlockTable> {
    let fingerprints = prop_oneof![0..1_u64 << FINGERPRINT_BITS, 0..4_u64, Just((1 << FINGERPRINT_BITS) - 1)];
    let gaps = prop_oneof![3 => Just(1_u64), 1 => 1..200_u64, 1 => 1..1_u64 << 25];
    proptest::collection::vec((gaps, fingerprints), 0..200).prop_map(|list| {
        let mut next = 0;
        let blocks = list.iter().map(|(gap, fingerprint)| {
            next += gap;
            (next - 1, Fingerprint(*fingerprint))
        });
        let blocks: Vec<_> = blocks.collect();
        let length = (blocks.last().map_or(0, |(block, _)| block + 1) * BLOCK_BYTES).saturating_sub(7);
        BlockTable::from_blocks(Digest::of(b"artifact"), length, blocks).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn print_and_parse_agree(table in tables()) {
        let bytes = table.to_bytes();
        prop_assert!(bytes.len() < TABLE_BYTES_MAX);
        prop_assert_eq!(BlockTable::parse(&bytes).unwrap(), table);
    }

    #[test]
    fn every_block_is_found_again(bytes in contents()) {
        let table = table(&bytes);
        let mut places: BTreeMap<&[u8], Vec<u64>> = BTreeMap::new();
        for (number, block) in (0_u64..).zip(bytes.chunks(4096)) {
            if block.iter().any(|byte| *byte != 0) {
                places.entry(block).or_default().push(number);
            }
        }
        for (block, numbers) in &places {
            let fingerprint = Fingerprint::of(block).unwrap();
            prop_assert_eq!(&table.candidates(fingerprint).collect::<Vec<_>>(), numbers);
            prop_assert!(numbers.iter().all(|number| table.has(*number, fingerprint)));
        }
        for (number, fingerprint) in table.blocks() {
            let start = usize::try_from(number * BLOCK_BYTES).unwrap();
            let end = start + usize::try_from(table.block_bytes(number)).unwrap();
            prop_assert_eq!(Fingerprint::of(&bytes[start..end]), Some(fingerprint));
        }
        prop_assert_eq!(table.blocks().count() as u64, table.data_blocks());
        prop_assert_eq!(table.data_blocks(), places.values().map(|numbers| numbers.len() as u64).sum::<u64>());
    }

    #[test]
    fn any_fingerprint_is_looked_up(table in tables(), other in 0..1_u64 << FINGERPRINT_BITS) {
        let mut places: BTreeMap<Fingerprint, Vec<u64>> = BTreeMap::new();
        for (number, fingerprint) in table.blocks() {
            places.entry(fingerprint).or_default().push(number);
        }
        places.entry(Fingerprint(other)).or_default();
        for (fingerprint, numbers) in places {
            prop_assert_eq!(table.candidates(fingerprint).collect::<Vec<_>>(), numbers);
        }
    }

    #[test]
    fn a_corrupted_byte_is_refused(table in tables(), at: prop::sample::Index, flip in 1..=255_u8) {
        let mut bytes = table.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(BlockTable::parse(&bytes).is_err());
    }

    #[test]
    fn what_parses_is_canonical(
        table in tables(),
        at: prop::sample::Index,
        flip in 1..=255_u8,
        tail in proptest::collection::vec(any::<u8>(), 0..9),
    ) {
        let mut bytes = table.to_bytes();
        let at = at.index(bytes.len() - 16);
        bytes[at] ^= flip;
        bytes.splice(bytes.len() - 16..bytes.len() - 16, tail);
        let bytes = seal(bytes);
        if let Ok(parsed) = BlockTable::parse(&bytes) {
            prop_assert_eq!(parsed.to_bytes(), bytes);
            prop_assert!(parsed.blocks().all(|(number, fingerprint)| parsed.has(number, fingerprint)));
        }
    }

    #[test]
    fn parsing_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bytes = seal([MAGIC.as_slice(), &tail, &[0; 16]].concat());
        if let Ok(table) = BlockTable::parse(&bytes) {
            prop_assert_eq!(table.to_bytes(), bytes);
        }
    }
}
