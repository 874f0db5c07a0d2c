//! A running program: its process group and terminal.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::termios::{Winsize, tcsetwinsize};

use super::raw;
use crate::flow::lock;
use crate::message::TtySize;

/// Time between `SIGHUP` and `SIGKILL` for a program whose stream was abandoned.
const HANGUP_GRACE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    terminal: Option<OwnedFd>,
    exited: Mutex<bool>,
    changed: Condvar,
}

impl Process {
    pub(super) fn new(pid: Pid, terminal: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { pid, terminal, exited: Mutex::new(false), changed: Condvar::new() })
    }

    /// Signals the group; the number of a group that is gone is not used again while this program is known.
    pub(super) fn signal(&self, number: i32) {
        let exited = lock(&self.exited);
        if !*exited && let Some(signal) = raw::signal(number) {
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

    pub(super) fn set_exited(&self) {
        *lock(&self.exited) = true;
        self.changed.notify_all();
    }

    /// Ends the group: `SIGHUP`, a moment, `SIGKILL`.
    pub(super) fn kill(self: &Arc<Self>) {
        let _ = kill_process_group(self.pid, Signal::HUP);
        let process = Arc::clone(self);
        let killer = thread::Builder::new().name("kill".to_owned()).spawn(move || {
            let deadline = Instant::now() + HANGUP_GRACE;
            let mut exited = lock(&process.exited);
            while !*exited {
                let left = deadline.saturating_duration_since(Instant::now());
                if left == Duration::ZERO {
                    break;
                }
                exited = process.changed.wait_timeout(exited, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(exited);
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
