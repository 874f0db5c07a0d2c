//! Mirrors: made of a server, served by another once the first is gone, and read from a disk.

use super::gpg::Gpg;
use crate::context;
use kiln_testing::FileServer;
use kiln_testing::TestContext;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

const KEY: &str = "web/keys/demo.asc";

/// A publisher of two images, one signed and one with a kernel beside it.
pub(super) struct Publisher {
    pub(super) context: TestContext,
    pub(super) gpg: Gpg,
    pub(super) server: FileServer,
}

pub(super) fn sum(bytes: &[u8], name: &str) -> String {
    format!("{}  {name}\n", kiln_core::Digest::of(bytes).hex())
}

impl Publisher {
    pub(super) fn new() -> Self {
        let (context, gpg) = (context(), Gpg::new());
        context.write(KEY, gpg.key());
        let server = FileServer::start(&context.work().join("web"));
        let publisher = Self { context, gpg, server };
        publisher.publish(10, b"first");
        let kernel = b"a kernel";
        publisher.context.write("web/plain/disk.img", b"a disk");
        publisher.context.write("web/plain/boot/vmlinuz", kernel);
        let sums = sum(b"a disk", "disk.img") + &sum(kernel, "vmlinuz");
        publisher.context.write("web/plain/SHA256SUMS", sums);
        let base = publisher.server.url("");
        let catalog = format!(
            r#"version = 1
[[distribution]]
name = "demo"
title = "Demo"
user = "demo"
arch = {{ x86_64 = "amd64" }}
format = "raw"
url = "{base}demo/{{release}}"
disk = "demo-{{arch}}.img"
checksums = "SHA256SUMS"
signature = "SHA256SUMS.gpg"
signers = ["{}"]
keys = ["{base}keys/demo.asc"]
[[distribution.release]]
name = "1"

[[distribution]]
name = "plain"
title = "Plain"
user = "plain"
arch = {{ x86_64 = "x86_64" }}
format = "raw"
url = "{base}plain"
disk = "disk.img"
kernel = "boot/vmlinuz"
checksums = "{base}plain/SHA256SUMS"
[[distribution.release]]
name = "7"
"#,
            publisher.gpg.fingerprint
        );
        publisher.context.write("publisher.toml", catalog);
        publisher.context.kiln(["catalog", "add", "publisher.toml"]).ok();
        publisher
    }

    pub(super) fn publish(&self, days: u64, disk: &[u8]) {
        let sums = sum(disk, "demo-amd64.img");
        self.context.write("web/demo/1/demo-amd64.img", disk);
        self.context.write("web/demo/1/SHA256SUMS.gpg", self.gpg.detached(days, sums.as_bytes()));
        self.context.write("web/demo/1/SHA256SUMS", sums);
    }

    fn mirror(&self, more: &[&str]) -> kiln_testing::Output {
        let args = ["catalog", "mirror", "mirror", "--arch", "x86_64"];
        self.context.kiln([&args, more].concat())
    }

    fn mirrored(&self, path: &str) -> PathBuf {
        self.context.work().join("mirror").join(path)
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        std::fs::read(self.mirrored(path)).ok()
    }

    /// Lists the files of the mirror.
    fn files(&self) -> Vec<String> {
        let (root, mut files) = (self.context.work().join("mirror"), Vec::new());
        let mut open = vec![root.clone()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => open.push(path),
                    false => files.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()),
                }
            }
        }
        files.sort();
        files
    }
}

#[test]
fn a_mirror_stands_for_its_publisher_once_that_is_gone() {
    let publisher = Publisher::new();
    let report = publisher.mirror(&["demo", "plain:7", "--json"]).json();
    assert_eq!(report["images"][0]["serial"], "20240111T000000Z");
    assert_eq!((&report["listed"], &report["images"][1]["files_fetched"]), (&2.into(), &2.into()));
    assert_eq!(
        publisher.files(),
        [
            "catalog.toml",
            "demo/1/amd64/SHA256SUMS",
            "demo/1/amd64/SHA256SUMS.gpg",
            "demo/1/amd64/demo-amd64.img",
            "demo/1/amd64/keys/1/demo.asc",
            "plain/7/x86_64/boot/vmlinuz",
            "plain/7/x86_64/checksums/SHA256SUMS",
            "plain/7/x86_64/disk.img",
        ]
    );
    for file in ["SHA256SUMS", "SHA256SUMS.gpg", "demo-amd64.img"] {
        let published = std::fs::read(publisher.context.work().join("web/demo/1").join(file)).unwrap();
        assert_eq!(publisher.read(&format!("demo/1/amd64/{file}")), Some(published), "{file}");
    }
    for path in ["", "demo/1/amd64", "demo/1/amd64/demo-amd64.img", "catalog.toml"] {
        let mode = std::fs::metadata(publisher.mirrored(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "everybody reads {path}");
    }

    // All is there: no image is fetched, and nothing is written.
    publisher.server.asked();
    let told = publisher.mirror(&["demo", "plain"]).stderr;
    assert!(told.contains("is as it was, with 2 images"), "{told}");
    let asked = publisher.server.asked();
    assert!(!asked.iter().any(|path| path.ends_with(".img") || path.ends_with("vmlinuz")), "{asked:?}");

    // From a server of its own, and from the disk, each into another mirror that is as whole.
    let (work, first) = (publisher.context.work(), publisher.files());
    let again = FileServer::start(&work.join("mirror"));
    drop(publisher.server);
    let site = context();
    site.kiln(["catalog", "add", "--unsigned", "--name", "site", &again.url("catalog.toml")]).ok();
    let args = ["catalog", "mirror", "second", "--arch", "x86_64", "demo:1", "plain"];
    site.kiln(args).ok();
    let disk = context();
    disk.kiln(["catalog", "add", work.join("mirror/catalog.toml").to_str().unwrap()]).ok();
    let asked = again.asked().len();
    disk.kiln(args).ok();
    assert_eq!(again.asked().len(), 0, "after {asked}");
    for file in first {
        let wanted = std::fs::read(work.join("mirror").join(&file)).unwrap();
        for mirror in [&site, &disk] {
            let copy = mirror.work().join("second").join(&file);
            assert_eq!(std::fs::read(copy).unwrap(), wanted, "{file}");
        }
    }
}

#[test]
fn what_is_damaged_is_healed_and_what_is_wrong_never_appears() {
    let publisher = Publisher::new();
    publisher.mirror(&["demo"]).ok();
    std::fs::write(publisher.mirrored("demo/1/amd64/demo-amd64.img"), "damag").unwrap();
    std::fs::write(publisher.mirrored("demo/1/amd64/SHA256SUMS.gpg"), "damag").unwrap();
    publisher.mirror(&["demo"]).ok();
    assert_eq!(publisher.read("demo/1/amd64/demo-amd64.img").unwrap(), b"first");
    assert!(publisher.read("demo/1/amd64/SHA256SUMS.gpg").unwrap().len() > 10);

    // What is published is not what its checksums say; and a kernel is not there.
    let before = publisher.files();
    publisher.context.write("web/plain/boot/vmlinuz", b"another kernel");
    let told = publisher.mirror(&["plain", "demo"]).fails(1);
    assert!(told.contains("plain:7 for x86_64 was not mirrored") && told.contains("1 of 2 failed"), "{told}");
    let seen: Vec<String> = publisher.files().into_iter().filter(|path| !path.starts_with('.')).collect();
    assert_eq!(seen, before);
    std::fs::remove_file(publisher.context.work().join("web/plain/boot/vmlinuz")).unwrap();
    publisher.mirror(&["plain"]).fails(1);
    // The disk that had come already is not fetched again.
    publisher.context.write("web/plain/boot/vmlinuz", b"a kernel");
    publisher.server.asked();
    publisher.mirror(&["plain"]).ok();
    let asked = publisher.server.asked();
    assert!(!asked.contains(&"plain/disk.img".to_owned()), "{asked:?}");
    assert_eq!(publisher.read("plain/7/x86_64/boot/vmlinuz").unwrap(), b"a kernel");
    assert!(publisher.files().iter().all(|path| !path.starts_with('.')), "{:?}", publisher.files());
}

#[test]
fn a_mirror_moves_forward_only_and_keeps_what_it_has() {
    let publisher = Publisher::new();
    publisher.mirror(&["plain"]).ok();
    publisher.mirror(&["demo"]).ok();
    publisher.publish(20, b"second");
    publisher.mirror(&["demo"]).ok();
    assert_eq!(publisher.read("demo/1/amd64/demo-amd64.img").unwrap(), b"second");
    publisher.publish(15, b"old");
    let told = publisher.mirror(&["demo"]).fails(1);
    assert!(told.contains("of 20240116T000000Z is offered, older than that of 20240121T000000Z"), "{told}");
    assert_eq!(publisher.read("demo/1/amd64/demo-amd64.img").unwrap(), b"second");
    publisher.mirror(&["demo", "--allow-older"]).ok();
    assert_eq!(publisher.read("demo/1/amd64/demo-amd64.img").unwrap(), b"old");
    let text = String::from_utf8(publisher.read("catalog.toml").unwrap()).unwrap();
    assert!(text.contains("name = \"plain\"") && text.contains("name = \"demo\""), "{text}");
    // A signature that is stripped, and one of somebody else.
    let other = Gpg::new();
    let sums = std::fs::read(publisher.context.work().join("web/demo/1/SHA256SUMS")).unwrap();
    publisher.context.write("web/demo/1/SHA256SUMS.gpg", other.detached(30, &sums));
    assert!(publisher.mirror(&["demo"]).fails(1).contains("not signed by a pinned key"));
    std::fs::remove_file(publisher.context.work().join("web/demo/1/SHA256SUMS.gpg")).unwrap();
    publisher.mirror(&["demo"]).fails(1);
    assert_eq!(publisher.read("demo/1/amd64/demo-amd64.img").unwrap(), b"old");
}

#[test]
fn a_mirror_is_signed_by_the_key_that_is_named() {
    let publisher = Publisher::new();
    let gpg = Gpg::new();
    let sign = |more: &[&str]| {
        let args = ["catalog", "mirror", "mirror", "--arch", "x86_64", "--sign", &gpg.fingerprint];
        let mut command = publisher.context.command([&args, more].concat());
        command.env("GNUPGHOME", gpg.home()).output().unwrap()
    };
    let output = sign(&["demo"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let again = FileServer::start(&publisher.context.work().join("mirror"));
    let site = context();
    let key = site.write("site.key", gpg.key());
    let url = again.url("catalog.toml");
    let add = ["catalog", "add", &url, "--name", "site", "--signer", &gpg.fingerprint, "--key"];
    site.kiln([&add[..], &[key.to_str().unwrap()]].concat()).ok();
    let sources = site.kiln(["catalog", "sources", "--json"]).json();
    assert_eq!(sources[1]["signer"], gpg.fingerprint.as_str());
    // The key lies beside it, too.
    let other = context();
    other.kiln(["catalog", "add", &url, "--name", "site", "--signer", &gpg.fingerprint]).ok();
    // A catalog that changes has no signature of the one before.
    let told = publisher.mirror(&["plain"]).stderr;
    assert!(told.contains("its signature was of the catalog before, and was removed"), "{told}");
    assert_eq!(publisher.read("catalog.toml.asc"), None);
    site.kiln(["catalog", "update", "--catalogs"]).fails(1);
    assert!(sign(&["plain"]).status.success());
    site.kiln(["catalog", "update", "--catalogs"]).ok();
    site.kiln(["catalog", "show", "plain"]).ok();
}

#[test]
fn a_mirror_has_something_to_be_of() {
    let publisher = Publisher::new();
    publisher.mirror(&[]).fails(2);
    publisher.mirror(&["--all", "demo"]).fails(2);
    assert!(publisher.mirror(&["nothing"]).fails(1).contains("no distribution `nothing`"));
    let told = publisher.context.kiln(["catalog", "mirror", "mirror", "demo", "--arch", "aarch64"]).fails(1);
    assert!(told.contains("has no image for aarch64"), "{told}");
    assert_eq!(publisher.files(), Vec::<String>::new());
}
