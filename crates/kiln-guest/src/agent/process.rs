//! A running program: its process group and terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::termios::{Winsize, tcsetwinsize};

use super::exec::timespec;
use super::raw;
use crate::message::TtySize;

/// Time between `SIGHUP` and `SIGKILL` for a program whose stream was abandoned.
const HANGUP_GRACE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    /// Becomes readable with its end.
    ended: OwnedFd,
    terminal: Option<OwnedFd>,
}

impl Process {
    pub(super) fn new(pid: Pid, ended: OwnedFd, terminal: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { pid, ended, terminal })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns what becomes readable with its end.
    pub(super) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Waits for its end; `false` when the time was over first.
    fn ends_within(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.ended, PollFlags::IN)];
            if poll(&mut fds, timespec(left).as_ref()).is_ok_and(|ready| ready > 0) {
                return true;
            }
            if left == Duration::ZERO {
                return false;
            }
        }
    }

    /// Signals the group; the number of a group that is gone may be another's.
    pub(super) fn signal(&self, number: i32) {
        if !self.ends_within(Duration::ZERO)
            && let Some(signal) = raw::signal(number)
        {
            // The group may end at any time.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    pub(super) fn resize(&self, size: TtySize) {
        if let Some(terminal) = &self.terminal {
            // A terminal without a program has no size worth reporting.
            let _ = tcsetwinsize(terminal, winsize(size));
        }
    }

    /// Ends the group: `SIGHUP`, a moment, `SIGKILL`.
    pub(super) fn kill(self: &Arc<Self>) {
        let _ = kill_process_group(self.pid, Signal::HUP);
        let process = Arc::clone(self);
        let killer = thread::Builder::new().name("kill".to_owned()).spawn(move || {
            process.ends_within(HANGUP_GRACE);
            // What the leader left behind is in the group still.
            let _ = kill_process_group(process.pid, Signal::KILL);
        });
        if killer.is_err() {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}

/// Converts a size for the kernel.
pub(super) fn winsize(size: TtySize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}
