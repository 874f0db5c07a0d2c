//! Programs that are run for what they cost.

use super::{Ending, ExitText, Tool, ToolError, read_lines};
use crate::cancel::Cancel;
use crate::error::IoResultExt as _;
use crate::measure::{Usage, collect};
use crate::process::{Bond, Exit, bind, exit_of, kill_group, poll_within};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

impl Tool {
    /// Runs the tool to its end and says what it took. Its standard output is thrown away; it may write no more than a
    /// pipe holds to standard error.
    pub fn measure(self, cancel: &Cancel) -> Result<Usage, ToolError> {
        if cancel.is_cancelled() {
            return Err(ToolError::Cancelled { name: self.name });
        }
        #[expect(clippy::disallowed_methods, reason = "this is where programs are run")]
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env.iter().map(|(k, v)| (k, v)));
        command
            .current_dir(&self.current_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        bind(&mut command, Bond::DiesWithParent);
        let begun = Instant::now();
        let mut child = command.spawn().at("start", &self.program)?;
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let ending =
            pidfd.map_err(io::Error::from).and_then(|pidfd| wait(&pidfd, cancel, begun + self.deadline));
        let wall = begun.elapsed();
        kill_group(child.id());
        let (status, cpu, resident) = collect(child.id(), &self.program)?;
        let stderr = child.stderr.take().map_or(String::new(), |pipe| read_lines(pipe, &mut |_| ()));
        let name = self.name;
        match ending.at("wait for", &self.program)? {
            Ending::Exit(_) => {}
            Ending::Cancelled => return Err(ToolError::Cancelled { name }),
            Ending::TimedOut => return Err(ToolError::TimedOut { name, after: self.deadline, stderr }),
        }
        match exit_of(ExitStatus::from_raw(status)) {
            Exit::Code(0) => Ok(Usage { wall, cpu, resident_max: Some(resident) }),
            exit => Err(ToolError::Failed { name, exit: ExitText(exit), stderr }),
        }
    }
}

/// Waits for a child's end and leaves its status to be collected.
fn wait(pidfd: &OwnedFd, cancel: &Cancel, until: Instant) -> io::Result<Ending> {
    loop {
        let cancelled = cancel.fd();
        let mut fds = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(&cancelled, PollFlags::IN)];
        let left = until.saturating_duration_since(Instant::now());
        poll_within(&mut fds, Some(left))?;
        if !fds[0].revents().is_empty() {
            return Ok(Ending::Exit(Exit::Code(0)));
        }
        match (cancel.is_cancelled(), left == Duration::ZERO) {
            (true, _) => return Ok(Ending::Cancelled),
            (_, true) => return Ok(Ending::TimedOut),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::Toolbox;

    fn sh(script: &str) -> Tool {
        Toolbox::default().find("sh").unwrap().arg("-c").arg(script)
    }

    #[test]
    fn a_program_is_charged_with_its_children() {
        let cancel = Cancel::new().unwrap();
        let alone = sh(":").measure(&cancel).unwrap();
        let spins = "(i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done); :";
        let busy = sh(spins).measure(&cancel).unwrap();
        assert!(busy.cpu > alone.cpu && busy.wall > Duration::ZERO, "{alone:?} {busy:?}");
        assert!(alone.resident_max.is_some_and(|bytes| bytes > 100_000), "{alone:?}");
    }

    #[test]
    fn failures_and_cancellation_are_told() {
        let cancel = Cancel::new().unwrap();
        let error = sh("echo why >&2; exit 3").measure(&cancel).unwrap_err();
        assert_eq!(error.to_string(), "`sh` failed: exit code 3; it said:\nwhy");
        let late = sh("exec sleep 1000").deadline(Duration::from_millis(20)).measure(&cancel);
        assert!(matches!(late, Err(ToolError::TimedOut { .. })));
        cancel.cancel();
        assert!(matches!(sh("exec sleep 1000").measure(&cancel), Err(ToolError::Cancelled { .. })));
    }
}
