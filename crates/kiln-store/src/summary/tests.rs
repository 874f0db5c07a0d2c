//! With the file of summaries, without it, and with any other in its place, the answer is that of the files.

use super::file::{self, Row};
use super::{Directory, NEW_MIN, Remember};
use crate::{BuildRecord, Store};
use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, ArtifactRole, ByteSize, Digest};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::fs;
use kiln_sys::stamp::{OpenDir, Stamp};
use kiln_sys::tool::ScratchDir;
use proptest::prelude::*;
use std::collections::BTreeMap;

const REVISIONS: usize = NEW_MIN + 16;

fn stamp(number: u64) -> Stamp {
    Stamp { inode: number, size: 7, modified: [1, 2], changed: [3, 4] }
}

fn rows() -> Vec<(Row, Vec<Digest>)> {
    let row = |byte: u8, record, variants: &[&str]| Row {
        id: Digest::from_bytes([byte; 32]),
        manifest: stamp(9),
        record,
        built_unix_ms: record.map(|_| 5),
        apparent: 1 << 40,
        variants: variants.iter().map(|name| name.parse().unwrap()).collect(),
        edges: 0..0,
    };
    let shared = Digest::of(b"shared");
    vec![
        (row(1, None, &[]), vec![shared, Digest::of(b"own"), shared]),
        (row(2, Some(stamp(1)), &["big", "small"]), vec![shared]),
    ]
}

#[test]
fn what_is_written_is_read() {
    let bytes = file::to_bytes(None, &rows()).unwrap();
    let found = file::parse(&bytes).unwrap();
    for ((mut row, own), read) in rows().into_iter().zip(&found.rows) {
        assert_eq!(found.artifacts_of(read).collect::<Vec<_>>(), own);
        row.edges = read.edges.clone();
        assert_eq!(*read, row);
    }
    assert_eq!((found.rows.len(), found.artifacts.len()), (2, 2));
    assert_eq!(file::parse(&file::to_bytes(None, &[]).unwrap()).unwrap(), file::Remembered::default());
    // The format's vector: another first byte of the checksum means another format.
    assert_eq!(
        bytes.len(),
        16 + 32 + 8 + 48 + 2 * 32 + (32 + 1 + 48 + 8 + 2 + 2 + 12) + (32 + 1 + 96 + 8 + 8 + 2 + 10 + 2 + 4)
    );
}

#[test]
fn a_broken_rule_makes_it_no_file() {
    let sum = |mut bytes: Vec<u8>| {
        let sum = *blake3::hash(&bytes[48..]).as_bytes();
        bytes[16..48].copy_from_slice(&sum);
        bytes
    };
    let good = file::to_bytes(None, &rows()).unwrap();
    assert!(file::parse(&sum(good.clone())).is_some());
    let mut swapped = rows();
    swapped.reverse();
    assert!(file::parse(&file::to_bytes(None, &swapped).unwrap()).is_none(), "out of order");
    let rows_at = 56 + 48 + 64;
    for (at, byte) in [(48, 0xff), (52, 0xff), (56 + 48, 0xff), (rows_at + 32, 4), (good.len() - 1, 1)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert!(file::parse(&sum(bad)).is_none(), "byte {at}");
    }
    assert!(file::parse(&sum([good.clone(), vec![0]].concat())).is_none(), "more than there should be");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_noticed(at in 0..300_usize, byte: u8, cut in 0..300_usize) {
        let good = file::to_bytes(None, &rows()).unwrap();
        let mut bad = good.clone();
        let at = at % bad.len();
        bad[at] = byte;
        prop_assert_eq!(file::parse(&bad).is_some(), bad == good);
        prop_assert!(file::parse(&good[..cut % good.len()]).is_none());
    }
}

/// A store with small revisions that have no artifact files.
struct Many {
    _dir: ScratchDir,
    store: Store,
    ids: Vec<Digest>,
}

impl Many {
    fn new() -> Self {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let store = Store::open(&dir.path().join("home")).unwrap();
        let mut many = Self { _dir: dir, store, ids: Vec::new() };
        many.ids = (0..REVISIONS).map(|number| many.add(number)).collect();
        many.ids.sort();
        many
    }

    fn add(&self, number: usize) -> Digest {
        let artifact = |role: ArtifactRole, number: usize| Artifact {
            role,
            digest: Digest::of(format!("artifact {number}").as_bytes()),
            size: ByteSize::from_bytes(number as u64),
            format: ArtifactFormat::Ext4,
        };
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            arch: Arch::X86_64,
            artifacts: vec![
                artifact(ArtifactRole::kernel(), number % 3),
                artifact(ArtifactRole::rootfs(), 3 + number % 40),
            ],
            machine: MachineShape::default(),
            boot_args: vec![number.to_string()],
            ready: None,
            snapshot: None,
            seed: None,
            variants: Vec::new(),
        };
        let id = manifest.id();
        self.replace(&self.store.revision_path(&id), &manifest.to_bytes());
        self.record(&id, number as u64);
        id
    }

    fn record(&self, id: &Digest, built_unix_ms: u64) {
        let record = BuildRecord {
            version: 1,
            template: "web".parse().unwrap(),
            key: *id,
            built_unix_ms,
            elapsed_ms: 1,
            facts: BTreeMap::new(),
        };
        self.replace(&self.store.build_record_path(id), &serde_json::to_vec(&record).unwrap());
    }

    fn replace(&self, path: &std::path::Path, bytes: &[u8]) {
        fs::remove_file(path).unwrap();
        std::io::Write::write_all(&mut fs::create_new(path).unwrap(), bytes).unwrap();
    }

    /// Writes the summaries as one would who read every file long after its last change: stamps are taken as they are.
    fn settle(&self) {
        let looks = OpenDir::open(&self.store.root().join("revisions")).unwrap();
        let mut rows: Vec<(Row, Vec<Digest>)> = Vec::new();
        for id in self.store.revision_ids().unwrap() {
            let Ok(revision) = self.store.revision(&id) else { continue };
            let Some(manifest) = looks.stamp(&format!("{}.json", id.hex())).unwrap() else { continue };
            let row = Row {
                id,
                manifest,
                record: looks.stamp(&format!("{}.build.json", id.hex())).unwrap(),
                built_unix_ms: self.store.build_record(&id).ok().flatten().map(|record| record.built_unix_ms),
                apparent: revision.manifest.apparent_size().bytes(),
                variants: Vec::new(),
                edges: 0..0,
            };
            rows.push((row, revision.manifest.artifacts.iter().map(|artifact| artifact.digest).collect()));
        }
        self.put(&file::to_bytes(None, &rows).unwrap());
    }

    fn put(&self, bytes: &[u8]) {
        let path = self.store.summaries_path();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_file(&path, bytes, 0o644, Existing::Replace).unwrap();
    }

    /// What the summaries say, and what the files say.
    fn check(&self) {
        let ids: Vec<Digest> = self.ids.iter().copied().chain([Digest::of(b"never there")]).collect();
        let found = self.store.summarize(&ids, Remember::No);
        assert_eq!(found.revisions.len(), ids.len());
        for (summary, id) in found.revisions.iter().zip(&ids) {
            let built = self.store.build_record(id).ok().flatten().map(|record| record.built_unix_ms);
            assert_eq!((summary.id, summary.built_unix_ms), (*id, built));
            match (&summary.content, self.store.revision(id)) {
                (Ok(content), Ok(revision)) => {
                    let artifacts: Vec<Digest> = found.artifacts(content).copied().collect();
                    let want: Vec<Digest> = revision.manifest.artifacts.iter().map(|a| a.digest).collect();
                    assert_eq!(artifacts, want);
                    assert_eq!(content.apparent, revision.manifest.apparent_size());
                }
                (Err(found), Err(want)) => assert_eq!(found.to_string(), want.to_string()),
                other => panic!("{id}: {other:?}"),
            }
        }
    }

    fn change(&self, step: &Step) {
        let id = |at: &usize| self.ids[at % REVISIONS];
        match step {
            Step::Rebuild(at, built) => self.record(&id(at), *built),
            Step::Remove(at) => fs::remove_file(&self.store.revision_path(&id(at))).unwrap(),
            Step::Forget(at) => fs::remove_file(&self.store.build_record_path(&id(at))).unwrap(),
            Step::Damage(at) => self.replace(&self.store.revision_path(&id(at)), b"{}"),
            Step::Add(number) => drop(self.add(number % REVISIONS)),
            Step::Settle => self.settle(),
            Step::Tear(at) => {
                if let Some(mut bytes) =
                    fs::read_optional(&self.store.summaries_path(), file::BYTES_MAX).unwrap()
                {
                    bytes.truncate(at % (bytes.len() + 1));
                    self.put(&bytes);
                }
            }
            Step::Lose => fs::remove_file(&self.store.summaries_path()).unwrap(),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Rebuild(usize, u64),
    Remove(usize),
    Forget(usize),
    Damage(usize),
    Add(usize),
    Settle,
    Tear(usize),
    Lose,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0..REVISIONS;
    let step = prop_oneof![
        (at.clone(), 0..99_u64).prop_map(|(at, built)| Step::Rebuild(at, built)),
        at.clone().prop_map(Step::Remove),
        at.clone().prop_map(Step::Forget),
        at.clone().prop_map(Step::Damage),
        at.prop_map(Step::Add),
        Just(Step::Settle),
        (0..20_000_usize).prop_map(Step::Tear),
        Just(Step::Lose),
    ];
    proptest::collection::vec(step, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn the_answer_is_that_of_the_files(steps in steps()) {
        let many = Many::new();
        many.settle();
        many.check();
        for step in &steps {
            many.change(step);
            many.check();
        }
    }
}

#[test]
fn remembered_summaries_are_used_and_what_is_fresh_is_not_remembered() {
    let many = Many::new();
    many.store.summaries(&many.ids);
    assert!(!fs::exists(&many.store.summaries_path()).unwrap(), "all were written just now");
    many.settle();
    let mut remembered = many.store.remembered();
    assert_eq!(remembered.rows.len(), REVISIONS);
    // A wrong number beside right stamps shows that the file is what is asked.
    let mut rows: Vec<(Row, Vec<Digest>)> = Vec::new();
    for mut row in remembered.rows.clone() {
        let own = remembered.artifacts_of(&row).collect();
        row.apparent = 123;
        rows.push((row, own));
    }
    many.put(&file::to_bytes(None, &rows).unwrap());
    let apparent = |of: &super::Summary| of.content.as_ref().unwrap().apparent.bytes();
    assert!(many.store.summaries(&many.ids).revisions.iter().all(|of| apparent(of) == 123));
    assert!(
        many.store.summaries(&many.ids[..3]).revisions.iter().all(|of| apparent(of) != 123),
        "few are read"
    );
    remembered = many.store.remembered();
    assert_eq!(remembered.rows.len(), REVISIONS);
}

#[test]
fn the_stamp_of_the_directory_stands_for_all_that_is_in_it() {
    let many = Many::new();
    let directory = many.store.root().join("revisions");
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
    std::fs::File::from(fs::open_dir(&directory).unwrap()).set_modified(long_ago).unwrap();
    many.settle();
    // As if it was long after the last change.
    let look = || Directory::look(&many.store, u64::MAX >> 1);
    assert_eq!(many.store.all_summaries().unwrap().revisions.len(), REVISIONS);
    assert_eq!(many.store.remembered().directory, None, "it changed just now");
    many.store.summarize_whole(Remember::Yes, &look()).unwrap();
    let remembered = many.store.remembered();
    assert_eq!(remembered.directory, look().stamp);
    // Wrong stamps of the files beside the right one of the directory show that no file is asked.
    let rows = |remembered: &file::Remembered| -> Vec<(Row, Vec<Digest>)> {
        let wrong = |row: &Row| Row { manifest: stamp(1), apparent: 123, ..row.clone() };
        remembered.rows.iter().map(|row| (wrong(row), remembered.artifacts_of(row).collect())).collect()
    };
    many.put(&file::to_bytes(look().stamp.as_ref(), &rows(&remembered)).unwrap());
    let apparent = |summaries: super::Summaries| -> Vec<u64> {
        summaries.revisions.iter().map(|of| of.content.as_ref().unwrap().apparent.bytes()).collect()
    };
    let whole = || many.store.summarize_whole(Remember::No, &look()).unwrap();
    assert_eq!(apparent(whole()), [123; REVISIONS]);
    assert!(apparent(many.store.all_summaries().unwrap()).iter().all(|bytes| *bytes != 123), "too fresh");
    // What is replaced, and what is added, gives the directory another stamp.
    many.record(&many.ids[0], 77);
    assert!(apparent(whole()).iter().all(|bytes| *bytes != 123));
    assert_eq!(whole().revisions[0].built_unix_ms, Some(77));
}
