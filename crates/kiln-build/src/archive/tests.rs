use super::*;

/// An empty file's entry, and the end mark.
fn bytes() -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path("file").unwrap();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    [header.as_bytes().as_slice(), &[0; BLOCK]].concat()
}

fn run(change: impl FnOnce(&mut Checker<'_, &[u8]>)) -> Result<Checked, ArchiveError> {
    let bytes = bytes();
    let mut checker = Checker::new(Counting { inner: bytes.as_slice(), position: 0 }, &|| true);
    change(&mut checker);
    checker.run()
}

#[test]
fn the_entries_of_an_archive_are_limited() {
    run(|checker| checker.entries = ENTRIES_MAX - 1).unwrap();
    let error = run(|checker| checker.entries = ENTRIES_MAX).unwrap_err();
    assert_eq!(error.to_string(), "it has more entries than 4000000");
}

#[test]
fn the_bytes_of_an_archive_are_limited() {
    let last = ARCHIVE_BYTES_MAX - bytes().len() as u64;
    run(|checker| checker.input.position = last).unwrap();
    let error = run(|checker| checker.input.position = last + 1).unwrap_err();
    assert_eq!(error.to_string(), "it has more bytes than 1099511627776");
}
