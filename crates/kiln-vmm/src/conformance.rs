//! What every machine monitor must do, as tests that any of them can be put through. They panic on the first
//! difference.

mod capture;

use crate::console;
use crate::exit::{ShutdownReason, StopStep, VmmExit};
use crate::runtime_dir::{AGENT_SOCKET, CONSOLE_LOG, QMP_SOCKET, RuntimeDir};
use crate::spec::MachineSpec;
use crate::vmm::{Machine, Stop, Vmm, VmmError, Waited};
use kiln_core::machine::EndCause;
use kiln_sys::process::Exit;
use kiln_sys::{Cancel, fs};
use std::path::Path;
use std::time::{Duration, Instant};

/// Time anything may take here; it is never reached where all is well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at a file that a thread of the monitor writes.
const LOOK: Duration = Duration::from_millis(5);
const SIGKILL: i32 = 9;

/// A monitor and what to try it with. Its guest greets on the console, then waits for its power button.
pub trait Subject {
    /// Returns the monitor.
    fn vmm(&self) -> &dyn Vmm;
    /// Returns a machine it can make.
    fn spec(&self) -> MachineSpec;
    /// Returns what the guest greets with.
    fn greeting(&self) -> &str;
    /// Sends a signal to the monitor from outside.
    fn kill(&self, pid: u32, signal: i32);
}

/// Runs every test, each in a directory of its own under `scratch`.
pub fn all(subject: &dyn Subject, scratch: &Path) {
    for (name, test) in TESTS {
        let dir = scratch.join(name);
        fs::create_dir(&dir).expect("the scratch directory is writable");
        test(subject, &dir);
    }
}

type Test = fn(&dyn Subject, &Path);

/// The tests by name.
pub const TESTS: [(&str, Test); 12] = [
    ("console", a_guest_s_console_reaches_the_log),
    ("graceful", a_graceful_stop_is_the_guest_s_own),
    ("now", a_stop_now_is_orderly_and_can_be_asked_twice),
    ("kill", a_kill_ends_the_machine),
    ("outside", a_kill_from_outside_is_reported_as_a_signal),
    ("pause", pausing_and_resuming_leave_the_machine_alive),
    ("wake", a_wait_ends_when_woken_or_late),
    ("restore", restored_machines_go_on_and_share_a_file_they_do_not_change),
    ("full", a_failed_capture_leaves_a_machine_that_goes_on),
    ("state", a_state_that_is_none_is_refused_with_words),
    ("saved", a_saved_machine_goes_on_and_what_was_saved_can_be_captured),
    ("refused", what_cannot_be_restored_is_refused_before_it_runs),
];

pub use capture::{
    a_failed_capture_leaves_a_machine_that_goes_on,
    a_saved_machine_goes_on_and_what_was_saved_can_be_captured, a_state_that_is_none_is_refused_with_words,
    restored_machines_go_on_and_share_a_file_they_do_not_change,
    what_cannot_be_restored_is_refused_before_it_runs,
};

fn launch(
    subject: &dyn Subject,
    spec: &MachineSpec,
    dir: &Path,
) -> Result<(Box<dyn Machine>, RuntimeDir), VmmError> {
    let dir = RuntimeDir::new(dir).expect("the directory is there");
    let caps = subject.vmm().probe().expect("the monitor is installed");
    let spec = subject.vmm().check(spec, &caps).expect("the monitor can make the machine");
    let machine = subject.vmm().launch(spec, &dir)?;
    Ok((machine, dir))
}

fn launched(subject: &dyn Subject, dir: &Path) -> (Box<dyn Machine>, RuntimeDir) {
    launch(subject, &subject.spec(), dir).expect("the machine starts")
}

fn greeted(subject: &dyn Subject, dir: &Path) -> (Box<dyn Machine>, RuntimeDir) {
    greeted_as(subject, &subject.spec(), dir)
}

fn greeted_as(subject: &dyn Subject, spec: &MachineSpec, dir: &Path) -> (Box<dyn Machine>, RuntimeDir) {
    let (mut machine, dir) = launch(subject, spec, dir).expect("the machine starts");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = console::tail(dir.path(), CONSOLE_LOG, 4096).expect("the log can be read");
        if String::from_utf8_lossy(&text).contains(subject.greeting()) {
            return (machine, dir);
        }
        assert!(Instant::now() < deadline, "no greeting in {:?}", String::from_utf8_lossy(&text));
        let waited = machine.wait(Some(LOOK), None).expect("the machine can be waited for");
        assert_eq!(waited, Waited::TimedOut, "the machine ended before it greeted");
    }
}

fn ended(machine: &mut dyn Machine) -> VmmExit {
    match machine.wait(Some(PATIENCE), None).expect("the machine can be waited for") {
        Waited::Ended(exit) => exit,
        other => panic!("the machine does not end: {other:?}"),
    }
}

/// What a guest writes is in the log, and at the end in the report.
pub fn a_guest_s_console_reaches_the_log(subject: &dyn Subject, dir: &Path) {
    let (mut machine, _) = greeted(subject, dir);
    let exit = machine.stop(Stop::Now).expect("the machine stops");
    assert!(exit.console_tail.contains(subject.greeting()), "{exit:?}");
}

/// A power button that is obeyed needs no force, and leaves no socket behind.
pub fn a_graceful_stop_is_the_guest_s_own(subject: &dyn Subject, dir: &Path) {
    let (mut machine, dir) = greeted(subject, dir);
    let exit = machine.stop(Stop::Graceful { within: PATIENCE }).expect("the machine stops");
    assert_eq!(exit.stopped_by, Some(StopStep::Guest));
    assert_eq!((exit.exit, exit.shutdown.as_ref()), (Exit::Code(0), Some(&ShutdownReason::GuestShutdown)));
    for name in [QMP_SOCKET, AGENT_SOCKET] {
        assert!(!fs::exists(&dir.path().join(name)).expect("the directory can be read"), "{name}");
    }
}

/// A second stop tells what the first one did.
pub fn a_stop_now_is_orderly_and_can_be_asked_twice(subject: &dyn Subject, dir: &Path) {
    let (mut machine, _) = launched(subject, dir);
    let exit = machine.stop(Stop::Now).expect("the machine stops");
    assert_eq!((exit.exit, exit.stopped_by), (Exit::Code(0), Some(StopStep::Quit)));
    assert_eq!(exit.cause(true), EndCause::Requested);
    assert_eq!(machine.stop(Stop::Now).expect("a stopped machine stops"), exit);
    assert_eq!(ended(machine.as_mut()), exit);
    assert!(matches!(machine.pause(), Err(VmmError::Ended)));
}

/// A kill is a request too.
pub fn a_kill_ends_the_machine(subject: &dyn Subject, dir: &Path) {
    let (mut machine, _) = launched(subject, dir);
    let exit = machine.stop(Stop::Kill).expect("the machine stops");
    assert_eq!((exit.exit, exit.stopped_by), (Exit::Signal(SIGKILL), Some(StopStep::Kill)));
    assert_eq!(exit.cause(true), EndCause::Requested);
}

/// A monitor that someone else kills has not ended as asked for.
pub fn a_kill_from_outside_is_reported_as_a_signal(subject: &dyn Subject, dir: &Path) {
    let (mut machine, _) = launched(subject, dir);
    subject.kill(machine.pid(), SIGKILL);
    let exit = ended(machine.as_mut());
    assert_eq!(exit.cause(false), EndCause::VmmKilled { signal: SIGKILL });
    assert_eq!(machine.stop(Stop::Now).expect("an ended machine stops"), exit);
}

/// A paused machine can be resumed and, paused again, stopped.
pub fn pausing_and_resuming_leave_the_machine_alive(subject: &dyn Subject, dir: &Path) {
    let (mut machine, _) = greeted(subject, dir);
    for _ in 0..2 {
        machine.pause().expect("the machine pauses");
        machine.resume().expect("the machine resumes");
    }
    machine.pause().expect("the machine pauses");
    let waited = machine.wait(Some(Duration::ZERO), None).expect("the machine can be waited for");
    assert_eq!(waited, Waited::TimedOut);
    let exit = machine.stop(Stop::Now).expect("a paused machine stops");
    assert_eq!(exit.stopped_by, Some(StopStep::Quit));
}

/// A wait has three ends.
pub fn a_wait_ends_when_woken_or_late(subject: &dyn Subject, dir: &Path) {
    let (mut machine, _) = launched(subject, dir);
    let wake = Cancel::new().expect("a descriptor is left");
    let short = machine.wait(Some(LOOK), Some(wake.fd())).expect("the machine can be waited for");
    assert_eq!(short, Waited::TimedOut);
    wake.cancel();
    let woken = machine.wait(None, Some(wake.fd())).expect("the machine can be waited for");
    assert_eq!(woken, Waited::Woken);
    let exit = machine.stop(Stop::Kill).expect("the machine stops");
    let after = machine.wait(None, Some(wake.fd())).expect("the machine can be waited for");
    assert_eq!(after, Waited::Ended(exit));
}
