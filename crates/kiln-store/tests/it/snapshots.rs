//! Snapshots: published whole, found by name, kept as long as they should be, and removed with what only they had.

use crate::Fixture;
use kiln_core::snapshot::{
    Compatibility, SNAPSHOT_RECORD_VERSION, SNAPSHOT_VERSION, SnapshotFile, SnapshotKeep, SnapshotManifest,
    SnapshotMemory, SnapshotRecord,
};
use kiln_core::template_test::{SnapshotTest, TEST_BYTES_MAX, TEST_VERSION};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, Digest, Tag, TemplateName};
use kiln_store::{CollectPolicy, Collection, IngestFrom, Root, StoreError};
use kiln_sys::fail::{ANY, Action, arm, disarm};
use kiln_sys::lock::Share;

/// `ENOSPC`.
const NO_SPACE: i32 = 28;

fn file(fixture: &Fixture, content: &[u8]) -> SnapshotFile {
    let staging = fixture.store.stage("a test").unwrap();
    let path = staging.path().join("file");
    std::fs::write(&path, content).unwrap();
    let taken = fixture.store.ingest(&path, IngestFrom::Staging, &staging, &fixture.cancel).unwrap();
    SnapshotFile { digest: taken.digest, size: taken.size }
}

fn manifest(fixture: &Fixture, subject: Digest, content: &str) -> SnapshotManifest {
    let mut compatibility = Compatibility::default();
    compatibility.insert("vmm", "a test");
    SnapshotManifest {
        version: SNAPSHOT_VERSION,
        subject,
        arch: Arch::X86_64,
        variant: None,
        machine: MachineShape::default(),
        boot_args: Vec::new(),
        disk: file(fixture, format!("disk of {content}").as_bytes()),
        data_disk: None,
        memory: Some(SnapshotMemory {
            ram: None,
            state: file(fixture, format!("state of {content}").as_bytes()),
            compatibility,
        }),
    }
}

fn record(keep: SnapshotKeep, name: Option<&str>) -> SnapshotRecord {
    SnapshotRecord {
        version: SNAPSHOT_RECORD_VERSION,
        created_unix_ms: 1,
        keep,
        name: name.map(|name| name.parse().unwrap()),
        machine: None,
        paused_us: 2,
        elapsed_ms: 3,
    }
}

fn snapshot(fixture: &Fixture, subject: Digest, content: &str, keep: SnapshotKeep) -> Digest {
    let manifest = manifest(fixture, subject, content);
    fixture.store.commit_snapshot(&manifest, &record(keep, Some(content))).unwrap()
}

/// Publishes a snapshot of a revision and removes it.
pub(crate) fn publish_and_remove(fixture: &Fixture, revision: Digest) {
    let id = snapshot(fixture, revision, "one", SnapshotKeep::Always);
    let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    fixture.store.remove_snapshot(&id, &alone).unwrap();
}

fn collect(fixture: &Fixture) -> Collection {
    let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    let plan = fixture.store.plan_collection(&CollectPolicy { keep_last: 1, ..Default::default() }).unwrap();
    fixture.store.collect(&plan, &alone).unwrap();
    plan
}

fn tag(fixture: &Fixture, revision: &Digest) -> (TemplateName, Tag) {
    let (template, tag) = ("web".parse().unwrap(), Tag::latest());
    fixture.store.set_tag(&template, &tag, revision, "tag").unwrap();
    (template, tag)
}

#[test]
fn a_snapshot_is_found_by_name_and_id_and_checked_against_its_id() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    let (one, two) = (
        snapshot(&fixture, revision, "one", SnapshotKeep::Always),
        snapshot(&fixture, revision, "two", SnapshotKeep::Revision),
    );
    assert_eq!(fixture.store.find_snapshot("one").unwrap().id, one);
    assert_eq!(fixture.store.find_snapshot(&two.hex()[..8]).unwrap().id, two);
    assert_eq!(fixture.store.find_snapshot(&two.to_string()).unwrap().label(), "two");
    let Err(StoreError::NotFound { kind: "snapshot", similar, .. }) = fixture.store.find_snapshot("onee")
    else {
        panic!("found")
    };
    assert_eq!(similar, ["one"]);
    assert_eq!(fixture.store.snapshots_of(&revision).unwrap().len(), 2);
    let path = fixture.store.root().join("snapshots").join(format!("{}.json", one.hex()));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(fixture.store.snapshot(&one), Err(StoreError::Damaged { .. })));
    assert_eq!(fixture.store.snapshot_id(&one.hex()[..8]).unwrap(), one, "what is damaged can be removed");
    let unreadable = fixture.store.snapshots().unwrap().into_iter().filter(|(_, s)| s.is_err()).count();
    assert_eq!(unreadable, 1, "it is a line, not the end of the list");
    let plan = collect(&fixture);
    assert_eq!((plan.unreadable, plan.unreadable_snapshots), (vec![], vec![one]));
    assert_eq!(plan.artifacts, [], "what cannot be read may have any file");
}

#[test]
fn a_snapshot_without_its_revision_or_files_is_not_published() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    let whole = manifest(&fixture, revision, "one");
    let record = record(SnapshotKeep::Always, None);
    let stranger = SnapshotManifest { subject: Digest::of(b"nothing"), ..whole.clone() };
    assert!(matches!(
        fixture.store.commit_snapshot(&stranger, &record),
        Err(StoreError::NotFound { kind: "revision", .. })
    ));
    let mut bare = whole.clone();
    bare.disk.digest = Digest::of(b"no disk");
    assert!(matches!(fixture.store.commit_snapshot(&bare, &record), Err(StoreError::NotFound { .. })));
    let mut impossible = whole;
    impossible.machine.vcpus = 0;
    assert!(matches!(
        fixture.store.commit_snapshot(&impossible, &record),
        Err(StoreError::BadSnapshot { .. })
    ));
    assert_eq!(fixture.store.snapshot_ids().unwrap(), []);
}

#[test]
fn each_kind_of_snapshot_stays_as_long_as_it_should() {
    let fixture = Fixture::new();
    let (old, new) = (fixture.revision(b"kernel", b"old"), fixture.revision(b"kernel", b"new"));
    tag(&fixture, &new);
    let of_old = snapshot(&fixture, old, "built-old", SnapshotKeep::Revision);
    let of_new = snapshot(&fixture, new, "built-new", SnapshotKeep::Revision);
    let forked = snapshot(&fixture, new, "forked", SnapshotKeep::Machines);
    let plan = collect(&fixture);
    let mut gone: Vec<Digest> = plan.snapshots.iter().map(|dead| dead.id).collect();
    gone.sort_unstable();
    let mut want = vec![of_old, forked];
    want.sort_unstable();
    assert_eq!(gone, want);
    // A disk and a state each, which nothing else has, in a block each at least.
    for dead in &plan.snapshots {
        let own = dead.exclusive.bytes();
        assert!(own > 0 && plan.freed().bytes() > own, "{plan:?}");
    }
    let subject = |id| plan.snapshots.iter().find(|dead| dead.id == id).map(|dead| dead.subject);
    assert_eq!((subject(of_old), subject(forked)), (Some(old), Some(new)));
    assert_eq!(plan.revisions.iter().map(|dead| dead.id).collect::<Vec<_>>(), [old]);
    assert_eq!(fixture.store.snapshot_ids().unwrap(), [of_new]);
    for file in fixture.store.snapshot(&of_new).unwrap().manifest.files() {
        fixture.store.check_artifact(&file.digest, file.size).unwrap();
    }
    assert_eq!(fixture.store.artifact_ids().unwrap().len(), 4, "kernel, root file system, disk, state");
    // What a user made keeps its revision.
    let other = fixture.revision(b"kernel", b"other");
    snapshot(&fixture, other, "mine", SnapshotKeep::Always);
    assert_eq!(fixture.store.why(&other, 1).unwrap(), [Root::Snapshot { name: "mine".to_owned() }]);
    assert_eq!(collect(&fixture).snapshots, []);
    // Without a record nobody knows whose it is.
    let path = fixture.store.root().join("snapshots").join(format!("{}.made.json", of_new.hex()));
    std::fs::remove_file(path).unwrap();
    assert_eq!(fixture.store.snapshot(&of_new).unwrap().keep(), SnapshotKeep::Always);
    assert_eq!(collect(&fixture).snapshots, []);
}

#[test]
fn a_revision_goes_with_its_own_snapshots_and_not_while_a_users_is_there() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    snapshot(&fixture, revision, "built", SnapshotKeep::Revision);
    let mine = snapshot(&fixture, revision, "mine", SnapshotKeep::Always);
    let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    let error = fixture.store.remove_revision(&revision, &alone).unwrap_err();
    assert!(error.to_string().ends_with("is kept by the snapshot mine"), "{error}");
    let removed = fixture.store.remove_snapshot(&mine, &alone).unwrap();
    assert_eq!(removed.artifacts.len(), 2);
    assert!(matches!(fixture.store.snapshot(&mine), Err(StoreError::NotFound { .. })));
    let removed = fixture.store.remove_revision(&revision, &alone).unwrap();
    assert_eq!(removed.artifacts.len(), 4);
    assert_eq!(fixture.store.snapshot_ids().unwrap(), []);
    assert_eq!(fixture.store.artifact_ids().unwrap(), []);
}

#[test]
fn a_publication_that_fails_anywhere_leaves_no_snapshot_or_all_of_it() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    tag(&fixture, &revision);
    let manifest = manifest(&fixture, revision, "one");
    let record = record(SnapshotKeep::Revision, None);
    let mut failures = 0;
    for nth in 1.. {
        arm(ANY, nth, Action::Error(NO_SPACE));
        let result = fixture.store.commit_snapshot(&manifest, &record);
        disarm();
        let Err(error) = result else { break };
        assert!(matches!(&error, StoreError::Io(error) if error.is_no_space()), "{error:?}");
        failures += 1;
        for id in fixture.store.snapshot_ids().unwrap() {
            assert_eq!(fixture.store.snapshot(&id).unwrap().manifest, manifest);
            assert_eq!(fixture.store.snapshot(&id).unwrap().record, Some(record.clone()));
        }
    }
    assert!(failures >= 3, "{failures}");
    assert_eq!(collect(&fixture).snapshots, []);
}

#[test]
fn a_snapshot_record_has_a_largest_size() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    let id = snapshot(&fixture, revision, "built", SnapshotKeep::Revision);
    let path = fixture.store.root().join("snapshots").join(format!("{}.made.json", id.hex()));
    let text = std::fs::read_to_string(&path).unwrap();
    let padded = |bytes: usize| format!("{text}{}", " ".repeat(bytes - text.len()));
    for (bytes, keep) in [(16 << 10, SnapshotKeep::Revision), ((16 << 10) + 1, SnapshotKeep::Always)] {
        std::fs::write(&path, padded(bytes)).unwrap();
        assert_eq!(fixture.store.snapshot(&id).unwrap().keep(), keep, "{bytes}");
    }
}

fn test_result(checked_unix_ms: u64) -> SnapshotTest {
    SnapshotTest {
        version: TEST_VERSION,
        tested_unix_ms: checked_unix_ms,
        elapsed_ms: 1,
        clones: Vec::new(),
        checks: Vec::new(),
    }
}

#[test]
fn a_test_stays_with_its_snapshot_and_goes_with_it() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    tag(&fixture, &revision);
    let mine = snapshot(&fixture, revision, "mine", SnapshotKeep::Always);
    let forked = snapshot(&fixture, revision, "forked", SnapshotKeep::Machines);
    assert_eq!(fixture.store.snapshot_test(&mine).unwrap(), None);
    for (id, at) in [(&mine, 1), (&mine, 2), (&forked, 3)] {
        fixture.store.save_snapshot_test(id, &test_result(at)).unwrap();
    }
    assert_eq!(fixture.store.snapshot_test(&mine).unwrap(), Some(test_result(2)));
    assert_eq!(fixture.store.snapshot_ids().unwrap().len(), 2, "a result is no snapshot");
    collect(&fixture);
    let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    fixture.store.remove_snapshot(&mine, &alone).unwrap();
    let left: Vec<_> = std::fs::read_dir(fixture.store.root().join("snapshots")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let refused = fixture.store.save_snapshot_test(&mine, &test_result(4));
    assert!(matches!(refused, Err(StoreError::NotFound { kind: "snapshot", .. })), "{refused:?}");
}

#[test]
fn a_test_that_is_too_large_or_of_another_version_counts_as_none() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    let id = snapshot(&fixture, revision, "built", SnapshotKeep::Revision);
    fixture.store.save_snapshot_test(&id, &test_result(1)).unwrap();
    let path = fixture.store.root().join("snapshots").join(format!("{}.test.json", id.hex()));
    let text = std::fs::read_to_string(&path).unwrap();
    let padded = |bytes: usize| format!("{text}{}", " ".repeat(bytes - text.len()));
    for (content, known) in [
        (padded(TEST_BYTES_MAX), true),
        (padded(TEST_BYTES_MAX + 1), false),
        (text.replace("\"version\": 1", "\"version\": 2"), false),
        ("{".to_owned(), false),
    ] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(fixture.store.snapshot_test(&id).unwrap().is_some(), known);
    }
}

#[test]
fn a_mapping_copy_is_shared_until_it_is_touched_and_goes_with_its_artifact() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    let id = snapshot(&fixture, revision, "a", SnapshotKeep::Always);
    let memory = fixture.store.snapshot(&id).unwrap().manifest.memory.unwrap();
    let SnapshotFile { digest, size } = memory.state;
    let artifact = fixture.store.artifact_path(&digest);
    let content = std::fs::read(&artifact).unwrap();
    let copy = || fixture.store.mapping_copy(&digest, size, &fixture.cancel, &mut |_| ()).unwrap();
    let inode = |path: &std::path::Path| std::fs::metadata(path).unwrap().ino();
    let path = copy();
    assert_eq!(path, fixture.store.root().join("cache/v1/memory").join(digest.hex()));
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_ne!(inode(&path), inode(&artifact));
    // One for all who ask, also at once.
    let first = std::fs::File::open(&path).unwrap();
    let inodes: Vec<u64> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| inode(&copy()))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(inodes, [first.metadata().unwrap().ino(); 4]);
    let copied_at = || {
        let meta = std::fs::metadata(path.with_extension("stamp")).unwrap();
        (meta.ino(), meta.mtime(), meta.mtime_nsec())
    };
    // Touched, it is made again; who has the old one open keeps it.
    let touches: [&dyn Fn(); 6] = [
        &|| {
            // Right but for its length.
            let stamp = std::fs::read_to_string(path.with_extension("stamp")).unwrap();
            let padded = format!("{stamp}{}", " ".repeat(4097 - stamp.len()));
            std::fs::write(path.with_extension("stamp"), padded).unwrap();
        },
        &|| std::fs::write(&path, "other").unwrap(),
        &|| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap(),
        &|| std::fs::remove_file(path.with_extension("stamp")).unwrap(),
        &|| std::fs::write(path.with_extension("stamp"), "{}").unwrap(),
        &|| std::fs::remove_file(&path).unwrap(),
    ];
    for touch in touches {
        let before = copied_at();
        touch();
        assert_eq!(std::fs::read(copy()).unwrap(), content);
        assert_ne!(copied_at(), before);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    }
    assert_eq!(first.metadata().unwrap().nlink(), 0);
    // What a dead process left goes with the next collection; a copy goes with its artifact.
    let aside = path.with_file_name(".aside-0123456789abcdef");
    std::fs::write(&aside, "half").unwrap();
    let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    fixture.store.remove_snapshot(&id, &alone).unwrap();
    assert!(!artifact.exists());
    let left: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}
