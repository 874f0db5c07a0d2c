//! Kernel modules of the initramfs.

use std::fs::File;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::boot::{list, read_attribute};
use crate::config::{Bus, Module, SEED_SERIAL, When};

const VIRTIO_DEVICES: &str = "/sys/bus/virtio/devices";
const BLOCK_DEVICES: &str = "/sys/block";
const PCI_DEVICES: &str = "/sys/bus/pci/devices";
const ACPI_DEVICES: &str = "/sys/bus/acpi/devices";
/// The nodes of a device tree, on boards that have one.
const TREE_DEVICES: &str = "/proc/device-tree";

/// The vendor of every virtio device on PCI.
const VIRTIO_PCI_VENDOR: &str = "0x1af4";
/// What ACPI, the kernel's command line and a device tree call a virtio device with memory-mapped registers.
const VIRTIO_MMIO_ACPI: &str = "LNRO0005";
const VIRTIO_MMIO_ARGUMENT: &str = "virtio_mmio.device=";
const VIRTIO_MMIO_NODE: &str = "virtio_mmio@";

/// Virtio type of a console, which carries the agent's port.
pub(super) const VIRTIO_CONSOLE: u32 = 3;

/// Virtio type of a vsock device.
pub(super) const VIRTIO_VSOCK: u32 = 19;

/// Loads the modules in order; goes on after a failure, so that the channel may still come up, and returns
/// the first one.
pub(super) fn load(modules: &[Module]) -> Result<(), String> {
    let mut first = Ok(());
    for module in modules {
        let wanted = match module.when {
            When::Always => true,
            When::Bus(bus) => bus_has_virtio(bus),
            When::Device(device) => device_exists(device),
            When::Seed => seed_exists(),
        };
        if !wanted {
            continue;
        }
        if let Err(reason) = load_one(module) {
            super::console::log(&reason);
            first = first.and(Err(reason));
        }
    }
    first
}

/// Returns whether a virtio device of a type exists.
pub(super) fn device_exists(wanted: u32) -> bool {
    list(VIRTIO_DEVICES).iter().any(|name| {
        let path = Path::new(VIRTIO_DEVICES).join(name).join("device");
        let text = read_attribute(&path).unwrap_or_default();
        u32::from_str_radix(text.trim_start_matches("0x"), 16) == Ok(wanted)
    })
}

/// Returns whether there is a disk with a seed for the image's cloud-init.
fn seed_exists() -> bool {
    let serial = |name: &String| read_attribute(&Path::new(BLOCK_DEVICES).join(name).join("serial"));
    list(BLOCK_DEVICES).iter().any(|name| serial(name).as_deref() == Some(SEED_SERIAL))
}

/// Returns whether a bus has virtio devices, seen without their drivers.
fn bus_has_virtio(bus: Bus) -> bool {
    let attribute = |directory: &str, name: &str, attribute: &str| {
        read_attribute(&Path::new(directory).join(name).join(attribute))
    };
    match bus {
        Bus::Pci => list(PCI_DEVICES)
            .iter()
            .any(|name| attribute(PCI_DEVICES, name, "vendor").as_deref() == Some(VIRTIO_PCI_VENDOR)),
        Bus::Mmio => {
            list(ACPI_DEVICES).iter().any(|name| name.starts_with(VIRTIO_MMIO_ACPI))
                || attribute("/", "proc", "cmdline").is_some_and(|line| line.contains(VIRTIO_MMIO_ARGUMENT))
                || list(TREE_DEVICES).iter().any(|name| name.starts_with(VIRTIO_MMIO_NODE))
        }
    }
}

fn load_one(module: &Module) -> Result<(), String> {
    let path = &module.path;
    let file = File::open(path).map_err(|error| format!("cannot open module {path}: {error}"))?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(format!("cannot load module {path}: {error}")),
    }
}
