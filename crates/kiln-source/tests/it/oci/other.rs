//! Images of other programs, and what those make of them.

use super::make::{Tar, amd64, layout, merged, run, scratch, snapshot, unpack};
use kiln_source::oci::Image;
use std::process::Command;

/// A layer of everything, one that changes and hides much of it, and one with what is left.
fn layers() -> Vec<Vec<u8>> {
    let words = "words and words\n".repeat(2000);
    vec![
        Tar::new()
            .dir("./")
            .dir("bin/")
            .entry("bin/su", b'0', "", 0o4755, b"su")
            .file("bin/one", &words)
            .hard("bin/two", "bin/one")
            .link("sh", "bin/su")
            .dir("etc")
            .pax(&[("SCHILY.xattr.user.note", b"a\0b"), ("mtime", b"1500000000.5")])
            .file("etc/note", "n")
            .dir("gone")
            .file("gone/x", "")
            .dir("opaque")
            .file("opaque/old", "")
            .file("becomes-dir", "")
            .dir("becomes-file")
            .file("becomes-file/x", "")
            .dir("usr")
            .dir("usr/lib")
            .link("lib", "usr/lib")
            .end(),
        Tar::new()
            .file(".wh.gone", "")
            .dir("opaque")
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/new", "new")
            .dir("becomes-dir")
            .file("becomes-dir/y", "y")
            .file("becomes-file", "file")
            .file("lib/through", "link")
            .hard("bin/three", "bin/one")
            .file("etc/.wh.none", "")
            .end(),
        Tar::new()
            .entry("etc", b'5', "", 0o700, b"")
            .file("bin/.wh.two", "")
            .file("bin/one", "changed")
            .end(),
    ]
}

/// Has umoci unpack the image of a layout.
fn umoci(layout: &std::path::Path, tag: &str, bundle: &std::path::Path) {
    let image = format!("{}:{tag}", layout.display());
    let mut command = Command::new("umoci");
    command.args(["unpack", "--image", &image]);
    if !rustix::process::geteuid().is_root() {
        command.arg("--rootless");
    }
    run(command.arg(bundle));
}

#[test]
fn the_tree_is_the_one_that_umoci_unpacks() {
    let layout = layout(&layers());
    let text = std::fs::read_to_string(layout.path().join("index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
    index["manifests"][0]["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "v1"});
    std::fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
    let dir = scratch();
    let root = dir.path().join("ours");
    unpack(&merged(&layout.open().unwrap()).unwrap(), &root);
    assert_eq!(std::fs::read_to_string(root.join("usr/lib/through")).unwrap(), "link");
    umoci(layout.path(), "v1", &dir.path().join("theirs"));
    assert_eq!(snapshot(&root), snapshot(&dir.path().join("theirs/rootfs")));
}

#[test]
fn every_form_that_skopeo_writes_is_the_same_tree() {
    let made = layout(&layers());
    let dir = scratch();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let from = format!("oci:{}", made.path().display());
    let copy = |options: &[&str], from: &str, to: &str| {
        run(Command::new("skopeo").arg("--insecure-policy").arg("copy").args(options).args([from, to]))
    };
    copy(&[], &from, &format!("oci:{}:v1", at("gzip")));
    copy(&["--dest-compress-format", "zstd", "--dest-compress"], &from, &format!("oci:{}:v1", at("zstd")));
    copy(&[], &from, &format!("oci-archive:{}:v1", at("oci.tar")));
    copy(&[], &from, &format!("docker-archive:{}:app:v1", at("docker.tar")));
    let here = |name: &str| dir.path().join(name);
    let images = [
        made.open(),
        Image::layout(&here("gzip"), Some("v1"), &amd64()),
        Image::layout(&here("zstd"), Some("v1"), &amd64()),
        Image::archive(&here("oci.tar"), None, Some("v1"), &amd64()),
        Image::archive(&here("docker.tar"), None, Some("app:v1"), &amd64()),
    ];
    let mut streams = images.map(|image| {
        let mut bytes = Vec::new();
        std::io::copy(&mut merged(&image.unwrap()).unwrap().reader(), &mut bytes).unwrap();
        bytes
    });
    let first = streams[0].clone();
    assert!(streams.iter_mut().all(|stream| *stream == first));
}
