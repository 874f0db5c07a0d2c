//! Plain layers: what they come to has plain names, each once, and is what it comes to as a layer itself.

use crate::{Bench, HOST};
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_source::oci::{Blob, Layer, Merged, OciError, Place, UncompressOptions, merge, uncompress};
use sha2::Digest as _;
use std::collections::HashSet;
use std::io::Read as _;

/// Bytes before the layers: options, and the blocks of the first layer.
const PREFIX_BYTES: usize = 3;
/// Bit of the first byte: check sums are made to fit, as whoever means harm does.
const REPAIR: u8 = 1;
const BLOCK: usize = 512;
/// What compressed layers begin with. Decompressors are others' code, and would take up nearly all of the time.
const COMPRESSED: [&[u8]; 3] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]];

/// Reads bytes as options and two layers.
pub fn run(data: &[u8]) {
    let Some((prefix, layers)) = data.split_at_checked(PREFIX_BYTES) else { return };
    let mut layers = layers.to_vec();
    if prefix[0] & REPAIR != 0 {
        layers.chunks_exact_mut(BLOCK).for_each(repair);
    }
    let first = usize::from(u16::from_le_bytes([prefix[1], prefix[2]])) * BLOCK;
    let (lower, upper) = layers.split_at(first.min(layers.len()));
    if [lower, upper].iter().any(|layer| COMPRESSED.iter().any(|mark| layer.starts_with(mark))) {
        return;
    }
    let bench = Bench::shared();
    let Ok(merged) = union(bench, &[lower, upper]) else { return };
    let stream = read(&merged);
    check(&merged, &stream);
    assert!(read(&merged) == stream, "a second reader reads something else");
    let again = union(bench, &[&stream]).expect("what layers come to is a layer");
    assert!(read(&again) == stream, "what layers come to, comes to something else");
}

/// Overlays layers.
fn union(bench: &Bench, layers: &[&[u8]]) -> Result<Merged, OciError> {
    let layers: Vec<Layer> = layers
        .iter()
        .enumerate()
        .map(|(number, bytes)| {
            let (_, path) = bench.write(&format!("layer{number}"), bytes);
            let place = Place { path, offset: 0, len: bytes.len() as u64 };
            Layer { blob: Blob { place, digest: None }, diff_id: digest(bytes) }
        })
        .collect();
    let options = UncompressOptions { directory: bench.dir(), bytes_max: 0, cancel: &bench.cancel };
    merge(uncompress(&layers, &options)?, &bench.cancel)
}

/// Returns the digest of bytes.
pub(crate) fn digest(bytes: &[u8]) -> ContentDigest {
    ContentDigest::from_bytes(Algorithm::Sha256, &sha2::Sha256::digest(bytes)).expect("it has its length")
}

fn read(merged: &Merged) -> Vec<u8> {
    let mut stream = Vec::new();
    merged.reader().read_to_end(&mut stream).expect(HOST);
    stream
}

/// Checks the stream with another reader of tar files.
fn check(merged: &Merged, stream: &[u8]) {
    let mut archive = tar::Archive::new(stream);
    let mut names = HashSet::new();
    let mut links = HashSet::new();
    for entry in archive.entries().expect("the stream is a tar file") {
        let entry = entry.expect("its entries are sound");
        let kind = entry.header().entry_type();
        let name = entry.path_bytes().into_owned();
        let plain = if kind.is_dir() { name.strip_suffix(b"/").expect("it ends so") } else { &name };
        if !(kind.is_dir() && plain == b".") {
            check_name(plain);
        }
        if kind.is_hard_link() {
            let target = entry.link_name_bytes().expect("it has one").into_owned();
            assert!(links.contains(&target), "{name:?} is a link to {target:?}, which is not before it");
        } else if kind.is_symlink() {
            assert!(entry.link_name_bytes().is_some_and(|target| !target.is_empty()));
        }
        if !kind.is_dir() {
            links.insert(plain.to_vec());
        }
        assert!(names.insert(plain.to_vec()), "{name:?} is there twice");
    }
    assert_eq!(names.len(), merged.names());
}

fn check_name(name: &[u8]) {
    for part in name.split(|byte| *byte == b'/') {
        let plain = !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
        assert!(plain && !part.starts_with(b".wh."), "{:?} is no plain name", String::from_utf8_lossy(name));
    }
}

/// Corrects the check sum of a block that looks like a header.
fn repair(block: &mut [u8]) {
    if block[257..262] != *b"ustar" {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
