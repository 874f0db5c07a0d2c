use crate::Fixture;
use kiln_core::machine::CloneMethod;
use kiln_core::{ArtifactRole, ByteSize, Digest};
use kiln_store::{CloneChoice, CloneRequest, IngestFrom, StoreError, Verdict, hash_file};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

#[test]
fn the_digest_depends_on_content_and_not_on_holes() {
    let fixture = Fixture::new();
    let sparse_path = fixture.dir.path().join("sparse");
    let sparse = File::create_new(&sparse_path).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"data", (1 << 20) + 5).unwrap();
    let mut dense = vec![0; 3 << 20];
    dense[(1 << 20) + 5..(1 << 20) + 9].copy_from_slice(b"data");
    let dense_path = fixture.dir.path().join("dense");
    std::fs::write(&dense_path, dense).unwrap();
    let digest =
        |path: &std::path::Path| hash_file(&File::open(path).unwrap(), path, &fixture.cancel).unwrap();
    assert_eq!(digest(&sparse_path), digest(&dense_path));
    assert_eq!(digest(&sparse_path).data_bytes(), 64 << 10);
    let mut longer = std::fs::read(&dense_path).unwrap();
    longer.push(0);
    std::fs::write(&dense_path, longer).unwrap();
    assert_ne!(digest(&sparse_path).digest(), digest(&dense_path).digest(), "the length counts");
}

#[test]
fn an_artifact_is_read_only_sparse_and_there_once() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("image");
    let file = File::create_new(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    let staging = fixture.store.stage("a test").unwrap();
    let one = fixture.store.ingest(&path, IngestFrom::Outside, &staging, &fixture.cancel).unwrap();
    let two = fixture.store.ingest(&path, IngestFrom::Outside, &staging, &fixture.cancel).unwrap();
    assert_eq!((one.digest, one.known, two.known), (two.digest, false, true));
    let meta = std::fs::metadata(fixture.store.artifact_path(&one.digest)).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o444);
    assert!(meta.blocks() * 512 < 1 << 20, "holes stay holes");
    assert_eq!(fixture.store.index(&one.digest).unwrap().digest(), one.digest);
    assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 0);
}

#[test]
fn special_files_and_missing_ones_are_refused() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage("a test").unwrap();
    for path in ["/dev/null", "/proc", "/nowhere"] {
        let result = fixture.store.ingest(path.as_ref(), IngestFrom::Outside, &staging, &fixture.cancel);
        let Err(StoreError::Io(error)) = result else { panic!("{path}") };
        assert_eq!(error.path, std::path::Path::new(path));
    }
}

#[test]
fn a_touched_artifact_is_read_before_it_is_used() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    let path = fixture.store.artifact_path(&artifact.digest);
    let check = || fixture.store.check_artifact(&artifact.digest, artifact.size);
    let mut told = Vec::new();
    let ensure = |told: &mut Vec<String>| {
        let mut note = |why: &StoreError| told.push(why.to_string());
        fixture.store.ensure_artifact(&artifact.digest, artifact.size, &fixture.cancel, &mut note)
    };
    check().unwrap();
    ensure(&mut told).unwrap();
    assert_eq!(told, Vec::<String>::new(), "a sealed artifact is not read");
    // Only touched: it is read once, and sealed again.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(check(), Err(StoreError::Unsealed { .. })));
    ensure(&mut told).unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o444);
    check().unwrap();
    // Edited in place, with the same length and the time of the last write set back.
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"X", 3).unwrap();
    file.set_modified(before).unwrap();
    drop(file);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert!(matches!(check(), Err(StoreError::Unsealed { .. })));
    assert!(matches!(ensure(&mut told), Err(StoreError::Damaged { .. })));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, b"con").unwrap();
    assert!(matches!(check(), Err(StoreError::Damaged { .. })));
    let dir = fixture.dir.path().join("clone");
    std::fs::create_dir(&dir).unwrap();
    let short = clone(&fixture, &artifact, &dir, CloneChoice::Auto);
    assert!(matches!(short, Err(StoreError::Damaged { .. })), "{short:?}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn verification_names_what_is_damaged_and_keeps_it() {
    let fixture = Fixture::new();
    let mut content = vec![7_u8; 400 << 10];
    content[100 << 10..250 << 10].fill(0);
    let artifact = fixture.artifact(ArtifactRole::rootfs(), &content);
    let store = &fixture.store;
    let verify = || store.verify_artifact(&artifact.digest, &fixture.cancel).unwrap();
    let data = ByteSize::from_bytes((400 - 64) << 10);
    assert_eq!(verify(), Verdict::Intact { size: artifact.size, data, index_rebuilt: false });
    // A lost index is made from the content.
    let index = store.root().join("indexes").join(artifact.digest.hex());
    std::fs::remove_file(&index).unwrap();
    assert_eq!(verify(), Verdict::Intact { size: artifact.size, data, index_rebuilt: true });
    store.index(&artifact.digest).unwrap();
    let path = store.artifact_path(&artifact.digest);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    for offset in [70 << 10, 130 << 10, 399 << 10] {
        file.write_all_at(b"damage", offset).unwrap();
    }
    drop(file);
    let Verdict::Damaged(damage) = verify() else { panic!("damage was not found") };
    assert_eq!(damage.ranges, [64 << 10..192 << 10, 384 << 10..400 << 10]);
    assert_eq!(damage.segments, 3);
    assert!(damage.quarantined.starts_with(store.root().join("quarantine")));
    assert_eq!(std::fs::read(&damage.quarantined).unwrap().len(), content.len(), "nothing is deleted");
    assert_eq!(verify(), Verdict::Missing);
    assert!(matches!(
        store.check_artifact(&artifact.digest, artifact.size),
        Err(StoreError::NotFound { kind: "artifact", .. })
    ));
    // The same content comes back as the same artifact.
    assert_eq!(fixture.artifact(ArtifactRole::rootfs(), &content).digest, artifact.digest);
    assert_eq!(verify(), Verdict::Intact { size: artifact.size, data, index_rebuilt: false });
}

#[test]
fn an_artifact_without_its_seal_is_read() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    let seal = fixture.store.root().join("indexes").join(format!("{}.seal", artifact.digest.hex()));
    let check = || fixture.store.check_artifact(&artifact.digest, artifact.size);
    for bytes in [None, Some("{}")] {
        std::fs::remove_file(&seal).unwrap();
        if let Some(bytes) = bytes {
            std::fs::write(&seal, bytes).unwrap();
        }
        assert!(matches!(check(), Err(StoreError::Unsealed { .. })), "{bytes:?}");
        fixture.store.ensure_artifact(&artifact.digest, artifact.size, &fixture.cancel, &mut |_| ()).unwrap();
        check().unwrap();
    }
}

#[test]
fn an_artifact_is_replaced_when_damaged_and_never_written_into() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    let path = fixture.store.artifact_path(&artifact.digest);
    let before = std::fs::metadata(&path).unwrap();
    assert_eq!(fixture.artifact(ArtifactRole::rootfs(), b"content").digest, artifact.digest);
    let after = std::fs::metadata(&path).unwrap();
    assert_eq!((before.ino(), before.ctime_nsec()), (after.ino(), after.ctime_nsec()), "it stays as it is");
    // Somebody has the file open while it is found damaged and comes again.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, b"damaged").unwrap();
    let held = File::open(&path).unwrap();
    assert_eq!(fixture.artifact(ArtifactRole::rootfs(), b"content").digest, artifact.digest);
    let mut bytes = [0; 7];
    held.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"damaged", "its file is another");
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    fixture.store.check_artifact(&artifact.digest, artifact.size).unwrap();
}

#[test]
fn what_is_no_regular_file_is_no_artifact() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    let path = fixture.store.artifact_path(&artifact.digest);
    let elsewhere = fixture.dir.path().join("elsewhere");
    std::fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    let check = fixture.store.check_artifact(&artifact.digest, artifact.size);
    assert!(matches!(check, Err(StoreError::Damaged { .. })), "{check:?}");
    let dir = fixture.dir.path().join("clone");
    std::fs::create_dir(&dir).unwrap();
    assert!(clone(&fixture, &artifact, &dir, CloneChoice::Auto).is_err());
    let verdict = fixture.store.verify_artifact(&artifact.digest, &fixture.cancel).unwrap();
    assert!(matches!(verdict, Verdict::Damaged(_)), "{verdict:?}");
    assert_eq!(std::fs::read(&elsewhere).unwrap(), b"content", "what the link led to is not the store's");
    // A pipe that nobody writes to keeps nobody waiting.
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let verdict = fixture.store.verify_artifact(&artifact.digest, &fixture.cancel).unwrap();
    assert!(matches!(verdict, Verdict::Damaged(_)), "{verdict:?}");
    assert_eq!(fixture.artifact(ArtifactRole::rootfs(), b"content").digest, artifact.digest);
}

fn clone(
    fixture: &Fixture,
    artifact: &kiln_core::revision::Artifact,
    dir: &std::path::Path,
    choice: CloneChoice,
) -> Result<kiln_core::machine::CloneRecord, StoreError> {
    let request = CloneRequest { digest: artifact.digest, size: artifact.size, dir, stem: "clone", choice };
    fixture.store.clone_artifact(&request, &fixture.cancel)
}

#[test]
fn a_clone_is_private_writable_and_never_reused() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"template");
    let source = fixture.store.artifact_path(&artifact.digest);
    let dir = fixture.dir.path();
    let dest = dir.join("clone.raw");
    // Not whole sectors: no overlay can have this length.
    let record = clone(&fixture, &artifact, dir, CloneChoice::Auto).unwrap();
    assert!(matches!(record.method, CloneMethod::Reflink | CloneMethod::Copy));
    let (one, two) = (std::fs::metadata(&source).unwrap(), std::fs::metadata(&dest).unwrap());
    assert_ne!(one.ino(), two.ino());
    assert_eq!((one.nlink(), two.nlink()), (1, 1), "never a hard link");
    assert_eq!(two.permissions().mode() & 0o7777, 0o600);
    std::fs::write(&dest, b"HACKED!!").unwrap();
    assert_eq!(std::fs::read(&source).unwrap(), b"template");
    let again = clone(&fixture, &artifact, dir, CloneChoice::Exactly(record.method));
    assert!(again.is_err(), "a file of the right length is not taken for a clone");
    assert_eq!(std::fs::read(&dest).unwrap(), b"HACKED!!", "and not destroyed either");
}

#[test]
fn an_overlay_reads_as_the_artifact_and_is_small_at_any_size() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("large");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(3 << 40).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 2 << 40).unwrap();
    drop(file);
    for len in [512, (1 << 30) + 512, 3 << 40] {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        let staging = fixture.store.stage("a test").unwrap();
        let Ok(taken) = fixture.store.ingest(&path, IngestFrom::Outside, &staging, &fixture.cancel) else {
            continue; // a file system without files this long
        };
        // As deep below the store as the directory of a machine.
        let dir = fixture.store.root().join("machines").join(format!("m{len}"));
        std::fs::create_dir_all(&dir).unwrap();
        let request = CloneRequest {
            digest: taken.digest,
            size: taken.size,
            dir: &dir,
            stem: "disk",
            choice: CloneChoice::Exactly(CloneMethod::Overlay),
        };
        let record = fixture.store.clone_artifact(&request, &fixture.cancel).unwrap();
        assert_eq!(record.method, CloneMethod::Overlay);
        let overlay = dir.join("disk.qcow2");
        let meta = std::fs::metadata(&overlay).unwrap();
        assert!(meta.blocks() * 512 <= 64 << 10, "{} blocks", meta.blocks());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        qemu_img(&["check", "-q"], &[&overlay]);
        if len < 1 << 40 {
            let artifact = fixture.store.artifact_path(&taken.digest);
            qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw"], &[&overlay, &artifact]);
        }
    }
}

fn qemu_img(args: &[&str], paths: &[&std::path::Path]) {
    let output = std::process::Command::new("qemu-img").args(args).args(paths).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_way_that_is_not_to_be_had_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"not whole sectors");
    let dir = fixture.dir.path().join("clone");
    std::fs::create_dir(&dir).unwrap();
    let refused = clone(&fixture, &artifact, &dir, CloneChoice::Exactly(CloneMethod::Overlay));
    assert!(matches!(refused, Err(StoreError::CloneUnsupported { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn a_missing_artifact_is_not_found() {
    let fixture = Fixture::new();
    let digest = Digest::of(b"nothing");
    let error = fixture.store.check_artifact(&digest, ByteSize::from_bytes(1)).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { kind: "artifact", .. }));
    assert!(matches!(fixture.store.index(&digest), Err(StoreError::NotFound { kind: "index", .. })));
}

#[test]
fn what_an_ended_process_staged_is_swept_and_what_a_living_one_stages_is_not() {
    let fixture = Fixture::new();
    let living = fixture.store.stage("a test").unwrap();
    let parent = fixture.store.root().join("staging");
    std::fs::create_dir(parent.join("0123456789abcdef")).unwrap();
    std::fs::write(parent.join("0123456789abcdef/half"), b"x").unwrap();
    std::fs::write(parent.join("0123456789abcdef.lock"), b"").unwrap();
    assert_eq!(fixture.store.sweep_staging().unwrap(), 1);
    assert!(living.path().exists());
    assert!(!parent.join("0123456789abcdef").exists());
    drop(living);
    assert_eq!(std::fs::read_dir(parent).unwrap().count(), 0);
}

#[test]
fn reflink_file_systems_share_their_blocks() {
    crate::on_xfs(|mount| {
        let store = kiln_store::Store::open(&mount.join("home")).unwrap();
        let cancel = kiln_sys::Cancel::new().unwrap();
        let source = mount.join("file");
        std::fs::write(&source, vec![7; 8 << 20]).unwrap();
        let staging = store.stage("a test").unwrap();
        let taken = store.ingest(&source, IngestFrom::Outside, &staging, &cancel).unwrap();
        let request = CloneRequest {
            digest: taken.digest,
            size: taken.size,
            dir: staging.path(),
            stem: "disk",
            choice: CloneChoice::Auto,
        };
        let record = store.clone_artifact(&request, &cancel).unwrap();
        assert_eq!(record.method, CloneMethod::Reflink);
        let disk = staging.path().join("disk.raw");
        let file = File::options().read(true).write(true).open(&disk).unwrap();
        file.sync_all().unwrap();
        let shared = || kiln_sys::extents::shared_bytes(&file, &disk).unwrap().unwrap();
        assert_eq!(shared(), 8 << 20);
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        assert_eq!(shared(), 7 << 20, "what was written is the clone's own");
    });
}
