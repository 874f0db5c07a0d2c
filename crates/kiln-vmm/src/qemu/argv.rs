//! The arguments of a QEMU run. No text from outside gets into QEMU's option syntax: paths of disks go in as JSON,
//! paths of kernels and firmware as words of their own, and every other value is of a type that has no comma in it.

use crate::accel::Accelerator;
use crate::runtime_dir::{AGENT_SOCKET, QMP_SOCKET};
use crate::snapshot::MemoryBacking;
use crate::spec::{Boot, CheckedSpec, Disk, DiskFormat, MachineSpec};
use kiln_core::machine::Network;
use kiln_core::variant::Board;
use serde_json::json;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

/// Memory for translated code, in MiB: it is counted to each machine and more is not faster.
const TCG_CODE_MIB: u32 = 64;
/// A named model in a fixed version: the translator's `max`, and what a bare name means, differ between versions. With
/// a random source of its own, because a kernel without one stops the first program that asks for random bytes.
pub(super) const TCG_CPU: &str = "Nehalem-v1,rdrand=on";
/// The name of the object that holds the memory.
const MEMORY: &str = "ram0";
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The places of devices on their bus, the same in every run: a later restore must find them again.
const SLOT_CHANNEL: usize = 0;
const SLOT_ENTROPY: usize = 1;
const SLOT_NETWORK: usize = 2;
const SLOT_DISKS: usize = 3;
/// The PCI address of the first place; those before it are the board's.
const PCI_FIRST: usize = 3;
/// The bus of the first place on the board `microvm`, the last one: guests find the buses in reverse order, and no
/// interrupt arrives from those with the lowest numbers.
const MMIO_FIRST: usize = 23;

/// Returns the arguments for a machine, to be run in its directory.
pub fn argv(checked: &CheckedSpec) -> Vec<OsString> {
    let spec = &checked.spec;
    let board = spec.shape.board;
    let mut args = Args(Vec::new());
    args.pair("-M", format!("{},memory-backend={MEMORY}", machine(checked)));
    match checked.accelerator {
        Accelerator::Kvm => {
            args.pair("-accel", "kvm");
            args.pair("-cpu", "host");
        }
        Accelerator::Tcg => {
            args.pair("-accel", format!("tcg,tb-size={TCG_CODE_MIB}"));
            args.pair("-cpu", TCG_CPU);
        }
    }
    args.pair("-object", memory(checked));
    args.pair("-m", format!("{}M", spec.shape.memory.mib()));
    args.pair("-smp", spec.shape.vcpus.to_string());
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot", "-S"] {
        args.0.push(flag.into());
    }
    args.pair("-display", "none");
    args.pair("-sandbox", SANDBOX);
    args.pair("-chardev", "stdio,id=console,signal=off");
    args.pair("-serial", "chardev:console");
    args.pair("-chardev", format!("socket,id=agent,path={AGENT_SOCKET},server=on,wait=off"));
    args.pair("-chardev", format!("socket,id=qmp,path={QMP_SOCKET},server=off"));
    args.pair("-mon", "chardev=qmp,mode=control");
    args.device("virtio-serial", "id=serial0,max_ports=4", board, SLOT_CHANNEL);
    let channel = spec.channel.as_str();
    args.pair("-device", format!("virtserialport,id=port0,bus=serial0.0,nr=1,chardev=agent,name={channel}"));
    args.pair("-object", "rng-random,id=rng0,filename=/dev/urandom");
    args.device("virtio-rng", "id=entropy0,rng=rng0", board, SLOT_ENTROPY);
    network(&mut args, spec);
    let firmware = match &spec.boot {
        Boot::Firmware { file } => Some(file),
        Boot::Kernel(_) => None,
    };
    for (number, disk) in spec.disks.iter().enumerate() {
        args.pair("-blockdev", blockdev(number, disk));
        let mut options = format!("id=disk{number},drive=block{number},serial={}", disk.serial.as_str());
        if number == 0 && firmware.is_some() {
            // Or it would try the network first.
            options.push_str(",bootindex=0");
        }
        args.device("virtio-blk", &options, board, SLOT_DISKS + number);
    }
    if let Some(firmware) = firmware {
        // Also where the machine is restored: the state has a ROM of its length.
        args.pair("-bios", firmware.as_os_str());
    }
    match &spec.boot {
        _ if spec.restore.is_some() => args.pair("-incoming", "defer"),
        Boot::Kernel(boot) => {
            args.pair("-kernel", boot.kernel.as_os_str());
            if let Some(initrd) = &boot.initrd {
                args.pair("-initrd", initrd.as_os_str());
            }
            args.pair("-append", checked.command_line.as_str());
        }
        Boot::Firmware { .. } => {}
    }
    args.0
}

/// Adds the network device.
fn network(args: &mut Args, spec: &MachineSpec) {
    let mut backend = "";
    if let Network::User { forwards, outbound } = &spec.network {
        let mut netdev = format!("user,id=user0,restrict={}", if *outbound { "off" } else { "on" });
        for forward in forwards {
            // Writing to a string does not fail.
            let _ = write!(netdev, ",hostfwd=tcp:127.0.0.1:{}-:{}", forward.host, forward.guest);
        }
        args.pair("-netdev", netdev);
        backend = ",netdev=user0";
    } else if !spec.unplugged_nic {
        return;
    }
    let board = spec.shape.board;
    // PCI cards bring firmware for network boot, which nothing here uses.
    let rom = if board == Board::Microvm { "" } else { ",romfile=" };
    let options = format!("id=net0{backend},mac={}{rom}", spec.mac);
    args.device("virtio-net", &options, board, SLOT_NETWORK);
}

/// Returns the object that holds the memory. It has the same name wherever it is, by which its pages are named in a
/// state.
fn memory(checked: &CheckedSpec) -> String {
    let size = checked.spec.shape.memory.bytes();
    let (file, share) = match &checked.spec.memory {
        MemoryBacking::Anonymous => {
            return json!({"qom-type": "memory-backend-ram", "id": MEMORY, "size": size}).to_string();
        }
        MemoryBacking::Shared { file } => (file, true),
        MemoryBacking::Private { file } => (file, false),
    };
    let mut object = json!({
        "qom-type": "memory-backend-file",
        "id": MEMORY,
        "size": size,
        "mem-path": file.to_string_lossy(),
        "share": share,
    });
    if !share && checked.reads_memory_only {
        object["readonly"] = json!(true);
        object["rom"] = json!("off");
    }
    object.to_string()
}

struct Args(Vec<OsString>);

impl Args {
    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn device(&mut self, kind: &str, options: &str, board: Board, slot: usize) {
        self.pair(
            "-device",
            match board {
                Board::Microvm => {
                    format!("{kind}-device,{options},bus=virtio-mmio-bus.{}", MMIO_FIRST - slot)
                }
                _ => format!("{kind}-pci,{options},addr={:#x}", PCI_FIRST + slot),
            },
        );
    }
}

/// Returns the board with what a guest of kiln's has no use for turned off.
pub(super) fn machine(checked: &CheckedSpec) -> String {
    let options = match checked.spec.shape.board {
        Board::Microvm => "pit=off,pic=off,rtc=on,isa-serial=on,ioapic2=on",
        Board::Q35 => "hpet=off,vmport=off,usb=off,smbus=off,sata=off",
        _ => "hpet=off,vmport=off,usb=off,smbus=off",
    };
    format!("{},{options}", checked.machine_type)
}

fn blockdev(number: usize, disk: &Disk) -> String {
    let cache = json!({"direct": false, "no-flush": false});
    let file = |path: &Path, read_only: bool| {
        json!({
            "driver": "file",
            "filename": path.to_string_lossy(),
            "read-only": read_only,
            "discard": "unmap",
            "cache": cache,
        })
    };
    let mut node = json!({
        "driver": "raw",
        "node-name": format!("block{number}"),
        "read-only": disk.read_only,
        "discard": "unmap",
        "cache": cache,
        "file": file(&disk.path, disk.read_only),
    });
    if let DiskFormat::Qcow2Over { backing } = &disk.format {
        node["driver"] = json!("qcow2");
        node["backing"] =
            json!({"driver": "raw", "read-only": true, "cache": cache, "file": file(backing, true)});
    }
    node.to_string()
}

#[cfg(test)]
mod tests;
