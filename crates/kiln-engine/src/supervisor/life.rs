//! The life of one machine, from its start by somebody to its last end: readiness, pauses, its time to live, and
//! what its restart policy wants. What it does to the world goes through [`World`], time too, so that tests run it
//! without either.
//!
//! A life has one *run* of the machine monitor after another, with a pause between them that doubles. Until the guest
//! was ready once, an end is final by every policy: whoever started the machine is told.

pub(super) mod capture;
pub(super) mod idle;
mod pause;
mod save;
mod suspend;

use super::backoff::Backoff;
use super::desk::{Desk, News};
use crate::control::{Report, SavedMachine};
use crate::{EngineError, EngineResult};
use capture::CaptureError;
use idle::{Activity, Idle};
use kiln_core::machine::{EndCause, MachineRecord, MachineStatus, Phase};
use kiln_core::text::chain;
use kiln_vmm::lifecycle::{self, Event};
use kiln_vmm::{Captured, Machine, Stop, VmmExit, Waited};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time a guest has to power off when nobody says how much.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Lines of the console that a report of an end carries.
const CONSOLE_LINES: usize = 15;

/// How a guest came to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It boots.
    Booted,
    /// It boots from what the disk of another machine was.
    Copied,
    /// It was another machine, in a snapshot.
    Restored,
    /// It was this machine, suspended.
    Resumed,
}

/// A machine monitor that was launched.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) machine: Box<dyn Machine>,
    /// The accelerator in use.
    pub(super) accelerator: String,
    /// Why that one; empty when there is nothing to say.
    pub(super) reason: String,
    pub(super) arrival: Arrival,
}

/// What a life needs of the world around it.
pub(super) trait World {
    /// Launches the machine monitor.
    fn launch(&mut self) -> EngineResult<Launched>;

    /// Begins to attend to the agent of the given run, which began at `begun`; what it says arrives at the desk.
    fn attend(&mut self, run: u32, begun: Instant, arrival: Arrival) -> EngineResult<()>;

    /// Asks the guest to power off within `grace`; false when there is no agent to ask.
    fn power_off(&mut self, grace: Duration) -> bool;

    /// Sets the guest's clock, which stood while its processors did.
    fn set_clock(&mut self);

    /// Captures the machine and ends it; its files are in the directory then. After an error it is as it was.
    fn capture(
        &mut self,
        machine: &mut dyn Machine,
        into: &Path,
    ) -> Result<(Captured, VmmExit), CaptureError>;

    /// Saves the machine, with its memory where that is wanted; it goes on then where `runs` says that it runs.
    fn save(
        &mut self,
        machine: &mut dyn Machine,
        into: &Path,
        memory: bool,
        runs: bool,
    ) -> Result<SavedMachine, CaptureError>;

    /// Saves the machine and ends it: it can go on then. `runs` says that its guest does. After an error it is as it was.
    fn suspend(&mut self, machine: &mut dyn Machine, runs: bool) -> Result<VmmExit, CaptureError>;

    /// Returns since when the machine is saved, in milliseconds since 1970 (UTC); none when it is not.
    fn saved_since(&mut self) -> Option<u64>;

    /// Returns what the machine does, whose monitor has the process id `pid`; none when that cannot be known.
    fn activity(&mut self, pid: u32) -> Option<Activity>;

    /// Keeps the status.
    fn keep(&mut self, status: &MachineStatus) -> EngineResult<()>;

    /// Tells whoever started the machine.
    fn report(&mut self, report: &Report);

    /// Waits for the machine's end where there is one, for `wake`, or for the time to pass.
    fn wait(
        &mut self,
        machine: Option<&mut dyn Machine>,
        timeout: Option<Duration>,
        wake: BorrowedFd<'_>,
    ) -> EngineResult<Waited>;

    /// Returns the time that goes on steadily.
    fn now(&self) -> Instant;

    /// Returns the time of day, in milliseconds since 1970 (UTC).
    fn now_unix_ms(&self) -> u64;
}

/// How one run of the machine monitor ended.
struct RunEnd {
    cause: EndCause,
    console: Vec<String>,
}

/// A machine's life, driven by one thread: the one its monitors are bound to.
pub(super) struct Life<W> {
    pub(super) world: W,
    record: MachineRecord,
    status: MachineStatus,
    desk: Arc<Desk>,
    /// When this run began.
    begun: Instant,
    /// When the time to live will have passed.
    expires: Option<Instant>,
    /// Whether it has passed, and ends the machine.
    expired: bool,
    /// Whether the guest was ready, in any run.
    was_ready: bool,
    /// Whether somebody wants the machine to end.
    unwanted: bool,
    /// Whether the machine is idle, where that is to suspend it and the guest is ready.
    idle: Option<Idle>,
    /// Why the run ends, where that is decided here and not by the machine monitor's exit.
    verdict: Option<EndCause>,
}

impl<W: World> Life<W> {
    /// Begins the life of a machine that somebody started. `before` is what became of it so far. The time to live of one that
    /// was suspended went on.
    pub(super) fn begin(
        world: W,
        record: MachineRecord,
        before: &MachineStatus,
        supervisor_pid: u32,
        desk: Arc<Desk>,
    ) -> EngineResult<Self> {
        let (begun, begun_unix_ms) = (world.now(), world.now_unix_ms());
        let goes_on = before.phase == Phase::Suspended;
        let expires_unix_ms = match before.expires_unix_ms {
            Some(expires) if goes_on => Some(expires),
            _ => record.ttl_ms.map(|ttl| begun_unix_ms.saturating_add(ttl)),
        };
        let status = MachineStatus {
            phase: before.phase,
            supervisor_pid: Some(supervisor_pid),
            started_unix_ms: Some(begun_unix_ms),
            expires_unix_ms,
            restarts: if goes_on { before.restarts } else { 0 },
            ..MachineStatus::created()
        };
        // A time to live that no clock reaches is none.
        let left = expires_unix_ms.map(|at| Duration::from_millis(at.saturating_sub(begun_unix_ms)));
        let expires = left.and_then(|left| begun.checked_add(left));
        let mut life = Self {
            world,
            record,
            status,
            desk,
            begun,
            expires,
            expired: false,
            was_ready: false,
            unwanted: false,
            idle: None,
            verdict: None,
        };
        life.take(&Event::StartRequested)?;
        Ok(life)
    }

    /// Takes an event into the record.
    fn take(&mut self, event: &Event) -> EngineResult<()> {
        let transition = lifecycle::next(self.status.phase, event).map_err(|refused| {
            EngineError::SupervisorRefused { name: self.record.name.to_string(), reason: refused.to_string() }
        })?;
        self.status.phase = transition.to;
        if transition.end.is_some() {
            self.status.end = transition.end;
        }
        self.desk.set_phase(transition.to);
        self.world.keep(&self.status)
    }

    /// Lives to the last end; returns why that was and the console's last lines.
    pub(super) fn live(&mut self) -> (EndCause, Vec<String>) {
        let mut backoff = Backoff::default();
        loop {
            let RunEnd { cause, console } = self.run();
            let restarts = self.was_ready
                && !self.unwanted
                && self.record.restart.restarts(&cause, self.status.restarts);
            if !restarts {
                return (cause, console);
            }
            let ran_for = self.world.now().saturating_duration_since(self.begun);
            match self.rest(&cause, backoff.after(ran_for)) {
                Ok(None) => {}
                Ok(Some(end)) => return (end, console),
                Err(error) => return (EndCause::StartFailed { message: chain(&error) }, console),
            }
        }
    }

    /// Runs the machine monitor once, to its end.
    fn run(&mut self) -> RunEnd {
        let mut launched = match self.launch() {
            Ok(machine) => machine,
            Err(error) => {
                let cause = EndCause::StartFailed { message: chain(&error) };
                return RunEnd { cause, console: Vec::new() };
            }
        };
        match self.watch(launched.as_mut()) {
            Ok(exit) => {
                let requested = self.status.phase == Phase::Stopping;
                let cause = self.verdict.take().unwrap_or_else(|| exit.cause(requested));
                // Whatever the guest did in the time it was given, it ended because that was asked of it.
                let clean = matches!(
                    cause,
                    EndCause::GuestShutdown | EndCause::Requested | EndCause::EntrypointExited { .. }
                );
                let cause = if self.expired && clean { EndCause::Expired } else { cause };
                RunEnd { cause, console: last_lines(&exit.console_tail) }
            }
            Err(error) => {
                drop(launched);
                let cause = EndCause::VmmExited { code: -1, message: chain(&error) };
                RunEnd { cause, console: Vec::new() }
            }
        }
    }

    fn launch(&mut self) -> EngineResult<Box<dyn Machine>> {
        let Launched { machine, accelerator, reason, arrival } = self.world.launch()?;
        let restored = matches!(arrival, Arrival::Restored | Arrival::Resumed);
        self.status.vmm_pid = Some(machine.pid());
        self.status.accelerator = Some(accelerator.clone());
        self.status.restored = restored;
        // The record is written while the guest is greeted.
        self.world.attend(self.desk.run(), self.begun, arrival)?;
        self.take(&Event::VmmStarted)?;
        self.world.report(&Report::Started { accelerator, reason, restored });
        Ok(machine)
    }

    /// Acts on what happens until the machine monitor has ended.
    fn watch(&mut self, machine: &mut dyn Machine) -> EngineResult<VmmExit> {
        let mut give_up: Option<Instant> = None;
        let desk = Arc::clone(&self.desk);
        loop {
            let look = self.idle.as_ref().map(Idle::next).filter(|_| give_up.is_none());
            let until = give_up.into_iter().chain(self.expiry()).chain(look).min();
            let left = until.map(|at| at.saturating_duration_since(self.world.now()));
            match self.world.wait(Some(machine), left, desk.fd())? {
                Waited::Ended(exit) => {
                    // The last news may have arrived together with the end.
                    self.note(&desk.take());
                    return Ok(exit);
                }
                Waited::TimedOut => {
                    if give_up.is_some_and(|at| at <= self.world.now()) {
                        return Ok(machine.stop(Stop::Now)?);
                    }
                    if self.expires_now()
                        && let Some(exit) = self.end(machine, GRACE, &mut give_up)?
                    {
                        return Ok(exit);
                    }
                    if look.is_some_and(|at| at <= self.world.now())
                        && let Some(exit) = self.look_idle(machine)?
                    {
                        return Ok(exit);
                    }
                    continue;
                }
                Waited::Woken => {}
            }
            let news = desk.take();
            self.note(&news);
            for news in news {
                if let Some(exit) = self.hear(machine, news, &mut give_up)? {
                    return Ok(exit);
                }
            }
        }
    }

    /// Acts on one piece of news; returns how the machine ended, where it did.
    fn hear(
        &mut self,
        machine: &mut dyn Machine,
        news: News,
        give_up: &mut Option<Instant>,
    ) -> EngineResult<Option<VmmExit>> {
        match news {
            News::Ready => {
                let took = self.world.now().saturating_duration_since(self.begun);
                let after_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                self.status.ready_after_ms = Some(after_ms);
                self.was_ready = true;
                self.take(&Event::GuestReady)?;
                // The record says so before anybody is told.
                if self.status.phase == Phase::Running {
                    self.desk.set_ready();
                }
                self.world.report(&Report::Ready { after_ms });
                let after = self.record.idle_suspend_ms.map(Duration::from_millis);
                self.idle = after.map(|after| Idle::new(after, self.world.now()));
            }
            News::StopRequested { grace } => return self.end(machine, grace, give_up),
            News::OwnerLost => {
                self.verdict = Some(EndCause::ClientLost);
                return Ok(Some(machine.stop(Stop::Now)?));
            }
            News::NeverReady { reason } => {
                self.verdict = Some(EndCause::NeverReady { reason });
                return Ok(Some(machine.stop(Stop::Kill)?));
            }
            News::Pause(reply) => reply.give(self.pause(machine)),
            News::Resume(reply) => reply.give(self.resume(machine)),
            News::Suspend(reply) => return self.suspend(machine, reply),
            News::Capture { into, reply } => return self.capture(machine, &into, &reply),
            News::Save { into, memory, reply } => self.save(machine, &into, memory, &reply)?,
            News::EntrypointExited { .. } => {}
        }
        Ok(None)
    }

    /// Ends the machine: the guest, resumed where it was paused, has `grace` to power off. Returns how it ended where
    /// that is not waited for.
    fn end(
        &mut self,
        machine: &mut dyn Machine,
        grace: Duration,
        give_up: &mut Option<Instant>,
    ) -> EngineResult<Option<VmmExit>> {
        let paused = self.status.phase == Phase::Paused;
        self.unwanted = true;
        self.take(&Event::StopRequested)?;
        let heard = !grace.is_zero() && (!paused || machine.resume().is_ok()) && self.world.power_off(grace);
        if !heard {
            // Where there is no agent to ask, there is a power button.
            let by_button = !self.record.has_agent() && !grace.is_zero();
            let stop = if by_button { Stop::Graceful { within: grace } } else { Stop::Now };
            return Ok(Some(machine.stop(stop)?));
        }
        let at = self.world.now() + grace;
        *give_up = Some(give_up.map_or(at, |earlier| earlier.min(at)));
        Ok(None)
    }

    /// Waits between two runs. Returns why there is no next one, where somebody does not want it.
    fn rest(&mut self, cause: &EndCause, delay: Duration) -> EngineResult<Option<EndCause>> {
        self.desk.end_run();
        self.idle = None;
        self.status.vmm_pid = None;
        self.status.ready_after_ms = None;
        self.status.paused_unix_ms = None;
        self.status.ended_unix_ms = Some(self.world.now_unix_ms());
        self.status.end = Some(cause.clone());
        self.take(&Event::RestartDue)?;
        let until = self.world.now() + delay;
        let desk = Arc::clone(&self.desk);
        while self.world.now() < until {
            let at = self.expiry().map_or(until, |expiry| expiry.min(until));
            let left = at.saturating_duration_since(self.world.now());
            self.world.wait(None, Some(left), desk.fd())?;
            for news in desk.take() {
                match news {
                    News::StopRequested { .. } => {
                        self.take(&Event::StopRequested)?;
                        return Ok(Some(EndCause::Requested));
                    }
                    News::OwnerLost => return Ok(Some(EndCause::ClientLost)),
                    News::Pause(reply) | News::Resume(reply) | News::Suspend(reply) => {
                        reply.give(Err("it is starting".to_owned()));
                    }
                    News::Capture { reply, .. } => {
                        // Whoever asked may have gone.
                        let _ = reply.send(Err("it is starting".to_owned()));
                    }
                    News::Save { reply, .. } => {
                        // Whoever asked may have gone.
                        let _ = reply.send(Err("it is starting".to_owned()));
                    }
                    // Of the run that is over.
                    News::Ready | News::NeverReady { .. } | News::EntrypointExited { .. } => {}
                }
            }
            if self.expires_now() {
                return Ok(Some(EndCause::Expired));
            }
        }
        self.begun = self.world.now();
        self.status.started_unix_ms = Some(self.world.now_unix_ms());
        self.status.ended_unix_ms = None;
        self.status.end = None;
        self.status.restarts = self.status.restarts.saturating_add(1);
        self.verdict = None;
        Ok(None)
    }

    /// Returns when the time to live is to be heard of.
    fn expiry(&self) -> Option<Instant> {
        self.expires.filter(|_| !self.expired && !self.unwanted)
    }

    /// Remembers that the time to live has passed; true once.
    fn expires_now(&mut self) -> bool {
        let now = self.world.now();
        let passed = self.expiry().is_some_and(|at| at <= now);
        self.expired |= passed;
        passed
    }

    /// Remembers news that explain an end, before any of them is acted on.
    fn note(&mut self, news: &[News]) {
        for news in news {
            match news {
                News::EntrypointExited { code } => {
                    self.verdict = Some(EndCause::EntrypointExited { code: *code });
                }
                News::StopRequested { .. } | News::OwnerLost => self.unwanted = true,
                _ => {}
            }
        }
    }

    /// Whether it is suspended now.
    pub(super) fn is_suspended(&self) -> bool {
        self.status.phase == Phase::Suspended
    }

    /// Writes the last word.
    pub(super) fn bury(&mut self, end: EndCause) -> EngineResult<()> {
        self.status.supervisor_pid = None;
        self.status.vmm_pid = None;
        self.status.ended_unix_ms = Some(self.world.now_unix_ms());
        // Its guest has not run since it was saved, whatever this life came to.
        let saved = self.world.saved_since().filter(|_| self.status.phase != Phase::Stopping);
        self.status.suspended_unix_ms = saved;
        self.status.paused_unix_ms = None;
        let event = match end {
            _ if saved.is_some() => Event::VmmExited(EndCause::Suspended),
            EndCause::StartFailed { message } => Event::StartFailed { message },
            cause => Event::VmmExited(cause),
        };
        self.take(&event)
    }
}

/// Returns the last lines of a console, without control characters.
pub(crate) fn last_lines(console: &str) -> Vec<String> {
    let lines: Vec<String> = console
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].to_vec()
}

#[cfg(test)]
pub(super) mod tests;
