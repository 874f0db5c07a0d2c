//! Which machines QEMU can make, field by field.

mod memory;

use super::command_line;
use super::probe::machine_type;
use crate::accel::{self, AccelFacts, Accelerator};
use crate::spec::{Boot, CheckedSpec, Disk, DiskFormat, FIRMWARE_BYTES_MAX, MachineSpec, SpecRejected};
use crate::vmm::{BoardSupport, Capabilities};
use kiln_core::arch::Arch;
use kiln_core::machine::{FORWARDS_MAX, Network};
use kiln_core::revision::ArtifactFormat;
use kiln_core::variant::Board;
use kiln_sys::{IoResultExt, fs};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(crate) fn check(
    vmm: &'static str,
    spec: &MachineSpec,
    caps: &Capabilities,
) -> Result<CheckedSpec, SpecRejected> {
    spec.shape.clone().checked()?;
    if spec.arch != caps.arch {
        return Err(SpecRejected::Arch { wanted: spec.arch, offered: caps.arch });
    }
    let board = spec.shape.board;
    let support = caps.board(board).ok_or_else(|| SpecRejected::Board {
        board: board.as_str(),
        machine_type: machine_type(board).to_owned(),
        vmm,
        version: caps.version,
    })?;
    counts(spec, support)?;
    if matches!(spec.boot, Boot::Firmware { .. }) {
        takes_firmware(board, spec.arch)?;
    }
    network(vmm, &spec.network)?;
    memory::combination(vmm, spec, caps)?;
    let facts = AccelFacts { host: Arch::host(), guest: spec.arch, vmm_has_kvm: caps.has_kvm };
    let chosen = accel::choose(spec.accelerator, &caps.kvm, &facts)?;
    if board == Board::Microvm && chosen.accelerator == Accelerator::Tcg && caps.tsc_khz.is_none() {
        let reason = "without KVM it needs a host whose time stamp counter has a steady rate";
        return Err(SpecRejected::BoardHere { board: board.as_str(), reason });
    }
    let command_line = match &spec.boot {
        Boot::Kernel(boot) => {
            command_line::build(board, spec.shape.vcpus, chosen.accelerator, caps.tsc_khz, &boot.args)?
        }
        Boot::Firmware { .. } => String::new(),
    };
    Ok(CheckedSpec {
        spec: files(spec)?,
        accelerator: chosen.accelerator,
        accelerator_reason: chosen.reason,
        machine_type: support.machine_type.clone(),
        command_line,
        reads_memory_only: caps.capture.is_some_and(|support| support.reads_memory_only),
    })
}

fn counts(spec: &MachineSpec, support: &BoardSupport) -> Result<(), SpecRejected> {
    let board = support.board.as_str();
    if spec.shape.vcpus > support.vcpus_max {
        return Err(SpecRejected::Vcpus { wanted: spec.shape.vcpus, board, max: support.vcpus_max });
    }
    if spec.disks.len() > support.disks_max {
        return Err(SpecRejected::Disks { wanted: spec.disks.len(), board, max: support.disks_max });
    }
    let mut serials = BTreeSet::new();
    match spec.disks.iter().find(|disk| !serials.insert(disk.serial.as_str())) {
        Some(disk) => Err(SpecRejected::SerialTwice(disk.serial.as_str().to_owned())),
        None => Ok(()),
    }
}

fn network(vmm: &'static str, network: &Network) -> Result<(), SpecRejected> {
    let forwards = match network {
        Network::None => return Ok(()),
        Network::User { forwards, .. } => forwards,
        _ => return Err(SpecRejected::Network(vmm)),
    };
    if forwards.len() > FORWARDS_MAX {
        return Err(SpecRejected::Forwards { wanted: forwards.len(), max: FORWARDS_MAX });
    }
    let mut hosts = BTreeSet::new();
    match forwards.iter().find(|f| f.host == 0 || f.guest == 0 || !hosts.insert(f.host)) {
        Some(forward) => Err(SpecRejected::Forward(*forward)),
        None => Ok(()),
    }
}

/// Returns the spec with absolute paths, all of which lead to files that can be used.
fn files(spec: &MachineSpec) -> Result<MachineSpec, SpecRejected> {
    let mut spec = spec.clone();
    match &mut spec.boot {
        Boot::Firmware { file: path } => *path = firmware(path)?,
        Boot::Kernel(_) if spec.restore.is_some() => {}
        Boot::Kernel(boot) => {
            if !matches!(boot.format, ArtifactFormat::Elf | ArtifactFormat::Bzimage) {
                return Err(SpecRejected::KernelFormat(boot.format));
            }
            boot.kernel = file("kernel", &boot.kernel)?;
            if let Some(initrd) = &mut boot.initrd {
                *initrd = file("initrd", initrd)?;
            }
        }
    }
    memory::files(&mut spec)?;
    for disk in &mut spec.disks {
        disk.path = file("disk", &disk.path)?;
        if let DiskFormat::Qcow2Over { backing } = &mut disk.format {
            *backing = file("disk", backing)?;
        }
        usable(disk)?;
    }
    Ok(spec)
}

fn takes_firmware(board: Board, arch: Arch) -> Result<(), SpecRejected> {
    let refuse = |why| Err(SpecRejected::Firmware(why));
    match (board, arch) {
        (Board::Pc | Board::Q35, Arch::X86_64) => Ok(()),
        (_, Arch::X86_64) => refuse("board microvm has none; pc and q35 do"),
        _ => refuse("it is known for x86_64 guests only"),
    }
}

fn firmware(path: &Path) -> Result<PathBuf, SpecRejected> {
    let path = file("firmware", path)?;
    let len = fs::metadata(&path).map_err(|source| SpecRejected::File { what: "firmware", source })?.len();
    if !(64 << 10..=FIRMWARE_BYTES_MAX).contains(&len) || !len.is_multiple_of(64 << 10) {
        return Err(SpecRejected::FirmwareLength { path, len });
    }
    Ok(path)
}

fn file(what: &'static str, path: &Path) -> Result<PathBuf, SpecRejected> {
    let unusable = |source| SpecRejected::File { what, source };
    let absolute = std::path::absolute(path).at("resolve", path).map_err(unusable)?;
    if absolute.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Err(SpecRejected::Path { what, path: absolute });
    }
    fs::open(&absolute).map_err(unusable)?;
    Ok(absolute)
}

fn usable(disk: &Disk) -> Result<(), SpecRejected> {
    const SECTOR_BYTES: u64 = 512;
    let unusable = |source| SpecRejected::File { what: "disk", source };
    if !disk.read_only {
        rustix::fs::access(&disk.path, rustix::fs::Access::WRITE_OK)
            .at("write", &disk.path)
            .map_err(unusable)?;
    }
    let len = fs::metadata(&disk.path).map_err(unusable)?.len();
    if len == 0 || !len.is_multiple_of(SECTOR_BYTES) {
        return Err(SpecRejected::DiskLength { path: disk.path.clone(), len });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
