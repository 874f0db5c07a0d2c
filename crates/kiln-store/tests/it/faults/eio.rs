//! A disk that has lost blocks: what cannot be read is damage of one artifact, told with its offset and set aside, and the
//! rest of the store goes on. Tried on a file system whose disk was cut short, which takes root; elsewhere the test says
//! what it skips.

use kiln_store::{IngestFrom, Store, StoreError, Verdict};
use kiln_sys::Cancel;
use kiln_testing::{FileSystem, Mounted};
use std::process::Command;

const FILE_BYTES: usize = 4 << 20;
const SEGMENTS: u8 = 64;

#[test]
fn what_the_disk_lost_is_damage_of_one_artifact() {
    let Some(mounted) = Mounted::new(FileSystem::PlainExt4, 64) else { return };
    let (store, cancel) = (Store::open(&mounted.path().join("home")).unwrap(), Cancel::new().unwrap());
    let ingest = |byte: u8| {
        // Another content in each segment, so that each has data of its own.
        let content: Vec<u8> = (0..SEGMENTS)
            .flat_map(|segment| vec![segment ^ byte; FILE_BYTES / usize::from(SEGMENTS)])
            .collect();
        let source = mounted.path().join("source");
        std::fs::write(&source, content).unwrap();
        let staging = store.stage("a test").unwrap();
        let taken = store.ingest(&source, IngestFrom::Outside, &staging, &cancel).unwrap();
        std::fs::remove_file(&source).unwrap();
        taken.digest
    };
    let whole = ingest(0x40);
    let cut = ingest(0x80);
    // Without a seal it is read before use. What is made now need not be made later.
    std::fs::remove_file(store.root().join("indexes").join(format!("{}.seal", cut.hex()))).unwrap();
    std::fs::create_dir(store.root().join("quarantine")).unwrap();
    assert!(Command::new("sync").arg("-f").arg(mounted.path()).status().unwrap().success());
    mounted.lose_half_of(&store.artifact_path(&cut));
    let size = kiln_core::ByteSize::from_bytes(FILE_BYTES as u64);
    let refused = store.ensure_artifact(&cut, size, &cancel, &mut |_| {}).unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    assert!(refused.to_string().contains("it cannot be read at byte 2097152"), "{refused}");
    let Verdict::Damaged(damage) = store.verify_artifact(&cut, &cancel).unwrap() else {
        panic!("it is whole")
    };
    let [range] = &damage.ranges[..] else { panic!("{damage:?}") };
    assert_eq!((range.start, range.end), (FILE_BYTES as u64 / 2, FILE_BYTES as u64));
    assert!(
        damage.reason.starts_with("32 segments cannot be read, the first at byte 2097152"),
        "{}",
        damage.reason
    );
    assert!(matches!(store.verify_artifact(&whole, &cancel).unwrap(), Verdict::Intact { .. }));
    assert!(!store.artifact_path(&cut).exists(), "it was set aside");
}
