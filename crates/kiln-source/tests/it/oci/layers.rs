//! What layers come to.

use super::make::{Layout, Tar, digest, listing, merged, scratch, union, union_listing, unpack};
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_source::oci::OciError;
use sha2::Digest as _;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

#[test]
fn later_layers_lie_over_earlier_ones_and_each_name_is_there_once() {
    let lower = Tar::new().dir("etc").file("etc/a", "old").file("etc/b", "kept");
    let middle = Tar::new().file("etc/a", "middle");
    let upper = Tar::new().file("./etc/a", "new").file("c", "c");
    assert_eq!(union_listing(&[lower, middle, upper]), ["c: c", "etc/", "etc/a: new", "etc/b: kept"]);
}

#[test]
fn whiteouts_hide_files_and_trees_of_lower_layers_only() {
    let lower = Tar::new().dir("d").file("d/a", "1").file("d/b", "1").dir("t").file("t/x", "1");
    let upper = Tar::new().file("d/a", "2").file("d/.wh.a", "").file("d/.wh.b", "").file(".wh.t", "");
    assert_eq!(union_listing(&[lower, upper]), ["d/", "d/a: 2"]);
    let absolute = [Tar::new().dir("/").file("/d/a", "1").file("/b", "2"), Tar::new().file("/.wh.b", "")];
    assert_eq!(union_listing(&absolute), ["./", "d/a: 1"]);
    let nothing = Tar::new().file("d/.wh.none", "").file("none/.wh.x", "");
    assert_eq!(union_listing(&[Tar::new().file("f", ""), nothing]), ["f: "]);
}

#[test]
fn an_opaque_directory_hides_lower_layers_wherever_its_mark_stands() {
    let lower = Tar::new().dir("d").file("d/old", "1").dir("d/sub").file("d/sub/old", "1");
    for upper in [
        Tar::new().dir("d").file("d/.wh..wh..opq", "").file("d/new", "2"),
        Tar::new().dir("d").file("d/new", "2").file("d/.wh..wh..opq", ""),
    ] {
        assert_eq!(union_listing(&[lower.clone(), upper]), ["d/", "d/new: 2"]);
    }
    assert_eq!(union_listing(&[lower, Tar::new().file(".wh..wh..opq", "").file("n", "")]), ["n: "]);
}

#[test]
fn files_take_the_place_of_directories_and_the_reverse() {
    let lower = Tar::new().dir("a").file("a/x", "1").file("b", "1").link("l", "a");
    let upper = Tar::new().file("a", "file").dir("b").file("b/y", "2").dir("l").file("l/z", "3");
    assert_eq!(union_listing(&[lower, upper]), ["a: file", "b/", "b/y: 2", "l/", "l/z: 3"]);
}

#[test]
fn hard_links_reach_files_of_lower_layers_and_outlive_them() {
    let lower = Tar::new().dir("d").file("d/a", "content").file("e", "other");
    let upper = Tar::new().hard("d/z", "d/a").hard("b", "/d/a").hard("link", "e").file("e", "new");
    assert_eq!(
        union_listing(&[lower.clone(), upper, Tar::new().file("d/.wh.a", "")]),
        ["b: content", "d/", "d/z = b", "e: new", "link: other"]
    );
}

#[test]
fn paths_go_through_links_within_the_image() {
    let lower = Tar::new()
        .dir("usr")
        .dir("usr/lib")
        .link("lib", "usr/lib")
        .link("abs", "/usr")
        .link("up", "../../..");
    let upper = Tar::new().file("lib/a", "1").file("abs/b", "2").file("up/c", "3");
    assert_eq!(
        union_listing(&[lower, upper]),
        [
            "abs -> /usr",
            "c: 3",
            "lib -> usr/lib",
            "up -> ../../..",
            "usr/",
            "usr/b: 2",
            "usr/lib/",
            "usr/lib/a: 1"
        ]
    );
}

#[test]
fn marks_of_aufs_mean_nothing() {
    let layer =
        Tar::new().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x").file(".wh..wh.aufs", "").file("f", "");
    assert_eq!(union_listing(&[layer]), ["f: "]);
}

#[test]
fn gzip_and_zstd_layers_are_uncompressed() {
    let plain = Tar::new().file("a", "a").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let other = Tar::new().file("b", "b").end();
    let zstd = zstd::encode_all(other.as_slice(), 3).unwrap();
    let layout = Layout::new();
    let layers = [(gzip.finish().unwrap(), digest(&plain)), (zstd, digest(&other))];
    layout.index(&[layout.manifest(&layers, "amd64")]);
    assert_eq!(listing(&merged(&layout.open().unwrap()).unwrap()), ["a: a", "b: b"]);
}

#[test]
fn layers_named_by_sha512_are_read_and_checked() {
    let plain = Tar::new().file("a", "a").end();
    let id = ContentDigest::from_bytes(Algorithm::Sha512, &sha2::Sha512::digest(&plain)).unwrap();
    let layout = Layout::new();
    std::fs::create_dir(layout.path().join("blobs/sha512")).unwrap();
    let path = layout.path().join("blobs/sha512").join(id.hex());
    std::fs::write(&path, &plain).unwrap();
    let layer = serde_json::json!({"digest": id.to_string(), "size": plain.len()});
    let config = layout.config(std::slice::from_ref(&id), "amd64");
    layout.index(&[layout.json(&serde_json::json!({"config": config, "layers": [layer]}))]);
    assert_eq!(listing(&merged(&layout.open().unwrap()).unwrap()), ["a: a"]);
    std::fs::write(&path, Tar::new().file("a", "b").end()).unwrap();
    assert!(matches!(merged(&layout.open().unwrap()), Err(OciError::Digest { .. })));
}

#[test]
fn attributes_devices_setuid_long_names_and_times_are_kept() {
    let long = format!("{}/{}", "d".repeat(120), "é".repeat(100));
    let layer = Tar::new()
        .entry("su", b'0', "", 0o4755, b"x")
        .pax(&[("SCHILY.xattr.user.note", b"a\0b\n="), ("mtime", b"1500000000.25")])
        .file("note", "n")
        .pax(&[("path", long.as_bytes()), ("VENDOR.thing", b"ignored")])
        .file("short", "long")
        .pax(&[("mtime", b"-5")])
        .entry("sticky", b'5', "", 0o1777, b"")
        .entry("pipe", b'6', "", 0o600, b"");
    let mut device = tar::Header::new_ustar();
    device.set_path("null").unwrap();
    device.set_entry_type(tar::EntryType::Char);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_mode(0o666);
    device.set_uid(3_000_000);
    device.set_gid(7);
    device.set_mtime(1);
    device.set_size(0);
    device.set_cksum();
    let merged = union(&[layer.raw(device.as_bytes()).end()]).unwrap();
    let dir = scratch();
    let root = dir.path().join("root");
    unpack(&merged, &root);
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(meta("su").mode() & 0o7777, 0o4755);
    assert_eq!((meta("note").mtime(), meta("note").mtime_nsec()), (1_500_000_000, 250_000_000));
    let mut value = [0; 16];
    let len = rustix::fs::lgetxattr(root.join("note"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..len], b"a\0b\n=");
    assert_eq!(std::fs::read_to_string(root.join(long)).unwrap(), "long");
    assert_eq!((meta("sticky").mode() & 0o7777, meta("sticky").mtime()), (0o1777, -5));
    assert!(meta("pipe").file_type().is_fifo());
    if rustix::process::geteuid().is_root() {
        assert!(meta("null").file_type().is_char_device());
        assert_eq!((meta("null").rdev(), meta("null").uid(), meta("null").gid()), (0x103, 3_000_000, 7));
    }
}

#[test]
fn sparse_files_of_every_form_keep_their_holes() {
    let dir = scratch();
    let file = std::fs::File::create(dir.path().join("holes")).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 32 << 20).unwrap();
    for form in [
        ["--format=gnu", "--sparse"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ] {
        let mut command = std::process::Command::new("tar");
        command
            .args(["--create", "--sparse"])
            .args(form)
            .arg("--directory")
            .arg(dir.path())
            .args(["--file=-", "holes"]);
        let layer = command.output().unwrap().stdout;
        assert!(layer.len() < 1 << 20);
        let root = dir.path().join(form[1]);
        unpack(&union(&[layer]).unwrap(), &root);
        let meta = std::fs::metadata(root.join("holes")).unwrap();
        assert_eq!(meta.len(), 64 << 20, "{form:?}");
        assert!(meta.blocks() < 256, "{form:?}: {} blocks", meta.blocks());
        let content = std::fs::read(root.join("holes")).unwrap();
        assert_eq!(&content[32 << 20..][..7], b"middle\0", "{form:?}");
    }
}

#[test]
fn the_same_layers_give_the_same_stream() {
    let layers = [Tar::new().dir("b").file("b/x", "1").file("a", "2").end(), Tar::new().file("c", "3").end()];
    let bytes = |merged: kiln_source::oci::Merged| {
        let mut bytes = Vec::new();
        std::io::copy(&mut merged.reader(), &mut bytes).unwrap();
        bytes
    };
    assert_eq!(bytes(union(&layers).unwrap()), bytes(union(&layers).unwrap()));
    let other = [Tar::new().file("a", "2").dir("b").file("c", "3").file("b/x", "1").end()];
    assert_eq!(bytes(union(&layers).unwrap()), bytes(union(&other).unwrap()));
}
