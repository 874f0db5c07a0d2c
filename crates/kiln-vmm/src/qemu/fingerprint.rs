//! The description of a QEMU machine, taken from the arguments it is started with.

use super::argv::{TCG_CPU, argv, machine};
use crate::accel::Accelerator;
use crate::fingerprint::MachineFingerprint;
use crate::spec::CheckedSpec;
use crate::vmm::Capabilities;
use std::collections::BTreeMap;

/// What of a device may differ: what lies behind it, and the address, which comes back with the state.
const NOT_STATE: [&str; 2] = ["netdev=", "mac="];

pub(crate) fn fingerprint(vmm: &str, checked: &CheckedSpec, caps: &Capabilities) -> MachineFingerprint {
    let args = argv(checked);
    let devices = args
        .windows(2)
        .filter(|pair| pair[0] == "-device")
        .map(|pair| {
            let text = pair[1].to_string_lossy();
            let parts =
                text.split(',').filter(|part| !NOT_STATE.iter().any(|prefix| part.starts_with(prefix)));
            parts.collect::<Vec<_>>().join(",")
        })
        .collect();
    let shape = &checked.spec.shape;
    let (board, vcpus, memory_bytes) = (shape.board, shape.vcpus, shape.memory.bytes());
    let is_kvm = checked.accelerator == Accelerator::Kvm;
    MachineFingerprint {
        vmm: vmm.to_owned(),
        vmm_version: caps.version,
        board,
        machine_type: machine(checked),
        cpu: if is_kvm { "host" } else { TCG_CPU }.to_owned(),
        host_cpu: is_kvm.then(|| caps.host_cpu.clone()),
        accelerator: checked.accelerator,
        vcpus,
        memory_bytes,
        devices,
        tsc_khz: caps.tsc_khz,
        unknown: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::snapshot::{MemoryBacking, RestoreState, StateScope};
    use crate::{FakeVmm, MachineSpec, Vmm as _, fake::Behaviour};
    use kiln_core::machine::Network;
    use kiln_sys::fs;

    #[test]
    fn captured_and_restored_machine_have_one_fingerprint() {
        let dir = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let file = |name: &str, len| {
            let path = dir.path().join(name);
            fs::create_new(&path).unwrap().set_len(len).unwrap();
            path
        };
        let vmm = FakeVmm::new(Behaviour::Boots);
        let caps = vmm.probe().unwrap();
        let spec = MachineSpec {
            shape: kiln_core::variant::MachineShape::default(),
            arch: kiln_core::arch::Arch::X86_64,
            boot: crate::Boot::elf(file("kernel", 1)),
            disks: Vec::new(),
            network: Network::None,
            mac: crate::Mac::local([0, 0, 1]),
            accelerator: crate::AcceleratorChoice::Auto,
            channel: crate::ChannelName::default(),
            memory: MemoryBacking::Shared { file: file("new", 0) },
            unplugged_nic: true,
            restore: None,
        };
        let print = |spec: &MachineSpec| vmm.fingerprint(&vmm.check(spec, &caps).unwrap(), &caps);
        let captured = print(&spec);
        assert_eq!(captured.devices.len(), 4);
        assert!(!captured.machine_type.contains("ram0"));
        let mut clone = MachineSpec {
            memory: MemoryBacking::Private { file: file("memory", spec.shape.memory.bytes()) },
            restore: Some(RestoreState { state_file: file("state", 1), scope: StateScope::Devices }),
            network: Network::User { forwards: Vec::new(), outbound: true },
            mac: crate::Mac::local([0, 0, 2]),
            ..spec
        };
        assert_eq!(print(&clone).first_difference(&captured), None);
        clone.shape.vcpus = 2;
        assert_eq!(print(&clone).first_difference(&captured).unwrap().field, "vcpus");
    }
}
