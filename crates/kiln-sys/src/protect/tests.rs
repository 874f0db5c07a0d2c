use super::*;
use crate::tool::ScratchDir;
use std::os::unix::fs::FileExt as _;

/// A scratch directory; dropping it takes flags off what is in it, whatever the test came to.
fn scratch() -> ScratchDir {
    ScratchDir::new(&std::env::temp_dir()).unwrap()
}

fn file(dir: &ScratchDir, name: &str) -> (PathBuf, File) {
    let path = dir.path().join(name);
    fs::create_new(&path).unwrap().write_all_at(b"content", 0).unwrap();
    let file = fs::open(&path).unwrap();
    (path, file)
}

fn skip(error: &ProtectError) {
    let why: &dyn std::error::Error = error;
    let cause = why.source().map(ToString::to_string).unwrap_or_default();
    std::io::Write::write_fmt(&mut io::stderr(), format_args!("skipped: {error}: {cause}\n")).unwrap();
}

#[test]
fn errors_are_told_apart() {
    let path = Path::new("file");
    let of = |error| refused(Means::Verity, path, error);
    assert!(matches!(of(Errno::OPNOTSUPP), ProtectError::Unsupported { .. }));
    assert!(matches!(of(Errno::NOTTY), ProtectError::Unsupported { .. }));
    assert!(matches!(of(Errno::NOPKG), ProtectError::Unsupported { .. }));
    assert!(matches!(of(Errno::PERM), ProtectError::Denied { .. }));
    assert!(matches!(of(Errno::ACCESS), ProtectError::Denied { .. }));
    assert!(matches!(of(Errno::TXTBSY), ProtectError::Busy { .. }));
    assert!(matches!(of(Errno::EXIST), ProtectError::Already { .. }));
    let other = of(Errno::NOSPC);
    assert!(matches!(&other, ProtectError::Io(error) if error.is_no_space()));
    assert!(!other.is_inability() && of(Errno::PERM).is_inability());
    assert_eq!(of(Errno::PERM).to_string(), "fs-verity of file may not be changed by this user");
}

#[test]
fn the_request_has_the_kernels_size() {
    assert_eq!(size_of::<EnableVerity>(), 128);
    assert_eq!(FS_IOC_ENABLE_VERITY, 0x4080_6685);
}

#[test]
fn a_protection_is_within_one_that_has_as_much() {
    let of = |verity, immutable| Protection { verity, immutable };
    assert!(of(false, false).is_within(of(true, false)));
    assert!(of(true, false).is_within(of(true, true)));
    assert!(!of(true, false).is_within(of(false, true)));
    assert!(!of(false, true).is_within(of(false, false)));
    assert_eq!(of(true, true).to_string(), "verity+immutable");
}

#[test]
fn a_look_agrees_with_the_standard_librarys() {
    let dir = scratch();
    let (path, file) = file(&dir, "file");
    let meta = fs::metadata(&path).unwrap();
    let found = look(&path).unwrap();
    assert_eq!(found, look_at(&file, &path).unwrap());
    assert_eq!((found.stamp, found.mode, found.is_file), (Stamp::of(&meta), 0o600, true));
    assert!(!look(dir.path()).unwrap().is_file);
    std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
    assert!(!look(&dir.path().join("link")).unwrap().is_file);
    assert_eq!(look(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(!clear_immutable(&path).unwrap() && !clear_immutable(&dir.path().join("none")).unwrap());
}

#[test]
fn an_immutable_file_stays_until_its_flag_is_taken_off() {
    let dir = scratch();
    let (path, file) = file(&dir, "file");
    match set_immutable(&file, &path) {
        Err(error) if error.is_inability() => return skip(&error),
        other => other.unwrap(),
    }
    assert_eq!(look(&path).unwrap().protection.as_str(), "immutable");
    assert!(matches!(set_immutable(&file, &path), Err(ProtectError::Already { .. })));
    assert!(fs::rename(&path, &dir.path().join("other")).is_err());
    assert!(fs::remove_file(&path).is_err());
    assert!(clear_immutable(&path).unwrap());
    assert!(!clear_immutable(&path).unwrap());
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_tree_goes_with_the_immutable_files_in_it() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let path = tree.join("file");
    fs::create_new(&path).unwrap();
    match set_immutable(&fs::open(&path).unwrap(), &path) {
        Err(error) if error.is_inability() => return skip(&error),
        other => other.unwrap(),
    }
    fs::remove_tree(&tree).unwrap();
    assert!(!fs::exists(&tree).unwrap());
}

#[test]
fn copies_are_not_protected() {
    let dir = scratch();
    let (path, file) = file(&dir, "file");
    match set_immutable(&file, &path) {
        Err(error) if error.is_inability() => return skip(&error),
        other => other.unwrap(),
    }
    let to_path = dir.path().join("copy");
    let to = fs::create_new(&to_path).unwrap();
    crate::copy::copy_file(&file, &to, &to_path, None).unwrap();
    assert_eq!(look(&to_path).unwrap().protection, Protection::default());
    to.write_all_at(b"more", 0).unwrap();
}

#[test]
fn verity_is_on_once_and_for_good_or_its_lack_is_told() {
    let dir = scratch();
    let (path, file) = file(&dir, "file");
    match enable_verity(&file, &path) {
        Err(error @ ProtectError::Unsupported { means: Means::Verity, .. }) => {
            assert_eq!(look(&path).unwrap().protection, Protection::default());
            return skip(&error);
        }
        other => other.unwrap(),
    }
    assert_eq!(look(&path).unwrap().protection.as_str(), "verity");
    assert!(matches!(enable_verity(&file, &path), Err(ProtectError::Already { .. })));
    assert_eq!(fs::read_limited(&path, 16).unwrap(), b"content");
    assert!(File::options().write(true).open(&path).is_err());
    fs::rename(&path, &dir.path().join("other")).unwrap();
}

#[test]
fn nothing_has_verity_in_memory() {
    let memory = Path::new("/dev/shm");
    if !fs::file_system_name(memory).is_ok_and(|name| name == "tmpfs") {
        return;
    }
    let dir = ScratchDir::new(memory).unwrap();
    let (path, file) = file(&dir, "file");
    assert!(matches!(enable_verity(&file, &path), Err(ProtectError::Unsupported { .. })));
}
