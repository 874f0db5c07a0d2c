use super::*;
use proptest::prelude::*;

/// A kernel's ELF file of one note segment; `pvh` gives it the entry note.
pub(crate) fn elf(pvh: bool) -> Vec<u8> {
    let mut bytes = vec![0; 64 + 56];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = 1;
    let note: Vec<u8> = [
        &4_u32.to_le_bytes()[..],
        &4_u32.to_le_bytes(),
        &(if pvh { 18_u32 } else { 6 }).to_le_bytes(),
        b"Xen\0",
        &[0; 4],
    ]
    .concat();
    bytes[64] = 4;
    bytes[64 + 8] = 120;
    bytes[64 + 32] = u8::try_from(note.len()).unwrap();
    bytes.extend(note);
    bytes.extend(b"..Linux version %s\0Linux version 6.1.0-9-cloud-amd64 (gcc)");
    bytes
}

fn bzimage_of(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[0x1f1] = 1;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    bytes[0x20e..0x210].copy_from_slice(&0x0100_u16.to_le_bytes());
    bytes[0x300..0x310].copy_from_slice(b"6.1.0-9-cloud bu");
    bytes[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    bytes.extend(payload);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn lz4_legacy(bytes: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(bytes);
    let len = u32::try_from(block.len()).unwrap().to_le_bytes();
    [&0x184c_2102_u32.to_le_bytes()[..], &len, &block].concat()
}

#[test]
fn an_elf_kernel_stays_as_it_is() {
    let kernel = parse(elf(true)).unwrap();
    assert_eq!(kernel.bytes, elf(true));
    assert_eq!(kernel.format, ArtifactFormat::Elf);
    assert_eq!(kernel.release.as_deref(), Some("6.1.0-9-cloud-amd64"));
}

#[test]
fn the_kernel_in_a_bzimage_is_found_in_each_format() {
    let size = [1, 2, 3, 4];
    for payload in [
        gzip(&elf(true)),
        [zstd(&elf(true)).as_slice(), &size].concat(),
        [lz4_legacy(&elf(true)).as_slice(), &size].concat(),
    ] {
        let kernel = parse(bzimage_of(&payload)).unwrap();
        assert_eq!(kernel.format, ArtifactFormat::Elf);
        assert_eq!(kernel.bytes, elf(true));
        assert_eq!(kernel.release.as_deref(), Some("6.1.0-9-cloud"));
    }
}

#[test]
fn a_bzimage_that_cannot_be_opened_stays_one() {
    let xz = [&[0xfd, b'7', b'z', b'X', b'Z', 0][..], &[0; 40]].concat();
    for payload in [xz, b"BZh9xxxx".to_vec(), vec![0x5d, 0, 0, 0, 0], gzip(&elf(false))] {
        let whole = bzimage_of(&payload);
        let kernel = parse(whole.clone()).unwrap();
        assert_eq!((kernel.format, kernel.bytes), (ArtifactFormat::Bzimage, whole));
    }
}

#[test]
fn what_is_no_kernel_is_told_apart() {
    let message = |bytes: &[u8]| parse(bytes.to_vec()).unwrap_err().to_string();
    assert!(message(b"").ends_with("it begins with nothing, it is empty"));
    assert!(message(&gzip(b"x")).ends_with("it begins with gzip data"));
    assert!(message(b"#!/bin/sh\n").ends_with("it begins with 23 21 2f 62 69 6e 2f 73"));
    assert_eq!(
        message(&elf(false)),
        "it is an ELF file, but it has no PVH note (a kernel with CONFIG_PVH has one)"
    );
    let mut arm = elf(true);
    arm[18] = 183;
    assert_eq!(message(&arm), "it is an ELF file, but not for x86-64");
    let mut short = bzimage_of(&gzip(&elf(true)));
    short.truncate(1100);
    assert_eq!(message(&short), "it is a bzImage, but it is shorter than its header says");
    let mut damaged = gzip(&elf(true));
    damaged[20] ^= 0xff;
    damaged[30] ^= 0xff;
    assert!(message(&bzimage_of(&damaged)).contains("gzip payload does not uncompress"));
}

#[test]
fn an_arm64_image_is_known_by_its_magic() {
    let mut bytes = vec![0; 64];
    bytes[0x38..0x3c].copy_from_slice(b"ARM\x64");
    assert!(parse(bytes).is_ok());
}

#[test]
fn a_payload_without_end_is_stopped() {
    let bomb = gzip(&vec![0; 8 << 20]);
    let many: Vec<u8> = std::iter::repeat_n(bomb, 66).flatten().collect();
    assert!(matches!(parse(bzimage_of(&many)), Err(KernelError::PayloadTooLarge)));
}

proptest! {
    #[test]
    fn no_bytes_make_the_loader_panic(kind in 0_usize..4, tail: Vec<u8>, at in 0_usize..600, byte: u8) {
        let mut bytes = match kind {
            0 => tail,
            1 => elf(true),
            2 => bzimage_of(&gzip(&elf(true))),
            _ => bzimage_of(&tail),
        };
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        let _ = parse(bytes);
    }
}

#[test]
fn a_kernel_file_has_a_largest_size() {
    let dir = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
    let path = dir.path().join("vmlinuz");
    fs::create_new(&path).unwrap().set_len(FILE_BYTES_MAX as u64 + 1).unwrap();
    let KernelError::Io(error) = load(&path).unwrap_err() else { panic!("it was read") };
    assert_eq!((error.path, error.source.to_string()), (path, "more than 268435456 bytes".to_owned()));
}
