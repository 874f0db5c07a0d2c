//! A machine monitor in memory, for tests of those who use one: the checks are QEMU's, the machines are a script.

use crate::console::{CONSOLE_BYTES_MAX, ConsoleLog};
use crate::exit::{ShutdownReason, StopStep, VmmExit};
use crate::fingerprint::MachineFingerprint;
use crate::qemu;
use crate::runtime_dir::RuntimeDir;
use crate::snapshot::{
    CaptureTarget, Captured, MemoryBacking, RestoreFailure, RestoreState, RestoreTimings, Saved, StateScope,
};
use crate::spec::{CheckedSpec, MachineSpec, SpecRejected};
use crate::vmm::{Capabilities, Machine, Stop, Vmm, VmmError, Waited};
use kiln_sys::process::{Exit, poll_within};
use kiln_sys::{Cancel, IoResultExt, fs};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a guest that boots writes to its console.
pub const CONSOLE_GREETING: &str = "FAKE-GUEST-UP\n";
/// Process ids of machines that are none: above every id of Linux.
const PID_FIRST: u32 = 1 << 30;
/// What a captured state is.
const STATE: &str = "FAKE-STATE\n";
/// What a machine is that was saved whole.
const WHOLE: &str = "FAKE-WHOLE\n";

/// What a machine of the fake does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Behaviour {
    /// Greets on its console, runs, and obeys its power button.
    Boots,
    /// Greets, and powers itself off at once.
    PowersOff,
    /// Writes a kernel's panic with this message and resets.
    Panics(String),
    /// Runs without a word and has no power button.
    NeverReady,
    /// The monitor ends before the guest runs.
    DiesAtOnce {
        /// Its exit code.
        code: i32,
        /// Its last words.
        words: String,
    },
    /// The monitor is killed by this signal as soon as the guest runs.
    Killed {
        /// The signal's number.
        signal: i32,
    },
}

/// A monitor whose machines behave as told.
#[derive(Debug, Clone)]
pub struct FakeVmm {
    behaviour: Behaviour,
    machines: Arc<Mutex<BTreeMap<u32, Arc<Shared>>>>,
}

#[derive(Debug)]
struct Shared {
    end: Mutex<Option<(Exit, Option<ShutdownReason>)>>,
    ended: Cancel,
    behaviour: Behaviour,
    paused: AtomicBool,
}

impl Shared {
    fn end(&self, exit: Exit, reason: Option<ShutdownReason>) {
        locked(&self.end).get_or_insert((exit, reason));
        self.ended.cancel();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeVmm {
    /// Makes a monitor all of whose machines behave alike.
    pub fn new(behaviour: Behaviour) -> Self {
        Self { behaviour, machines: Arc::default() }
    }

    /// Ends a machine as a signal from outside does.
    pub fn kill(&self, pid: u32, signal: i32) {
        if let Some(machine) = locked(&self.machines).get(&pid) {
            machine.end(Exit::Signal(signal), None);
        }
    }

    /// Ends a machine as its guest's power-off does.
    pub fn power_off(&self, pid: u32) {
        if let Some(machine) = locked(&self.machines).get(&pid) {
            machine.end(Exit::Code(0), Some(ShutdownReason::GuestShutdown));
        }
    }

    /// Returns whether the processors of a machine stand.
    pub fn is_paused(&self, pid: u32) -> bool {
        locked(&self.machines).get(&pid).is_some_and(|machine| machine.paused.load(Ordering::Relaxed))
    }

    /// Returns the process id of the machine that was launched last.
    pub fn last_pid(&self) -> Option<u32> {
        locked(&self.machines).keys().last().copied()
    }

    /// Returns how many machines were launched.
    pub fn launched(&self) -> usize {
        locked(&self.machines).len()
    }
}

impl Vmm for FakeVmm {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn probe(&self) -> Result<Capabilities, VmmError> {
        Ok(qemu::capabilities_of_a_fake())
    }

    fn check(&self, spec: &MachineSpec, caps: &Capabilities) -> Result<CheckedSpec, SpecRejected> {
        qemu::check_for(self.name(), spec, caps)
    }

    fn fingerprint(&self, spec: &CheckedSpec, caps: &Capabilities) -> MachineFingerprint {
        qemu::fingerprint_for(self.name(), spec, caps)
    }

    fn launch(&self, spec: CheckedSpec, dir: &RuntimeDir) -> Result<Box<dyn Machine>, VmmError> {
        dir.clear()?;
        if let Behaviour::DiesAtOnce { code, words } = &self.behaviour {
            return Err(VmmError::DiedAtStart { exit: Exit::Code(*code), message: words.clone() });
        }
        let spec = spec.spec();
        let restored = spec.restore.as_ref().map(load).transpose()?;
        let is_capturable = if let MemoryBacking::Shared { file } = &spec.memory {
            grow(file, spec.shape.memory.bytes()).at("write", file)?;
            true
        } else {
            false
        };
        let ended = Cancel::new().map_err(|source| VmmError::System { action: "watch", source })?;
        let shared = Arc::new(Shared {
            end: Mutex::new(None),
            ended,
            behaviour: self.behaviour.clone(),
            paused: AtomicBool::new(restored.is_some()),
        });
        let mut console = ConsoleLog::open(&dir.console_log(), CONSOLE_BYTES_MAX)?;
        match &self.behaviour {
            Behaviour::Boots if restored.is_some() => {}
            Behaviour::Boots => console.write(CONSOLE_GREETING.as_bytes())?,
            Behaviour::PowersOff => {
                console.write(CONSOLE_GREETING.as_bytes())?;
                shared.end(Exit::Code(0), Some(ShutdownReason::GuestShutdown));
            }
            Behaviour::Panics(message) => {
                console.write(format!("Kernel panic - not syncing: {message}\n").as_bytes())?;
                shared.end(Exit::Code(0), Some(ShutdownReason::GuestReset));
            }
            Behaviour::Killed { signal } => shared.end(Exit::Signal(*signal), None),
            Behaviour::NeverReady | Behaviour::DiesAtOnce { .. } => {}
        }
        let mut machines = locked(&self.machines);
        let pid = PID_FIRST + u32::try_from(machines.len()).unwrap_or(u32::MAX - PID_FIRST);
        machines.insert(pid, Arc::clone(&shared));
        Ok(Box::new(FakeMachine {
            pid,
            shared,
            console,
            exit: None,
            is_capturable,
            is_captured: false,
            restored,
        }))
    }
}

fn grow(file: &Path, len: u64) -> io::Result<()> {
    let fd = rustix::fs::open(file, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    File::from(fd).set_len(len)
}

fn load(restore: &RestoreState) -> Result<RestoreTimings, VmmError> {
    let expected = if restore.scope == StateScope::Machine { WHOLE } else { STATE };
    match fs::read_limited(&restore.state_file, expected.len()) {
        Ok(bytes) if bytes == expected.as_bytes() => {
            Ok(RestoreTimings { up: Duration::ZERO, loaded: Duration::ZERO })
        }
        _ => Err(VmmError::NotRestored {
            failure: RestoreFailure::Ended(Exit::Code(1)),
            message: "not a state of the fake's".to_owned(),
        }),
    }
}

#[derive(Debug)]
struct FakeMachine {
    pid: u32,
    shared: Arc<Shared>,
    console: ConsoleLog,
    exit: Option<VmmExit>,
    is_capturable: bool,
    is_captured: bool,
    restored: Option<RestoreTimings>,
}

impl FakeMachine {
    fn ended(&mut self) -> Option<VmmExit> {
        if self.exit.is_none() {
            let (exit, shutdown) = locked(&self.shared.end).clone()?;
            self.exit = Some(VmmExit {
                exit,
                shutdown,
                stopped_by: None,
                console_tail: self.console.tail(),
                stderr_tail: String::new(),
            });
        }
        self.exit.clone()
    }

    fn live(&mut self) -> Result<(), VmmError> {
        if self.ended().is_some() { Err(VmmError::Ended) } else { Ok(()) }
    }
}

impl Machine for FakeMachine {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn wait(&mut self, timeout: Option<Duration>, wake: Option<BorrowedFd<'_>>) -> Result<Waited, VmmError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(exit) = self.ended() {
                return Ok(Waited::Ended(exit));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let ended = self.shared.ended.fd();
            let wake_fd = wake.unwrap_or(ended);
            let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(&wake_fd, PollFlags::IN)];
            poll_within(&mut fds, left).map_err(|source| VmmError::System { action: "wait for", source })?;
            if fds[0].revents().is_empty() && !fds[1].revents().is_empty() {
                return Ok(Waited::Woken);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(self.ended().map_or(Waited::TimedOut, Waited::Ended));
            }
        }
    }

    fn pause(&mut self) -> Result<(), VmmError> {
        self.live()?;
        self.shared.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        if self.is_captured {
            return Err(VmmError::AlreadyCaptured);
        }
        self.live()?;
        self.shared.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn capture(&mut self, target: CaptureTarget<'_>) -> Result<Captured, VmmError> {
        self.live()?;
        if !self.is_capturable {
            return Err(VmmError::NotCapturable);
        }
        if self.is_captured {
            return Err(VmmError::AlreadyCaptured);
        }
        self.shared.paused.store(true, Ordering::Relaxed);
        let mut state = target.state;
        if let Err(error) = state.write_all(STATE.as_bytes()) {
            return Err(VmmError::CaptureFailed { description: error.to_string(), message: String::new() });
        }
        self.is_captured = true;
        Ok(Captured { paused: Duration::ZERO, state_bytes: STATE.len() as u64 })
    }

    fn save(&mut self, target: CaptureTarget<'_>) -> Result<Saved, VmmError> {
        self.live()?;
        if self.is_captured {
            return Err(VmmError::AlreadyCaptured);
        }
        let mut state = target.state;
        if let Err(error) = state.write_all(WHOLE.as_bytes()) {
            return Err(VmmError::CaptureFailed { description: error.to_string(), message: String::new() });
        }
        let stood = self.shared.paused.swap(true, Ordering::Relaxed);
        Ok(Saved { stopped: (!stood).then(Instant::now), bytes: WHOLE.len() as u64 })
    }

    fn restored(&self) -> Option<RestoreTimings> {
        self.restored
    }

    fn stop(&mut self, how: Stop) -> Result<VmmExit, VmmError> {
        if let Some(exit) = self.ended() {
            return Ok(exit);
        }
        let step = match how {
            Stop::Graceful { .. }
                if self.shared.behaviour == Behaviour::Boots
                    && !self.shared.paused.load(Ordering::Relaxed) =>
            {
                StopStep::Guest
            }
            Stop::Graceful { .. } | Stop::Now => StopStep::Quit,
            Stop::Kill => StopStep::Kill,
        };
        match step {
            StopStep::Guest => self.shared.end(Exit::Code(0), Some(ShutdownReason::GuestShutdown)),
            StopStep::Quit => self.shared.end(Exit::Code(0), Some(ShutdownReason::HostQuit)),
            StopStep::Kill => self.shared.end(Exit::Signal(9), None),
        }
        let exit = self.ended().map(|exit| VmmExit { stopped_by: Some(step), ..exit });
        self.exit.clone_from(&exit);
        exit.ok_or(VmmError::Unkillable { pid: self.pid })
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.shared.end(Exit::Signal(9), None);
    }
}
