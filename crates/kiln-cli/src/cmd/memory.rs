//! How memory of machines is shown, by `kiln ps --memory` and `kiln df`.

use kiln_core::ByteSize;
use kiln_engine::memory::{MachineMemory, MemorySum, MemoryUnknown, TemplateMemory};
use serde::Serialize;

/// The heads of a machine's columns.
pub(crate) const COLUMNS: [&str; 4] = ["NOMINAL", "RESIDENT", "PRIVATE", "SHARE"];

/// What a machine has, in JSON. None where it is not known, which `unknown` then explains.
#[derive(Serialize)]
pub(crate) struct Machine {
    nominal_bytes: u64,
    resident_bytes: Option<u64>,
    private_bytes: Option<u64>,
    share_bytes: Option<u64>,
    shared_bytes: Option<u64>,
    swapped_bytes: Option<u64>,
    unknown: Option<String>,
}

impl Machine {
    pub(crate) fn new(memory: &MachineMemory) -> Self {
        let process = memory.process.as_ref();
        let bytes =
            |of: fn(&kiln_sys::memory::ProcessMemory) -> ByteSize| process.ok().map(|all| of(all).bytes());
        Self {
            nominal_bytes: memory.nominal.bytes(),
            resident_bytes: bytes(|all| all.resident),
            private_bytes: bytes(|all| all.private()),
            share_bytes: bytes(|all| all.share),
            shared_bytes: bytes(|all| all.shared()),
            swapped_bytes: bytes(|all| all.swap),
            unknown: process.err().map(reason),
        }
    }
}

/// What a template's machines have, in JSON.
#[derive(Serialize)]
pub(crate) struct Template {
    /// None for machines of revisions without a tag.
    template: Option<String>,
    machines: usize,
    /// Those of which only the nominal size is known.
    unknown: usize,
    nominal_bytes: u64,
    resident_bytes: u64,
    private_bytes: u64,
    share_bytes: u64,
}

impl Template {
    pub(crate) fn new(TemplateMemory { template, sum }: &TemplateMemory) -> Self {
        Self {
            template: template.clone(),
            machines: sum.machines,
            unknown: sum.unknown,
            nominal_bytes: sum.nominal.bytes(),
            resident_bytes: sum.resident.bytes(),
            private_bytes: sum.private.bytes(),
            share_bytes: sum.share.bytes(),
        }
    }
}

/// Returns why a machine's memory is not known, with its causes.
pub(crate) fn reason(unknown: &MemoryUnknown) -> String {
    let causes = std::iter::successors(std::error::Error::source(unknown), |error| error.source());
    std::iter::once(unknown.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

/// Returns the cells of a machine; what is not known, or not there, is a dash.
pub(crate) fn cells(memory: Option<&MachineMemory>) -> [String; 4] {
    let dash = || "-".to_owned();
    let process = memory.and_then(|memory| memory.process.as_ref().ok());
    [
        memory.map(|memory| memory.nominal),
        process.map(|all| all.resident),
        process.map(kiln_sys::memory::ProcessMemory::private),
        process.map(|all| all.share),
    ]
    .map(|bytes| bytes.map_or_else(dash, ByteSize::human))
}

/// Returns the cells of a sum: dashes where of no machine more than the nominal size is known.
pub(crate) fn sum_cells(sum: &MemorySum) -> [String; 4] {
    let known = sum.unknown < sum.machines || sum.machines == 0;
    let [resident, private, share] = [sum.resident, sum.private, sum.share]
        .map(|bytes| if known { bytes.human() } else { "-".to_owned() });
    [sum.nominal.human(), resident, private, share]
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::memory::{ProcessMemory, ProcessMemoryError};
    use serde_json::json;

    fn known() -> MachineMemory {
        let mib = ByteSize::from_mib;
        let process = ProcessMemory {
            resident: mib(100),
            share: mib(60),
            private_clean: mib(5),
            private_dirty: mib(15),
            shared_clean: mib(80),
            ..ProcessMemory::default()
        };
        MachineMemory { nominal: mib(256), process: Ok(process) }
    }

    fn unknown() -> MachineMemory {
        let process = Err(ProcessMemoryError::Denied { id: 7 }.into());
        MachineMemory { nominal: ByteSize::from_mib(512), process }
    }

    #[test]
    fn what_is_not_known_is_a_dash_with_a_reason() {
        assert_eq!(cells(Some(&known())), ["256.0 MiB", "100.0 MiB", "20.0 MiB", "60.0 MiB"]);
        assert_eq!(cells(Some(&unknown())), ["512.0 MiB", "-", "-", "-"]);
        assert_eq!(cells(None), ["-"; 4]);
        let known = serde_json::to_value(Machine::new(&known())).unwrap();
        let mib = |mib: u64| mib << 20;
        assert_eq!(
            known,
            json!({
                "nominal_bytes": mib(256), "resident_bytes": mib(100), "private_bytes": mib(20),
                "share_bytes": mib(60), "shared_bytes": mib(80), "swapped_bytes": 0, "unknown": null,
            })
        );
        let unknown = serde_json::to_value(Machine::new(&unknown())).unwrap();
        assert_eq!(unknown["unknown"], "the memory of process 7 may not be read");
        assert_eq!((&unknown["resident_bytes"], &unknown["nominal_bytes"]), (&json!(null), &json!(mib(512))));
    }

    #[test]
    fn a_sum_says_nothing_of_which_nothing_is_known() {
        let mut sum = MemorySum::default();
        sum.add(&unknown());
        assert_eq!(sum_cells(&sum), ["512.0 MiB", "-", "-", "-"]);
        sum.add(&known());
        assert_eq!(sum_cells(&sum), ["768.0 MiB", "100.0 MiB", "20.0 MiB", "60.0 MiB"]);
        let line = Template::new(&TemplateMemory { template: None, sum });
        let line = serde_json::to_value(line).unwrap();
        assert_eq!(
            (&line["machines"], &line["unknown"], &line["template"]),
            (&json!(2), &json!(1), &json!(null))
        );
    }
}
