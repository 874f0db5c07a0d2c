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

/// Does `work` and lets `path` grow when this thread passes `point`.
fn growing_at<T>(point: &str, path: &Path, work: impl FnOnce() -> T) -> T {
    TARGET.set(path.to_owned());
    arm(point, 1, Action::Call(grow));
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
