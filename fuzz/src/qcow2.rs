//! Disk images: whatever the bytes say, there is an error or a raw file of the size that was announced.

use crate::{Bench, HOST};
use kiln_core::recipe::{BackingFiles, DiskFormat};
use kiln_source::disk::{DiskError, DiskResult, Image, Reading};
use kiln_sys::{Toolbox, fs};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The largest disk that is converted: a run takes milliseconds.
pub const DISK_BYTES_MAX: u64 = 64 << 20;

/// What inputs may name as their backing files.
const BASE_RAW: &str = "base.raw";
const BASE_QCOW2: &str = "base.qcow2";

/// Reads bytes as a disk image.
pub fn run(data: &[u8]) {
    if !is_small(data) {
        return;
    }
    let bench = Bench::shared();
    let (_, path) = bench.write("image", data);
    let raw = bench.path("raw");
    let outcome = convert(bench, &path, &raw);
    if let Ok(format) = outcome {
        let wanted = match format {
            DiskFormat::Raw => data.len() as u64,
            _ => virtual_bytes(data).expect("an image that is read has a header"),
        };
        assert_eq!(fs::metadata(&raw).expect(HOST).len(), wanted, "the raw file has another length");
        if format == DiskFormat::Raw {
            let written = fs::read_limited(&raw, data.len()).expect(HOST);
            assert!(written == data, "a raw image was changed");
        }
    }
    bench.remove("raw");
}

/// Converts an image as a build does, without a program for formats that kiln does not read itself.
pub fn convert(bench: &Bench, path: &Path, raw: &Path) -> DiskResult<DiskFormat> {
    let toolbox = Toolbox::new(Vec::new(), Vec::new());
    let reading = Reading { toolbox: &toolbox, threads: 1, kept: false, cancel: &bench.cancel };
    let image = Image::open(path, None, BackingFiles::Flatten)?;
    image.data_bytes(&reading)?;
    match image.write_raw(raw, &reading) {
        Ok(()) => Ok(image.format()),
        Err(DiskError::Cancelled) => panic!("cancelled, and nobody did"),
        Err(error) => Err(error),
    }
}

/// Whether the disk is one that is converted here.
pub fn is_small(data: &[u8]) -> bool {
    virtual_bytes(data).is_none_or(|bytes| bytes <= DISK_BYTES_MAX)
}

/// Returns the virtual size that a qcow2 image announces.
fn virtual_bytes(data: &[u8]) -> Option<u64> {
    let bytes = data.starts_with(b"QFI\xfb").then(|| data.get(24..32))??;
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// Writes the files that inputs may be based on.
pub fn make_bases(bench: &Bench) {
    let data: Vec<u8> = (0..256_u32 << 10).map(|at| (at / 512 + at % 251).to_le_bytes()[0]).collect();
    bench.write(BASE_RAW, &data);
    // Clusters of 4 KiB: header, table and block of reference counts, the two levels of tables, and two of data.
    let (file, _) = bench.write(BASE_QCOW2, b"QFI\xfb");
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).expect(HOST);
    for (at, value) in [(4, 2_u32), (20, 12), (36, 1), (56, 1)] {
        put(at, &value.to_be_bytes());
    }
    let (l1, l2, first, second) = (3_u64 << 12, 4_u64 << 12, 5_u64 << 12, 6_u64 << 12);
    for (at, value) in [(24, 128_u64 << 10), (40, l1), (48, 1 << 12), (1 << 12, 2 << 12)] {
        put(at, &value.to_be_bytes());
    }
    for cluster in 0..7 {
        put((2 << 12) + cluster * 2, &1_u16.to_be_bytes());
    }
    let in_use = 1 << 63;
    for (at, value) in [(l1, l2 | in_use), (l2, first | in_use), (l2 + 24, second | in_use)] {
        put(at, &value.to_be_bytes());
    }
    put(first, &data[..4096]);
    put(second, &data[4096..8192]);
}
