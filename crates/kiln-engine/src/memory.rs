//! What machines have of the host's memory: that of their machine monitors' processes.

use kiln_core::{ByteSize, Digest, Reference};
use kiln_store::MachineEntry;
use kiln_sys::memory::{Process, ProcessMemory, ProcessMemoryError};
use std::collections::BTreeMap;
use std::path::Path;

/// What a live machine has of the host's memory.
#[derive(Debug)]
pub struct MachineMemory {
    /// What its guest was promised.
    pub nominal: ByteSize,
    /// What its machine monitor's process has, or why that is not known.
    pub process: Result<ProcessMemory, MemoryUnknown>,
}

/// Why it is not known what a machine has in memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryUnknown {
    /// It is about to be started, or started again.
    #[error("it has no process now")]
    NoProcess,
    /// The process its status names is not, or no longer, its machine monitor.
    #[error("process {id} is not its machine monitor")]
    Another {
        /// The process.
        id: u32,
    },
    /// The process cannot be read.
    #[error(transparent)]
    Process(#[from] ProcessMemoryError),
}

/// The memory of several machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemorySum {
    /// The machines.
    pub machines: usize,
    /// Those among them of which only `nominal` is known and counted.
    pub unknown: usize,
    /// What their guests were promised.
    pub nominal: ByteSize,
    /// What is resident; a page that several of them have counts for each.
    pub resident: ByteSize,
    /// What each has alone.
    pub private: ByteSize,
    /// Their fair shares: what they really take up together, as far as nobody else maps the same.
    pub share: ByteSize,
}

/// The memory of a template's live machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateMemory {
    /// Its name; none for machines of revisions without a tag.
    pub template: Option<String>,
    /// What its machines have.
    pub sum: MemorySum,
}

impl MachineMemory {
    /// Reads what a machine has now; none for one that does not run.
    pub fn of(entry: &MachineEntry) -> Option<Self> {
        entry.status.phase.is_live().then(|| Self {
            nominal: entry.record.shape.memory,
            process: process_memory(entry.status.vmm_pid, &entry.dir),
        })
    }
}

/// Reads the memory of process `id`, where that works in a machine's directory: ids are used again.
fn process_memory(id: Option<u32>, dir: &Path) -> Result<ProcessMemory, MemoryUnknown> {
    let id = id.ok_or(MemoryUnknown::NoProcess)?;
    let process = Process::open(id)?;
    if !process.works_in(dir)? {
        return Err(MemoryUnknown::Another { id });
    }
    Ok(process.memory()?)
}

impl MemorySum {
    /// Counts a machine.
    pub fn add(&mut self, machine: &MachineMemory) {
        let add = |sum: &mut ByteSize, more: ByteSize| {
            *sum = ByteSize::from_bytes(sum.bytes().saturating_add(more.bytes()));
        };
        self.machines += 1;
        add(&mut self.nominal, machine.nominal);
        match &machine.process {
            Ok(memory) => {
                add(&mut self.resident, memory.resident);
                add(&mut self.private, memory.private());
                add(&mut self.share, memory.share);
            }
            Err(_) => self.unknown += 1,
        }
    }
}

/// Returns what live machines have, by the template that each was made from: the one its reference names, else the one
/// `tagged` knows for its revision. Those without a template come last.
pub(crate) fn by_template<'a>(
    machines: impl Iterator<Item = &'a MachineEntry>,
    tagged: impl Fn(&Digest) -> Option<String>,
) -> Vec<TemplateMemory> {
    let live = machines.filter_map(|entry| {
        let memory = MachineMemory::of(entry)?;
        Some((named(&entry.record.reference).or_else(|| tagged(&entry.record.revision)), memory))
    });
    summed(live)
}

fn named(reference: &str) -> Option<String> {
    Some(reference.parse::<Reference>().ok()?.template()?.to_string())
}

fn summed(machines: impl Iterator<Item = (Option<String>, MachineMemory)>) -> Vec<TemplateMemory> {
    let mut sums: BTreeMap<(bool, Option<String>), MemorySum> = BTreeMap::new();
    for (template, memory) in machines {
        sums.entry((template.is_none(), template)).or_default().add(&memory);
    }
    sums.into_iter().map(|((_, template), sum)| TemplateMemory { template, sum }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_in_the_machines_directory_is_the_machines() {
        let here = std::env::current_dir().unwrap();
        let own = std::process::id();
        match process_memory(Some(own), &here) {
            // Such a kernel cannot tell, and says so.
            Err(MemoryUnknown::Process(ProcessMemoryError::NoAccount { .. })) => {}
            memory => assert!(memory.unwrap().resident > ByteSize::default()),
        }
        let elsewhere = process_memory(Some(own), Path::new("/")).unwrap_err();
        assert_eq!(elsewhere.to_string(), format!("process {own} is not its machine monitor"));
        let gone = process_memory(Some(u32::MAX), &here).unwrap_err();
        assert_eq!(gone.to_string(), "process 4294967295 is gone");
        assert_eq!(process_memory(None, &here).unwrap_err().to_string(), "it has no process now");
    }

    fn machine(nominal: u32, used: Option<[u32; 3]>) -> MachineMemory {
        let process = used.map(|[resident, private, share]| ProcessMemory {
            resident: ByteSize::from_mib(resident),
            private_dirty: ByteSize::from_mib(private),
            share: ByteSize::from_mib(share),
            ..ProcessMemory::default()
        });
        MachineMemory {
            nominal: ByteSize::from_mib(nominal),
            process: process.ok_or(MemoryUnknown::NoProcess),
        }
    }

    #[test]
    fn templates_have_the_sums_of_their_machines_and_the_nameless_come_last() {
        let web = || Some("web".to_owned());
        let machines = [
            (None, machine(64, Some([1, 1, 1]))),
            (web(), machine(256, Some([100, 20, 60]))),
            (Some("db".to_owned()), machine(512, None)),
            (web(), machine(128, Some([90, 10, 50]))),
        ];
        let sums = summed(machines.into_iter());
        let of = |sum: &MemorySum| {
            let mib = [sum.nominal, sum.resident, sum.private, sum.share].map(ByteSize::mib);
            (sum.machines, sum.unknown, mib)
        };
        let found: Vec<_> = sums.iter().map(|line| (line.template.as_deref(), of(&line.sum))).collect();
        assert_eq!(
            found,
            [
                (Some("db"), (1, 1, [512, 0, 0, 0])),
                (Some("web"), (2, 0, [384, 190, 30, 110])),
                (None, (1, 0, [64, 1, 1, 1])),
            ]
        );
    }

    #[test]
    fn a_reference_names_its_template_or_none() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (reference, template) in [
            ("web", Some("web")),
            ("web/large:v1", Some("web")),
            (&format!("web@{digest}"), Some("web")),
            (&digest, None),
            ("sha256:abcdef", None),
            ("No Name", None),
        ] {
            assert_eq!(named(reference).as_deref(), template, "{reference}");
        }
    }
}
