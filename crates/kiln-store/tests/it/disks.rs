use crate::{Fixture, record};
use kiln_core::machine::CloneMethod;
use kiln_core::{Digest, DiskOwner, Reference, Tag};
use kiln_store::{AdoptDisk, CloneChoice, CopyOut, Disks, StoreError};
use kiln_sys::lock::Share;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

const COPY: CloneChoice = CloneChoice::Exactly(CloneMethod::Copy);
const OVERLAY: CloneChoice = CloneChoice::Exactly(CloneMethod::Overlay);

fn owner(text: &str) -> DiskOwner {
    text.parse().unwrap()
}

fn web() -> Reference {
    "web".parse().unwrap()
}

/// A store with a template `web` whose root file system has this content.
fn with_web(content: &[u8]) -> (Fixture, Digest) {
    let fixture = Fixture::new();
    let id = publish(&fixture, content);
    (fixture, id)
}

fn publish(fixture: &Fixture, content: &[u8]) -> Digest {
    let id = fixture.revision(b"kernel", content);
    fixture.store.set_tag(&"web".parse().unwrap(), &Tag::latest(), &id, "build").unwrap();
    id
}

fn disks(fixture: &Fixture) -> Disks<'_> {
    fixture.store.disks(&fixture.cancel)
}

fn staged(fixture: &Fixture) -> usize {
    std::fs::read_dir(fixture.store.root().join("staging")).unwrap().count()
}

#[test]
fn a_disk_is_private_writable_and_found_again_with_what_was_written() {
    let (fixture, id) = with_web(&[7; 4096]);
    let disks = disks(&fixture);
    let made = disks.clone_for(&owner("vm1"), &web(), COPY).unwrap();
    assert!(!made.existed);
    let (record, path) = (made.disk.record(), made.disk.path());
    assert_eq!((record.revision, record.reference.as_str()), (id, "web:latest"));
    assert_eq!((record.size.bytes(), record.method), (4096, CloneMethod::Copy));
    assert_eq!(path, fixture.store.root().join("clones/vm1/disk.raw"));
    let artifact = std::fs::metadata(fixture.store.artifact_path(&record.artifact)).unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600, "the template's mode is not inherited");
    let home = path.parent().unwrap();
    assert_eq!(kiln_sys::fs::list_dir(home).unwrap(), ["clone.json", "disk.raw"]);
    let meta = std::fs::metadata(home.join("clone.json")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    assert_ne!(meta.ino(), artifact.ino());
    assert_eq!((meta.nlink(), artifact.nlink()), (1, 1), "never a hard link");
    std::fs::write(&path, [b'H'; 4096]).unwrap();
    // Written to, it is still the same disk: identity is the record's, not the live file's.
    let again = disks.clone_for(&owner("vm1"), &web(), OVERLAY).unwrap();
    assert!(again.existed);
    assert_eq!((again.disk.record(), again.disk.path()), (record, path.clone()));
    assert_eq!(std::fs::read(&path).unwrap(), [b'H'; 4096]);
    let other = disks.clone_for(&owner("vm2"), &web(), COPY).unwrap();
    assert_eq!(std::fs::read(other.disk.path()).unwrap(), [7; 4096], "the template is untouched");
    assert_eq!(staged(&fixture), 0);
}

#[test]
fn another_revision_is_refused_with_both_ids_and_the_old_disk_stays_usable() {
    let (fixture, one) = with_web(b"one");
    let disks = disks(&fixture);
    disks.clone_for(&owner("vm"), &web(), COPY).unwrap();
    let two = publish(&fixture, b"two");
    let Err(StoreError::Mismatch { owner: who, have, want }) = disks.clone_for(&owner("vm"), &web(), COPY)
    else {
        panic!()
    };
    assert_eq!((who.as_str(), have, want), ("vm", one, two));
    assert_eq!(disks.get(&owner("vm")).unwrap().unwrap().record().revision, one);
    let new = disks.clone_for(&owner("new"), &web(), COPY).unwrap();
    assert_eq!(std::fs::read(new.disk.path()).unwrap(), b"two", "a template moves on while disks are in use");
    let pinned = format!("web@{one}").parse().unwrap();
    assert!(disks.clone_for(&owner("vm"), &pinned, COPY).unwrap().existed);
}

#[test]
fn owners_and_references_are_refused_and_never_repaired() {
    let (fixture, _) = with_web(b"root");
    for text in ["", "..", "a/b", "../secret", "/etc", "日本", "A", "a b", ".a"] {
        assert!(text.parse::<DiskOwner>().is_err(), "{text}");
    }
    let disks = disks(&fixture);
    for name in ["a.b", "a_b", "a-b"] {
        assert!(!disks.clone_for(&owner(name), &web(), COPY).unwrap().existed, "{name}");
    }
    assert!(disks.release(&owner("a.b")).unwrap());
    let left: Vec<String> = disks.list().unwrap().iter().map(|(owner, _)| owner.to_string()).collect();
    assert_eq!(left, ["a-b", "a_b"]);
    let error = disks.clone_for(&owner("x"), &"wev".parse().unwrap(), COPY).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { kind: "template", similar, .. } if similar == ["web"]));
    assert!(disks.get(&owner("x")).unwrap().is_none());
}

#[test]
fn a_disk_that_is_not_as_recorded_is_named_and_can_be_released() {
    let (fixture, id) = with_web(&[1; 1024]);
    let disks = disks(&fixture);
    type Spoil<'a> = &'a dyn Fn(&Path);
    let spoil: [(&str, Spoil<'_>); 7] = [
        ("it is not there", &|dir| std::fs::remove_file(dir.join("disk.raw")).unwrap()),
        ("it has 5 bytes", &|dir| std::fs::write(dir.join("disk.raw"), b"short").unwrap()),
        ("it has 2048 bytes", &|dir| std::fs::write(dir.join("disk.raw"), [9; 2048]).unwrap()),
        ("not a regular file", &|dir| {
            std::fs::remove_file(dir.join("disk.raw")).unwrap();
            std::os::unix::fs::symlink("/etc/hostname", dir.join("disk.raw")).unwrap();
        }),
        ("its directory is", &|dir| std::fs::remove_file(dir.join("clone.json")).unwrap()),
        ("expected", &|dir| std::fs::write(dir.join("clone.json"), b"?").unwrap()),
        ("it has version 2", &|dir| std::fs::write(dir.join("clone.json"), b"{\"version\":2}").unwrap()),
    ];
    for (reason, spoil) in spoil {
        let vm = owner("vm");
        let disk = disks.clone_for(&vm, &web(), COPY).unwrap().disk;
        spoil(disk.path().parent().unwrap());
        for result in [disks.get(&vm).map(drop), disks.clone_for(&vm, &web(), COPY).map(drop)] {
            let error = result.unwrap_err();
            assert!(
                matches!(error, StoreError::Damaged { .. }) && error.to_string().contains(reason),
                "{error}"
            );
        }
        if reason == "it has 2048 bytes" {
            assert_eq!(
                std::fs::read(disk.path()).unwrap(),
                [9; 2048],
                "whose length is strange is not made anew"
            );
        }
        assert_eq!(disks.list().unwrap().len(), 1, "one bad disk does not hide the others");
        assert_eq!(
            fixture.store.disks_of(&id).unwrap(),
            std::slice::from_ref(&vm),
            "it may need its revision"
        );
        assert!(disks.release(&vm).unwrap());
        assert!(!disks.release(&vm).unwrap(), "releasing twice is fine");
    }
    disks.clone_for(&owner("a"), &web(), COPY).unwrap();
    let clones = fixture.store.root().join("clones");
    std::fs::rename(clones.join("a"), clones.join("b")).unwrap();
    let error = disks.get(&owner("b")).unwrap_err();
    assert!(error.to_string().contains("the record of `a`"), "{error}");
}

#[test]
fn a_disk_in_use_is_neither_shared_nor_released() {
    let (fixture, _) = with_web(b"root");
    let disks = disks(&fixture);
    let disk = disks.clone_for(&owner("vm"), &web(), COPY).unwrap().disk;
    let lock = disk.lock("running a machine").unwrap();
    for result in [disk.lock("another").map(drop), disks.release(&owner("vm")).map(drop)] {
        let Err(StoreError::Busy { owner, holder }) = result else { panic!("{result:?}") };
        assert_eq!(owner.as_str(), "vm");
        assert_eq!(holder, format!("process {} (running a machine)", std::process::id()));
    }
    drop(lock);
    assert!(disks.release(&owner("vm")).unwrap());
    assert!(matches!(disk.lock("late"), Err(StoreError::NotFound { kind: "disk", .. })));
    publish(&fixture, b"other");
    disks.clone_for(&owner("vm"), &web(), COPY).unwrap();
    let stale = disk.lock("with the handle of a disk that is gone");
    assert!(matches!(stale, Err(StoreError::NotFound { kind: "disk", .. })));
    assert!(!fixture.store.root().join("clones/gone").exists());
    assert!(!disks.release(&owner("gone")).unwrap());
    assert!(!fixture.store.root().join("clones/gone").exists(), "asking makes nothing");
}

#[test]
fn a_revision_stays_while_a_disk_of_it_is_there() {
    let (fixture, id) = with_web(b"root");
    let disks = disks(&fixture);
    disks.clone_for(&owner("vm"), &web(), COPY).unwrap();
    let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    let Err(StoreError::HasDisks { revision, owners }) = fixture.store.remove_revision(&id, &alone) else {
        panic!()
    };
    assert_eq!((revision, owners), (id, vec![owner("vm")]));
    assert_eq!(fixture.store.disk_owners().unwrap(), [owner("vm")]);
    let record = fixture.store.disk_record(&owner("vm")).unwrap();
    assert_eq!(record.revision, id, "what a collector goes by");
    assert!(disks.release(&owner("vm")).unwrap(), "releasing waits for nobody");
    let tagged = fixture.store.remove_revision(&id, &alone);
    assert!(matches!(tagged, Err(StoreError::Tagged { .. })), "{tagged:?}");
    fixture.store.remove_tag(&"web".parse().unwrap(), &kiln_core::Tag::latest()).unwrap();
    fixture.store.remove_revision(&id, &alone).unwrap();
}

#[test]
fn an_overlay_leads_to_its_artifact_and_is_checked_with_it() {
    let (fixture, _) = with_web(&[1; 1 << 20]);
    let disks = disks(&fixture);
    let disk = disks.clone_for(&owner("vm"), &web(), OVERLAY).unwrap().disk;
    assert!(disk.path().ends_with("clones/vm/disk.qcow2"));
    let bytes = std::fs::read(disk.path()).unwrap();
    let text = String::from_utf8_lossy(&bytes[..1024]).into_owned();
    let name = format!("../../artifacts/{}", disk.record().artifact.hex());
    assert!(text.contains(&name));
    let artifact = fixture.store.artifact_path(&disk.record().artifact);
    assert!(
        disk.path().parent().unwrap().join(name).canonicalize().unwrap() == artifact.canonicalize().unwrap()
    );
    assert!(disks.clone_for(&owner("vm"), &web(), OVERLAY).unwrap().existed);
    std::fs::remove_file(artifact).unwrap();
    assert!(matches!(disks.get(&owner("vm")), Err(StoreError::NotFound { kind: "artifact", .. })));
    std::fs::write(disk.path(), b"no qcow2").unwrap();
    assert!(disks.get(&owner("vm")).unwrap_err().to_string().contains("not a qcow2 file"));
}

#[test]
fn many_at_once_make_one_disk() {
    let (fixture, _) = with_web(&[3; 64 << 10]);
    let made = std::thread::scope(|scope| {
        let work = || disks(&fixture).clone_for(&owner("vm"), &web(), COPY).unwrap().existed;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|existed| !existed).count()
    });
    assert_eq!(made, 1);
    assert_eq!(staged(&fixture), 0);
}

#[test]
fn what_a_killed_program_left_is_neither_a_disk_nor_in_the_way() {
    let (fixture, _) = with_web(b"root");
    let left = fixture.store.root().join("staging/0123456789abcdef");
    std::fs::create_dir_all(left.join("clone")).unwrap();
    std::fs::write(left.join("clone/disk.raw"), b"ro").unwrap();
    std::fs::write(left.with_extension("lock"), b"").unwrap();
    let disks = disks(&fixture);
    assert!(disks.get(&owner("vm")).unwrap().is_none());
    assert!(!disks.clone_for(&owner("vm"), &web(), COPY).unwrap().existed);
    assert!(!left.exists());
}

#[test]
fn cancelling_leaves_nothing() {
    let (fixture, _) = with_web(b"root");
    fixture.cancel.cancel();
    let error = disks(&fixture).clone_for(&owner("vm"), &web(), COPY).unwrap_err();
    assert!(matches!(error, StoreError::Cancelled), "{error:?}");
    assert!(fixture.store.disk_owners().unwrap().is_empty());
    assert_eq!(staged(&fixture), 0);
}

#[test]
fn stores_from_before_disks_get_their_directory_when_it_is_needed() {
    let (fixture, _) = with_web(b"root");
    std::fs::remove_dir(fixture.store.root().join("clones")).unwrap();
    assert!(disks(&fixture).list().unwrap().is_empty());
    assert!(!disks(&fixture).release(&owner("vm")).unwrap());
    disks(&fixture).clone_for(&owner("vm"), &web(), COPY).unwrap();
}

#[test]
fn templates_are_listed_with_size_and_digest_and_a_bad_one_is_told_in_its_place() {
    let (fixture, id) = with_web(b"root");
    let bad = fixture.revision(b"kernel", b"bad");
    fixture.store.set_tag(&"abc".parse().unwrap(), &Tag::latest(), &bad, "build").unwrap();
    let artifact = disks(&fixture).template(&"abc".parse().unwrap()).unwrap().1;
    std::fs::remove_file(fixture.store.artifact_path(&artifact.digest)).unwrap();
    let found = disks(&fixture).templates().unwrap();
    let names: Vec<&str> = found.iter().map(|entry| entry.template.as_str()).collect();
    assert_eq!(names, ["abc", "web"]);
    assert!(matches!(found[0].rootfs, Err(StoreError::NotFound { kind: "artifact", .. })));
    let (revision, rootfs) = disks(&fixture).template(&web()).unwrap();
    assert_eq!((revision, rootfs.size.bytes()), (id, 4));
    assert_eq!(found[1].rootfs.as_ref().unwrap(), &rootfs);
}

#[test]
fn hashes_are_of_the_bytes_that_are_there() {
    let (fixture, _) = with_web(b"root");
    let path = fixture.dir.path().join("file");
    let hash = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        disks(&fixture).hash(&path).unwrap()
    };
    let abc = hash(b"abc");
    assert_eq!(abc.sha256.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(abc.artifact.hex(), "c9cbee4d022b617ffccd5f1b92043648c76e47d0a1b581f94304c5f3e95dc3d7");
    // 10 MiB of zeros, all a hole: the same bytes.
    let zeros = "e5b844cc57f57094ea4585e235f36c78c1cd222262bb89d53c94dcb4d6b3e55d";
    std::fs::File::create(&path).unwrap().set_len(10 << 20).unwrap();
    assert_eq!(disks(&fixture).hash(&path).unwrap().sha256.hex(), zeros);
    assert_eq!(hash(&vec![0; 10 << 20]).sha256.hex(), zeros);
    // The same time of modification does not make it the same file.
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::write(&path, b"abc").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(disks(&fixture).hash(&path).unwrap(), abc);
    assert!(matches!(disks(&fixture).hash("/dev/null".as_ref()), Err(StoreError::Io(_))));
}

#[test]
fn a_grown_disk_of_elsewhere_is_taken_over_once() {
    let (fixture, id) = with_web(b"root");
    let file = fixture.dir.path().join("theirs");
    std::fs::write(&file, b"root and what was written").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
    let (vm, reference) = (owner("vm"), web());
    let request = AdoptDisk { owner: &vm, reference: &reference, revision: id, file: &file };
    let disk = disks(&fixture).adopt(&request).unwrap();
    assert_eq!(disk.record().size.bytes(), 25);
    assert_eq!(std::fs::metadata(disk.path()).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(disks(&fixture).clone_for(&vm, &reference, COPY).unwrap().existed);
    assert!(matches!(disks(&fixture).adopt(&request), Err(StoreError::Exists { .. })));
    let id = fixture.store.commit_revision(
        &fixture.store.revision(&fixture.revision(b"kernel2", b"root")).unwrap().manifest,
        &record(),
    );
    let other = AdoptDisk { revision: id.unwrap(), ..request };
    assert!(matches!(disks(&fixture).adopt(&other), Err(StoreError::Mismatch { .. })));
    assert_eq!(staged(&fixture), 0);
}

#[test]
fn a_copy_outside_is_whole_with_its_mode_and_overwrites_nothing() {
    let (fixture, _) = with_web(&[5; 4096]);
    let (_, rootfs) = disks(&fixture).template(&web()).unwrap();
    let dest = fixture.dir.path().join("out.raw");
    let copy = |choice, dest: &Path| {
        let request = CopyOut { digest: rootfs.digest, size: rootfs.size, dest, mode: 0o600, choice };
        fixture.store.copy_out(&request, &fixture.cancel)
    };
    let record = copy(CloneChoice::Auto, &dest).unwrap();
    assert!(matches!(record.method, CloneMethod::Reflink | CloneMethod::Copy), "raw unless asked for");
    assert_eq!(std::fs::read(&dest).unwrap(), [5; 4096]);
    assert_eq!(std::fs::metadata(&dest).unwrap().permissions().mode() & 0o7777, 0o600);
    std::fs::write(&dest, b"mine").unwrap();
    assert!(matches!(copy(COPY, &dest), Err(StoreError::Exists { .. })));
    assert_eq!(std::fs::read(&dest).unwrap(), b"mine");
    let dangling = fixture.dir.path().join("dangling");
    std::os::unix::fs::symlink("/nowhere/x", &dangling).unwrap();
    assert!(matches!(copy(COPY, &dangling), Err(StoreError::Exists { .. })));
    let overlay = fixture.dir.path().join("out.qcow2");
    copy(OVERLAY, &overlay).unwrap();
    let text = std::fs::read(&overlay).unwrap();
    let backing = fixture.store.artifact_path(&rootfs.digest).canonicalize().unwrap();
    assert!(String::from_utf8_lossy(&text[..2048]).contains(backing.to_str().unwrap()), "an absolute name");
    fixture.cancel.cancel();
    let late = fixture.dir.path().join("late.raw");
    assert!(matches!(copy(COPY, &late), Err(StoreError::Cancelled)));
    let mut left: Vec<_> =
        std::fs::read_dir(fixture.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["dangling", "file", "home", "out.qcow2", "out.raw"], "no half-made file");
}

#[test]
fn too_little_room_is_said_with_both_sizes() {
    let fixture = Fixture::new();
    let Err(StoreError::NoSpace { path, need, have }) = fixture.store.need_space(1 << 60) else { panic!() };
    assert_eq!((path.as_path(), need), (fixture.store.root(), 1 << 60));
    assert!(have < need);
}

#[test]
fn a_full_file_system_is_told_before_anything_is_written_and_shared_blocks_need_no_room() {
    crate::on_xfs(|mount| {
        let fixture = Fixture::at(&mount.join("home"));
        publish(&fixture, &[1; 24 << 20]);
        let (_, rootfs) = disks(&fixture).template(&web()).unwrap();
        let room = kiln_sys::fs::space(mount).unwrap().available - (30 << 20);
        let mut fill = std::process::Command::new("fallocate");
        fill.arg("-l").arg(room.to_string()).arg(mount.join("filler"));
        assert!(fill.status().unwrap().success());
        let dest = mount.join("out.raw");
        let request =
            CopyOut { digest: rootfs.digest, size: rootfs.size, dest: &dest, mode: 0o600, choice: COPY };
        for result in [
            fixture.store.copy_out(&request, &fixture.cancel).map(drop),
            disks(&fixture).clone_for(&owner("vm"), &web(), COPY).map(drop),
        ] {
            let Err(StoreError::NoSpace { need, have, .. }) = result else { panic!("{result:?}") };
            assert!(need >= 24 << 20 && have < need + (16 << 20), "{need} {have}");
        }
        assert!(!dest.exists() && disks(&fixture).list().unwrap().is_empty());
        assert_eq!(staged(&fixture), 0);
        let shared = disks(&fixture).clone_for(&owner("vm"), &web(), CloneChoice::Auto).unwrap().disk;
        assert_eq!(shared.record().method, CloneMethod::Reflink);
        assert!(std::fs::read(shared.path()).unwrap() == [1; 24 << 20]);
    });
}

#[test]
fn holes_stay_holes() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(256 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 64 << 20).unwrap();
    let staging = fixture.store.stage("a test").unwrap();
    let taken =
        fixture.store.ingest(&path, kiln_store::IngestFrom::Outside, &staging, &fixture.cancel).unwrap();
    let dest = fixture.dir.path().join("out.raw");
    let request = CopyOut { digest: taken.digest, size: taken.size, dest: &dest, mode: 0o600, choice: COPY };
    fixture.store.copy_out(&request, &fixture.cancel).unwrap();
    let meta = std::fs::metadata(&dest).unwrap();
    assert!(meta.len() == 256 << 20 && meta.blocks() * 512 <= 64 << 10, "{} blocks", meta.blocks());
}
