//! Refusals of tar files, and the sizes of those that are taken.

use kiln_build::archive::{
    ArchiveError, COMPONENT_BYTES_MAX, CONTENT_BYTES_MAX, Checked, EXTENDED_BYTES_MAX, PATH_BYTES_MAX, check,
};
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

/// A header with every field set by hand: the `tar` crate refuses to write what an attacker would.
pub(crate) fn raw(name: &[u8], kind: u8, size: u64, link: &[u8]) -> Header {
    let mut header = Header::new_ustar();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name);
    old.linkname[..link.len()].copy_from_slice(link);
    old.linkflag = [kind];
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_600_000_000);
    header.set_size(size);
    header.set_cksum();
    header
}

fn entry(name: &str, kind: u8, content: &[u8], link: &str) -> Vec<u8> {
    let mut bytes = raw(name.as_bytes(), kind, content.len() as u64, link.as_bytes()).as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub(crate) fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 1024]);
    bytes
}

fn file(name: &str) -> Vec<u8> {
    entry(name, b'0', b"content", "")
}

fn dir(name: &str) -> Vec<u8> {
    entry(name, b'5', b"", "")
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(name, b'2', b"", target)
}

fn hard(name: &str, target: &str) -> Vec<u8> {
    entry(name, b'1', b"", target)
}

fn checked(bytes: &[u8]) -> Result<Checked, ArchiveError> {
    check(bytes, &|| true)
}

fn refusal(entries: &[Vec<u8>]) -> ArchiveError {
    checked(&archive(entries)).unwrap_err()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + rest.to_string().len();
        len = rest + len.to_string().len();
        content.extend(format!("{len} {key}=").bytes());
        content.extend(*value);
        content.push(b'\n');
    }
    entry("pax", b'x', &content, "")
}

#[test]
fn names_that_leave_the_target_are_refused() {
    assert!(matches!(refusal(&[file("/etc/passwd")]), ArchiveError::Absolute(name) if name == "/etc/passwd"));
    assert!(matches!(refusal(&[file("../x")]), ArchiveError::Parent(_)));
    assert!(matches!(refusal(&[file("a/../../x")]), ArchiveError::Parent(_)));
    assert!(matches!(refusal(&[dir("a/..")]), ArchiveError::Parent(_)));
    assert!(matches!(refusal(&[pax(&[("path", b"../x")]), file("a")]), ArchiveError::Parent(_)));
    assert!(matches!(refusal(&[pax(&[("GNU.sparse.name", b"/x")]), file("a")]), ArchiveError::Absolute(_)));
    assert!(matches!(refusal(&[entry("l", b'L', b"../x\0", ""), file("a")]), ArchiveError::Parent(_)));
    assert!(matches!(refusal(&[file("")]), ArchiveError::NoName(0)));
}

#[test]
fn names_no_file_system_takes_are_refused() {
    assert!(matches!(refusal(&[pax(&[("path", b"a\0b")]), file("a")]), ArchiveError::ZeroByte(_)));
    assert!(matches!(refusal(&[entry("l", b'L', b"a\0b\0", ""), file("a")]), ArchiveError::ZeroByte(_)));
    let long = "n".repeat(256);
    assert!(matches!(refusal(&[pax(&[("path", long.as_bytes())]), file("a")]), ArchiveError::NameTooLong(_)));
    let deep = "d/".repeat(2100);
    assert!(matches!(refusal(&[pax(&[("path", deep.as_bytes())]), file("a")]), ArchiveError::NameTooLong(_)));
}

#[test]
fn an_entry_below_a_link_is_refused() {
    let error = refusal(&[link("a", "/etc"), file("a/passwd")]);
    assert_eq!(error.to_string(), "entry `a/passwd` lies below `a`, which is a symbolic link");
    assert!(matches!(refusal(&[file("a"), file("./a//b")]), ArchiveError::BelowNonDirectory { .. }));
    let through_hard_link = [link("a", "/etc"), hard("b", "a"), file("b/passwd")];
    assert!(matches!(refusal(&through_hard_link), ArchiveError::BelowNonDirectory { .. }));
}

#[test]
fn an_entry_that_changes_its_type_is_refused() {
    let error = refusal(&[dir("a"), link("a", "/etc"), file("a/passwd")]);
    assert_eq!(error.to_string(), "entry `a` is a symbolic link and was a directory before");
    assert!(matches!(refusal(&[file("a/b"), link("a", "/etc")]), ArchiveError::TypeChanged { .. }));
    assert!(matches!(refusal(&[link("a", "/etc"), dir("a/")]), ArchiveError::TypeChanged { .. }));
    assert!(matches!(refusal(&[link(".", "/etc")]), ArchiveError::TypeChanged { .. }));
    assert!(checked(&archive(&[dir("a"), dir("a/"), file("b"), file("b")])).is_ok());
}

#[test]
fn hard_links_lead_to_earlier_files() {
    assert!(matches!(refusal(&[hard("a", "/etc/shadow")]), ArchiveError::Absolute(_)));
    assert!(matches!(refusal(&[hard("a", "../shadow")]), ArchiveError::Parent(_)));
    let error = refusal(&[hard("a", "b"), file("b")]);
    assert_eq!(
        error.to_string(),
        "entry `a` is a hard link to `b`, which is not an earlier file of the tar file"
    );
    assert!(matches!(refusal(&[dir("b"), hard("a", "b")]), ArchiveError::HardLink { .. }));
    assert!(matches!(refusal(&[hard("a", "a")]), ArchiveError::HardLink { .. }));
    assert!(checked(&archive(&[file("b"), hard("a", "./b")])).is_ok());
}

#[test]
fn types_no_root_file_system_needs_are_refused() {
    for kind in *b"DMNVZ?" {
        let error = refusal(&[entry("odd", kind, b"", "")]);
        assert!(matches!(error, ArchiveError::Type { entry, .. } if entry == "odd"), "{}", char::from(kind));
    }
    for kind in *b"346" {
        assert!(checked(&archive(&[entry("dev", kind, b"", "")])).is_ok());
    }
    for kind in *b"123456" {
        let error = refusal(&[file("t"), entry("odd", kind, b"content", "t")]);
        assert!(matches!(error, ArchiveError::Content { .. }), "{}", char::from(kind));
    }
}

#[test]
fn a_truncated_file_is_told_as_such() {
    let whole = archive(&[dir("d"), file("d/f")]);
    for len in [0, 100, 512, 1000, 1024 + 3, 1536] {
        let error = checked(&whole[..len]).unwrap_err();
        assert!(matches!(error, ArchiveError::Truncated(_)), "{len}: {error}");
    }
    let error = checked(&whole[..1024 + 3]).unwrap_err();
    assert_eq!(error.to_string(), "it is truncated: it ends within entry `d/f`");
    assert!(matches!(refusal(&[pax(&[("path", b"x")])]), ArchiveError::Truncated(_)));
    assert!(matches!(checked(b"not a tar file"), Err(ArchiveError::Truncated(_))));
}

#[test]
fn damaged_headers_are_refused() {
    let mut damaged = archive(&[file("a")]);
    damaged[3] ^= 1;
    assert!(matches!(checked(&damaged), Err(ArchiveError::Header { offset: 0, .. })));
    let mut size = raw(b"a", b'0', 0, b"");
    size.as_old_mut().size = *b"notanumber12";
    size.set_cksum();
    assert!(matches!(refusal(&[size.as_bytes().to_vec()]), ArchiveError::Header { .. }));
    for content in [&b"99 path=x\n"[..], b"x", b"5 path=x\n", b"6 abc\n", b"0 a=b\n", b"-3 a=b\n"] {
        let error = refusal(&[entry("p", b'x', content, ""), file("a")]);
        assert!(matches!(error, ArchiveError::Header { .. }), "{content:?}: {error}");
    }
}

#[test]
fn what_readers_understand_differently_is_refused() {
    let both = [entry("l", b'L', b"one\0", ""), pax(&[("path", b"two")]), file("three")];
    assert!(matches!(refusal(&both), ArchiveError::Header { .. }));
    let mut global = pax(&[("path", b"x")]);
    global[156] = b'g';
    let mut header = Header::from_byte_slice(&global[..512]).clone();
    header.set_cksum();
    global[..512].copy_from_slice(header.as_bytes());
    assert!(matches!(refusal(&[global, file("a")]), ArchiveError::ExtendedKey { key, .. } if key == "path"));
    assert!(matches!(refusal(&[pax(&[("odd.key", b"x")]), file("a")]), ArchiveError::ExtendedKey { .. }));
}

#[test]
fn limits_are_told() {
    let huge = raw(b"a", b'S', 0, b"");
    assert!(matches!(refusal(&[huge.as_bytes().to_vec()]), ArchiveError::Header { .. }));
    let error = refusal(&[pax(&[("GNU.sparse.realsize", b"9999999999999999")]), file("a")]);
    assert!(matches!(error, ArchiveError::TooLarge { what: "bytes of content", .. }));
    let long = raw(b"x", b'L', 2 << 20, b"").as_bytes().to_vec();
    assert!(matches!(refusal(&[long]), ArchiveError::TooLarge { .. }));
    let error = refusal(&[pax(&[("size", b"18446744073709551615")]), file("a")]);
    assert!(matches!(error, ArchiveError::TooLarge { .. }));
}

#[test]
fn content_is_limited_with_its_holes() {
    let with = |bytes: u64| {
        let size = bytes.to_string();
        checked(&archive(&[pax(&[("GNU.sparse.realsize", size.as_bytes())]), file("a")]))
    };
    with(CONTENT_BYTES_MAX).unwrap();
    let error = with(CONTENT_BYTES_MAX + 1).unwrap_err();
    assert_eq!(error.to_string(), "it has more bytes of content than 4398046511104");
}

#[test]
fn paths_and_their_components_are_limited() {
    let with = |path: &str| checked(&archive(&[pax(&[("path", path.as_bytes())]), file("a")]));
    let component = "n".repeat(COMPONENT_BYTES_MAX);
    with(&component).unwrap();
    let rule = "has a name of more than 255 bytes or a path of more than 4095";
    let error = with(&format!("{component}n")).unwrap_err().to_string();
    assert!(error.starts_with("entry `nnn") && error.ends_with(rule), "{error}");
    // Sixteen components and the slashes between them are a path of the longest kind.
    let path = vec![component.as_str(); 16].join("/");
    assert_eq!(path.len(), PATH_BYTES_MAX);
    with(&path).unwrap();
    let longer = format!("{}/x/{}", vec![component.as_str(); 15].join("/"), "n".repeat(254));
    assert_eq!(longer.len(), PATH_BYTES_MAX + 1);
    let error = with(&longer).unwrap_err().to_string();
    assert!(error.starts_with("entry `nnn") && error.ends_with(rule), "{error}");
}

#[test]
fn extended_headers_are_limited() {
    let with = |bytes: u64| {
        let mut value = vec![b'x'; usize::try_from(bytes).unwrap() - "1048576 comment=\n".len()];
        value[0] = b'y';
        checked(&archive(&[pax(&[("comment", &value)]), file("a")]))
    };
    let one_less = EXTENDED_BYTES_MAX - 1;
    // What is kept of the headers has the type of each before its bytes.
    with(one_less).unwrap();
    let error = with(EXTENDED_BYTES_MAX).unwrap_err().to_string();
    assert!(error.ends_with("its entry has more than 1 MiB of extended headers"), "{error}");
    let error = with(EXTENDED_BYTES_MAX + 1).unwrap_err().to_string();
    assert_eq!(error, "it has more bytes in an extended header than 1048576");
}

#[test]
fn sizes_and_what_follows_the_end_are_known() {
    let mut bytes = archive(&[dir("./"), dir("./d"), file("./d/f"), hard("./g", "d/f"), link("./l", "d")]);
    let len = bytes.len() as u64 - 1024;
    bytes.extend(file("/evil"));
    let checked = checked(&bytes).unwrap();
    assert_eq!(checked.len, len);
    assert_eq!((checked.size.inodes, checked.size.directories, checked.size.data_bytes), (4, 2, 4096));
    assert!(checked.implied.is_empty());
    let implied = check(&archive(&[file("a/b/c")])[..], &|| true).unwrap().implied;
    assert_eq!(implied, ["", "a", "a/b"].map(std::path::PathBuf::from));
}

#[test]
fn long_names_and_attributes_are_read() {
    let name = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(3);
    header.set_mode(0o644);
    builder.append_data(&mut header, &name, &b"abc"[..]).unwrap();
    let gnu = builder.into_inner().unwrap();
    assert_eq!(checked(&gnu).unwrap().size.inodes, 3);
    let value = [1, b'\n', 0, b'='];
    let attribute = pax(&[("SCHILY.xattr.security.capability", &value), ("path", name.as_bytes())]);
    assert_eq!(checked(&archive(&[attribute, file("x")])).unwrap().size.data_bytes, 8192);
}

#[test]
fn the_listing_tells_archives_apart() {
    let listing = |entries: &[Vec<u8>]| checked(&archive(entries)).unwrap().listing;
    assert_eq!(listing(&[file("a")]), listing(&[file("a")]));
    assert_ne!(listing(&[file("a")]), listing(&[file("b")]));
    assert_ne!(listing(&[file("a"), file("bc")]), listing(&[file("ab"), file("c")]));
    assert_ne!(listing(&[link("a", "b")]), listing(&[link("a", "c")]));
}

#[test]
fn a_check_can_be_stopped() {
    assert!(matches!(check(&archive(&[file("a")])[..], &|| false), Err(ArchiveError::Read(_))));
}

proptest! {
    #[test]
    fn no_bytes_make_the_check_panic(bytes: Vec<u8>) {
        let _ = checked(&bytes);
    }

    #[test]
    fn no_damage_makes_the_check_panic(at in 0_usize..4096, byte: u8, fix: bool) {
        let mut bytes = archive(&[
            pax(&[("path", b"x/y"), ("SCHILY.xattr.user.a", b"v"), ("size", b"7")]),
            file("a"),
            entry("l", b'L', b"long/name\0", ""),
            file("b"),
            hard("c", "x/y"),
        ]);
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        if fix {
            let start = at / 512 * 512;
            if let Some(block) = bytes.get_mut(start..start + 512) {
                let mut header = Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        if let Ok(found) = checked(&bytes) {
            prop_assert!(found.len <= bytes.len() as u64);
        }
    }
}
