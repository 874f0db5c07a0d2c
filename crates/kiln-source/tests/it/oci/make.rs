//! Images made by hand: layers entry by entry, and the layout around them.

use kiln_core::image::{Algorithm, ContentDigest, Platform};
use kiln_source::oci::{Image, Merged, OciError, UncompressOptions, merge, uncompress};
use kiln_sys::Cancel;
use kiln_sys::tool::ScratchDir;
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

pub(super) fn scratch() -> ScratchDir {
    ScratchDir::new(&std::env::temp_dir()).unwrap()
}

pub(super) fn digest(bytes: &[u8]) -> ContentDigest {
    ContentDigest::from_bytes(Algorithm::Sha256, &sha2::Sha256::digest(bytes)).unwrap()
}

pub(super) fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// A layer's tar file.
#[derive(Clone)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds an entry whose name is written as it is.
    pub(super) fn entry(mut self, name: &str, kind: u8, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: &str, content: &str) -> Self {
        self.entry(name, b'0', "", 0o644, content.as_bytes())
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.entry(name, b'5', "", 0o755, b"")
    }

    pub(super) fn link(self, name: &str, to: &str) -> Self {
        self.entry(name, b'2', to, 0o777, b"")
    }

    pub(super) fn hard(self, name: &str, to: &str) -> Self {
        self.entry(name, b'1', to, 0o644, b"")
    }

    /// Adds records of an extended header for the entry that follows.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (rest + 1..).find(|len| rest + len.to_string().len() == *len).unwrap();
            write!(body, "{len} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.entry("PaxHeaders/x", b'x', "", 0o644, &body)
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory in OCI layout.
pub(super) struct Layout(pub(super) ScratchDir);

impl Layout {
    pub(super) fn new() -> Self {
        let dir = scratch();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(dir)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Adds a blob; returns what names it.
    pub(super) fn blob(&self, bytes: &[u8]) -> serde_json::Value {
        let digest = digest(bytes);
        std::fs::write(self.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        serde_json::json!({"mediaType": "application/x", "digest": digest.to_string(), "size": bytes.len()})
    }

    fn typed(&self, mut blob: serde_json::Value, media_type: &str) -> serde_json::Value {
        blob["mediaType"] = format!("application/vnd.oci.image.{media_type}").into();
        blob
    }

    pub(super) fn json(&self, value: &serde_json::Value) -> serde_json::Value {
        self.blob(&serde_json::to_vec(value).unwrap())
    }

    pub(super) fn config(&self, diff_ids: &[ContentDigest], arch: &str) -> serde_json::Value {
        let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
        let blob = self.json(&serde_json::json!({
            "architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids},
            "config": {
                "Entrypoint": ["/app"], "Cmd": ["--serve"], "Env": ["A=1", "B=x=y"], "WorkingDir": "srv",
                "User": "1000:7", "StopSignal": "SIGINT", "Labels": {"k": "v"}
            }
        }));
        self.typed(blob, "config.v1+json")
    }

    /// Adds a manifest of layers as they are stored.
    pub(super) fn manifest(&self, layers: &[(Vec<u8>, ContentDigest)], arch: &str) -> serde_json::Value {
        let ids: Vec<ContentDigest> = layers.iter().map(|(_, id)| id.clone()).collect();
        let stored: Vec<serde_json::Value> =
            layers.iter().map(|(bytes, _)| self.typed(self.blob(bytes), "layer.v1.tar")).collect();
        let config = self.config(&ids, arch);
        let blob = self.json(&serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": stored
        }));
        self.typed(blob, "manifest.v1+json")
    }

    pub(super) fn index(&self, entries: &[serde_json::Value]) {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
        std::fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    pub(super) fn open(&self) -> Result<Image, OciError> {
        Image::layout(self.path(), None, &amd64())
    }
}

/// Makes a layout with one image of these layers, uncompressed.
pub(super) fn layout(layers: &[Vec<u8>]) -> Layout {
    let layout = Layout::new();
    let layers: Vec<_> = layers.iter().map(|bytes| (bytes.clone(), digest(bytes))).collect();
    layout.index(&[layout.manifest(&layers, "amd64")]);
    layout
}

pub(super) fn merged(image: &Image) -> Result<Merged, OciError> {
    let (dir, cancel) = (scratch(), Cancel::new().unwrap());
    let options = UncompressOptions { directory: dir.path(), bytes_max: 1 << 32, cancel: &cancel };
    merge(uncompress(&image.layers, &options)?, &cancel)
}

pub(super) fn union(layers: &[Vec<u8>]) -> Result<Merged, OciError> {
    merged(&layout(layers).open()?)
}

/// The names of the merged tree with what they are, a line each.
pub(super) fn listing(merged: &Merged) -> Vec<String> {
    let mut archive = tar::Archive::new(merged.reader());
    let mut lines = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
        let path = entry.path().unwrap().display().to_string();
        let link = entry.link_name().unwrap().map(|link| link.display().to_string());
        lines.push(match (entry.header().entry_type(), link) {
            (tar::EntryType::Link, Some(to)) => format!("{path} = {to}"),
            (_, Some(to)) => format!("{path} -> {to}"),
            (tar::EntryType::Regular, _) => format!("{path}: {content}"),
            _ => path,
        });
    }
    lines
}

pub(super) fn union_listing(layers: &[Tar]) -> Vec<String> {
    let layers: Vec<Vec<u8>> = layers.iter().map(|layer| layer.clone().end()).collect();
    listing(&union(&layers).unwrap())
}

/// Unpacks as a build does.
pub(super) fn unpack(merged: &Merged, to: &Path) {
    std::fs::create_dir(to).unwrap();
    let tar = to.with_extension("tar");
    std::io::copy(&mut merged.reader(), &mut std::fs::File::create(&tar).unwrap()).unwrap();
    let mut command = Command::new("tar");
    command.args(["--extract", "--numeric-owner", "--same-owner", "--same-permissions", "--xattrs"]);
    command.args(["--xattrs-include=*", "--acls", "--delay-directory-restore", "--file"]).arg(&tar);
    run(command.arg("--directory").arg(to));
}

pub(super) fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C.UTF-8").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a tree on disk is: each name with type, mode, owners, times, attributes, links and content.
pub(super) fn snapshot(root: &Path) -> BTreeMap<String, String> {
    use std::os::unix::fs::MetadataExt as _;
    let (mut found, mut files) = (BTreeMap::new(), BTreeMap::new());
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let what = if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().display().to_string()
        } else if meta.is_file() {
            digest(&std::fs::read(&path).unwrap()).to_string()
        } else {
            meta.rdev().to_string()
        };
        if meta.is_dir() {
            rest.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if meta.nlink() > 1 {
            files.entry(meta.ino()).or_insert_with(Vec::new).push(name.clone());
        }
        let (mode, time) = (meta.mode(), (meta.mtime(), meta.mtime_nsec()));
        let line = format!("{mode:o} {}:{} {time:?} {what} {:?}", meta.uid(), meta.gid(), attributes(&path));
        found.insert(name, line);
    }
    for mut names in files.into_values() {
        names.sort();
        let all = names.join(" ");
        names.iter().for_each(|name| found.get_mut(name).unwrap().push_str(&format!(" = {all}")));
    }
    found
}

fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut found = Vec::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        found.push((String::from_utf8(name.to_vec()).unwrap(), value[..len].to_vec()));
    }
    found.sort();
    found
}
