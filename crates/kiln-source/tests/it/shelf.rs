//! What every shelf does alike.

use crate::bucket::Site;
use crate::download::{content, sha256};
use kiln_source::catalog::{Directory, Over, Shelf, ShelfError};
use kiln_sys::Cancel;
use std::path::Path;

/// Checks a shelf that is empty; `work` is a directory that files are put from.
fn suite(shelf: &dyn Shelf, work: &Path) {
    let cancel = Cancel::new().unwrap();
    let (path, long) = ("demo/1/amd64/disk.img", content(100_000));
    let digest = sha256(&long);
    assert!(!shelf.has(path, &digest, u64::MAX, &cancel).unwrap());
    assert_eq!(shelf.read("demo/1/amd64/SUMS", 10).unwrap(), None);
    shelf.remove("demo/1/amd64/SUMS").unwrap();

    // A file goes there, and is gone from where it was.
    let from = work.join("file");
    std::fs::write(&from, &long).unwrap();
    shelf.put(path, &from, &digest, &mut |_, _| ()).unwrap();
    assert!(!from.exists());
    assert!(shelf.has(path, &digest, 100_000, &cancel).unwrap());
    assert!(!shelf.has(path, &digest, 99_999, &cancel).unwrap());
    assert!(!shelf.has(path, &sha256(b"other"), u64::MAX, &cancel).unwrap());
    // Another takes its place.
    std::fs::write(&from, b"other").unwrap();
    shelf.put(path, &from, &sha256(b"other"), &mut |_, _| ()).unwrap();
    assert!(shelf.has(path, &sha256(b"other"), u64::MAX, &cancel).unwrap());
    assert_eq!(shelf.read(path, 5).unwrap().unwrap().bytes, b"other");
    if let Some(local) = shelf.local(path) {
        assert_eq!(std::fs::read(local).unwrap(), b"other");
    }
    assert!(shelf.shown(path).ends_with(path), "{}", shelf.shown(path));

    // A text is written, read and removed; over something else only where the shelf does not know versions.
    let sums = "demo/1/amd64/SUMS";
    shelf.write(sums, b"first", Over::Read(None)).unwrap();
    let first = shelf.read(sums, 5).unwrap().unwrap();
    assert_eq!(first.bytes, b"first");
    assert!(shelf.read(sums, 4).unwrap_err().is_too_large());
    shelf.write(sums, b"second", Over::Read(Some(&first))).unwrap();
    let stale = shelf.write(sums, b"third", Over::Read(Some(&first)));
    match first.version {
        Some(_) => assert!(matches!(stale, Err(ShelfError::Changed { .. })), "{stale:?}"),
        None => stale.unwrap(),
    }
    shelf.write(sums, b"fourth", Over::Anything).unwrap();
    assert_eq!(shelf.read(sums, 9).unwrap().unwrap().bytes, b"fourth");
    for text in ["fifth", "fifth", "5th"] {
        shelf.keep(sums, text.as_bytes()).unwrap();
        assert_eq!(shelf.read(sums, 9).unwrap().unwrap().bytes, text.as_bytes());
    }
    shelf.remove(sums).unwrap();
    assert_eq!(shelf.read(sums, 9).unwrap(), None);

    // What is not at its place stays where it was.
    let missing = shelf.put("other", &work.join("missing"), &digest, &mut |_, _| ());
    assert!(matches!(missing, Err(ShelfError::Io(_))), "{missing:?}");
    cancel.cancel();
    let cancelled = shelf.has(path, &sha256(b"other"), u64::MAX, &cancel);
    assert!(matches!(cancelled, Err(ShelfError::Cancelled)), "{cancelled:?}");
}

#[test]
fn a_directory_is_a_shelf() {
    let site = Site::new();
    suite(&Directory::new(&site.scratch.path().join("mirror")), site.scratch.path());
}

#[test]
fn a_bucket_is_a_shelf() {
    let site = Site::new();
    site.with(|bucket| suite(bucket, site.scratch.path()));
}
