//! Waits for every child of the process, and as PID 1 for every orphan of the guest.
//!
//! A child must not be reaped between its start and its registration, so starting holds the lock that reaping
//! takes. No other part of the process may wait for children.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, wait, waitid};

use crate::flow::lock;
use crate::message::ExitStatus;

/// How long a process without children waits before it looks for orphans again.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Reaper {
    children: Mutex<Children>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Children {
    waiting: HashMap<i32, Sender<ExitStatus>>,
    /// No child existed when last looked.
    none: bool,
}

impl Reaper {
    /// Starts the reaping thread.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let running = Arc::clone(&reaper);
        thread::Builder::new().name("reaper".to_owned()).spawn(move || running.run())?;
        Ok(reaper)
    }

    /// Starts a child; the receiver hears how it ended.
    pub(super) fn spawn(
        &self,
        start: impl FnOnce() -> io::Result<u32>,
    ) -> io::Result<(Pid, Receiver<ExitStatus>)> {
        let mut children = lock(&self.children);
        let pid = i32::try_from(start()?).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let (sender, receiver) = mpsc::channel();
        children.waiting.insert(pid.as_raw_nonzero().get(), sender);
        children.none = false;
        self.changed.notify_all();
        Ok((pid, receiver))
    }

    /// Waits until the process has no child; `false` at the deadline.
    pub(super) fn wait_none(&self, deadline: Instant) -> bool {
        let mut children = lock(&self.children);
        while !children.none {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            children = self.changed.wait_timeout(children, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn run(&self) {
        loop {
            match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) => self.reap(),
                Err(Errno::INTR) => {}
                Err(_) => {
                    let mut children = lock(&self.children);
                    // A child that was started since is registered; look again at once.
                    if children.waiting.is_empty() {
                        children.none = true;
                        self.changed.notify_all();
                        let waited = self.changed.wait_timeout(children, ORPHAN_INTERVAL);
                        children = waited.unwrap_or_else(PoisonError::into_inner).0;
                    }
                    drop(children);
                }
            }
        }
    }

    fn reap(&self) {
        let mut children = lock(&self.children);
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let status = ExitStatus { code: status.exit_status(), signal: status.terminating_signal() };
            if let Some(sender) = children.waiting.remove(&pid.as_raw_nonzero().get()) {
                // A dropped receiver does not care.
                let _ = sender.send(status);
            }
        }
    }
}
