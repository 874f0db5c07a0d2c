//! The documents of an image, in the three places where they are found: a layout, a cache, and an archive.
//!
//! An input is up to four documents with a byte 0x1e between them: index, manifest, configuration, and the `manifest.json`
//! of `docker save`. As no fuzzer finds a digest, marks stand for them: `#M` and `#m` for digest and size of the manifest,
//! `#C` and `#c` of the configuration, `#L` and `#l` of a layer.

use crate::oci_layer::digest;
use crate::{Bench, HOST};
use kiln_core::arch::Arch;
use kiln_core::image::Platform;
use kiln_source::oci::{ArchiveKind, BlobCache, Image, OciError, limits};
use kiln_sys::fs;

const SEPARATOR: u8 = 0x1e;
const LAYER: &[u8] = &[0; 1024];

/// Reads bytes as the documents of an image.
pub fn run(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == SEPARATOR).map(<[u8]>::to_vec);
    let mut part = || parts.next().unwrap_or_default();
    let (index, manifest, config, docker) = (part(), part(), part(), part());
    let config = fill(&config, &[(b'L', b'l', LAYER)]);
    let manifest = fill(&manifest, &[(b'C', b'c', &config), (b'L', b'l', LAYER)]);
    let index = fill(&index, &[(b'M', b'm', &manifest)]);
    let platform = Platform::of(Arch::X86_64);
    let bench = Bench::shared();

    let layout = bench.path("layout");
    let blobs = layout.join("blobs/sha256");
    let cache = BlobCache::open(bench.dir()).expect(HOST);
    fs::create_dir_all(&blobs).expect(HOST);
    bench.write("layout/index.json", &index);
    let mut written = Vec::new();
    for blob in [&manifest[..], &config, LAYER] {
        let hex = digest(blob).hex().to_owned();
        for place in [format!("layout/blobs/sha256/{hex}"), format!("oci/v1/blobs/sha256/{hex}")] {
            bench.write(&place, blob);
            written.push(place);
        }
    }
    check(&Image::layout(&layout, None, &platform));
    check(&Image::layout(&layout, Some("latest"), &platform));
    check(&Image::cached(&cache, &digest(&manifest), &platform));
    for place in &written {
        bench.remove(place);
    }

    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).expect("there is memory");
    };
    add("manifest.json", &docker);
    add("config.json", &config);
    add("layer.tar", LAYER);
    add("oci-layout", b"{}");
    add("index.json", &index);
    for blob in [&manifest[..], &config, LAYER] {
        add(&format!("blobs/sha256/{}", digest(blob).hex()), blob);
    }
    let (_, path) = bench.write("archive", &archive.into_inner().expect("there is memory"));
    for name in [None, Some("app:latest")] {
        for kind in [ArchiveKind::Docker, ArchiveKind::Oci] {
            check(&Image::archive(&path, Some(kind), name, &platform));
        }
    }
}

fn check(image: &Result<Image, OciError>) {
    let Ok(image) = image else { return };
    assert!(image.layers.len() <= limits::LAYERS_MAX);
    let config = &image.config;
    assert!(config.workdir.as_ref().is_none_or(|path| path.starts_with('/')));
    assert!(config.env.keys().all(|key| !key.is_empty() && !key.contains('=')));
}

/// Puts digests and sizes in the place of their marks.
fn fill(document: &[u8], marks: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(document.len());
    let mut rest = document;
    while let [byte, after @ ..] = rest {
        let mark = after.first().filter(|_| *byte == b'#').copied();
        match marks.iter().find(|(name, size, _)| mark == Some(*name) || mark == Some(*size)) {
            Some((name, _, of)) => {
                let text = if mark == Some(*name) { digest(of).to_string() } else { of.len().to_string() };
                filled.extend_from_slice(text.as_bytes());
                rest = &after[1..];
            }
            None => {
                filled.push(*byte);
                rest = after;
            }
        }
    }
    filled
}
