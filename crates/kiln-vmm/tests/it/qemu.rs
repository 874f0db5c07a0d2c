//! A real QEMU under its own translator. Where none is installed these tests fail: a host without it cannot say
//! whether kiln works with it.

use crate::guest::{self, After};
use kiln_core::machine::{EndCause, Forward, Network};
use kiln_core::variant::Board;
use kiln_sys::kvm::KvmVerdict;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Toolbox, fs, process, socket};
use kiln_vmm::conformance::{self, Subject};
use kiln_vmm::{
    AGENT_SOCKET, Accelerator, Disk, DiskFormat, Machine, MachineSpec, QMP_SOCKET, QemuVmm, RuntimeDir,
    ShutdownReason, SpecRejected, Stop, Vmm, VmmError, VmmExit, Waited, console,
};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const GREETING: &str = "TINY-GUEST-UP";
const PATIENCE: Duration = Duration::from_secs(60);

struct Qemu {
    vmm: QemuVmm,
    kernel: PathBuf,
}

impl Subject for Qemu {
    fn vmm(&self) -> &dyn Vmm {
        &self.vmm
    }
    fn spec(&self) -> MachineSpec {
        guest::spec(&self.kernel)
    }
    fn greeting(&self) -> &str {
        GREETING
    }
    fn kill(&self, pid: u32, signal: i32) {
        signal_process(pid, signal);
    }
}

pub(crate) fn signal_process(pid: u32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub(crate) fn vmm() -> QemuVmm {
    let kvm = KvmVerdict::Unavailable { reason: "not tried in this test".to_owned() };
    QemuVmm::new(Toolbox::default(), kvm)
}

pub(crate) fn scratch() -> ScratchDir {
    ScratchDir::new(&std::env::temp_dir()).unwrap()
}

pub(crate) fn launch(spec: &MachineSpec, dir: &Path) -> Result<Box<dyn Machine>, VmmError> {
    let vmm = vmm();
    let checked = vmm.check(spec, &vmm.probe()?).expect("the machine can be made");
    vmm.launch(checked, &RuntimeDir::new(dir)?)
}

fn end(machine: &mut dyn Machine) -> VmmExit {
    match machine.wait(Some(PATIENCE), None).unwrap() {
        Waited::Ended(exit) => exit,
        other => panic!("the machine does not end: {other:?}"),
    }
}

macro_rules! conformance_tests {
    ($($test:ident)*) => {$(
        #[test]
        fn $test() {
            let dir = scratch();
            let kernel = guest::write(dir.path(), After::WaitForButton, &format!("{GREETING}\n"));
            conformance::$test(&Qemu { vmm: vmm(), kernel }, dir.path());
        }
    )*};
}

conformance_tests! {
    a_guest_s_console_reaches_the_log
    a_graceful_stop_is_the_guest_s_own
    a_stop_now_is_orderly_and_can_be_asked_twice
    a_kill_ends_the_machine
    a_kill_from_outside_is_reported_as_a_signal
    pausing_and_resuming_leave_the_machine_alive
    a_wait_ends_when_woken_or_late
    restored_machines_go_on_and_share_a_file_they_do_not_change
    a_failed_capture_leaves_a_machine_that_goes_on
    a_state_that_is_none_is_refused_with_words
    a_saved_machine_goes_on_and_what_was_saved_can_be_captured
    what_cannot_be_restored_is_refused_before_it_runs
}

#[test]
fn the_probe_finds_version_boards_and_clock() {
    let caps = vmm().probe().unwrap();
    assert!(caps.version.major >= 7, "{caps:?}");
    assert_eq!(caps.board(Board::Pc).unwrap().machine_type, "pc-i440fx-7.2");
    assert!(caps.board(Board::Q35).is_some() && caps.board(Board::Microvm).is_some());
    assert!(caps.program.is_absolute());
}

#[test]
fn every_board_takes_every_device_and_paths_arrive_whole() {
    for board in [Board::Pc, Board::Q35, Board::Microvm] {
        let dir = scratch();
        let mut spec = guest::spec(&guest::write(dir.path(), After::Reset, &format!("{GREETING}\n")));
        spec.shape.board = board;
        spec.shape.vcpus = 2;
        spec.network = Network::User { forwards: Vec::new(), outbound: false };
        for (name, read_only) in [(r#"a,b="c" d:é.raw"#, false), ("fat:b%20,readonly=on.raw", true)] {
            let path = dir.path().join(name);
            fs::create_new(&path).unwrap().set_len(1 << 20).unwrap();
            let serial = if read_only { "data" } else { "root" }.parse().unwrap();
            spec.disks.push(Disk { path, format: DiskFormat::Raw, read_only, serial });
        }
        let exit = end(launch(&spec, dir.path()).unwrap().as_mut());
        assert!(exit.console_tail.contains(GREETING), "{board:?}: {exit:?}");
        assert_eq!(exit.shutdown, Some(ShutdownReason::GuestReset), "{board:?}");
        assert_eq!(exit.cause(false), EndCause::GuestShutdown);
        assert_eq!(exit.stderr_tail, "", "{board:?}");
    }
}

#[test]
fn a_panic_is_told_from_a_reboot() {
    let dir = scratch();
    let text = "[    0.5] Kernel panic - not syncing: No working init found.\n";
    let spec = guest::spec(&guest::write(dir.path(), After::Reset, text));
    let exit = end(launch(&spec, dir.path()).unwrap().as_mut());
    assert_eq!(exit.cause(false), EndCause::GuestPanic { message: "No working init found.".to_owned() });
    let log = console::tail(dir.path(), kiln_vmm::CONSOLE_LOG, 1 << 20).unwrap();
    assert!(String::from_utf8(log).unwrap().contains("No working init found."));
}

#[test]
fn a_second_start_appends_to_the_log_but_not_to_the_report() {
    let dir = scratch();
    let spec = guest::spec(&guest::write(dir.path(), After::Reset, &format!("{GREETING}\n")));
    for starts in 1..=2 {
        let exit = end(launch(&spec, dir.path()).unwrap().as_mut());
        assert_eq!(exit.console_tail.matches(GREETING).count(), 1);
        let log = console::tail(dir.path(), kiln_vmm::CONSOLE_LOG, 1 << 20).unwrap();
        assert_eq!(String::from_utf8(log).unwrap().matches(GREETING).count(), starts);
    }
}

#[test]
fn a_console_of_megabytes_does_not_stop_the_guest_or_fill_the_disk() {
    let dir = scratch();
    let text = "x".repeat(30_000) + "END\n";
    let spec = guest::spec(&guest::write(dir.path(), After::Reset, &text));
    let exit = end(launch(&spec, dir.path()).unwrap().as_mut());
    assert_eq!(exit.console_tail.matches('x').count(), 30_000);
    assert!(exit.console_tail.ends_with("END\n"));
}

#[test]
fn the_agent_s_socket_is_there_in_a_long_directory_and_the_control_socket_is_gone() {
    let scratch = scratch();
    let dir = scratch.path().join("x".repeat(200));
    fs::create_dir(&dir).unwrap();
    let spec = guest::spec(&guest::write(scratch.path(), After::WaitForButton, ""));
    let mut machine = launch(&spec, &dir).unwrap();
    socket::connect(&dir, AGENT_SOCKET).unwrap();
    assert!(!fs::exists(&dir.join(QMP_SOCKET)).unwrap());
    machine.stop(Stop::Now).unwrap();
    assert!(!fs::exists(&dir.join(AGENT_SOCKET)).unwrap());
}

#[test]
fn the_sandbox_is_on() {
    let dir = scratch();
    let spec = guest::spec(&guest::write(dir.path(), After::WaitForButton, ""));
    let machine = launch(&spec, dir.path()).unwrap();
    let status =
        fs::read_text_limited(Path::new(&format!("/proc/{}/status", machine.pid())), 1 << 16).unwrap();
    assert!(status.contains("Seccomp:\t2\n") && status.contains("NoNewPrivs:\t1\n"), "{status}");
}

#[test]
fn dropping_a_machine_kills_it() {
    let dir = scratch();
    let spec = guest::spec(&guest::write(dir.path(), After::WaitForButton, ""));
    let machine = launch(&spec, dir.path()).unwrap();
    let pid = machine.pid();
    assert!(process::identity(pid).is_some());
    drop(machine);
    assert!(process::identity(pid).is_none());
}

#[test]
fn a_machine_dies_with_the_thread_that_launched_it() {
    let dir = scratch();
    let spec = guest::spec(&guest::write(dir.path(), After::WaitForButton, ""));
    let path = dir.path();
    // The machine is handed out of its thread, so that not its drop but the kernel ends it.
    let mut machine =
        std::thread::scope(|scope| scope.spawn(|| launch(&spec, path).unwrap()).join().unwrap());
    assert_eq!(end(machine.as_mut()).cause(false), EndCause::VmmKilled { signal: 9 });
}

#[test]
fn a_polite_signal_from_outside_is_a_signal() {
    let dir = scratch();
    let spec = guest::spec(&guest::write(dir.path(), After::WaitForButton, ""));
    let mut machine = launch(&spec, dir.path()).unwrap();
    signal_process(machine.pid(), 15);
    assert_eq!(end(machine.as_mut()).cause(false), EndCause::VmmKilled { signal: 15 });
}

#[test]
fn a_stop_works_when_the_monitor_hangs() {
    let dir = scratch();
    let spec = guest::spec(&guest::write(dir.path(), After::WaitForButton, ""));
    let mut machine = launch(&spec, dir.path()).unwrap();
    signal_process(machine.pid(), 19);
    let exit = machine.stop(Stop::Kill).unwrap();
    assert_eq!(exit.cause(true), EndCause::Requested);
}

#[test]
fn a_taken_port_is_said_in_qemu_s_words() {
    let dir = scratch();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut spec = guest::spec(&guest::write(dir.path(), After::WaitForButton, ""));
    spec.network = Network::User { forwards: vec![Forward { host: port, guest: 80 }], outbound: true };
    let error = launch(&spec, dir.path()).unwrap_err().to_string();
    assert!(error.starts_with("the machine monitor ended at once: exit code 1; it said: "), "{error}");
    assert!(error.contains(&format!("host forwarding rule 'tcp:127.0.0.1:{port}-:80'")), "{error}");
    assert!(!fs::exists(&dir.path().join(AGENT_SOCKET)).unwrap());
}

#[test]
fn a_disk_in_use_is_said_in_qemu_s_words() {
    let dir = scratch();
    let mut spec = guest::spec(&guest::write(dir.path(), After::WaitForButton, ""));
    let path = dir.path().join("disk.raw");
    fs::create_new(&path).unwrap().set_len(1 << 20).unwrap();
    spec.disks.push(Disk {
        path,
        format: DiskFormat::Raw,
        read_only: false,
        serial: "root".parse().unwrap(),
    });
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    fs::create_dir(&first).unwrap();
    fs::create_dir(&second).unwrap();
    let _machine = launch(&spec, &first).unwrap();
    let error = launch(&spec, &second).unwrap_err().to_string();
    assert!(error.contains("Failed to get \"write\" lock"), "{error}");
}

#[test]
fn a_missing_qemu_is_named() {
    let kvm = KvmVerdict::Unavailable { reason: String::new() };
    let vmm = QemuVmm::new(Toolbox::new(vec!["/no/such/dir".into()], Vec::new()), kvm);
    let error = vmm.probe().unwrap_err();
    assert!(matches!(error, VmmError::NotFound { .. }));
    assert_eq!(error.to_string(), "machine monitor `qemu-system-x86_64` is not installed");
}

#[test]
fn a_qemu_that_is_none_is_told_apart() {
    let dir = scratch();
    for (name, script) in
        [("silent", "#!/bin/sh\n"), ("failing", "#!/bin/sh\necho no sandbox here >&2\nexit 3\n")]
    {
        let path = dir.path().join(name);
        kiln_sys::commit::write_file(&path, script.as_bytes(), 0o755, kiln_sys::commit::Existing::Replace)
            .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    }
    let toolbox = Toolbox::new(vec![dir.path().to_owned()], Vec::new());
    let kvm = KvmVerdict::Unavailable { reason: String::new() };
    let silent = QemuVmm::new(toolbox.clone(), kvm.clone()).with_program("silent");
    assert!(matches!(silent.probe(), Err(VmmError::ProbeAnswer { .. })));
    let failing = QemuVmm::new(toolbox, kvm).with_program("failing");
    let error = failing.probe().unwrap_err();
    assert!(matches!(error, VmmError::Probe { .. }));
    let caps = vmm().probe().unwrap();
    let spec = guest::spec(&guest::write(dir.path(), After::Reset, ""));
    let checked = failing.check(&spec, &caps).unwrap();
    let error = failing.launch(checked, &RuntimeDir::new(dir.path()).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "the machine monitor ended at once: exit code 3; it said: no sandbox here");
}

#[test]
fn a_qemu_without_the_board_s_version_is_refused_before_it_runs() {
    let dir = scratch();
    let mut caps = vmm().probe().unwrap();
    caps.boards.retain(|support| support.board != Board::Pc);
    let spec = guest::spec(&guest::write(dir.path(), After::Reset, ""));
    let error = vmm().check(&spec, &caps).unwrap_err();
    assert!(matches!(error, SpecRejected::Board { .. }));
    assert!(error.to_string().ends_with("has no machine type `pc-i440fx-7.2`"), "{error}");
}

#[test]
fn the_choice_of_an_accelerator_is_explained() {
    let dir = scratch();
    let spec = guest::spec(&guest::write(dir.path(), After::Reset, ""));
    let checked = vmm().check(&spec, &vmm().probe().unwrap()).unwrap();
    assert_eq!(checked.accelerator(), Accelerator::Tcg);
    assert_eq!(checked.accelerator_reason(), Some("not tried in this test"));
}
