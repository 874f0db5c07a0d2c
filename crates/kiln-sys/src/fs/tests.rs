use super::*;
use crate::tool::ScratchDir;

fn scratch() -> ScratchDir {
    ScratchDir::new(&std::env::temp_dir()).unwrap()
}

#[test]
fn a_fifo_is_refused_without_blocking() {
    let dir = scratch();
    let path = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert_eq!(open(&path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_file_over_its_limit_is_an_error_that_names_it() {
    let dir = scratch();
    let path = dir.path().join("large");
    std::fs::write(&path, [0; 11]).unwrap();
    assert_eq!(read_limited(&path, 11).unwrap().len(), 11);
    let error = read_limited(&path, 10).unwrap_err();
    assert_eq!(error.path, path);
    assert_eq!(error.source.to_string(), "more than 10 bytes");
    // A file of the kernel says that it is empty.
    let proc = Path::new("/proc/self/status");
    assert!(read_limited(proc, 1 << 20).unwrap().len() > 10);
    assert_eq!(read_limited(proc, 10).unwrap_err().source.to_string(), "more than 10 bytes");
}

#[test]
fn removing_a_tree_does_not_follow_links() {
    let dir = scratch();
    let kept = dir.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("file"), b"x").unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::os::unix::fs::symlink(&kept, tree.join("a/link")).unwrap();
    remove_tree(&tree).unwrap();
    assert!(!exists(&tree).unwrap());
    assert!(exists(&kept.join("file")).unwrap());
    remove_tree(&tree).unwrap();
}

#[test]
fn trees_that_their_owner_may_not_write_to_are_removed() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/file"), b"").unwrap();
    for (path, mode) in [("a/b", 0o600), ("a", 0o555), ("", 0o400)] {
        set_mode(&tree.join(path), mode).unwrap();
    }
    remove_tree(&tree).unwrap();
    assert!(!exists(&tree).unwrap());
}

#[test]
fn a_listing_failure_is_not_an_empty_listing() {
    let dir = scratch();
    let path = dir.path().join("file");
    std::fs::write(&path, b"").unwrap();
    assert!(list_dir(&path).is_err());
    assert!(list_dir(&dir.path().join("missing")).unwrap().is_empty());
}
