//! Kernel modules of the initramfs.

use std::fs::File;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::boot::{list, read_attribute};
use crate::config::Module;

const VIRTIO_DEVICES: &str = "/sys/bus/virtio/devices";

/// Virtio type of a console, which carries the agent's port.
pub(super) const VIRTIO_CONSOLE: u32 = 3;

/// Loads the modules in order; goes on after a failure, so that the channel may still come up, and returns
/// the first one.
pub(super) fn load(modules: &[Module]) -> Result<(), String> {
    let mut first = Ok(());
    for module in modules {
        if let Some(device) = module.device
            && !device_exists(device)
        {
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

fn load_one(module: &Module) -> Result<(), String> {
    let path = &module.path;
    let file = File::open(path).map_err(|error| format!("cannot open module {path}: {error}"))?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(format!("cannot load module {path}: {error}")),
    }
}
