//! Files that somebody writes to while the store takes them in.

use crate::Fixture;
use kiln_core::{DiskOwner, Reference, Tag};
use kiln_store::{AdoptDisk, IngestFrom, StoreError};
use kiln_sys::fail::{Action, arm, disarm};
use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};

thread_local! {
    /// What [`grow`] writes to: a fail-point calls a plain function on the thread that armed it.
    static TARGET: RefCell<PathBuf> = RefCell::default();
}

fn grow() {
    let mut file = TARGET.with_borrow(|path| std::fs::File::options().append(true).open(path).unwrap());
    file.write_all(b"more").unwrap();
}

/// Releases the disk of `vm` in the store at [`TARGET`].
fn release() {
    let home = TARGET.with_borrow(Clone::clone);
    let cancel = kiln_sys::Cancel::new().unwrap();
    let store = kiln_store::Store::open(&home).unwrap();
    assert!(!store.disks(&cancel).release(&"vm".parse().unwrap()).unwrap(), "there is none yet");
}

/// Does `work` and lets `path` grow when this thread passes `point`.
fn growing_at<T>(point: &str, path: &Path, work: impl FnOnce() -> T) -> T {
    calling_at(point, grow, path, work)
}

/// Does `work` and calls `call` when this thread passes `point`.
fn calling_at<T>(point: &str, call: fn(), path: &Path, work: impl FnOnce() -> T) -> T {
    TARGET.set(path.to_owned());
    arm(point, 1, Action::Call(call));
    let result = work();
    assert!(!disarm(), "nothing passed {point}");
    result
}

#[test]
fn a_file_that_changes_while_it_is_taken_in_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("image");
    std::fs::write(&path, vec![7; 256 << 10]).unwrap();
    let staging = fixture.store.stage("a test").unwrap();
    let take = || fixture.store.ingest(&path, IngestFrom::Outside, &staging, &fixture.cancel);
    let error = growing_at("ingest.copy", &path, take).unwrap_err();
    assert!(matches!(&error, StoreError::Changed { path: of } if *of == path), "{error:?}");
    assert_eq!(fixture.store.artifact_ids().unwrap(), []);
    // What is written after the copy changes nothing that was taken in: the copy is what was hashed.
    let taken = growing_at("ingest.index", &path, take).unwrap();
    assert_eq!(taken.size.bytes(), (256 << 10) + 4);
    assert_eq!(std::fs::metadata(fixture.store.artifact_path(&taken.digest)).unwrap().len(), (256 << 10) + 4);
    assert!(
        fixture
            .store
            .verify_artifact(&taken.digest, &fixture.cancel)
            .is_ok_and(|verdict| matches!(verdict, kiln_store::Verdict::Intact { .. }))
    );
}

#[test]
fn a_disk_that_changes_while_it_is_taken_over_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"root");
    fixture.store.set_tag(&"web".parse().unwrap(), &Tag::latest(), &revision, "build").unwrap();
    let file = fixture.dir.path().join("theirs");
    std::fs::write(&file, b"root and more").unwrap();
    let (owner, reference): (DiskOwner, Reference) = ("vm".parse().unwrap(), "web".parse().unwrap());
    let disks = fixture.store.disks(&fixture.cancel);
    let adopt = || disks.adopt(&AdoptDisk { owner: &owner, reference: &reference, revision, file: &file });
    let error = growing_at("stage.directory", &file, adopt).unwrap_err();
    assert!(matches!(&error, StoreError::Changed { path } if *path == file), "{error:?}");
    assert!(disks.get(&owner).unwrap().is_none());
    assert_eq!(std::fs::read_dir(fixture.store.root().join("staging")).unwrap().count(), 0);
    assert_eq!(adopt().unwrap().record().size.bytes(), 17);
}

#[test]
fn a_release_while_a_disk_is_made_takes_nothing_away_and_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let revision = fixture.revision(b"kernel", b"root");
    fixture.store.set_tag(&"web".parse().unwrap(), &Tag::latest(), &revision, "build").unwrap();
    let (owner, reference): (DiskOwner, Reference) = ("vm".parse().unwrap(), "web".parse().unwrap());
    let disks = fixture.store.disks(&fixture.cancel);
    let make = || disks.clone_for(&owner, &reference, kiln_store::CloneChoice::Auto);
    for point in ["clone.create", "clone.mode", "commit.dir-rename"] {
        let made = calling_at(point, release, fixture.store.root(), make).unwrap();
        assert!(!made.existed);
        std::fs::write(made.disk.path(), b"mine").unwrap();
        assert!(disks.get(&owner).unwrap().is_some(), "{point}");
        assert!(disks.release(&owner).unwrap());
        assert_eq!(std::fs::read_dir(fixture.store.root().join("staging")).unwrap().count(), 0);
        // The name is free again, and nothing of the former disk comes back with it.
        assert_eq!(std::fs::read(make().unwrap().disk.path()).unwrap(), b"root");
        assert!(disks.release(&owner).unwrap());
    }
}
