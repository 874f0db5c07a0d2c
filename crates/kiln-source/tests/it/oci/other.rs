//! Images of other programs, and what those make of them.

use super::make::{Layout, Tar, amd64, layout, merged, run, scratch, snapshot, unpack};
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

/// A layout whose image is `v1`.
fn named(layers: &[Vec<u8>]) -> Layout {
    let layout = layout(layers);
    let text = std::fs::read_to_string(layout.path().join("index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
    index["manifests"][0]["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "v1"});
    std::fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
    layout
}

#[test]
fn the_tree_is_the_one_that_umoci_unpacks() {
    let layout = named(&layers());
    let dir = scratch();
    let root = dir.path().join("ours");
    unpack(&merged(&layout.open().unwrap()).unwrap(), &root);
    assert_eq!(std::fs::read_to_string(root.join("usr/lib/through")).unwrap(), "link");
    umoci(layout.path(), "v1", &dir.path().join("theirs"));
    assert_eq!(snapshot(&root), snapshot(&dir.path().join("theirs/rootfs")));
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

/// A layer that changes a few names of a small tree: each name once, directories before what is in them.
fn random_layer(numbers: &mut Numbers, below: &mut Vec<(String, bool)>) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut own: Vec<(String, bool)> = Vec::new();
    for _ in 0..12 {
        let directories: Vec<&String> =
            below.iter().chain(&own).filter(|(_, dir)| *dir).map(|(name, _)| name).collect();
        let above = match numbers.below(directories.len() + 1) {
            0 => String::new(),
            at => format!("{}/", directories[at - 1]),
        };
        let name = format!("{above}{}", ["a", "b", "c", "d"][numbers.below(4)]);
        let inside = |known: &str| known == name || known.starts_with(&format!("{name}/"));
        if own.iter().any(|(known, _)| inside(known)) || name.matches('/').count() > 3 {
            continue;
        }
        let known = below.iter().any(|(known, _)| *known == name);
        let file = |(file, dir): &&(String, bool)| !dir && !inside(file);
        let (mode, kind) = ([0o644, 0o4755, 0o1700, 0o600][numbers.below(4)], numbers.below(7));
        tar = match kind {
            0 if known => {
                let at = name.rfind('/').map_or(0, |at| at + 1);
                below.retain(|(known, _)| !inside(known));
                tar.file(&format!("{}.wh.{}", &name[..at], &name[at..]), "")
            }
            1 if below.iter().any(|(known, dir)| *dir && *known == name) => {
                below.retain(|(known, _)| *known == name || !inside(known));
                own.push((name.clone(), true));
                tar.entry(&name, b'5', "", 0o750, b"").file(&format!("{name}/.wh..wh..opq"), "")
            }
            2 | 3 => {
                // A directory keeps what lower layers have in it, and takes the place of a file.
                below.retain(|(known, dir)| *known != name || *dir);
                own.push((name.clone(), true));
                tar.entry(&name, b'5', "", mode, b"")
            }
            4 if own.iter().any(|known| file(&known)) => {
                let target = own.iter().find(file).unwrap().0.clone();
                below.retain(|(known, _)| !inside(known));
                own.push((name.clone(), false));
                tar.hard(&name, &target)
            }
            5 => {
                below.retain(|(known, _)| !inside(known));
                tar.link(&name, "/nowhere")
            }
            _ => {
                below.retain(|(known, _)| !inside(known));
                own.push((name.clone(), false));
                tar.pax(&[("SCHILY.xattr.user.n", name.as_bytes())]).entry(
                    &name,
                    b'0',
                    "",
                    mode,
                    name.as_bytes(),
                )
            }
        };
        if kind == 5 {
            own.push((name, false));
        }
    }
    below.retain(|(name, _)| !own.iter().any(|(known, _)| known == name));
    // A link is no target of hard links below: umoci follows it.
    below.extend(own);
    tar.end()
}

#[test]
fn random_layers_come_to_what_umoci_unpacks() {
    for seed in 0..24 {
        let (mut numbers, mut below) = (Numbers(seed), Vec::new());
        let mut layers = vec![Tar::new().dir("./").end()];
        layers.extend((0..4).map(|_| random_layer(&mut numbers, &mut below)));
        let layout = named(&layers);
        let dir = scratch();
        let root = dir.path().join("ours");
        unpack(&merged(&layout.open().unwrap()).unwrap(), &root);
        umoci(layout.path(), "v1", &dir.path().join("theirs"));
        assert_eq!(snapshot(&root), snapshot(&dir.path().join("theirs/rootfs")), "seed {seed}");
    }
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
