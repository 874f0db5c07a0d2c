//! What an installed QEMU can do, asked by one short run of it without a machine.

use crate::vmm::{BoardSupport, Capabilities, CaptureSupport, Version, VmmError};
use kiln_core::Digest;
use kiln_core::arch::Arch;
use kiln_core::variant::{Board, VCPUS_MAX};
use kiln_sys::kvm::{self, KvmVerdict};
use kiln_sys::{Cancel, IoError, Tool, fs};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(20);
/// The commands of the run, with their number as id.
const COMMANDS: &str = r#"{"execute":"qmp_capabilities","id":0}
{"execute":"query-version","id":1}
{"execute":"query-machines","id":2}
{"execute":"qom-list-types","arguments":{"implements":"accel"},"id":3}
{"execute":"query-migrate-capabilities","id":4}
{"execute":"qom-list-properties","arguments":{"typename":"memory-backend-file"},"id":5}
{"execute":"quit","id":6}
"#;

const BOARDS: [Board; 3] = [Board::Pc, Board::Q35, Board::Microvm];

/// Returns the versioned name of a board, the one kiln's machines are made for.
pub(super) fn machine_type(board: Board) -> &'static str {
    match board {
        Board::Q35 => "pc-q35-7.2",
        Board::Microvm => "microvm",
        _ => "pc-i440fx-7.2",
    }
}

/// Returns how many disks kiln attaches to a board at most.
fn disks_max(board: Board) -> usize {
    match board {
        // Of its 24 buses the lowest have no interrupts, and three are for channel, entropy and network.
        Board::Microvm => 8,
        _ => 16,
    }
}

pub(super) fn probe(tool: Tool, name: &str, kvm: &KvmVerdict) -> Result<Capabilities, VmmError> {
    let program = tool.program().to_owned();
    let failed = |source| VmmError::Probe { name: name.to_owned(), source };
    let cancel = Cancel::new()
        .map_err(|source| VmmError::Io(IoError { action: "watch", path: program.clone(), source }))?;
    let run = tool
        .args(["-M", "none", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-chardev", "stdio,id=qmp", "-mon", "chardev=qmp,mode=control"])
        .deadline(WITHIN)
        .run_fed(&cancel, &mut |_| (), Some(Box::new(|stdin| stdin.write_all(COMMANDS.as_bytes()))));
    let out = run.map_err(failed)?;
    read(&out.stdout, name, &program, kvm)
}

#[derive(Deserialize)]
struct Answer {
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct VersionAnswer {
    qemu: Version,
}

#[derive(Deserialize)]
struct MachineAnswer {
    name: String,
    #[serde(rename = "cpu-max")]
    cpu_max: u32,
}

#[derive(Deserialize)]
struct TypeAnswer {
    name: String,
}

#[derive(Deserialize)]
struct CapabilityAnswer {
    capability: String,
}

fn read(stdout: &[u8], name: &str, program: &Path, kvm: &KvmVerdict) -> Result<Capabilities, VmmError> {
    fn answer<T: serde::de::DeserializeOwned>(answers: &[Answer], id: u64) -> Option<T> {
        let answer = answers.iter().find(|answer| answer.id == Some(id))?;
        serde_json::from_value(answer.value.clone()?).ok()
    }
    let without = |what| VmmError::ProbeAnswer { name: name.to_owned(), what };
    let answers: Vec<Answer> =
        stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let version: VersionAnswer = answer(&answers, 1).ok_or_else(|| without("a version"))?;
    let machines: Vec<MachineAnswer> = answer(&answers, 2).ok_or_else(|| without("machine types"))?;
    let accelerators: Vec<TypeAnswer> = answer(&answers, 3).ok_or_else(|| without("accelerators"))?;
    let found = |board: Board| {
        let machine = machines.iter().find(|machine| machine.name == machine_type(board))?;
        Some(support(board, machine.cpu_max))
    };
    Ok(Capabilities {
        program: program.to_owned(),
        version: version.qemu,
        arch: Arch::X86_64,
        boards: BOARDS.into_iter().filter_map(found).collect(),
        has_kvm: accelerators.iter().any(|accelerator| accelerator.name == "kvm-accel"),
        kvm: kvm.clone(),
        tsc_khz: kvm::tsc_khz(),
        capture: capture(answer(&answers, 4), answer(&answers, 5)),
        host_cpu: host_cpu(),
    })
}

/// Returns what QEMU can do with captured machines. One that does not answer these questions cannot capture.
fn capture(
    capabilities: Option<Vec<CapabilityAnswer>>,
    properties: Option<Vec<TypeAnswer>>,
) -> Option<CaptureSupport> {
    let is_there = capabilities?.iter().any(|answer| answer.capability == "x-ignore-shared");
    // With the property, a file that is opened for reading only can back memory that is written to.
    let reads_memory_only = properties.is_some_and(|all| all.iter().any(|property| property.name == "rom"));
    is_there.then_some(CaptureSupport { reads_memory_only })
}

/// Returns the host's processor: its model in words and numbers and a digest of its features, or nothing where the
/// system does not say.
fn host_cpu() -> String {
    const CPUINFO_BYTES_MAX: usize = 16 << 20;
    const FIELDS: [&str; 5] = ["vendor_id", "cpu family", "model", "model name", "stepping"];
    let Ok(text) = fs::read_text_limited(Path::new("/proc/cpuinfo"), CPUINFO_BYTES_MAX) else {
        return String::new();
    };
    let value = |field: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == field).map(|(_, value)| value.trim())
    };
    let mut words: Vec<String> = FIELDS.into_iter().filter_map(value).map(str::to_owned).collect();
    words.extend(value("flags").map(|flags| Digest::of(flags.as_bytes()).to_string()));
    words.join(" / ")
}

fn support(board: Board, cpu_max: u32) -> BoardSupport {
    BoardSupport {
        board,
        machine_type: machine_type(board).to_owned(),
        vcpus_max: cpu_max.min(VCPUS_MAX),
        disks_max: disks_max(board),
    }
}

/// Returns what a QEMU with every board and without KVM can do.
pub(crate) fn capabilities_of_a_fake() -> Capabilities {
    Capabilities {
        program: "fake".into(),
        version: Version { major: 7, minor: 2, micro: 0 },
        arch: Arch::X86_64,
        boards: BOARDS.into_iter().map(|board| support(board, VCPUS_MAX)).collect(),
        has_kvm: false,
        kvm: KvmVerdict::Unavailable { reason: "a fake has no /dev/kvm".to_owned() },
        tsc_khz: Some(2_000_000),
        capture: Some(CaptureSupport { reads_memory_only: false }),
        host_cpu: "fake".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(stdout: &str) -> Result<Capabilities, VmmError> {
        let kvm = KvmVerdict::Unavailable { reason: "none".to_owned() };
        read(stdout.as_bytes(), PROGRAM, Path::new("/usr/bin/qemu-system-x86_64"), &kvm)
    }

    const PROGRAM: &str = "qemu-system-x86_64";

    #[test]
    fn an_answer_is_read_and_a_missing_board_is_missing() {
        let caps = parsed(
            r#"{"QMP": {"version": {}}}
{"return": {}, "id": 0}
{"return": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "id": 1}
{"return": [{"name": "pc-i440fx-7.2", "cpu-max": 255, "x": 1}, {"name": "microvm", "cpu-max": 288}, {"name": "pc", "cpu-max": 1}], "id": 2}
{"return": [{"name": "tcg-accel"}, {"name": "qtest-accel"}], "id": 3}
{"return": [{"capability": "events", "state": false}, {"capability": "x-ignore-shared", "state": false}], "id": 4}
{"return": [{"name": "share", "type": "bool"}, {"name": "readonly", "type": "bool"}], "id": 5}
{"return": {}, "id": 6}
{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}
"#,
        )
        .unwrap();
        assert_eq!(caps.version.to_string(), "7.2.22");
        assert!(!caps.has_kvm);
        assert_eq!(caps.capture, Some(CaptureSupport { reads_memory_only: false }));
        assert!(caps.board(Board::Q35).is_none());
        assert_eq!(caps.board(Board::Pc).unwrap().vcpus_max, VCPUS_MAX);
        assert_eq!(caps.board(Board::Microvm).unwrap().disks_max, 8);
    }

    #[test]
    fn a_missing_answer_is_named() {
        let error = parsed("hello\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "machine monitor `qemu-system-x86_64` answers a probe without a version"
        );
    }
}
