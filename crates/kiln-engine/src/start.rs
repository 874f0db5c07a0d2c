//! Starting machines: a supervisor of its own for each, that outlives the program which started it.

use crate::control::Report;
use crate::create::{Created, START_LOCK};
use crate::progress::{Progress, Reporter};
use crate::supervisor::SUPERVISOR_LOCK;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::{EndCause, Phase};
use kiln_store::MachineEntry;
use kiln_sys::lock::FileLock;
use kiln_sys::process::{Bond, Child, Output, Spawn, poll_within};
use kiln_sys::{IoResultExt as _, fs};
use rustix::event::{PollFd, PollFlags};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::process::ChildStdout;

/// The supervisor's own words, in the machine's directory.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// The hidden command that makes kiln a supervisor.
pub const SUPERVISE_COMMAND: &str = "__supervise";
/// The most bytes of the supervisor's words that an error repeats.
const LOG_TAIL_BYTES: u64 = 4096;

/// Whether a machine outlives whoever started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The machine ends when the [`Started`] handle does, however that ends.
    Owned,
    /// The machine goes on.
    Detached,
}

/// A started machine, and the line to its supervisor.
#[derive(Debug)]
pub struct Started {
    /// The machine's name.
    pub name: String,
    /// Milliseconds from the supervisor's start to readiness.
    pub ready_after_ms: u64,
    /// The accelerator in use.
    pub accelerator: String,
    /// Whether it was restored from a snapshot, and did not boot.
    pub restored: bool,
    reports: BufReader<ChildStdout>,
}

impl Engine {
    /// Starts a machine that was just made and waits until it is ready.
    pub fn start_created(
        &self,
        created: Created,
        ownership: Ownership,
        reporter: &dyn Reporter,
    ) -> EngineResult<Started> {
        let Created { entry, start_lock } = created;
        self.launch(&entry, start_lock, ownership, reporter)
    }

    /// Starts a machine that ended, was suspended, or was never started, and waits until it is ready.
    ///
    /// # Errors
    /// [`EngineError::NotResumed`] for one that stays suspended; [`EngineError::Phase`] for one that runs.
    pub fn start(&self, name: &str, reporter: &dyn Reporter) -> EngineResult<Started> {
        self.start_as(name, Ownership::Detached, reporter)
    }

    /// Like [`Engine::start`], for a machine that may end with the handle.
    pub(crate) fn start_as(
        &self,
        name: &str,
        ownership: Ownership,
        reporter: &dyn Reporter,
    ) -> EngineResult<Started> {
        let entry = self.find_machine(name)?;
        if entry.status.phase.is_live() {
            let phase = entry.status.phase.as_str();
            return Err(EngineError::Phase { name: entry.record.name.to_string(), phase, action: "started" });
        }
        let lock = FileLock::try_take(&entry.dir.join(START_LOCK), "starting a machine")?;
        let lock = lock.map_err(|holder| EngineError::SupervisorRefused {
            name: entry.record.name.to_string(),
            reason: format!("{} is starting it", holder.text),
        })?;
        // Somebody may have started it since it was looked up, and let go of the lock.
        if FileLock::is_held(&entry.dir.join(SUPERVISOR_LOCK))? {
            let reason = "it has been started".to_owned();
            return Err(EngineError::SupervisorRefused { name: entry.record.name.to_string(), reason });
        }
        self.launch(&entry, lock, ownership, reporter).map_err(|error| match error {
            EngineError::Ended { cause: EndCause::StartFailed { message }, name, console } => {
                match self.store.machine(&entry.record.id).map(|now| now.status.phase) {
                    Ok(Phase::Suspended) => EngineError::NotResumed { name, reason: message },
                    _ => EngineError::Ended { cause: EndCause::StartFailed { message }, name, console },
                }
            }
            error => error,
        })
    }

    fn launch(
        &self,
        entry: &MachineEntry,
        start_lock: FileLock,
        ownership: Ownership,
        reporter: &dyn Reporter,
    ) -> EngineResult<Started> {
        let name = entry.record.name.to_string();
        let log_path = entry.dir.join(SUPERVISOR_LOG);
        fs::remove_file(&log_path)?;
        let mut args =
            vec![SUPERVISE_COMMAND.into(), self.store.root().into(), entry.record.id.as_str().into()];
        if ownership == Ownership::Owned {
            args.push("--owned".into());
        }
        let mut child = Child::spawn(Spawn {
            program: &self.settings.own_program,
            args: &args,
            env: self.settings.toolbox.env(),
            current_dir: &entry.dir,
            stdout: Output::Pipe,
            stderr: fs::append(&log_path)?,
            bond: Bond::Detached,
        })?;
        let stdout =
            child.stdout().ok_or(EngineError::SupervisorDied { name: name.clone(), log: String::new() })?;
        let mut started = Started {
            name,
            ready_after_ms: 0,
            accelerator: String::new(),
            restored: false,
            reports: BufReader::new(stdout),
        };
        let mut start_lock = Some(start_lock);
        loop {
            match started.next_report(self) {
                Ok(Some(Report::Supervising)) => start_lock = None,
                Ok(Some(Report::Started { accelerator, reason, restored })) => {
                    started.restored = restored;
                    if !reason.is_empty() {
                        reporter.progress(Progress::Note {
                            text: format!("accelerator {accelerator}: {reason}"),
                        });
                    }
                    started.accelerator = accelerator;
                }
                Ok(Some(Report::Ready { after_ms })) => {
                    started.ready_after_ms = after_ms;
                    drop(start_lock);
                    return Ok(started);
                }
                Ok(Some(Report::Ended { cause, console })) => {
                    // The supervisor tells before it tidies up: what it leaves must be gone when this returns.
                    child.wait().at("wait for", &self.settings.own_program)?;
                    return Err(EngineError::Ended { name: started.name, cause, console });
                }
                Ok(None) => {
                    let log = kiln_vmm::console::tail(&entry.dir, SUPERVISOR_LOG, LOG_TAIL_BYTES)
                        .unwrap_or_default();
                    let log = String::from_utf8_lossy(&log).into_owned();
                    return Err(EngineError::SupervisorDied { name: started.name, log });
                }
                Err(error) => {
                    // Cancelled: an owned machine ends with this handle, a detached one is asked to.
                    if ownership == Ownership::Detached {
                        self.tell_to_end(entry);
                    }
                    drop(started);
                    child.wait_within(std::time::Duration::from_secs(20)).at("wait for", &log_path)?;
                    return Err(error);
                }
            }
        }
    }
}

impl Started {
    /// Waits for the machine's end and returns why it ended.
    pub fn wait_end(&mut self, engine: &Engine) -> EngineResult<kiln_core::machine::EndCause> {
        loop {
            match self.next_report(engine)? {
                Some(Report::Ended { cause, .. }) => return Ok(cause),
                Some(_) => {}
                None => return Ok(kiln_core::machine::EndCause::SupervisorLost),
            }
        }
    }

    /// Returns a descriptor that becomes readable when the supervisor has something to tell.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.reports.get_ref().as_fd()
    }

    /// Waits for the next report, or cancellation; none when the supervisor is gone.
    fn next_report(&mut self, engine: &Engine) -> EngineResult<Option<Report>> {
        while self.reports.buffer().is_empty() {
            engine.cancel.check()?;
            let (pipe, cancel) = (self.reports.get_ref().as_fd(), engine.cancel.fd());
            let mut fds = [PollFd::new(&pipe, PollFlags::IN), PollFd::new(&cancel, PollFlags::IN)];
            poll_within(&mut fds, None).at("wait for", "supervisor")?;
            let ready = fds[0].revents();
            if ready.contains(PollFlags::IN) {
                self.reports.fill_buf().at("read from", "supervisor")?;
                if self.reports.buffer().is_empty() {
                    return Ok(None);
                }
            } else if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Ok(None);
            }
        }
        let mut line = String::new();
        self.reports.read_line(&mut line).at("read from", "supervisor")?;
        match serde_json::from_str(&line) {
            Ok(report) => Ok(Some(report)),
            Err(error) => {
                Err(EngineError::SupervisorRefused { name: self.name.clone(), reason: error.to_string() })
            }
        }
    }
}

/// Returns whether a machine is being started by somebody.
pub(crate) fn is_being_started(entry: &MachineEntry) -> EngineResult<bool> {
    Ok(FileLock::is_held(&entry.dir.join(START_LOCK))?)
}
