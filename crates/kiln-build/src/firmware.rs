//! The UEFI firmware of the host, which becomes an artifact of what it boots.

use crate::error::BuildError;
use kiln_core::arch::Arch;
use kiln_core::digest::Digest;
use kiln_sys::{IoResultExt as _, fs};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Where distributions have the image of code and variables in one: Debian and Ubuntu, Arch Linux, openSUSE, others.
const PLACES: [&str; 6] = [
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/edk2/x64/OVMF.4m.fd",
    "/usr/share/edk2-ovmf/x64/OVMF.fd",
    "/usr/share/qemu/ovmf-x86_64.bin",
    "/usr/share/qemu/OVMF.fd",
    "/usr/share/OVMF/OVMF.fd",
];
/// The largest firmware that is read, in bytes: more does not fit where it is mapped.
const FIRMWARE_BYTES_MAX: u64 = 8 << 20;

/// A firmware file, and the digest of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Firmware {
    path: PathBuf,
    pub(crate) digest: Digest,
}

/// Returns the host's firmware for its guests, where it has one.
pub(crate) fn on_host(arch: Arch) -> Option<PathBuf> {
    let places = if arch == Arch::X86_64 { &PLACES[..] } else { &[] };
    places.iter().map(PathBuf::from).find(|path| fs::metadata(path).is_ok_and(|meta| meta.is_file()))
}

impl Firmware {
    pub(crate) fn read(path: &Path) -> Result<Self, BuildError> {
        Ok(Self { path: path.to_owned(), digest: Digest::of(&content(path)?) })
    }

    /// Returns the file, and its content, which is what it was.
    pub(crate) fn load(&self) -> Result<(&Path, Vec<u8>), BuildError> {
        let bytes = content(&self.path)?;
        if Digest::of(&bytes) == self.digest {
            Ok((&self.path, bytes))
        } else {
            Err(BuildError::InputChanged { path: self.path.clone() })
        }
    }
}

fn content(path: &Path) -> Result<Vec<u8>, BuildError> {
    let mut bytes = Vec::new();
    // A byte more tells that there is too much.
    fs::open(path)?.take(FIRMWARE_BYTES_MAX + 1).read_to_end(&mut bytes).at("read", path)?;
    if bytes.len() as u64 > FIRMWARE_BYTES_MAX {
        return Err(BuildError::FirmwareTooLarge { path: path.to_owned(), max: FIRMWARE_BYTES_MAX });
    }
    Ok(bytes)
}
