//! What a real QEMU does when machines are captured and restored, beyond the suite.

use crate::guest::{self, After};
use crate::qemu::{launch, scratch, signal_process, vmm};
use kiln_core::machine::Network;
use kiln_core::variant::Board;
use kiln_sys::{fs, socket};
use kiln_vmm::{
    AGENT_SOCKET, CONSOLE_LOG, CaptureTarget, Disk, DiskFormat, Machine, MachineSpec, MemoryBacking,
    RestoreFailure, RestoreState, RuntimeDir, StateScope, Stop, StopStep, Vmm, VmmError, Waited, console,
    holds_open,
};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at a console's log.
const LOOK: Duration = Duration::from_millis(5);
const LETTERS: &str = "abcdefghijklmnop";

/// Returns a counting machine that can be captured, with everything such a machine can have, in `dir`.
fn counting(dir: &Path, board: Board) -> MachineSpec {
    let memory = dir.join("the memory, of it");
    drop(fs::create_new(&memory).unwrap());
    let mut spec = guest::spec(&guest::write(dir, After::Count, ">"));
    spec.shape.board = board;
    spec.memory = MemoryBacking::Shared { file: memory };
    spec.unplugged_nic = true;
    spec.disks = ["root", "data"].map(|name| disk(dir, name)).into();
    spec
}

fn disk(dir: &Path, name: &str) -> Disk {
    let path = dir.join(name);
    fs::create_new(&path).unwrap().set_len(1 << 20).unwrap();
    Disk { path, format: DiskFormat::Raw, read_only: false, serial: name.parse().unwrap() }
}

fn memory_file(spec: &MachineSpec) -> PathBuf {
    match &spec.memory {
        MemoryBacking::Shared { file } | MemoryBacking::Private { file } => file.clone(),
        _ => panic!("its memory is in no file"),
    }
}

fn text(dir: &Path) -> String {
    String::from_utf8(console::tail(dir, CONSOLE_LOG, 1 << 20).unwrap()).unwrap()
}

/// Waits until the console's log has `count` characters.
fn counted(machine: &mut dyn Machine, dir: &Path, count: usize) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = text(dir);
        if text.len() >= count {
            return text;
        }
        assert!(Instant::now() < deadline, "no count in {text}");
        assert_eq!(machine.wait(Some(LOOK), None).unwrap(), Waited::TimedOut);
    }
}

/// Captures a counting machine into `dir` and returns the spec of those restored from it, and its last letter.
fn captured(dir: &Path, board: Board) -> (MachineSpec, char) {
    let spec = counting(dir, board);
    let mut machine = launch(&spec, dir).unwrap();
    counted(machine.as_mut(), dir, 3);
    let state = fs::create_new(&dir.join("state")).unwrap();
    let captured = machine.capture(CaptureTarget { state: &state, within: PATIENCE }).unwrap();
    assert!(captured.paused > Duration::ZERO && captured.state_bytes > 0, "{captured:?}");
    let exit = machine.stop(Stop::Now).unwrap();
    let restored = MachineSpec {
        memory: MemoryBacking::Private { file: memory_file(&spec) },
        restore: Some(RestoreState { state_file: dir.join("state"), scope: StateScope::Devices }),
        ..spec
    };
    (restored, exit.console_tail.chars().last().unwrap())
}

/// Returns the same machine with disks of its own in `dir`.
fn clone_in(dir: &Path, spec: &MachineSpec) -> MachineSpec {
    fs::create_dir(dir).unwrap();
    let disks = spec.disks.iter().map(|old| disk(dir, old.serial.as_str())).collect();
    MachineSpec { disks, ..spec.clone() }
}

/// Returns the processes that run in a directory.
fn processes_in(dir: &Path) -> Vec<String> {
    let is_in = |name: &OsStr| {
        let number = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit()))?;
        let cwd = fs::read_link(&Path::new("/proc").join(number).join("cwd")).ok()?;
        (cwd == dir && number != std::process::id().to_string()).then(|| number.to_owned())
    };
    fs::list_dir_where(Path::new("/proc"), is_in).unwrap()
}

/// Every letter follows the one before it.
fn is_a_count_after(last: char, text: &str) -> bool {
    let place = |letter| LETTERS.find(letter);
    let all: Vec<Option<usize>> = std::iter::once(last).chain(text.chars()).map(place).collect();
    all.windows(2).all(|pair| match pair {
        [Some(one), Some(next)] => (one + 1) % LETTERS.len() == *next,
        _ => false,
    })
}

#[test]
fn clones_count_on_from_where_the_captured_machine_stopped() {
    for board in [Board::Pc, Board::Q35] {
        let dir = scratch();
        let (spec, last) = captured(dir.path(), board);
        let length = usize::try_from(spec.shape.memory.bytes()).unwrap();
        let memory = fs::read_limited(&memory_file(&spec), length).unwrap();
        let mut clones = Vec::new();
        for name in ["one", "two"] {
            let dir = dir.path().join(name);
            let mut spec = clone_in(&dir, &spec);
            if name == "two" {
                spec.network = Network::User { forwards: Vec::new(), outbound: false };
            }
            let machine = launch(&spec, &dir).unwrap();
            assert!(machine.restored().is_some());
            assert_eq!(text(&dir), "", "it runs before it is told to");
            assert!(spec.disks.iter().all(|disk| holds_open(machine.pid(), &disk.path).unwrap()));
            let kiln_vmm::Boot::Kernel(boot) = &spec.boot else { panic!("it has a kernel") };
            assert!(!holds_open(machine.pid(), &boot.kernel).unwrap());
            clones.push((machine, dir));
        }
        for (machine, dir) in &mut clones {
            machine.resume().unwrap();
            socket::connect(dir, AGENT_SOCKET).unwrap();
        }
        for (machine, dir) in &mut clones {
            let text = counted(machine.as_mut(), dir, 20);
            assert!(is_a_count_after(last, &text), "{board:?}: {last} then {text}");
        }
        for (mut machine, _) in clones {
            // The q35 board has its power button elsewhere.
            let how = if board == Board::Pc { Stop::Graceful { within: PATIENCE } } else { Stop::Now };
            let exit = machine.stop(how).unwrap();
            let step = if board == Board::Pc { StopStep::Guest } else { StopStep::Quit };
            assert_eq!(exit.stopped_by, Some(step), "{exit:?}");
            assert!(!exit.stderr_tail.contains("rror"), "{}", exit.stderr_tail);
        }
        assert!(fs::read_limited(&memory_file(&spec), length).unwrap() == memory, "{board:?}");
    }
}

#[test]
fn memory_that_is_cut_after_the_check_is_refused_in_qemu_s_words() {
    let dir = scratch();
    let (spec, _) = captured(dir.path(), Board::Pc);
    let vmm = vmm();
    let checked = vmm.check(&spec, &vmm.probe().unwrap()).unwrap();
    kiln_sys::fs::set_mode(&memory_file(&spec), 0o600).unwrap();
    let fd =
        rustix::fs::open(memory_file(&spec), rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap();
    File::from(fd).set_len(1 << 20).unwrap();
    let error = vmm.launch(checked, &RuntimeDir::new(dir.path()).unwrap()).unwrap_err();
    let VmmError::DiedAtStart { message, .. } = &error else { panic!("{error}") };
    assert!(message.contains("backing store"), "{message}");
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}

#[test]
fn a_state_of_another_machine_is_refused_in_qemu_s_words_and_leaves_no_process() {
    let dir = scratch();
    let (spec, _) = captured(dir.path(), Board::Pc);
    let run = |name: &str, change: &dyn Fn(&mut MachineSpec)| {
        let dir = dir.path().join(name);
        let mut spec = clone_in(&dir, &spec);
        change(&mut spec);
        let error = launch(&spec, &dir).unwrap_err();
        assert_eq!(processes_in(&dir), Vec::<String>::new());
        let VmmError::NotRestored { failure, message } = error else { panic!("{name}: {error}") };
        assert!(matches!(failure, RestoreFailure::Ended(_) | RestoreFailure::Refused(_)), "{failure}");
        message
    };
    let board = run("board", &|spec| spec.shape.board = Board::Q35);
    assert!(board.contains("Machine type received is 'pc-i440fx-7.2'"), "{board}");
    let disk = run("disk", &|spec| drop(spec.disks.pop()));
    assert!(disk.contains("Unknown savevm section or instance"), "{disk}");
    let garbage = run("garbage", &|spec| {
        let path = dir.path().join("garbage-state");
        let mut file = fs::create_new(&path).unwrap();
        file.write_all(&[0x5a; 8192]).unwrap();
        spec.restore = Some(RestoreState { state_file: path, scope: StateScope::Devices });
    });
    assert!(garbage.contains("Not a migration stream"), "{garbage}");
}

#[test]
fn a_capture_without_an_answer_ends_at_its_deadline() {
    let dir = scratch();
    let mut machine = launch(&counting(dir.path(), Board::Pc), dir.path()).unwrap();
    let state = fs::create_new(&dir.path().join("state")).unwrap();
    signal_process(machine.pid(), 19);
    let error =
        machine.capture(CaptureTarget { state: &state, within: Duration::from_millis(50) }).unwrap_err();
    assert!(matches!(error, VmmError::CaptureTimedOut { .. }), "{error}");
    machine.stop(Stop::Kill).unwrap();
    assert_eq!(processes_in(dir.path()), Vec::<String>::new());
}

#[test]
fn a_capture_into_a_file_that_is_not_open_for_writing_fails_and_the_machine_counts_on() {
    let dir = scratch();
    let mut machine = launch(&counting(dir.path(), Board::Pc), dir.path()).unwrap();
    counted(machine.as_mut(), dir.path(), 3);
    fs::create_new(&dir.path().join("state")).unwrap().write_all_at(b"x", 0).unwrap();
    let state = fs::open(&dir.path().join("state")).unwrap();
    let error = machine.capture(CaptureTarget { state: &state, within: PATIENCE }).unwrap_err();
    assert!(matches!(error, VmmError::CaptureFailed { .. }), "{error}");
    let so_far = text(dir.path()).len();
    machine.resume().unwrap();
    counted(machine.as_mut(), dir.path(), so_far + 10);
    machine.stop(Stop::Now).unwrap();
}
