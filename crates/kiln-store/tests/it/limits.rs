//! Each file of the store at the largest size that is read, and one byte over it; each version that is not known.

use crate::{Fixture, record};
use kiln_core::machine::{
    BootArtifacts, CloneMethod, CloneRecord, MachineRecord, MachineStatus, Network, RECORD_VERSION,
};
use kiln_core::revision::{ArtifactFormat, InvalidManifest};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, ArtifactRole, ByteSize, Digest, MachineId, Tag, TemplateName};
use kiln_store::{CloneChoice, Store, StoreError, StoreResult};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Makes a file of JSON so many bytes long, with white space that says nothing.
fn pad(path: &Path, bytes: usize) {
    let mut text = std::fs::read(path).unwrap();
    text.retain(|byte| *byte != b'\n');
    assert!(text.len() <= bytes);
    text.resize(bytes, b' ');
    std::fs::write(path, text).unwrap();
}

/// Checks that a file is read at `max` bytes, and that one byte more is an error that names file and limit.
fn at_and_over<T>(path: &Path, max: usize, read: impl Fn() -> StoreResult<T>) {
    pad(path, max);
    read().map(drop).unwrap();
    pad(path, max + 1);
    let Err(StoreError::Io(error)) = read() else { panic!("{} over its limit was read", path.display()) };
    assert_eq!(error.path, path);
    assert_eq!(error.source.to_string(), format!("more than {max} bytes"));
}

/// Replaces the version in a file of JSON.
fn set_version(path: &Path, version: u32) {
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    json["version"] = version.into();
    json["of_a_later_version"] = true.into();
    std::fs::write(path, json.to_string()).unwrap();
}

fn damage<T: std::fmt::Debug>(result: StoreResult<T>) -> (PathBuf, String) {
    match result {
        Err(StoreError::Damaged { path, reason }) => (path, reason),
        other => panic!("{other:?}"),
    }
}

/// Writes a machine's record and status, and returns its id and directory.
fn machine(store: &Store) -> (MachineId, PathBuf) {
    let id = MachineId::from_random([7; 6]);
    let dir = store.machine_dir(&id);
    let digest = Digest::of(b"artifact");
    let record = MachineRecord {
        version: RECORD_VERSION,
        id: id.clone(),
        name: "vm".parse().unwrap(),
        reference: "web".to_owned(),
        revision: digest,
        variant: None,
        arch: Arch::X86_64,
        shape: MachineShape::default(),
        boot: BootArtifacts::Kernel { kernel: digest, format: ArtifactFormat::Elf, initrd: None },
        boot_args: Vec::new(),
        ready: None,
        network: Network::None,
        accelerator: "auto".to_owned(),
        clone: CloneRecord { artifact: digest, size: ByteSize::from_mib(1), method: CloneMethod::Copy },
        base: None,
        seed: false,
        ssh_keys: Vec::new(),
        snapshot: None,
        must_restore: false,
        boots: false,
        put_back: false,
        identity: kiln_core::machine::IdentityPolicy::default(),
        capturable: false,
        remove_on_exit: false,
        ttl_ms: None,
        restart: kiln_core::RestartPolicy::No,
        idle_suspend_ms: None,
        created_unix_ms: 1,
    };
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("machine.json"), serde_json::to_vec(&record).unwrap()).unwrap();
    store.write_status(&dir, &MachineStatus::created()).unwrap();
    (id, dir)
}

#[test]
fn meta_json_has_a_largest_size() {
    let fixture = Fixture::new();
    let root = fixture.store.root();
    at_and_over(&root.join("meta.json"), 64 << 10, || Store::open(root));
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_not_touched() {
    let fixture = Fixture::new();
    let meta = fixture.store.root().join("meta.json");
    let open = |version| {
        set_version(&meta, version);
        let before = std::fs::read(&meta).unwrap();
        let error = Store::open(fixture.store.root()).unwrap_err();
        assert_eq!(std::fs::read(&meta).unwrap(), before);
        error
    };
    assert!(matches!(open(2), StoreError::NewerStore { found: 2, known: 1, .. }));
    set_version(&meta, 1);
    Store::open(fixture.store.root()).unwrap();
}

#[test]
fn an_unknown_feature_is_refused_unless_it_is_compatible() {
    let fixture = Fixture::new();
    let meta = fixture.store.root().join("meta.json");
    let open = |kind: &str| {
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&meta).unwrap()).unwrap();
        json["features"] = serde_json::json!({ kind: { "wings": {} } });
        std::fs::write(&meta, json.to_string()).unwrap();
        Store::open(fixture.store.root())
    };
    for kind in ["incompatible", "read_only_compatible"] {
        let Err(StoreError::UnknownFeature { feature, .. }) = open(kind) else { panic!("{kind} was taken") };
        assert_eq!(feature, "wings");
    }
    open("compatible").unwrap();
}

#[test]
fn a_machines_record_and_status_have_a_largest_size() {
    let fixture = Fixture::new();
    for file in ["machine.json", "status.json"] {
        let (id, dir) = machine(&fixture.store);
        at_and_over(&dir.join(file), 256 << 10, || fixture.store.machine(&id));
        std::fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn a_machines_record_and_status_of_another_version_are_damaged() {
    let fixture = Fixture::new();
    for file in ["machine.json", "status.json"] {
        let (id, dir) = machine(&fixture.store);
        for version in [0, 2] {
            set_version(&dir.join(file), version);
            let (path, reason) = damage(fixture.store.machine(&id));
            assert_eq!(path, dir.join(file));
            assert_eq!(reason, format!("it has version {version}, this kiln knows 1"));
        }
        set_version(&dir.join(file), 1);
        fixture.store.machine(&id).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn a_build_record_has_a_largest_size_and_a_newer_one_counts_as_none() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    let path = fixture.store.root().join("revisions").join(format!("{}.build.json", id.hex()));
    let read = || fixture.store.build_record(&id);
    set_version(&path, 2);
    assert_eq!(read().unwrap(), None);
    set_version(&path, 0);
    assert_eq!(damage(read()), (path.clone(), "it has version 0, the first is 1".to_owned()));
    set_version(&path, 1);
    assert_eq!(read().unwrap(), Some(record()));
    at_and_over(&path, 1 << 20, read);
}

#[test]
fn a_revision_that_could_not_be_read_again_is_not_committed() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    let mut manifest = fixture.store.revision(&id).unwrap().manifest;
    manifest.boot_args = vec!["x".repeat(1024)];
    let Err(StoreError::BadManifest { source, .. }) = fixture.store.commit_revision(&manifest, &record())
    else {
        panic!("it was committed")
    };
    assert!(matches!(source, InvalidManifest::BootArgs { bytes: 1025, .. }), "{source}");
    assert_eq!(fixture.store.revision_ids().unwrap(), [id]);
}

#[test]
fn a_tag_file_has_a_largest_size_and_keeps_its_last_moves() {
    let fixture = Fixture::new();
    let name: TemplateName = "web".parse().unwrap();
    let (one, two) = (fixture.revision(b"kernel", b"one"), fixture.revision(b"kernel", b"two"));
    fixture.store.set_tag(&name, &Tag::latest(), &one, "build").unwrap();
    let path = fixture.store.root().join("templates/web/tags/latest.json");
    let read = || fixture.store.template(&name).map(|entry| entry.unwrap().tags[&Tag::latest()].clone());
    let mut tag = read().unwrap();
    tag.log = (0..999)
        .map(|at_unix_ms| {
            let mut step = tag.log[0].clone();
            step.at_unix_ms = at_unix_ms;
            step
        })
        .collect();
    std::fs::write(&path, serde_json::to_vec(&tag).unwrap()).unwrap();
    for (revision, first) in [(two, 0), (one, 1)] {
        fixture.store.set_tag(&name, &Tag::latest(), &revision, "build").unwrap();
        let log = read().unwrap().log;
        assert_eq!((log.len(), log[0].at_unix_ms, log[999].to), (1000, first, revision));
    }
    at_and_over(&path, 1 << 20, read);
}

#[test]
fn a_lease_has_a_largest_size_and_a_long_reason_is_shortened() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    let take = |reason: &str| fixture.store.take_lease(&id, reason, Duration::from_secs(60)).unwrap();
    assert_eq!(take(&"x".repeat(1024)).reason.len(), 1024);
    assert_eq!(take(&"x".repeat(1025)).reason.len(), 1024);
    // A character is not cut in two.
    assert_eq!(take(&"€".repeat(342)).reason.len(), 1023);
    let path = fixture.store.root().join("leases").join(format!("{}.json", take("a test").id));
    at_and_over(&path, 16 << 10, || fixture.store.leases());
}

#[test]
fn a_seal_over_its_largest_size_is_none() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    let path = fixture.store.root().join("indexes").join(format!("{}.seal", artifact.digest.hex()));
    let check = || fixture.store.check_artifact(&artifact.digest, artifact.size);
    pad(&path, 4 << 10);
    check().unwrap();
    pad(&path, (4 << 10) + 1);
    assert!(matches!(check(), Err(StoreError::Unsealed { reason: "it has no seal", .. })));
    fixture.store.ensure_artifact(&artifact.digest, artifact.size, &fixture.cancel, &mut |_| ()).unwrap();
    check().unwrap();
}

#[test]
fn an_index_over_its_largest_size_is_not_read() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    let path = fixture.store.root().join("indexes").join(artifact.digest.hex());
    std::fs::remove_file(&path).unwrap();
    std::fs::File::create(&path).unwrap().set_len((256 << 20) + 1).unwrap();
    let Err(StoreError::Io(error)) = fixture.store.index(&artifact.digest) else { panic!("it was read") };
    assert_eq!(
        (error.path.as_path(), error.source.to_string()),
        (path.as_path(), "more than 268435456 bytes".to_owned())
    );
}

#[test]
fn the_record_of_a_disk_has_a_largest_size() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    fixture.store.set_tag(&"web".parse().unwrap(), &Tag::latest(), &id, "build").unwrap();
    let (disks, owner) = (fixture.store.disks(&fixture.cancel), "vm".parse().unwrap());
    disks.clone_for(&owner, &"web".parse().unwrap(), CloneChoice::Exactly(CloneMethod::Copy)).unwrap();
    at_and_over(&fixture.store.root().join("clones/vm/clone.json"), 64 << 10, || disks.get(&owner));
}

#[test]
fn an_artifact_that_goes_while_it_is_looked_at_is_not_found() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    std::fs::remove_file(
        fixture.store.root().join("indexes").join(format!("{}.seal", artifact.digest.hex())),
    )
    .unwrap();
    // It is told why the artifact is read just before it is: whoever removes it then is in the middle.
    let mut remove =
        |_: &StoreError| std::fs::remove_file(fixture.store.artifact_path(&artifact.digest)).unwrap();
    let result = fixture.store.ensure_artifact(&artifact.digest, artifact.size, &fixture.cancel, &mut remove);
    assert!(matches!(result, Err(StoreError::NotFound { kind: "artifact", .. })), "{result:?}");
}
