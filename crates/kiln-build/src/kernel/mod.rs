//! Kernels: what a file is, and the uncompressed ELF within a bzImage.
//!
//! An uncompressed kernel starts faster, and boards without firmware need one. A bzImage whose payload is compressed
//! in a way that is not read here stays as it is: it brings its own loader.

mod elf;

use crate::decompress::Compression;
use kiln_core::revision::ArtifactFormat;
use kiln_sys::{IoError, fs};
use std::io::Read;
use std::path::Path;

/// The largest kernel file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 256 << 20;
/// The largest kernel, uncompressed, in bytes.
pub const KERNEL_BYTES_MAX: u64 = 512 << 20;

/// Why a file is not a kernel that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Neither ELF, nor bzImage, nor arm64 Image.
    #[error("it is neither an ELF kernel, a bzImage nor an arm64 Image: it begins with {0}")]
    Unknown(String),
    /// An ELF file that is no kernel for a machine.
    #[error("it is an ELF file, but {0}")]
    Elf(&'static str),
    /// A bzImage that is damaged.
    #[error("it is a bzImage, but {0}")]
    Bzimage(&'static str),
    /// The payload of a bzImage does not uncompress.
    #[error("it is a bzImage, but its {format} payload does not uncompress")]
    Payload {
        /// How it is compressed.
        format: &'static str,
        /// The decoder's words.
        #[source]
        source: std::io::Error,
    },
    /// The payload of a bzImage is larger than any kernel.
    #[error("it is a bzImage, but its payload has more than {KERNEL_BYTES_MAX} bytes")]
    PayloadTooLarge,
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// A kernel that a machine monitor can load.
#[derive(Debug, Clone)]
pub struct KernelImage {
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// What they are.
    pub format: ArtifactFormat,
    /// The release, such as `6.1.0-9-cloud-amd64`, where the file tells it.
    pub release: Option<String>,
}

/// Reads a kernel.
pub fn load(path: &Path) -> Result<KernelImage, KernelError> {
    parse(fs::read_limited(path, FILE_BYTES_MAX)?)
}

/// Makes a kernel of the bytes of a file.
pub fn parse(bytes: Vec<u8>) -> Result<KernelImage, KernelError> {
    if bytes.starts_with(b"\x7fELF") {
        elf::check(&bytes).map_err(KernelError::Elf)?;
        let release = elf::release(&bytes);
        return Ok(KernelImage { bytes, format: ArtifactFormat::Elf, release });
    }
    if bytes.get(0x202..0x206) == Some(b"HdrS") {
        return bzimage(bytes);
    }
    if bytes.get(0x38..0x3c) == Some(b"ARM\x64") {
        // Loaded by its own header, like a bzImage.
        return Ok(KernelImage { bytes, format: ArtifactFormat::Bzimage, release: None });
    }
    Err(KernelError::Unknown(describe(&bytes)))
}

fn describe(bytes: &[u8]) -> String {
    if let Some(format) = Compression::detect(bytes) {
        return format!("{} data", format.name());
    }
    match bytes.len() {
        0 => "nothing, it is empty".to_owned(),
        len => bytes[..len.min(8)].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at + 4).and_then(|b| usize::try_from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])).ok())
}

/// The first version of the boot protocol that tells where the payload is.
const PROTOCOL_WITH_PAYLOAD: usize = 0x0208;

fn bzimage(bytes: Vec<u8>) -> Result<KernelImage, KernelError> {
    let short = || KernelError::Bzimage("it is shorter than its header says");
    let release = bzimage_release(&bytes);
    if u16_at(&bytes, 0x206).ok_or_else(short)? < PROTOCOL_WITH_PAYLOAD {
        return Err(KernelError::Bzimage("its boot protocol is older than 2.08"));
    }
    let sectors = match bytes[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = u32_at(&bytes, 0x248).ok_or_else(short)?;
    let len = u32_at(&bytes, 0x24c).ok_or_else(short)?;
    let start = (sectors + 1) * 512 + offset;
    let end = start.checked_add(len).ok_or_else(short)?;
    let payload = bytes.get(start..end).ok_or_else(short)?;
    match uncompressed(payload)? {
        Some(kernel) if elf::check(&kernel).is_ok() => {
            Ok(KernelImage { bytes: kernel, format: ArtifactFormat::Elf, release })
        }
        _ => Ok(KernelImage { bytes, format: ArtifactFormat::Bzimage, release }),
    }
}

/// Returns the kernel within a payload; none when its compression is not read here.
fn uncompressed(payload: &[u8]) -> Result<Option<Vec<u8>>, KernelError> {
    let Some(format) = Compression::detect(payload) else { return Ok(None) };
    // The kernel's build appends the length, except where the format ends with it by itself.
    let data = match format {
        Compression::Gzip => payload,
        _ => payload.get(..payload.len().saturating_sub(4)).unwrap_or_default(),
    };
    let Some(reader) = format.reader(data) else { return Ok(None) };
    let mut kernel = Vec::new();
    reader
        .take(KERNEL_BYTES_MAX + 1)
        .read_to_end(&mut kernel)
        .map_err(|source| KernelError::Payload { format: format.name(), source })?;
    if kernel.len() as u64 > KERNEL_BYTES_MAX {
        return Err(KernelError::PayloadTooLarge);
    }
    Ok(Some(kernel))
}

fn bzimage_release(bytes: &[u8]) -> Option<String> {
    let pointer = u16_at(bytes, 0x20e).filter(|pointer| *pointer != 0)?;
    first_word(bytes.get(0x200 + pointer..)?)
}

fn first_word(bytes: &[u8]) -> Option<String> {
    let word =
        bytes.iter().take(128).take_while(|byte| byte.is_ascii_graphic()).map(|byte| char::from(*byte));
    Some(word.collect::<String>()).filter(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
