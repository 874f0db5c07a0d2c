//! What a machine boots with, as its record says it.

use crate::digest::Digest;
use crate::revision::ArtifactFormat;
use serde::{Deserialize, Serialize};

/// The artifacts that a machine boots with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
#[non_exhaustive]
pub enum BootArtifacts {
    /// A kernel that the machine monitor loads.
    Kernel {
        /// The kernel.
        kernel: Digest,
        /// What the kernel's bytes are.
        format: ArtifactFormat,
        /// The initramfs.
        initrd: Option<Digest>,
    },
    /// Firmware, which starts the boot loader on the root disk.
    Firmware {
        /// The firmware.
        firmware: Digest,
    },
}

impl BootArtifacts {
    /// Returns the artifacts.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        match self {
            Self::Kernel { kernel, initrd, .. } => [Some(*kernel), *initrd],
            Self::Firmware { firmware } => [Some(*firmware), None],
        }
        .into_iter()
        .flatten()
    }

    /// Returns whether the disk's own boot loader does the rest.
    pub fn is_firmware(&self) -> bool {
        matches!(self, Self::Firmware { .. })
    }
}

/// The fields as written: those of a kernel, `initrd` null where there is none, or `firmware` alone.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel_format: Option<ArtifactFormat>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initrd: Option<Option<Digest>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    firmware: Option<Digest>,
}

/// Why the fields do not say what a machine boots with.
#[derive(Debug, thiserror::Error)]
enum BadBoot {
    #[error("missing field `{0}`")]
    Missing(&'static str),
    #[error("it has both `kernel` and `firmware`")]
    Both,
}

impl From<BootArtifacts> for Wire {
    fn from(boot: BootArtifacts) -> Self {
        match boot {
            BootArtifacts::Kernel { kernel, format, initrd } => Self {
                kernel: Some(kernel),
                kernel_format: Some(format),
                initrd: Some(initrd),
                firmware: None,
            },
            BootArtifacts::Firmware { firmware } => {
                Self { kernel: None, kernel_format: None, initrd: None, firmware: Some(firmware) }
            }
        }
    }
}

impl TryFrom<Wire> for BootArtifacts {
    type Error = BadBoot;

    fn try_from(wire: Wire) -> Result<Self, BadBoot> {
        match wire {
            Wire { kernel: Some(_), firmware: Some(_), .. } => Err(BadBoot::Both),
            Wire { firmware: Some(firmware), .. } => Ok(Self::Firmware { firmware }),
            Wire { kernel: None, .. } => Err(BadBoot::Missing("kernel")),
            Wire { kernel_format: None, .. } => Err(BadBoot::Missing("kernel_format")),
            Wire { kernel: Some(kernel), kernel_format: Some(format), initrd, .. } => {
                Ok(Self::Kernel { kernel, format, initrd: initrd.flatten() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_has_the_fields_it_always_had_and_firmware_one_of_its_own() {
        let digest = Digest::of(b"x");
        let kernel = BootArtifacts::Kernel { kernel: digest, format: ArtifactFormat::Elf, initrd: None };
        let json = format!(r#"{{"kernel":"{digest}","kernel_format":"elf","initrd":null}}"#);
        assert_eq!(serde_json::to_string(&kernel).unwrap(), json);
        assert_eq!(serde_json::from_str::<BootArtifacts>(&json).unwrap(), kernel);
        assert_eq!(kernel.digests().collect::<Vec<_>>(), [digest]);
        let firmware = BootArtifacts::Firmware { firmware: digest };
        let json = format!(r#"{{"firmware":"{digest}"}}"#);
        assert_eq!(serde_json::to_string(&firmware).unwrap(), json);
        assert_eq!(serde_json::from_str::<BootArtifacts>(&json).unwrap(), firmware);
        assert!(firmware.is_firmware() && !kernel.is_firmware());
        for (json, error) in [
            ("{}".to_owned(), "missing field `kernel`"),
            (format!(r#"{{"kernel":"{digest}"}}"#), "missing field `kernel_format`"),
            (format!(r#"{{"kernel":"{digest}","firmware":"{digest}"}}"#), "both `kernel` and `firmware`"),
        ] {
            let refused = serde_json::from_str::<BootArtifacts>(&json).unwrap_err().to_string();
            assert!(refused.contains(error), "{refused}");
        }
    }
}
