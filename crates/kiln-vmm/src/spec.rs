//! What a machine should be, and what a monitor agreed to make of it.

use crate::accel::{AccelRefused, Accelerator, AcceleratorChoice};
use crate::snapshot::{MemoryBacking, RestoreState};
use crate::vmm::Version;
use kiln_core::arch::Arch;
use kiln_core::machine::Network;
use kiln_core::revision::ArtifactFormat;
use kiln_core::variant::{InvalidShape, MachineShape};
use kiln_sys::IoError;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest serial number of a disk, in bytes: virtio-blk has no room for more.
const SERIAL_BYTES_MAX: usize = 20;
/// The longest name of a channel, in bytes.
const CHANNEL_BYTES_MAX: usize = 63;

/// The largest firmware, in bytes: what QEMU maps at the end of the first 4 GiB.
pub(crate) const FIRMWARE_BYTES_MAX: u64 = 8 << 20;

/// What a machine should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// What it is made of.
    pub shape: MachineShape,
    /// The guest's architecture.
    pub arch: Arch,
    /// What it boots with.
    pub boot: Boot,
    /// The disks, in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// How it is connected.
    pub network: Network,
    /// The address of its network device.
    pub mac: Mac,
    /// What executes it.
    pub accelerator: AcceleratorChoice,
    /// The name under which the guest finds the agent's channel.
    pub channel: ChannelName,
    /// Where its memory is.
    pub memory: MemoryBacking,
    /// Whether it has a network device also where it is connected to nothing: one that is captured without a backend
    /// can be restored with any, or with none.
    pub unplugged_nic: bool,
    /// What it is restored from, instead of being booted. Kernel and initramfs are not looked at; firmware is, as its code is
    /// no part of the state. Its
    /// memory is [`MemoryBacking::Private`] for a state of [`StateScope::Devices`](crate::StateScope::Devices), and
    /// else not.
    pub restore: Option<RestoreState>,
}

/// What a machine boots with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Boot {
    /// A kernel that the monitor loads.
    Kernel(KernelBoot),
    /// Firmware, which starts the boot loader on the first disk.
    Firmware {
        /// The firmware's file: a UEFI image of code and variables. What is written to its variables is gone with the machine.
        file: PathBuf,
    },
}

/// A kernel that the monitor loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelBoot {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// What the kernel's bytes are.
    pub format: ArtifactFormat,
    /// The initramfs's file.
    pub initrd: Option<PathBuf>,
    /// Kernel arguments, added to those of the monitor and the board.
    pub args: Vec<String>,
}

impl Boot {
    /// Returns an uncompressed kernel without an initramfs and arguments.
    pub fn elf(kernel: impl Into<PathBuf>) -> Self {
        let (kernel, format) = (kernel.into(), ArtifactFormat::Elf);
        Self::Kernel(KernelBoot { kernel, format, initrd: None, args: Vec::new() })
    }
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its file.
    pub path: PathBuf,
    /// What the file's bytes are.
    pub format: DiskFormat,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// The serial number the guest sees.
    pub serial: DiskSerial,
}

/// What the bytes of a disk's file are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskFormat {
    /// The disk's own bytes.
    Raw,
    /// A qcow2 file over a raw one, whatever its own header says lies below.
    Qcow2Over {
        /// The raw file below, only read.
        backing: PathBuf,
    },
}

/// A disk's serial number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DiskSerial(String);

/// A text that is not a disk's serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a disk serial: 1 to {SERIAL_BYTES_MAX} of A-Z, a-z, 0-9, `_` and `-`")]
pub struct InvalidSerial(String);

impl FromStr for DiskSerial {
    type Err = InvalidSerial;

    fn from_str(text: &str) -> Result<Self, InvalidSerial> {
        let fits = (1..=SERIAL_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidSerial(kiln_core::text::clip(text))) }
    }
}

impl DiskSerial {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a channel between host and guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChannelName(String);

/// A text that is not a channel's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a channel name: 1 to {CHANNEL_BYTES_MAX} of a-z, 0-9, `.`, `_` and `-`")]
pub struct InvalidChannelName(String);

impl FromStr for ChannelName {
    type Err = InvalidChannelName;

    fn from_str(text: &str) -> Result<Self, InvalidChannelName> {
        let fits = (1..=CHANNEL_BYTES_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'));
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidChannelName(kiln_core::text::clip(text))) }
    }
}

impl Default for ChannelName {
    fn default() -> Self {
        Self("kiln.agent.0".to_owned())
    }
}

impl ChannelName {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The address of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

/// Octets or a text that are not the address of one device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the hardware address of a device: six octets such as 52:54:00:12:34:56, not a group's")]
pub struct InvalidMac(String);

impl Mac {
    /// Takes six octets that address one device.
    ///
    /// # Errors
    /// When they address a group, or nothing.
    pub fn new(octets: [u8; 6]) -> Result<Self, InvalidMac> {
        let mac = Self(octets);
        if octets[0] & 1 == 1 || octets == [0; 6] { Err(InvalidMac(mac.to_string())) } else { Ok(mac) }
    }

    /// Returns the address under QEMU's prefix that ends in `octets`.
    pub const fn local(octets: [u8; 3]) -> Self {
        Self([0x52, 0x54, 0x00, octets[0], octets[1], octets[2]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(kiln_core::text::clip(text));
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part =
                parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(invalid)?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Self::new(octets) }
    }
}

/// A machine a monitor agreed to: only [`Vmm::check`](crate::Vmm::check) makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedSpec {
    pub(crate) spec: MachineSpec,
    pub(crate) accelerator: Accelerator,
    pub(crate) accelerator_reason: Option<String>,
    pub(crate) machine_type: String,
    pub(crate) command_line: String,
    /// Whether the monitor can open a private memory file for reading only.
    pub(crate) reads_memory_only: bool,
}

impl CheckedSpec {
    /// Returns what was asked for.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }
    /// Returns what will execute the machine.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }
    /// Returns why that is not KVM, where the choice was left open: one line.
    pub fn accelerator_reason(&self) -> Option<&str> {
        self.accelerator_reason.as_deref()
    }
    /// Returns the monitor's name of the board.
    pub fn machine_type(&self) -> &str {
        &self.machine_type
    }
    /// Returns the whole command line of the kernel that the monitor loads; empty where it loads none.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }
}

/// What a monitor cannot honour, by field.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecRejected {
    /// Not a possible machine for any monitor.
    #[error(transparent)]
    Shape(#[from] InvalidShape),
    /// The monitor emulates another architecture.
    #[error("arch is {wanted}: this machine monitor runs {offered} guests")]
    Arch {
        /// What was asked for.
        wanted: Arch,
        /// What the monitor emulates.
        offered: Arch,
    },
    /// The monitor has no such board, or not in the version kiln uses.
    #[error("board is {board}: {vmm} {version} has no machine type `{machine_type}`")]
    Board {
        /// The board.
        board: &'static str,
        /// The monitor's name of it.
        machine_type: String,
        /// The monitor.
        vmm: &'static str,
        /// Its version.
        version: Version,
    },
    /// The board is not usable here.
    #[error("board is {board}: {reason}")]
    BoardHere {
        /// The board.
        board: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// More processors than the board takes.
    #[error("vcpus is {wanted}: board {board} takes at most {max}")]
    Vcpus {
        /// What was asked for.
        wanted: u32,
        /// The board.
        board: &'static str,
        /// What it takes.
        max: u32,
    },
    /// More disks than the board takes.
    #[error("{wanted} disks: board {board} takes at most {max}")]
    Disks {
        /// What was asked for.
        wanted: usize,
        /// The board.
        board: &'static str,
        /// What it takes.
        max: usize,
    },
    /// Two disks with one serial number.
    #[error("two disks have the serial `{0}`")]
    SerialTwice(String),
    /// A kernel the monitor does not load.
    #[error("kernel is of format `{}`: elf and bzimage can be started", .0.as_str())]
    KernelFormat(ArtifactFormat),
    /// Firmware, where there is none for the board or the architecture.
    #[error("boot is firmware: {0}")]
    Firmware(&'static str),
    /// Firmware of a length that cannot be mapped below 4 GiB.
    #[error("firmware {} has {len} bytes: multiples of 64 KiB up to {} MiB are possible", path.display(), FIRMWARE_BYTES_MAX >> 20)]
    FirmwareLength {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// A file that is not there or cannot be read.
    #[error("{what} cannot be used")]
    File {
        /// Which file.
        what: &'static str,
        /// Why.
        #[source]
        source: IoError,
    },
    /// A disk whose file holds no disk.
    #[error("disk {} has {len} bytes, which is not a whole number of 512-byte sectors above zero", path.display())]
    DiskLength {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// A path that cannot be handed to the monitor.
    #[error("the path {} of {what} is not UTF-8 text without control characters", path.display())]
    Path {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// A kernel argument that would not reach the kernel as it is.
    #[error("boot argument `{0}` is empty, has a control character or an unclosed quote")]
    BootArg(String),
    /// A command line the kernel would cut.
    #[error("the kernel's command line has {len} bytes: at most {max} are possible")]
    CommandLine {
        /// Its length.
        len: usize,
        /// What is possible.
        max: usize,
    },
    /// More forwards than a machine may have.
    #[error("{wanted} port forwards: at most {max} are possible")]
    Forwards {
        /// What was asked for.
        wanted: usize,
        /// What is possible.
        max: usize,
    },
    /// A forward with port 0, or of a host port that another forward has.
    #[error("port forward {0} has port 0 or the host port of another")]
    Forward(kiln_core::machine::Forward),
    /// A kind of network the monitor does not have.
    #[error("network is of a kind that {0} does not have")]
    Network(&'static str),
    /// A network device whose state would bind every clone to the same kind of network.
    #[error(
        "network is {network}: a machine that is to be captured has no network; those restored from it may"
    )]
    NetworkCaptured {
        /// What was asked for.
        network: &'static str,
    },
    /// A kind of memory that does not go with the rest.
    #[error("memory is {memory}: {reason}")]
    Memory {
        /// The kind.
        memory: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// Memory in a file, which the monitor cannot leave out of a machine's state.
    #[error("memory is {memory}: {vmm} {version} cannot capture machines")]
    MemoryHere {
        /// The kind.
        memory: &'static str,
        /// The monitor.
        vmm: &'static str,
        /// Its version.
        version: Version,
    },
    /// A memory file that is in use, or not the machine's.
    #[error("memory file {} has {len} bytes, and {expected} are expected", path.display())]
    MemoryLength {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// The length of the machine's memory, or zero for a new file.
        expected: u64,
    },
    /// A file system on which the guest would be killed when it uses its memory.
    #[error("memory file {} may grow to {needed} bytes, and its file system has {available} left", path.display())]
    MemorySpace {
        /// The file.
        path: PathBuf,
        /// The length of the machine's memory.
        needed: u64,
        /// What is left.
        available: u64,
    },
    /// An accelerator that is not usable.
    #[error(transparent)]
    Accelerator(#[from] AccelRefused),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_checked() {
        for text in ["", "a,b", "a=b", "kiln agent", "123456789012345678901", "ä"] {
            assert!(text.parse::<DiskSerial>().is_err(), "{text}");
        }
        assert_eq!("root-0".parse::<DiskSerial>().unwrap().as_str(), "root-0");
        for text in ["", "Kiln", "a,b", "a/b"] {
            assert!(text.parse::<ChannelName>().is_err(), "{text}");
        }
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "0:54:00:12:34:56",
            "+2:54:00:12:34:56",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        assert_eq!("52:54:00:12:34:5F".parse::<Mac>().unwrap().to_string(), "52:54:00:12:34:5f");
        assert_eq!(Mac::local([1, 2, 3]).to_string(), "52:54:00:01:02:03");
        assert!(Mac::new([0; 6]).is_err());
    }
}
