//! What must be the same where a machine is captured and where it is restored, as data to keep beside a snapshot.
//!
//! A monitor that loads a state finds a missing device and memory of another length, but not another processor model,
//! another number of processors or another clock: the guest hangs, or goes wrong later. So all of it is compared
//! before, and what this version does not know counts as a difference.

use crate::accel::Accelerator;
use crate::vmm::Version;
use kiln_core::variant::Board;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Two measurements of one clock differ by less than a part in this many.
const TSC_PARTS: u32 = 1000;

/// A machine as far as its state depends on it. The kernel's command line, the disks' contents and the memory file are
/// not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFingerprint {
    /// The monitor's name.
    pub vmm: String,
    /// Its version.
    pub vmm_version: Version,
    /// The board.
    pub board: Board,
    /// The monitor's name of it, with its options.
    pub machine_type: String,
    /// The processor's model.
    pub cpu: String,
    /// The host's processor, where the guest sees that one.
    pub host_cpu: Option<String>,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// The number of processors.
    pub vcpus: u32,
    /// The memory in bytes.
    pub memory_bytes: u64,
    /// The devices in the monitor's words, in order, without what lies behind them and without network addresses: a
    /// restored device keeps the address of the captured one.
    pub devices: Vec<String>,
    /// The rate of the host's time stamp counter in kHz, which is the guest's.
    pub tsc_khz: Option<u32>,
    /// What a newer version wrote beside these.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// The first difference between two machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// What is here.
    pub have: String,
    /// What the snapshot wants.
    pub want: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} here and {} in the snapshot", self.field, self.have, self.want)
    }
}

impl MachineFingerprint {
    /// Compares this machine, the one to be made here, with the captured one, and returns the first field that differs.
    pub fn first_difference(&self, captured: &Self) -> Option<Difference> {
        fn pair(field: &str, have: impl fmt::Display, want: impl fmt::Display) -> [(&str, String); 2] {
            [(field, have.to_string()), (field, want.to_string())]
        }
        let absent = || "unknown".to_owned();
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        // Taken apart, so that a new field cannot be forgotten.
        let Self {
            vmm,
            vmm_version,
            board,
            machine_type,
            cpu,
            host_cpu,
            accelerator,
            vcpus,
            memory_bytes,
            devices,
            tsc_khz,
            unknown,
        } = self;
        let fields = [
            pair("vmm", vmm, &captured.vmm),
            pair("vmm_version", vmm_version, captured.vmm_version),
            pair("board", board.as_str(), captured.board.as_str()),
            pair("machine_type", machine_type, &captured.machine_type),
            pair("accelerator", accelerator, captured.accelerator),
            pair("cpu", cpu, &captured.cpu),
            pair("host_cpu", or_none(host_cpu), or_none(&captured.host_cpu)),
            pair("vcpus", vcpus, captured.vcpus),
            pair("memory_bytes", memory_bytes, captured.memory_bytes),
        ];
        let mut found = fields
            .into_iter()
            .find(|[have, want]| have.1 != want.1)
            .map(|[have, want]| Difference { field: have.0.to_owned(), have: have.1, want: want.1 });
        if found.is_none() {
            let count = devices.len().max(captured.devices.len());
            let name = |device: Option<&String>| device.cloned().unwrap_or_else(|| "no device".to_owned());
            found = (0..count)
                .map(|at| (at, devices.get(at), captured.devices.get(at)))
                .find(|(_, have, want)| have != want)
                .map(|(at, have, want)| Difference {
                    field: format!("devices[{at}]"),
                    have: name(have),
                    want: name(want),
                });
        }
        if found.is_none() && !same_rate(*tsc_khz, captured.tsc_khz) {
            let rate = |khz: Option<u32>| khz.map_or_else(absent, |khz| khz.to_string());
            let (have, want) = (rate(*tsc_khz), rate(captured.tsc_khz));
            found = Some(Difference { field: "tsc_khz".to_owned(), have, want });
        }
        found.or_else(|| {
            let field = unknown.keys().chain(captured.unknown.keys()).next()?;
            let text = |value: Option<&Value>| {
                value.map_or_else(absent, |value| kiln_core::text::clip(&value.to_string()))
            };
            Some(Difference {
                have: text(unknown.get(field)),
                want: text(captured.unknown.get(field)),
                field: field.clone(),
            })
        })
    }
}

/// Whether two measurements are of one rate. A rate that is not known is like no other: the guest's clock may run at
/// any.
fn same_rate(have: Option<u32>, want: Option<u32>) -> bool {
    match (have, want) {
        (Some(have), Some(want)) => have.abs_diff(want) <= want / TSC_PARTS,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> MachineFingerprint {
        MachineFingerprint {
            vmm: "qemu".to_owned(),
            vmm_version: Version { major: 7, minor: 2, micro: 22 },
            board: Board::Pc,
            machine_type: "pc-i440fx-7.2,usb=off".to_owned(),
            cpu: "Nehalem-v1,rdrand=on".to_owned(),
            host_cpu: None,
            accelerator: Accelerator::Tcg,
            vcpus: 1,
            memory_bytes: 64 << 20,
            devices: vec!["virtio-rng-pci,id=entropy0,addr=0x4".to_owned()],
            tsc_khz: Some(2_300_000),
            unknown: BTreeMap::new(),
        }
    }

    #[test]
    fn every_field_counts_and_is_named() {
        type Change = fn(&mut MachineFingerprint);
        let changes: [(&str, Change); 12] = [
            ("vmm", |f| f.vmm = "fake".to_owned()),
            ("vmm_version", |f| f.vmm_version.minor = 3),
            ("board", |f| f.board = Board::Q35),
            ("machine_type", |f| f.machine_type.push_str(",hpet=off")),
            ("accelerator", |f| f.accelerator = Accelerator::Kvm),
            ("cpu", |f| f.cpu = "host".to_owned()),
            ("host_cpu", |f| f.host_cpu = Some("x".to_owned())),
            ("vcpus", |f| f.vcpus = 2),
            ("memory_bytes", |f| f.memory_bytes *= 2),
            ("devices[0]", |f| f.devices[0].push('0')),
            ("devices[1]", |f| f.devices.push("virtio-net-pci".to_owned())),
            ("tsc_khz", |f| f.tsc_khz = Some(2_400_000)),
        ];
        assert_eq!(some().first_difference(&some()), None);
        for (field, change) in changes {
            let mut other = some();
            change(&mut other);
            for (have, want) in [(some(), other.clone()), (other, some())] {
                assert_eq!(have.first_difference(&want).unwrap().field, field);
            }
        }
    }

    #[test]
    fn a_clock_is_measured_twice_alike_and_an_unknown_one_is_like_none() {
        let mut other = some();
        other.tsc_khz = Some(2_300_700);
        assert_eq!(some().first_difference(&other), None);
        other.tsc_khz = None;
        let difference = other.first_difference(&other).unwrap();
        assert_eq!(difference.to_string(), "tsc_khz is unknown here and unknown in the snapshot");
    }

    #[test]
    fn what_a_newer_version_wrote_is_kept_and_is_a_difference() {
        let mut json = serde_json::to_value(some()).unwrap();
        assert_eq!(serde_json::from_value::<MachineFingerprint>(json.clone()).unwrap(), some());
        json["numa"] = serde_json::json!({"nodes": 2});
        let newer: MachineFingerprint = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&newer).unwrap(), json);
        let difference = some().first_difference(&newer).unwrap();
        assert_eq!(difference.to_string(), "numa is unknown here and {\"nodes\":2} in the snapshot");
        assert!(newer.first_difference(&newer).is_some());
        json.as_object_mut().unwrap().remove("cpu");
        assert!(serde_json::from_value::<MachineFingerprint>(json).is_err());
    }
}
