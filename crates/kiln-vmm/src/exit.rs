//! How a monitor ended, and what that means for its machine.

use crate::console::find_panic;
use kiln_core::machine::EndCause;
use kiln_sys::process::Exit;

/// SIGTERM, assumed where a monitor ended by a signal it caught does not say by which.
const SIGNAL_TERMINATE: i32 = 15;

/// The monitor's own word on why it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownReason {
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked for a reboot, which ends a kiln machine.
    GuestReset,
    /// The guest reported a panic.
    GuestPanic,
    /// A command of the control connection.
    HostQuit,
    /// A signal that the monitor caught.
    HostSignal,
    /// Another one.
    Other(String),
}

impl ShutdownReason {
    /// Reads the reason of a QMP `SHUTDOWN` event.
    pub(crate) fn from_qmp(reason: &str) -> Self {
        match reason {
            "guest-shutdown" => Self::GuestShutdown,
            "guest-reset" => Self::GuestReset,
            "guest-panic" => Self::GuestPanic,
            "host-qmp-quit" => Self::HostQuit,
            "host-signal" => Self::HostSignal,
            other => Self::Other(kiln_core::text::clip(other)),
        }
    }
}

/// What ended a monitor whose end was asked for by [`Machine::stop`](crate::Machine::stop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopStep {
    /// The guest, by its power button.
    Guest,
    /// The monitor, by its `quit` command.
    Quit,
    /// A kill.
    Kill,
}

/// How a monitor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmExit {
    /// Its exit.
    pub exit: Exit,
    /// Its own word on why, where it could say so.
    pub shutdown: Option<ShutdownReason>,
    /// The step of [`Machine::stop`](crate::Machine::stop) that ended it.
    pub stopped_by: Option<StopStep>,
    /// The end of what the guest wrote to its console in this run.
    pub console_tail: String,
    /// The end of what the monitor wrote to standard error in this run.
    pub stderr_tail: String,
}

impl VmmExit {
    /// Returns what the end means. `requested` says that a user had asked for it, by whatever way.
    pub fn cause(&self, requested: bool) -> EndCause {
        if self.stopped_by.is_some() {
            return EndCause::Requested;
        }
        match (self.exit, &self.shutdown) {
            (Exit::Signal(signal), _) => EndCause::VmmKilled { signal },
            (Exit::Code(_), Some(ShutdownReason::HostSignal)) => {
                EndCause::VmmKilled { signal: caught_signal(&self.stderr_tail).unwrap_or(SIGNAL_TERMINATE) }
            }
            (Exit::Code(0), reason) => self.orderly(reason.as_ref(), requested),
            (Exit::Code(code), _) => EndCause::VmmExited { code, message: last_words(&self.stderr_tail) },
        }
    }

    fn orderly(&self, reason: Option<&ShutdownReason>, requested: bool) -> EndCause {
        let panic = find_panic(&self.console_tail);
        match (reason, panic) {
            // A machine that powers off in order has not panicked, whatever its console shows.
            (Some(ShutdownReason::GuestShutdown), _) if requested => EndCause::Requested,
            (Some(ShutdownReason::GuestShutdown), _) => EndCause::GuestShutdown,
            (_, Some(message)) => EndCause::GuestPanic { message },
            (Some(ShutdownReason::GuestPanic), None) => EndCause::GuestPanic { message: String::new() },
            _ if requested => EndCause::Requested,
            (Some(ShutdownReason::GuestReset), None) => EndCause::GuestShutdown,
            (Some(ShutdownReason::HostQuit), None) => EndCause::Requested,
            _ => EndCause::VmmExited { code: 0, message: last_words(&self.stderr_tail) },
        }
    }
}

/// Returns the signal a monitor names in "terminating on signal 15 from pid 1".
fn caught_signal(stderr: &str) -> Option<i32> {
    let (_, rest) = stderr.rsplit_once("terminating on signal ")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Returns the last lines of a monitor's standard error in one line, without its program's name.
pub(crate) fn last_words(stderr: &str) -> String {
    const LINES_MAX: usize = 4;
    const CHARS_MAX: usize = 600;
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let lines = &lines[lines.len().saturating_sub(LINES_MAX)..];
    let clean = |line: &&str| {
        let line = line
            .split_once(": ")
            .filter(|(head, _)| head.starts_with("qemu-system-"))
            .map_or(*line, |(_, rest)| rest);
        line.chars().filter(|c| !c.is_control()).collect::<String>()
    };
    let words = lines.iter().map(clean).collect::<Vec<_>>().join("; ");
    words.chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(exit: Exit, shutdown: Option<ShutdownReason>) -> VmmExit {
        VmmExit { exit, shutdown, stopped_by: None, console_tail: String::new(), stderr_tail: String::new() }
    }

    #[test]
    fn every_end_has_its_cause() {
        use ShutdownReason as Reason;
        let ok = Exit::Code(0);
        for (reason, requested, cause) in [
            (Some(Reason::GuestShutdown), false, EndCause::GuestShutdown),
            (Some(Reason::GuestShutdown), true, EndCause::Requested),
            (Some(Reason::GuestReset), false, EndCause::GuestShutdown),
            (Some(Reason::GuestReset), true, EndCause::Requested),
            (Some(Reason::HostQuit), false, EndCause::Requested),
            (Some(Reason::GuestPanic), false, EndCause::GuestPanic { message: String::new() }),
            (Some(Reason::HostSignal), true, EndCause::VmmKilled { signal: 15 }),
            (None, false, EndCause::VmmExited { code: 0, message: String::new() }),
            (None, true, EndCause::Requested),
        ] {
            assert_eq!(exit(ok, reason.clone()).cause(requested), cause, "{reason:?} {requested}");
        }
        assert_eq!(exit(Exit::Signal(9), None).cause(true), EndCause::VmmKilled { signal: 9 });
        let stopped = VmmExit { stopped_by: Some(StopStep::Kill), ..exit(Exit::Signal(9), None) };
        assert_eq!(stopped.cause(false), EndCause::Requested);
    }

    #[test]
    fn a_panic_on_the_console_explains_a_reset() {
        let mut ended = exit(Exit::Code(0), Some(ShutdownReason::GuestReset));
        ended.console_tail =
            "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n".to_owned();
        let panic = EndCause::GuestPanic { message: "VFS: Unable to mount root fs".to_owned() };
        assert_eq!(ended.cause(false), panic);
        assert_eq!(ended.cause(true), panic);
        ended.shutdown = Some(ShutdownReason::GuestShutdown);
        assert_eq!(ended.cause(false), EndCause::GuestShutdown);
    }

    #[test]
    fn the_monitor_s_words_are_kept_and_cleaned() {
        let mut ended = exit(Exit::Code(1), None);
        ended.stderr_tail =
            "qemu-system-x86_64: -netdev user: Could not set up\x1b host forwarding\n\n".to_owned();
        let message = "-netdev user: Could not set up host forwarding".to_owned();
        assert_eq!(ended.cause(false), EndCause::VmmExited { code: 1, message });
        let mut caught = exit(Exit::Code(0), Some(ShutdownReason::HostSignal));
        caught.stderr_tail = "qemu-system-x86_64: terminating on signal 2 from pid 7 (bash)\n".to_owned();
        assert_eq!(caught.cause(false), EndCause::VmmKilled { signal: 2 });
    }
}
