//! Machine shapes, and variants that override parts of one.

use crate::name::VariantName;
use crate::size::ByteSize;
use serde::{Deserialize, Serialize};

/// The most virtual processors a machine may have.
pub const VCPUS_MAX: u32 = 64;
/// The least memory a machine may have, in MiB: below it Debian's kernel does not reach its init.
pub const MEMORY_MIB_MIN: u64 = 64;
/// The most memory a machine may have, in MiB (1 TiB).
pub const MEMORY_MIB_MAX: u64 = 1 << 20;
/// The largest disk that may be asked for, in MiB (16 TiB).
pub const DISK_MIB_MAX: u64 = 16 << 20;

/// The most bytes of kernel arguments of a template or variant, each with the space that ends it: the kernel reads 2,048
/// in all.
pub const BOOT_ARGS_BYTES_MAX: usize = 1024;

/// Returns the bytes that kernel arguments take up, each with the space that ends it.
pub fn boot_args_bytes(args: &[String]) -> usize {
    args.iter().map(|arg| arg.len() + 1).sum()
}

/// The board a machine monitor emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Board {
    /// i440FX with PCI: the default; versioned, can be snapshotted across upgrades.
    #[default]
    Pc,
    /// Q35 with PCI Express.
    Q35,
    /// QEMU's minimal board with virtio-mmio; unversioned.
    Microvm,
}

impl Board {
    /// Returns the name used in recipes and options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pc => "pc",
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        }
    }
}

/// What a machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineShape {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in bytes, whole MiB.
    pub memory: ByteSize,
    /// Size of a second, blank disk in bytes; none means no such disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_disk: Option<ByteSize>,
    /// The board.
    pub board: Board,
}

impl Default for MachineShape {
    fn default() -> Self {
        Self { vcpus: 1, memory: ByteSize::from_mib(256), data_disk: None, board: Board::Pc }
    }
}

/// Why a shape cannot be a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidShape {
    /// Too few or too many processors.
    #[error("vcpus is {0}: 1 to {VCPUS_MAX} are possible")]
    Vcpus(u32),
    /// Too little or too much memory, or not whole MiB.
    #[error("memory is {0}: whole MiB from {MEMORY_MIB_MIN}M to {MEMORY_MIB_MAX}M are possible")]
    Memory(ByteSize),
    /// A data disk that is no disk.
    #[error("data_disk is {0}: whole MiB from 1M to 16T are possible")]
    DataDisk(ByteSize),
}

impl MachineShape {
    /// Returns the shape when it is one a machine can have.
    pub fn checked(self) -> Result<Self, InvalidShape> {
        let whole_mib = |size: ByteSize| size.bytes().is_multiple_of(1 << 20);
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(InvalidShape::Vcpus(self.vcpus));
        }
        if !whole_mib(self.memory) || !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory.mib()) {
            return Err(InvalidShape::Memory(self.memory));
        }
        if let Some(disk) = self.data_disk
            && (!whole_mib(disk) || !(1..=DISK_MIB_MAX).contains(&disk.mib()))
        {
            return Err(InvalidShape::DataDisk(disk));
        }
        Ok(self)
    }
}

/// A variant: what it overrides, resolved against its template by [`Variant::shape`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The variant's name, unique within its template.
    pub name: VariantName,
    /// What the variant is for, a label for fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<VariantName>,
    /// The build profile the variant asks for; none means the template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<VariantName>,
    /// Overridden processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Overridden memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Overridden data disk, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_disk: Option<ByteSize>,
    /// Overridden board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board: Option<Board>,
    /// Overridden boot arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<Vec<String>>,
}

impl Variant {
    /// Returns the template's shape with this variant's overrides in it.
    pub fn shape(&self, base: &MachineShape) -> MachineShape {
        MachineShape {
            vcpus: self.vcpus.unwrap_or(base.vcpus),
            memory: self.memory.unwrap_or(base.memory),
            data_disk: self.data_disk.or(base.data_disk),
            board: self.board.unwrap_or(base.board),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(shape: MachineShape) -> Option<String> {
        shape.checked().err().map(|error| error.to_string())
    }

    #[test]
    fn processors_have_a_least_and_a_most() {
        let with = |vcpus| refusal(MachineShape { vcpus, ..MachineShape::default() });
        assert_eq!((with(1), with(VCPUS_MAX)), (None, None));
        assert_eq!(with(0).unwrap(), "vcpus is 0: 1 to 64 are possible");
        assert_eq!(with(VCPUS_MAX + 1).unwrap(), "vcpus is 65: 1 to 64 are possible");
    }

    #[test]
    fn memory_has_a_least_and_a_most() {
        let with = |mib| {
            refusal(MachineShape { memory: ByteSize::from_bytes(mib << 20), ..MachineShape::default() })
        };
        assert_eq!((with(MEMORY_MIB_MIN), with(MEMORY_MIB_MAX)), (None, None));
        let rule = "whole MiB from 64M to 1048576M are possible";
        assert_eq!(with(MEMORY_MIB_MIN - 1).unwrap(), format!("memory is 63M: {rule}"));
        assert_eq!(with(MEMORY_MIB_MAX + 1).unwrap(), format!("memory is 1048577M: {rule}"));
    }

    #[test]
    fn a_data_disk_has_a_least_and_a_most() {
        let with = |bytes| {
            let data_disk = Some(ByteSize::from_bytes(bytes));
            refusal(MachineShape { data_disk, ..MachineShape::default() })
        };
        assert_eq!((with(1 << 20), with(DISK_MIB_MAX << 20)), (None, None));
        for bytes in [0, (1 << 20) - 1, (DISK_MIB_MAX << 20) + 1, (DISK_MIB_MAX + 1) << 20, u64::MAX] {
            let message = with(bytes).unwrap();
            assert!(message.starts_with("data_disk is ") && message.contains("from 1M to 16T"), "{message}");
        }
    }
}
