//! The capture of a machine, and machines restored from it.

use super::{PATIENCE, Subject, greeted_as, launch};
use crate::exit::StopStep;
use crate::runtime_dir::{AGENT_SOCKET, CONSOLE_LOG, RuntimeDir};
use crate::snapshot::{CaptureTarget, MemoryBacking, RestoreFailure, RestoreState, StateScope};
use crate::spec::{Boot, MachineSpec, SpecRejected};
use crate::vmm::{Machine, Stop, VmmError, Waited};
use crate::{QMP_SOCKET, console};
use kiln_sys::fs;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A captured machine that has ended.
struct Snapshot {
    memory: PathBuf,
    state: PathBuf,
}

/// Returns the subject's machine with its memory in a new file.
fn capturable(subject: &dyn Subject, dir: &Path) -> MachineSpec {
    let file = dir.join("memory");
    drop(fs::create_new(&file).expect("the directory is writable"));
    MachineSpec { memory: MemoryBacking::Shared { file }, ..subject.spec() }
}

fn restorable(subject: &dyn Subject, snapshot: &Snapshot) -> MachineSpec {
    MachineSpec {
        memory: MemoryBacking::Private { file: snapshot.memory.clone() },
        restore: Some(RestoreState { state_file: snapshot.state.clone(), scope: StateScope::Devices }),
        boot: Boot::elf("/no/kernel/is/needed"),
        ..subject.spec()
    }
}

fn target(state: &File) -> CaptureTarget<'_> {
    CaptureTarget { state, within: PATIENCE }
}

fn capture(subject: &dyn Subject, dir: &Path) -> Snapshot {
    let (mut machine, _) = greeted_as(subject, &capturable(subject, dir), dir);
    let state = dir.join("state");
    let file = fs::create_new(&state).expect("the directory is writable");
    let captured = machine.capture(target(&file)).expect("the machine can be captured");
    assert!(captured.state_bytes > 0, "{captured:?}");
    assert_eq!(captured.state_bytes, file.metadata().expect("the state is there").len());
    assert!(matches!(machine.resume(), Err(VmmError::AlreadyCaptured)));
    assert!(matches!(machine.capture(target(&file)), Err(VmmError::AlreadyCaptured)));
    let exit = machine.stop(Stop::Now).expect("a captured machine stops");
    assert_eq!(exit.stopped_by, Some(StopStep::Quit));
    Snapshot { memory: dir.join("memory"), state }
}

fn bytes(path: &Path, spec: &MachineSpec) -> Vec<u8> {
    let len = usize::try_from(spec.shape.memory.bytes()).expect("the memory is small");
    fs::read_limited(path, len).expect("the file can be read")
}

/// Machines restored from one memory file at once go on where the captured one stopped, and leave the file as it was.
pub fn restored_machines_go_on_and_share_a_file_they_do_not_change(subject: &dyn Subject, dir: &Path) {
    let snapshot = capture(subject, dir);
    let spec = restorable(subject, &snapshot);
    let (memory, state) = (bytes(&snapshot.memory, &spec), bytes(&snapshot.state, &spec));
    assert_eq!(memory.len() as u64, spec.shape.memory.bytes());
    let mut machines: Vec<(Box<dyn Machine>, RuntimeDir)> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let dir = dir.join(name);
            fs::create_dir(&dir).expect("the directory is writable");
            launch(subject, &spec, &dir).expect("the machine is restored")
        })
        .collect();
    for (machine, _) in &mut machines {
        assert!(machine.restored().is_some());
        let waited = machine.wait(Some(Duration::ZERO), None).expect("the machine can be waited for");
        assert_eq!(waited, Waited::TimedOut);
        assert!(matches!(machine.capture(target(&File::from(nowhere()))), Err(VmmError::NotCapturable)));
        machine.resume().expect("a restored machine resumes");
    }
    for (mut machine, dir) in machines {
        let exit = machine.stop(Stop::Graceful { within: PATIENCE }).expect("the machine stops");
        assert_eq!(exit.stopped_by, Some(StopStep::Guest), "{exit:?}");
        let text = console::tail(dir.path(), CONSOLE_LOG, 4096).expect("the log can be read");
        assert!(!String::from_utf8_lossy(&text).contains(subject.greeting()), "the guest began anew");
    }
    assert!(bytes(&snapshot.memory, &spec) == memory, "a restored machine changed the memory file");
    assert!(bytes(&snapshot.state, &spec) == state, "a restored machine changed the state");
}

/// A running machine that is saved goes on, also after a save that failed. What was saved is a machine that can be
/// captured without having run, and another that runs on.
pub fn a_saved_machine_goes_on_and_what_was_saved_can_be_captured(subject: &dyn Subject, dir: &Path) {
    let (mut machine, _) = greeted_as(subject, &subject.spec(), dir);
    let error = machine.save(target(&File::from(nowhere()))).expect_err("a full device takes nothing");
    assert!(matches!(error, VmmError::CaptureFailed { .. }), "{error}");
    let whole = dir.join("whole");
    let file = fs::create_new(&whole).expect("the directory is writable");
    let saved = machine.save(target(&file)).expect("the machine can be saved");
    assert!(saved.stopped.is_some(), "it ran until then");
    assert_eq!(saved.bytes, file.metadata().expect("the file is there").len());
    machine.resume().expect("a saved machine goes on");
    let exit = machine.stop(Stop::Graceful { within: PATIENCE }).expect("the machine stops");
    assert_eq!(exit.stopped_by, Some(StopStep::Guest), "{exit:?}");

    let in_dir = |name: &str| {
        let dir = dir.join(name);
        fs::create_dir(&dir).expect("the directory is writable");
        dir
    };
    let restore = Some(RestoreState { state_file: whole, scope: StateScope::Machine });
    let spec = MachineSpec { restore, boot: Boot::elf("/no/kernel/is/needed"), ..subject.spec() };
    let alone = in_dir("alone");
    let (mut machine, _) = launch(subject, &spec, &alone).expect("the machine is restored");
    let again = fs::create_new(&alone.join("whole")).expect("the directory is writable");
    let saved = machine.save(target(&again)).expect("a machine that stands can be saved");
    assert_eq!(saved.stopped, None);
    machine.resume().expect("a restored machine resumes");
    let exit = machine.stop(Stop::Graceful { within: PATIENCE }).expect("the machine stops");
    assert_eq!(exit.stopped_by, Some(StopStep::Guest), "{exit:?}");

    let shared = in_dir("shared");
    let memory = capturable(subject, &shared).memory;
    let spec = MachineSpec { memory, ..spec };
    let (mut machine, _) = launch(subject, &spec, &shared).expect("the machine is restored");
    let state = shared.join("state");
    let file = fs::create_new(&state).expect("the directory is writable");
    machine.capture(target(&file)).expect("a machine that never ran can be captured");
    machine.stop(Stop::Now).expect("a captured machine stops");
    let spec = restorable(subject, &Snapshot { memory: shared.join("memory"), state });
    let (mut machine, _) = launch(subject, &spec, &in_dir("clone")).expect("the machine is restored");
    machine.resume().expect("a restored machine resumes");
    let exit = machine.stop(Stop::Graceful { within: PATIENCE }).expect("the machine stops");
    assert_eq!(exit.stopped_by, Some(StopStep::Guest), "{exit:?}");
}

/// A machine whose capture failed goes on, and can be captured afterwards.
pub fn a_failed_capture_leaves_a_machine_that_goes_on(subject: &dyn Subject, dir: &Path) {
    let (mut machine, _) = greeted_as(subject, &capturable(subject, dir), dir);
    for _ in 0..2 {
        let error = machine.capture(target(&File::from(nowhere()))).expect_err("a full device takes nothing");
        assert!(matches!(error, VmmError::CaptureFailed { .. }), "{error}");
        machine.resume().expect("the machine goes on");
    }
    let state = fs::create_new(&dir.join("state")).expect("the directory is writable");
    machine.capture(target(&state)).expect("the machine can be captured");
    machine.stop(Stop::Now).expect("a captured machine stops");
}

/// A state that is none is refused, with the monitor's words, and nothing of the machine is left.
pub fn a_state_that_is_none_is_refused_with_words(subject: &dyn Subject, dir: &Path) {
    let snapshot = capture(subject, dir);
    let whole = bytes(&snapshot.state, &subject.spec());
    for (name, bytes) in
        [("empty", &[][..]), ("garbage", &[0xa5; 4096]), ("truncated", &whole[..whole.len() / 2])]
    {
        let dir = dir.join(name);
        fs::create_dir(&dir).expect("the directory is writable");
        let state = dir.join("state");
        let mut file = fs::create_new(&state).expect("the directory is writable");
        file.write_all(bytes).expect("the directory is writable");
        let spec = restorable(subject, &Snapshot { memory: snapshot.memory.clone(), state });
        match launch(subject, &spec, &dir) {
            Err(VmmError::NotRestored {
                failure: RestoreFailure::Ended(_) | RestoreFailure::Refused(_),
                message,
            }) => {
                assert!(!message.is_empty(), "{name}");
            }
            other => panic!("a state that is {name}: {other:?}"),
        }
        for name in [QMP_SOCKET, AGENT_SOCKET] {
            assert!(!fs::exists(&dir.join(name)).expect("the directory can be read"), "{name}");
        }
    }
}

/// Memory of another length, a missing state and a memory file that is in use are found before anything runs.
pub fn what_cannot_be_restored_is_refused_before_it_runs(subject: &dyn Subject, dir: &Path) {
    let snapshot = capture(subject, dir);
    let caps = subject.vmm().probe().expect("the monitor is installed");
    let refusal = |spec: &MachineSpec| subject.vmm().check(spec, &caps).expect_err("it is refused");
    let good = restorable(subject, &snapshot);
    subject.vmm().check(&good, &caps).expect("the monitor can make the machine");
    let used = MachineSpec {
        memory: MemoryBacking::Shared { file: snapshot.memory.clone() },
        restore: None,
        ..subject.spec()
    };
    assert!(matches!(refusal(&used), SpecRejected::MemoryLength { expected: 0, .. }));
    let short = dir.join("short");
    drop(fs::create_new(&short).expect("the directory is writable"));
    let short = MachineSpec { memory: MemoryBacking::Private { file: short }, ..good.clone() };
    assert!(matches!(refusal(&short), SpecRejected::MemoryLength { len: 0, .. }));
    let restore = Some(RestoreState { state_file: dir.join("missing"), scope: StateScope::Devices });
    assert!(matches!(refusal(&MachineSpec { restore, ..good }), SpecRejected::File { what: "state", .. }));
    let (mut machine, _) = greeted_as(subject, &subject.spec(), dir);
    assert!(matches!(machine.capture(target(&File::from(nowhere()))), Err(VmmError::NotCapturable)));
    machine.stop(Stop::Kill).expect("the machine stops");
}

/// Returns a descriptor to which nothing can be written.
fn nowhere() -> std::os::fd::OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open("/dev/full", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .expect("Linux has /dev/full")
}
