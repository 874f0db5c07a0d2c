//! What a file is, by its first bytes.

use super::filesystem::FileSystem;
use super::{DiskError, DiskResult};
use kiln_core::recipe::DiskFormat;
use kiln_sys::IoResultExt as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// What is looked at, in bytes: the last of the marks is the superblock of btrfs.
pub(super) const HEAD_BYTES: usize = 68 << 10;

/// Formats that are recognised and not read: what stands where, and what it is.
const REFUSED: [(usize, &[u8], &str); 13] = [
    (0, b"conectix", "a VHD image"),
    (64, b"\x7f\x10\xda\xbe", "a VirtualBox image"),
    (0, b"QED\0", "a QED image"),
    (0, b"LUKS\xba\xbe", "encrypted with LUKS"),
    (0, b"\x1f\x8b", "compressed with gzip"),
    (0, b"\xfd7zXZ\0", "compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (0, b"BZh", "compressed with bzip2"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x7fELF", "a program"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor, whose data lies in other files"),
];

/// Returns the first bytes of a file.
pub(super) fn head(file: &File, path: &Path) -> DiskResult<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.take(HEAD_BYTES as u64).read_to_end(&mut head).at("read", path)?;
    Ok(head)
}

/// Returns the format of an image that begins with these bytes.
pub(super) fn detect(head: &[u8]) -> Result<DiskFormat, &'static str> {
    let has = |at: usize, mark: &[u8]| head.get(at..at + mark.len()) == Some(mark);
    if has(0, b"QFI\xfb") {
        return Ok(DiskFormat::Qcow2);
    }
    if has(0, b"KDMV") || has(0, b"COWD") {
        return Ok(DiskFormat::Vmdk);
    }
    if has(0, b"vhdxfile") {
        return Ok(DiskFormat::Vhdx);
    }
    if let Some((_, _, name)) = REFUSED.into_iter().find(|(at, mark, _)| has(*at, mark)) {
        return Err(name);
    }
    let boots = has(510, &[0x55, 0xaa]) || has(512, b"EFI PART") || has(4096, b"EFI PART");
    if boots || FileSystem::detect(head).is_some() {
        return Ok(DiskFormat::Raw);
    }
    match head {
        [] => Err("empty"),
        _ if has(32_769, b"CD001") => Err("an ISO 9660 image"),
        _ if head.iter().all(|byte| *byte == 0) => Err("zeros where a format would show"),
        _ => Err("of no known format"),
    }
}

/// Returns the format of an image: what it is, or what it is said to be, where that can be.
///
/// # Errors
/// A raw disk is whatever it is said to be; of the others, one that is another format is refused.
pub(super) fn settle(path: &Path, head: &[u8], said: Option<DiskFormat>) -> DiskResult<DiskFormat> {
    match (said, detect(head)) {
        (Some(DiskFormat::Raw), _) => Ok(DiskFormat::Raw),
        (Some(said), Ok(found)) if said == found => Ok(said),
        (None, Ok(found)) => Ok(found),
        (None, Err(found)) => Err(DiskError::Format { path: path.to_owned(), found }),
        (Some(said), found) => {
            let found = found.map_or_else(|name| name, DiskFormat::as_str);
            Err(DiskError::OtherFormat { path: path.to_owned(), found, wanted: said.as_str() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_first_bytes() {
        let at = |at: usize, mark: &[u8]| {
            let mut bytes = vec![0; HEAD_BYTES];
            bytes[at..at + mark.len()].copy_from_slice(mark);
            bytes
        };
        assert_eq!(detect(&at(0, b"QFI\xfb")), Ok(DiskFormat::Qcow2));
        assert_eq!(detect(&at(0, b"KDMV")), Ok(DiskFormat::Vmdk));
        assert_eq!(detect(&at(0, b"vhdxfile")), Ok(DiskFormat::Vhdx));
        assert_eq!(detect(&at(510, &[0x55, 0xaa])), Ok(DiskFormat::Raw));
        assert_eq!(detect(&at(512, b"EFI PART")), Ok(DiskFormat::Raw));
        assert_eq!(detect(&at(1080, &[0x53, 0xef])), Ok(DiskFormat::Raw));
        assert_eq!(detect(&at(0, b"\xfd7zXZ\0")), Err("compressed with xz"));
        assert_eq!(detect(&at(0, b"conectix")), Err("a VHD image"));
        assert_eq!(detect(&at(32_769, b"CD001")), Err("an ISO 9660 image"));
        assert_eq!(detect(&at(0, b"text")), Err("of no known format"));
        assert_eq!(detect(&[]), Err("empty"));
        let path = Path::new("/image");
        let qcow2 = at(0, b"QFI\xfb");
        assert_eq!(settle(path, &qcow2, Some(DiskFormat::Raw)).unwrap(), DiskFormat::Raw);
        let error = settle(path, &qcow2, Some(DiskFormat::Vmdk)).unwrap_err().to_string();
        assert_eq!(error, "/image is qcow2, and the recipe says vmdk");
    }
}
