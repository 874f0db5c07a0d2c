//! Machine records as what a machine monitor is asked for.

use crate::create::{DATA_DISK_FILE, DISK_STEM};
use crate::seed::SEED_FILE;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::Digest;
use kiln_core::machine::{BootArtifacts, CloneMethod, CloneRecord, MachineRecord};
use kiln_core::text::chain;
use kiln_guest::config::SEED_SERIAL;
use kiln_guest::transport;
use kiln_vmm::{
    AcceleratorChoice, Boot, ChannelName, Disk, DiskFormat, InvalidSerial, KernelBoot, Mac, MachineSpec,
    MemoryBacking, RestoreState, StateScope,
};
use std::path::{Path, PathBuf};

/// The memory of a machine that can be captured, in its directory.
pub(crate) const MEMORY_FILE: &str = "memory";

/// The files that a machine is made of, beside kernel and initramfs.
#[derive(Debug, Clone)]
pub(crate) struct SpecFiles {
    pub(crate) disks: Vec<Disk>,
    /// The disk with its seed, where it has one: the guest's last.
    pub(crate) seed: Option<PathBuf>,
    pub(crate) memory: MemoryBacking,
    /// Whether there is a network device although it is connected to nothing.
    pub(crate) unplugged_nic: bool,
    pub(crate) restore: Option<RestoreState>,
}

/// Returns the machine's hardware address: the same at every start.
pub(crate) fn mac_of(record: &MachineRecord) -> Mac {
    let mut mac = [0; 3];
    mac.copy_from_slice(&kiln_core::Digest::of(record.id.as_str().as_bytes()).as_bytes()[..3]);
    Mac::local(mac)
}

impl SpecFiles {
    /// Returns the files of a machine that boots.
    pub(crate) fn of_boot(engine: &Engine, record: &MachineRecord, dir: &Path) -> EngineResult<Self> {
        let CloneRecord { artifact, method, .. } = &record.clone;
        let path = dir.join(DISK_STEM).with_extension(method.extension());
        let format = match method {
            CloneMethod::Overlay => DiskFormat::Qcow2Over { backing: engine.store.artifact_path(artifact) },
            _ => DiskFormat::Raw,
        };
        let root = disk(path, format, "root");
        let data = record.shape.data_disk.map(|_| disk(dir.join(DATA_DISK_FILE), DiskFormat::Raw, "data"));
        let disks = std::iter::once(root).chain(data).collect::<Result<_, _>>();
        let memory = if record.capturable {
            MemoryBacking::Shared { file: dir.join(MEMORY_FILE) }
        } else {
            MemoryBacking::Anonymous
        };
        Ok(Self {
            disks: disks.map_err(|error| bad(record, chain(&error)))?,
            seed: record.seed.then(|| dir.join(SEED_FILE)),
            memory,
            unplugged_nic: record.capturable,
            restore: None,
        })
    }

    /// Returns the same with the memory and state of a captured machine.
    pub(crate) fn restored(self, ram: PathBuf, state: PathBuf, unplugged_nic: bool) -> Self {
        Self {
            memory: MemoryBacking::Private { file: ram },
            unplugged_nic,
            restore: Some(RestoreState { state_file: state, scope: StateScope::Devices }),
            ..self
        }
    }

    /// Returns the same with a machine that was saved whole, loaded into memory of its own.
    pub(crate) fn loaded(self, memory: MemoryBacking, whole: PathBuf, unplugged_nic: bool) -> Self {
        Self {
            memory,
            unplugged_nic,
            restore: Some(RestoreState { state_file: whole, scope: StateScope::Machine }),
            ..self
        }
    }

    /// Returns raw disks at these paths, for a machine that is not started: any file stands for its seed.
    pub(crate) fn of_raw(record: &MachineRecord, root: PathBuf, data: Option<PathBuf>) -> EngineResult<Self> {
        let seed = record.seed.then(|| root.clone());
        let root = disk(root, DiskFormat::Raw, "root");
        let data = data.map(|path| disk(path, DiskFormat::Raw, "data"));
        let disks = std::iter::once(root).chain(data).collect::<Result<_, _>>();
        let disks = disks.map_err(|error| bad(record, chain(&error)))?;
        Ok(Self { disks, seed, memory: MemoryBacking::Anonymous, unplugged_nic: false, restore: None })
    }
}

fn disk(path: PathBuf, format: DiskFormat, serial: &str) -> Result<Disk, InvalidSerial> {
    Ok(Disk { path, format, read_only: false, serial: serial.parse()? })
}

pub(crate) fn bad(record: &MachineRecord, reason: String) -> EngineError {
    EngineError::SupervisorRefused { name: record.name.to_string(), reason }
}

impl Engine {
    /// Returns what a machine boots with, as files.
    fn boot(&self, record: &MachineRecord) -> EngineResult<Boot> {
        let path = |digest: &Digest| self.store.artifact_path(digest);
        match &record.boot {
            BootArtifacts::Kernel { kernel, format, initrd } => Ok(Boot::Kernel(KernelBoot {
                kernel: path(kernel),
                format: *format,
                initrd: initrd.as_ref().map(path),
                args: record.boot_args.clone(),
            })),
            BootArtifacts::Firmware { firmware } => Ok(Boot::Firmware { file: path(firmware) }),
            _ => Err(bad(record, "it boots in a way that this kiln does not know".to_owned())),
        }
    }

    /// Returns what a machine monitor is asked for to make this machine of these files.
    pub(crate) fn machine_spec(&self, record: &MachineRecord, files: SpecFiles) -> EngineResult<MachineSpec> {
        let accelerator: AcceleratorChoice =
            record.accelerator.parse().map_err(|error| bad(record, chain(&error)))?;
        let channel: ChannelName =
            transport::AGENT_PORT_NAME.parse().map_err(|error| bad(record, chain(&error)))?;
        let mut disks = files.disks;
        if let Some(base) = &record.base {
            // The second one: so the guest's initramfs has it.
            let mut base = disk(self.store.artifact_path(base), DiskFormat::Raw, "base")
                .map_err(|error| bad(record, chain(&error)))?;
            base.read_only = true;
            disks.insert(disks.len().min(1), base);
        }
        if let Some(seed) = files.seed {
            let mut seed =
                disk(seed, DiskFormat::Raw, SEED_SERIAL).map_err(|error| bad(record, chain(&error)))?;
            seed.read_only = true;
            disks.push(seed);
        }
        Ok(MachineSpec {
            shape: record.shape.clone(),
            arch: record.arch,
            boot: self.boot(record)?,
            disks,
            network: record.network.clone(),
            mac: mac_of(record),
            accelerator,
            channel,
            memory: files.memory,
            unplugged_nic: files.unplugged_nic,
            restore: files.restore,
        })
    }
}
