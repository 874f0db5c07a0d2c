use crate::Fixture;
use kiln_core::{ArtifactRole, Digest};
use kiln_store::blocks::{BLOCK_BYTES, Fingerprint};
use kiln_store::{
    BlockTable, IngestFrom, SharedBlocks, SharedRun, StoreError, hash_file, hash_file_with_blocks,
};
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Content of one block for each byte.
fn content(fills: &[u8]) -> Vec<u8> {
    fills.iter().flat_map(|fill| [*fill; 4096]).collect()
}

impl Fixture {
    fn disk(&self, content: &[u8]) -> Digest {
        self.artifact(ArtifactRole::rootfs(), content).digest
    }

    fn table_path(&self, artifact: &Digest) -> PathBuf {
        self.store.root().join("indexes").join(format!("{}.blocks", artifact.hex()))
    }

    fn shared(&self, a: &Digest, b: &Digest) -> SharedBlocks {
        self.store.shared_blocks(a, b, &self.cancel).unwrap()
    }

    /// Puts another content where a table lies.
    fn overwrite(&self, artifact: &Digest, bytes: &[u8]) {
        let path = self.table_path(artifact);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn an_ingest_writes_the_table_and_a_removal_takes_it_along() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", &content(&[1, 0, 2]));
    let revision = fixture.store.revision(&id).unwrap();
    let paths: Vec<PathBuf> =
        revision.manifest.artifacts.iter().map(|artifact| fixture.table_path(&artifact.digest)).collect();
    for (path, artifact) in paths.iter().zip(&revision.manifest.artifacts) {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o444);
        assert!(fixture.store.block_table(&artifact.digest).is_some());
    }
    let alone =
        fixture.store.lock(kiln_sys::lock::Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    fixture.store.remove_revision(&id, &alone).unwrap();
    assert!(paths.iter().all(|path| !path.exists()));
    assert_eq!(std::fs::read_dir(fixture.store.root().join("indexes")).unwrap().count(), 0);
}

#[test]
fn one_pass_gives_the_index_and_the_table() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("disk");
    let file = File::create_new(&path).unwrap();
    file.set_len((9 << 20) + 17).unwrap();
    let places = [0, 3 * BLOCK_BYTES, 15 * BLOCK_BYTES, 16 * BLOCK_BYTES, (5 << 20) + 4095, (9 << 20) + 16];
    for place in places {
        file.write_all_at(&[7], place).unwrap();
    }
    let (index, table) = hash_file_with_blocks(&file, &path, &fixture.cancel).unwrap();
    let table = table.unwrap();
    assert_eq!(index, hash_file(&file, &path, &fixture.cancel).unwrap());
    assert_eq!((table.artifact(), table.length()), (&index.digest(), (9 << 20) + 17));
    let blocks: Vec<u64> = table.blocks().map(|(block, _)| block).collect();
    assert_eq!(blocks, places.map(|place| place / BLOCK_BYTES));
    let last = [[0; 16].as_slice(), &[7]].concat();
    let found: Vec<u64> = table.candidates(Fingerprint::of(&last).unwrap()).collect();
    assert_eq!(found, [(9 << 20) / BLOCK_BYTES], "the last block ends with the file");
}

#[test]
fn a_missing_or_damaged_table_is_made_again() {
    let fixture = Fixture::new();
    let (bytes, other) = (content(&[1, 2, 3]), content(&[3, 9]));
    let (a, b) = (fixture.disk(&bytes), fixture.disk(&other));
    let good = fixture.store.block_table(&a).unwrap();
    let foreign = fixture.store.block_table(&b).unwrap().to_bytes();
    let mut flipped = good.to_bytes();
    flipped[70] ^= 1;
    for damage in [b"".as_slice(), b"nonsense", &flipped, &foreign] {
        fixture.overwrite(&a, damage);
        assert_eq!(fixture.store.block_table(&a), None);
        assert_eq!(fixture.shared(&a, &b).blocks, 1);
        assert_eq!(fixture.store.block_table(&a), Some(good.clone()), "it was written again");
    }
    std::fs::remove_file(fixture.table_path(&a)).unwrap();
    assert_eq!(fixture.store.block_table(&a), None);
    assert_eq!(fixture.store.rebuild_block_table(&a, &fixture.cancel).unwrap(), Some(good.clone()));
    assert_eq!(fixture.store.block_table(&a), Some(good.clone()));
    std::fs::remove_file(fixture.table_path(&a)).unwrap();
    fixture.disk(&bytes);
    assert_eq!(
        fixture.store.block_table(&a),
        Some(good.clone()),
        "an ingest of a known artifact mends it too"
    );
    // Where no table can be written, one is made for the caller.
    std::fs::remove_file(fixture.table_path(&a)).unwrap();
    std::fs::create_dir(fixture.table_path(&a)).unwrap();
    assert_eq!(fixture.store.ensure_block_table(&a, &fixture.cancel).unwrap(), Some(good));
}

#[test]
fn a_table_is_made_of_whole_artifacts_only() {
    let fixture = Fixture::new();
    let digest = fixture.disk(&content(&[1, 2]));
    let path = fixture.store.artifact_path(&digest);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(b"x", 0).unwrap();
    let rebuilt = fixture.store.rebuild_block_table(&digest, &fixture.cancel);
    assert!(matches!(rebuilt, Err(StoreError::Damaged { .. })), "{rebuilt:?}");
    let nobody = Digest::of(b"nobody");
    let missing = fixture.store.rebuild_block_table(&nobody, &fixture.cancel);
    assert!(matches!(missing, Err(StoreError::NotFound { .. })), "{missing:?}");
    assert!(!fixture.table_path(&nobody).exists());
}

#[test]
fn shared_blocks_come_in_runs() {
    let fixture = Fixture::new();
    let a = fixture.disk(&content(&[9, 1, 2, 3, 0, 4, 5]));
    let b = fixture.disk(&content(&[1, 2, 3, 8, 4, 5, 0, 0, 9]));
    let shared = fixture.shared(&a, &b);
    let run = |from, to, count| SharedRun { from, to, count };
    let want = SharedBlocks {
        blocks: 6,
        bytes: 6 * 4096,
        data_blocks: 7,
        false_matches: 0,
        runs: vec![run(1, 0, 3), run(5, 4, 2), run(0, 8, 1)],
    };
    assert_eq!(shared, want);
    assert_eq!(fixture.shared(&b, &b).runs, [run(0, 0, 6), run(8, 8, 1)]);
    let empty = fixture.disk(b"");
    assert_eq!(fixture.shared(&empty, &a).blocks, 0);
    assert_eq!(fixture.shared(&a, &empty).data_blocks, 0);
}

#[test]
fn a_run_is_followed_through_equal_blocks_and_over_pieces() {
    let fixture = Fixture::new();
    let a: Vec<u8> = [vec![7; 150], vec![1, 7, 2], vec![7; 150]].concat();
    let (a, b) = (fixture.disk(&content(&a)), fixture.disk(&content(&a[100..])));
    let shared = fixture.shared(&a, &b);
    assert_eq!((shared.blocks, shared.bytes), (203, 203 * 4096));
    // The first block may be any of the equal ones: the lowest is taken, and followed.
    assert_eq!(shared.runs.iter().map(|run| run.count).sum::<u64>(), 203);
    assert!(shared.runs.len() <= 3, "{:?}", shared.runs);
}

#[test]
fn a_short_last_block_equals_a_short_last_block_only() {
    let fixture = Fixture::new();
    let a = fixture.disk(&[content(&[1]), b"tail".to_vec()].concat());
    let b = fixture.disk(&[content(&[2]), b"tail".to_vec()].concat());
    let c = fixture.disk(&[content(&[2]), b"tail".to_vec(), vec![0; 4092]].concat());
    assert_eq!((fixture.shared(&a, &b).blocks, fixture.shared(&a, &b).bytes), (1, 4));
    assert_eq!(fixture.shared(&a, &c).blocks, 0);
    assert_eq!(fixture.shared(&c, &b).bytes, 4096);
}

/// Two blocks with other contents and the same fingerprint.
fn colliding() -> (Vec<u8>, Vec<u8>) {
    let block = |number: u64| {
        let mut block = vec![0; 4096];
        block[..8].copy_from_slice(&number.to_le_bytes());
        block
    };
    (block(1_232_166), block(1_992_622))
}

#[test]
fn equal_fingerprints_of_other_contents_are_no_match() {
    let (one, two) = colliding();
    assert_ne!(one, two);
    assert_eq!(Fingerprint::of(&one), Fingerprint::of(&two));
    let fixture = Fixture::new();
    let [left, right] = [content(&[5]), content(&[6])];
    let a = fixture.disk(&[left.as_slice(), &one, &right].concat());
    let b = fixture.disk(&[left.as_slice(), &two, &right].concat());
    let shared = fixture.shared(&a, &b);
    assert_eq!((shared.blocks, shared.false_matches), (2, 1));
    let run = |from, to, count| SharedRun { from, to, count };
    assert_eq!(shared.runs, [run(0, 0, 1), run(2, 2, 1)]);
    let both = fixture.disk(&[one.as_slice(), &two].concat());
    let shared = fixture.shared(&both, &b);
    assert_eq!((shared.blocks, shared.false_matches, shared.runs), (1, 1, vec![run(1, 1, 1)]));
}

#[test]
fn a_table_that_lies_is_harmless() {
    let fixture = Fixture::new();
    let (a, b) = (fixture.disk(&content(&[1, 2, 3])), fixture.disk(&content(&[4, 5, 6])));
    let fingerprints: Vec<_> = fixture.store.block_table(&a).unwrap().blocks().collect();
    let lie = BlockTable::from_blocks(b, 3 * 4096, fingerprints).unwrap();
    fixture.overwrite(&b, &lie.to_bytes());
    let shared = fixture.shared(&a, &b);
    assert_eq!((shared.blocks, shared.false_matches), (0, 3));
    // A length that the artifact does not have.
    let longer = BlockTable::from_blocks(b, 1 << 40, [(1 << 20, Fingerprint::of(b"x").unwrap())]).unwrap();
    fixture.overwrite(&b, &longer.to_bytes());
    assert_eq!(fixture.store.block_table(&b), None);
}

#[test]
fn a_sparse_disk_of_sixteen_tebibytes_has_a_table_below_a_kibibyte() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("disk");
    let file = File::create_new(&path).unwrap();
    // The longest file of ext4 is a block short of it.
    let length =
        [16 << 40, (16 << 40) - BLOCK_BYTES].into_iter().find(|length| file.set_len(*length).is_ok());
    let length = length.expect("a long file");
    for place in (0..length).step_by(1 << 39).chain([length - 5]) {
        file.write_all_at(b"data", place).unwrap();
    }
    let staging = fixture.store.stage("a test").unwrap();
    let taken = fixture.store.ingest(&path, IngestFrom::Staging, &staging, &fixture.cancel).unwrap();
    let table = fixture.store.block_table(&taken.digest).unwrap();
    assert_eq!((table.data_blocks(), table.length()), (33, length));
    let bytes = std::fs::metadata(fixture.table_path(&taken.digest)).unwrap().len();
    assert!(bytes < 1 << 10, "{bytes} bytes");
    let found: Vec<u64> =
        table.candidates(fingerprint_at(&fixture.store.artifact_path(&taken.digest), 0)).collect();
    assert_eq!(found.len(), 32);
}

fn fingerprint_at(path: &Path, block: u64) -> Fingerprint {
    let mut bytes = [0; 4096];
    File::open(path).unwrap().read_exact_at(&mut bytes, block * BLOCK_BYTES).unwrap();
    Fingerprint::of(&bytes).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn exactly_the_blocks_that_are_in_both_are_shared(
        ours in proptest::collection::vec(0..5_u8, 0..150),
        wanted in proptest::collection::vec(0..7_u8, 0..150),
    ) {
        let fixture = Fixture::new();
        let shared = fixture.shared(&fixture.disk(&content(&ours)), &fixture.disk(&content(&wanted)));
        let both: Vec<u64> = (0..).zip(&wanted).filter(|(_, fill)| **fill != 0 && ours.contains(fill)).map(|(at, _)| at).collect();
        let found: Vec<u64> = shared.runs.iter().flat_map(|run| run.to..run.to + run.count).collect();
        prop_assert_eq!(&found, &both);
        prop_assert_eq!((shared.blocks, shared.bytes), (both.len() as u64, both.len() as u64 * BLOCK_BYTES));
        for run in &shared.runs {
            let fills = |list: &[u8], from: u64| {
                let from = usize::try_from(from).unwrap();
                list[from..from + usize::try_from(run.count).unwrap()].to_vec()
            };
            prop_assert_eq!(fills(&ours, run.from), fills(&wanted, run.to));
        }
    }
}
