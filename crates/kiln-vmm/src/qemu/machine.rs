//! A running QEMU: its process, its control connection and the threads that empty its pipes.

use super::argv::argv;
use super::migrate::{self, Outcome};
use crate::accel::Accelerator;
use crate::console::{self, CONSOLE_BYTES_MAX, ConsoleLog, Pump, VMM_LOG_BYTES_MAX};
use crate::exit::{ShutdownReason, StopStep, VmmExit, last_words};
use crate::qmp::{Qmp, QmpError};
use crate::runtime_dir::{QMP_SOCKET, RuntimeDir, VMM_LOG};
use crate::snapshot::{
    CaptureTarget, Captured, MemoryBacking, RestoreFailure, RestoreState, RestoreTimings, Saved, StateScope,
};
use crate::spec::CheckedSpec;
use crate::vmm::{Machine, Stop, VmmError, Waited};
use kiln_sys::process::{Bond, Child, Exit, Output, Spawn, poll_within};
use kiln_sys::{IoResultExt, fs, socket};
use rustix::event::{PollFd, PollFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Time QEMU has to take its devices and answer, on a host that is busy with others.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// Memory that QEMU loads in a second at least, in bytes, beyond what that time is enough for.
const LOADED_A_SECOND: u64 = 64 << 20;
/// Time QEMU has for a command.
const COMMAND_WITHIN: Duration = Duration::from_secs(10);
/// Time QEMU has to flush its disks and end.
const QUIT_WITHIN: Duration = Duration::from_secs(10);
/// Time the kernel has to take a killed process away.
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// How much of QEMU's log is looked at for its words about a capture.
const WORDS_BYTES_MAX: u64 = 4096;

/// A QEMU process that is killed when this is dropped.
#[derive(Debug)]
pub(super) struct QemuMachine {
    child: Child,
    dir: RuntimeDir,
    /// Gone when the connection failed: the machine can still be waited for and killed.
    qmp: Option<Qmp>,
    console: Option<Pump>,
    stderr: Option<Pump>,
    shutdown: Option<ShutdownReason>,
    exit: Option<VmmExit>,
    memory: Memory,
    /// Whether the guest may run while its memory is saved. QEMU's translator misses writes to memory that it is saving:
    /// guests under load came back with pages of different times.
    saves_live: bool,
    restored: Option<RestoreTimings>,
}

/// What may be done with a machine's memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// There is none of its own.
    Its,
    /// It becomes a snapshot when the machine is captured.
    Capturable,
    /// It is a snapshot, or may yet become one.
    Captured,
}

impl QemuMachine {
    pub(super) fn launch(
        program: &Path,
        env: &[(OsString, OsString)],
        checked: &CheckedSpec,
        dir: &RuntimeDir,
    ) -> Result<Self, VmmError> {
        let spec = checked.spec();
        let open =
            |restore: &RestoreState| Ok::<_, VmmError>((fs::open(&restore.state_file)?, restore.scope));
        let state = spec.restore.as_ref().map(open).transpose()?;
        let begun = Instant::now();
        dir.clear()?;
        let console_log = ConsoleLog::open(&dir.console_log(), CONSOLE_BYTES_MAX)?;
        let vmm_log = ConsoleLog::open(&dir.vmm_log(), VMM_LOG_BYTES_MAX)?;
        let listener = socket::listen(dir.path(), QMP_SOCKET)?;
        let (stderr, stderr_end) = pipe_with(PipeFlags::CLOEXEC).at("make a pipe for", dir.vmm_log())?;
        let mut child = Child::spawn(Spawn {
            program,
            args: &argv(checked),
            env,
            current_dir: dir.path(),
            stdout: Output::Pipe,
            stderr: File::from(stderr_end),
            bond: Bond::DiesWithParent,
        })?;
        let console = child.stdout().map(|pipe| Pump::start(pipe, console_log));
        let stderr = Some(Pump::start(File::from(stderr), vmm_log));
        let memory = match spec.memory {
            MemoryBacking::Shared { .. } => Memory::Capturable,
            _ => Memory::Its,
        };
        let mut machine = Self {
            child,
            dir: dir.clone(),
            qmp: None,
            console,
            stderr,
            shutdown: None,
            exit: None,
            memory,
            saves_live: checked.accelerator() == Accelerator::Kvm,
            restored: None,
        };
        let up = machine.come_up(&listener, begun, state.as_ref());
        // From here on the connection is the only way in.
        fs::remove_file(&dir.path().join(QMP_SOCKET))?;
        match up {
            Ok(()) => Ok(machine),
            Err(error) => Err(machine.why_not_up(error)),
        }
    }

    /// Waits until QEMU has taken all devices, which is when it answers, then lets the guest run or loads its state. The
    /// guest waits until then, so that no event of its is missed.
    fn come_up(
        &mut self,
        listener: &UnixListener,
        begun: Instant,
        state: Option<&(File, StateScope)>,
    ) -> Result<(), VmmError> {
        let within = UP_WITHIN + load_time(state)?;
        let deadline = begun + within;
        let stream = accept(listener, self.child.pidfd(), deadline)?;
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut qmp = Qmp::open(stream, left())?;
        match state {
            None => {
                qmp.execute("cont", None, left())?;
            }
            Some((state, scope)) => {
                let up = begun.elapsed();
                load(&mut qmp, state, *scope, within, deadline)
                    .map_err(|failure| VmmError::NotRestored { failure, message: String::new() })?;
                self.restored = Some(RestoreTimings { up, loaded: begun.elapsed().saturating_sub(up) });
            }
        }
        self.qmp = Some(qmp);
        Ok(())
    }

    /// Turns a failed start into what QEMU said about it, after its end.
    fn why_not_up(mut self, error: VmmError) -> VmmError {
        let lost = matches!(
            error,
            VmmError::Control(QmpError::Closed) | VmmError::NotRestored { failure: RestoreFailure::Lost, .. }
        );
        let within = if lost { QUIT_WITHIN } else { Duration::ZERO };
        let by_itself = match self.child.wait_within(within) {
            Ok(exit) => exit,
            Err(source) => return VmmError::System { action: "wait for", source },
        };
        let exit = match self.stop(Stop::Kill) {
            Ok(exit) => exit,
            Err(worse) => return worse,
        };
        let message = last_words(&exit.stderr_tail);
        match (by_itself, error) {
            (Some(exit), VmmError::NotRestored { .. }) => {
                VmmError::NotRestored { failure: RestoreFailure::Ended(exit), message }
            }
            (None, VmmError::NotRestored { failure, .. }) => VmmError::NotRestored { failure, message },
            (Some(exit), _) => VmmError::DiedAtStart { exit, message },
            (None, VmmError::NotUp { .. } | VmmError::Control(QmpError::TimedOut { .. })) => {
                VmmError::NotUp { within: UP_WITHIN, message }
            }
            (None, error) => error,
        }
    }

    fn read_events(&mut self) {
        let Some(qmp) = &mut self.qmp else { return };
        match qmp.take_events() {
            Ok(events) => {
                for event in events {
                    let reason = match event.name.as_str() {
                        "SHUTDOWN" => event.text("reason"),
                        "GUEST_PANICKED" => Some("guest-panic"),
                        _ => None,
                    };
                    if let Some(reason) = reason
                        && self.shutdown != Some(ShutdownReason::GuestPanic)
                    {
                        self.shutdown = Some(ShutdownReason::from_qmp(reason));
                    }
                }
            }
            Err(_) => self.qmp = None,
        }
    }

    /// Returns how QEMU ended, if it has.
    fn ended(&mut self) -> Result<Option<VmmExit>, VmmError> {
        if self.exit.is_none() {
            let exit =
                self.child.try_wait().map_err(|source| VmmError::System { action: "wait for", source })?;
            if let Some(exit) = exit {
                self.exit = Some(self.finish(exit));
            }
        }
        Ok(self.exit.clone())
    }

    fn finish(&mut self, exit: Exit) -> VmmExit {
        // The last events are in the socket; a second look finds the connection closed.
        self.read_events();
        self.qmp = None;
        let tail = |pump: Option<Pump>| pump.map(|pump| pump.finish().tail).unwrap_or_default();
        // Sockets that stay are removed at the next start.
        let _ = self.dir.clear();
        VmmExit {
            exit,
            shutdown: self.shutdown.take(),
            stopped_by: None,
            console_tail: tail(self.console.take()),
            stderr_tail: tail(self.stderr.take()),
        }
    }

    fn command(&mut self, command: &str) -> Result<(), VmmError> {
        if self.ended()?.is_some() {
            return Err(VmmError::Ended);
        }
        let qmp = self.qmp.as_mut().ok_or(QmpError::Closed)?;
        qmp.execute(command, None, COMMAND_WITHIN)?;
        Ok(())
    }

    /// Returns why a state was not written, with QEMU's last words.
    fn not_captured(&self, description: String) -> VmmError {
        let stderr = console::tail(self.dir.path(), VMM_LOG, WORDS_BYTES_MAX).unwrap_or_default();
        let message = last_words(&String::from_utf8_lossy(&stderr));
        VmmError::CaptureFailed { description, message }
    }

    /// Waits for the end as the result of a step of [`Machine::stop`].
    fn ended_by(&mut self, step: StopStep, within: Duration) -> Result<Option<VmmExit>, VmmError> {
        match self.wait(Some(within), None)? {
            Waited::Ended(exit) => {
                let exit = VmmExit { stopped_by: Some(step), ..exit };
                self.exit = Some(exit.clone());
                Ok(Some(exit))
            }
            _ => Ok(None),
        }
    }
}

impl Machine for QemuMachine {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self, timeout: Option<Duration>, wake: Option<BorrowedFd<'_>>) -> Result<Waited, VmmError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(exit) = self.ended()? {
                return Ok(Waited::Ended(exit));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let (qmp_ready, woken) = {
                let pidfd = self.child.pidfd();
                let qmp = self.qmp.as_ref().map(Qmp::fd);
                // The process stands in for what is not there: asking for the same twice is harmless.
                let (qmp, wake_fd) = (qmp.unwrap_or(pidfd), wake.unwrap_or(pidfd));
                let mut fds = [
                    PollFd::new(&pidfd, PollFlags::IN),
                    PollFd::new(&qmp, PollFlags::IN),
                    PollFd::new(&wake_fd, PollFlags::IN),
                ];
                poll_within(&mut fds, left)
                    .map_err(|source| VmmError::System { action: "wait for", source })?;
                let process_ended = !fds[0].revents().is_empty();
                (
                    !fds[1].revents().is_empty(),
                    wake.is_some() && !process_ended && !fds[2].revents().is_empty(),
                )
            };
            if qmp_ready {
                self.read_events();
            }
            if woken {
                return Ok(Waited::Woken);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(self.ended()?.map_or(Waited::TimedOut, Waited::Ended));
            }
        }
    }

    fn pause(&mut self) -> Result<(), VmmError> {
        self.command("stop")
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        if self.memory == Memory::Captured {
            return Err(VmmError::AlreadyCaptured);
        }
        self.command("cont")
    }

    fn capture(&mut self, target: CaptureTarget<'_>) -> Result<Captured, VmmError> {
        if self.ended()?.is_some() {
            return Err(VmmError::Ended);
        }
        match self.memory {
            Memory::Its => return Err(VmmError::NotCapturable),
            Memory::Captured => return Err(VmmError::AlreadyCaptured),
            Memory::Capturable => {}
        }
        let qmp = self.qmp.as_mut().ok_or(QmpError::Closed)?;
        let begun = Instant::now();
        let saved = migrate::save(qmp, target.state.as_fd(), begun + target.within);
        let paused = begun.elapsed();
        // What is not known to have failed may have become a snapshot.
        self.memory = Memory::Captured;
        match saved? {
            Outcome::Completed => Ok(Captured { paused, state_bytes: written(target)? }),
            Outcome::Failed(description) => {
                self.memory = Memory::Capturable;
                Err(self.not_captured(description))
            }
            Outcome::Late { settled } => {
                if settled {
                    self.memory = Memory::Capturable;
                }
                Err(VmmError::CaptureTimedOut { within: target.within, settled })
            }
        }
    }

    fn save(&mut self, target: CaptureTarget<'_>) -> Result<Saved, VmmError> {
        if self.ended()?.is_some() {
            return Err(VmmError::Ended);
        }
        if self.memory == Memory::Captured {
            return Err(VmmError::AlreadyCaptured);
        }
        // What it was stopped by before is not taken for the stop of this save.
        self.read_events();
        let qmp = self.qmp.as_mut().ok_or(QmpError::Closed)?;
        let deadline = Instant::now() + target.within;
        match migrate::save_whole(qmp, target.state.as_fd(), self.saves_live, deadline)? {
            (Outcome::Completed, stopped) => Ok(Saved { stopped, bytes: written(target)? }),
            (Outcome::Failed(description), _) => Err(self.not_captured(description)),
            (Outcome::Late { settled }, _) => {
                Err(VmmError::CaptureTimedOut { within: target.within, settled })
            }
        }
    }

    fn restored(&self) -> Option<RestoreTimings> {
        self.restored
    }

    fn stop(&mut self, how: Stop) -> Result<VmmExit, VmmError> {
        if let Some(exit) = self.ended()? {
            return Ok(exit);
        }
        // A step that fails leads to the next: only the kill has to work.
        if let Stop::Graceful { within } = how
            && self.command("system_powerdown").is_ok()
            && let Some(exit) = self.ended_by(StopStep::Guest, within)?
        {
            return Ok(exit);
        }
        if how != Stop::Kill
            && matches!(self.command("quit"), Ok(()) | Err(VmmError::Control(QmpError::Closed)))
            && let Some(exit) = self.ended_by(StopStep::Quit, QUIT_WITHIN)?
        {
            return Ok(exit);
        }
        self.child.signal(Signal::KILL).map_err(|source| VmmError::System { action: "kill", source })?;
        let pid = self.pid();
        self.ended_by(StopStep::Kill, KILL_WITHIN)?.ok_or(VmmError::Unkillable { pid })
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        if self.exit.is_none() {
            // A destructor cannot report. The kernel kills the process with this thread at the latest.
            let _ = self.stop(Stop::Kill);
        }
    }
}

/// Returns how many bytes were written.
fn written(target: CaptureTarget<'_>) -> Result<u64, VmmError> {
    let failed = |source| VmmError::System { action: "measure the state written by", source };
    Ok(target.state.metadata().map_err(failed)?.len())
}

/// Returns the time to load a state beyond that of coming up: a state with its memory may be long.
fn load_time(state: Option<&(File, StateScope)>) -> Result<Duration, VmmError> {
    let Some((file, StateScope::Machine)) = state else { return Ok(Duration::ZERO) };
    let failed = |source| VmmError::System { action: "measure the state loaded by", source };
    Ok(load_time_of(file.metadata().map_err(failed)?.len()))
}

/// Returns the time to load so many bytes.
fn load_time_of(bytes: u64) -> Duration {
    Duration::from_secs(bytes / LOADED_A_SECOND)
}

/// Loads a state and looks whether the machine is then as it was captured: not running.
fn load(
    qmp: &mut Qmp,
    state: &File,
    scope: StateScope,
    within: Duration,
    deadline: Instant,
) -> Result<(), RestoreFailure> {
    let failed = |error| match error {
        QmpError::Closed => RestoreFailure::Lost,
        QmpError::TimedOut { .. } => RestoreFailure::TimedOut(within),
        other => RestoreFailure::Refused(other.to_string()),
    };
    match migrate::load(qmp, state.as_fd(), scope, deadline).map_err(failed)? {
        Outcome::Completed => {}
        Outcome::Failed(words) => return Err(RestoreFailure::Refused(words)),
        Outcome::Late { .. } => return Err(RestoreFailure::TimedOut(within)),
    }
    // A machine that is captured after a failed attempt has the second of these states.
    match migrate::run_state(qmp, deadline).map_err(failed)?.as_str() {
        "paused" | "postmigrate" => Ok(()),
        other => Err(RestoreFailure::NotPaused(other.to_owned())),
    }
}

/// Takes the connection of a process that is about to come up.
fn accept(listener: &UnixListener, pidfd: BorrowedFd<'_>, deadline: Instant) -> Result<UnixStream, VmmError> {
    let failed = |source| VmmError::System { action: "wait for", source };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(VmmError::NotUp { within: UP_WITHIN, message: String::new() });
        }
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        poll_within(&mut fds, Some(left)).map_err(failed)?;
        if !fds[0].revents().is_empty() {
            return listener.accept().map(|(stream, _)| stream).map_err(failed);
        }
        if !fds[1].revents().is_empty() {
            return Err(VmmError::Control(QmpError::Closed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_state_has_more_time_to_load() {
        assert_eq!(load_time_of((64 << 20) - 1), Duration::ZERO);
        assert_eq!(load_time_of(6400 << 20), Duration::from_secs(100));
        let dir = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let file = fs::create_new(&dir.path().join("state")).unwrap();
        file.set_len(640 << 20).unwrap();
        let whole = (file, StateScope::Machine);
        assert_eq!(load_time(Some(&whole)).unwrap(), Duration::from_secs(10));
        let devices = (whole.0, StateScope::Devices);
        assert_eq!(load_time(Some(&devices)).unwrap(), Duration::ZERO);
        assert_eq!(load_time(None).unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_monitor_that_does_not_answer_in_time_is_told_with_the_time_it_had() {
        let scratch = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let listener = socket::listen(scratch.path(), QMP_SOCKET).unwrap();
        // A process that lives on: this one.
        let pid = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let error = accept(&listener, pidfd.as_fd(), Instant::now()).unwrap_err();
        assert_eq!(error.to_string(), "the machine monitor did not come up within 60 s");
        // Who connects before that is taken.
        let _monitor = socket::connect(scratch.path(), QMP_SOCKET).unwrap();
        accept(&listener, pidfd.as_fd(), Instant::now() + UP_WITHIN).unwrap();
    }
}
