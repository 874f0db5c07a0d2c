//! Long-lived children: machine monitors and supervisors.

use crate::error::{IoError, IoResult, IoResultExt};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

/// What to start, and with what.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program's file.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [OsString],
    /// Its whole environment.
    pub env: &'a [(OsString, OsString)],
    /// Its working directory.
    pub current_dir: &'a Path,
    /// Standard output; none means a pipe.
    pub stdout: Output,
    /// Standard error.
    pub stderr: File,
    /// How it is bound to the caller.
    pub bond: Bond,
}

/// Where standard output goes.
#[derive(Debug)]
pub enum Output {
    /// A pipe that [`Child::stdout`] reads.
    Pipe,
    /// A file.
    File(File),
}

/// How a child is bound to the process that starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bond {
    /// The kernel kills the child when the *thread* that started it ends.
    DiesWithParent,
    /// The child leads its own session and outlives its parent.
    Detached,
}

/// A started child.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Child {
    /// Starts a child.
    pub fn spawn(spawn: Spawn<'_>) -> IoResult<Self> {
        #[expect(clippy::disallowed_methods, reason = "this is where children come from")]
        let mut command = Command::new(spawn.program);
        command.args(spawn.args).env_clear().envs(spawn.env.iter().map(|(k, v)| (k, v)));
        command.current_dir(spawn.current_dir).stdin(Stdio::null()).stderr(spawn.stderr);
        match spawn.stdout {
            Output::Pipe => command.stdout(Stdio::piped()),
            Output::File(file) => command.stdout(file),
        };
        bind(&mut command, spawn.bond);
        let inner = command.spawn().at("start", spawn.program)?;
        Self::adopt(inner, spawn.program)
    }

    pub(crate) fn adopt(inner: std::process::Child, program: &Path) -> IoResult<Self> {
        let pidfd = rustix::process::pidfd_open(pid_of(&inner), PidfdFlags::empty()).at("watch", program)?;
        Ok(Self { inner, pidfd, status: None })
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// Returns a descriptor that becomes readable when the child ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Takes the pipe from the child's standard output.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.inner.stdout.take()
    }

    pub(crate) fn stdin(&mut self) -> Option<ChildStdin> {
        self.inner.stdin.take()
    }

    /// Sends a signal to the child, and only to it: a reused process id cannot be hit.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other.map_err(Into::into),
        }
    }

    /// Returns how the child ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<Exit>> {
        if self.status.is_none() {
            self.status = self.inner.try_wait()?;
        }
        Ok(self.status.map(exit_of))
    }

    /// Waits for the child's end.
    pub fn wait(&mut self) -> io::Result<Exit> {
        let status = match self.status {
            Some(status) => status,
            None => self.inner.wait()?,
        };
        self.status = Some(status);
        Ok(exit_of(status))
    }

    /// Waits for the child's end at most `timeout`.
    pub fn wait_within(&mut self, timeout: std::time::Duration) -> io::Result<Option<Exit>> {
        use rustix::event::{PollFd, PollFlags};
        let deadline = std::time::Instant::now() + timeout;
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(Some(exit));
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            poll_within(&mut fds, Some(left))?;
        }
    }
}

/// Polls descriptors for at most `timeout`; an interrupted poll counts as one without result.
pub fn poll_within(
    fds: &mut [rustix::event::PollFd<'_>],
    timeout: Option<std::time::Duration>,
) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| rustix::time::Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(ready) => Ok(ready),
        Err(rustix::io::Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_child(child)
}

/// Binds a command to this process in the wanted way.
pub(crate) fn bind(command: &mut Command, bond: Bond) {
    let parent = rustix::process::getpid();
    let hook = move || {
        match bond {
            Bond::DiesWithParent => {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have ended between fork and the line above.
                if rustix::process::getppid() != Some(parent) {
                    return Err(io::Error::from(io::ErrorKind::BrokenPipe));
                }
            }
            Bond::Detached => {
                rustix::process::setsid()?;
            }
        }
        Ok(())
    };
    if bond == Bond::DiesWithParent {
        command.process_group(0);
    }
    #[expect(unsafe_code, reason = "the kernel ties a child to its parent only from within the child")]
    // SAFETY: the hook runs between fork and exec; it only makes system calls (prctl, getppid, setsid) that are
    // async-signal-safe, takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(hook);
    }
}

/// Kills a whole process group, for children started with [`Bond::DiesWithParent`].
pub(crate) fn kill_group(id: u32) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // A group that is gone is what is wanted.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

/// A process as its id and start time tell it from later ones with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// The process id.
    pub id: u32,
    /// Clock ticks from the host's start to the process's.
    pub start_ticks: u64,
}

/// Returns the identity of the process `id`, if it lives (a zombie does not).
pub fn identity(id: u32) -> Option<ProcessIdentity> {
    let stat = crate::fs::read_text_limited(&PathBuf::from(format!("/proc/{id}/stat")), 4096).ok()?;
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    Some(ProcessIdentity { id, start_ticks: fields.nth(18)?.parse().ok()? })
}

/// Kills the process when `still_it` says of its pidfd-pinned self that it is the one meant.
pub fn kill_if(id: u32, still_it: impl FnOnce() -> bool) -> io::Result<bool> {
    let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else { return Ok(false) };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if !still_it() {
        return Ok(false);
    }
    rustix::process::pidfd_send_signal(&pidfd, Signal::KILL)?;
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    poll_within(&mut fds, Some(std::time::Duration::from_secs(5)))?;
    Ok(true)
}

/// Returns the words of the command line of a process, where it can be read.
pub fn command_line(id: u32) -> Option<Vec<OsString>> {
    let bytes = crate::fs::read_limited(&PathBuf::from(format!("/proc/{id}/cmdline")), 1 << 20).ok()?;
    Some(
        bytes
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(word).to_owned())
            .collect(),
    )
}

/// Has another program take this process's place, with its environment, terminal and files. Returns only why it could not.
pub fn replace(program: &Path, args: &[OsString]) -> IoError {
    #[expect(clippy::disallowed_methods, reason = "this is where programs are run")]
    let source = Command::new(program).args(args).exec();
    IoError { action: "start", path: program.to_owned(), source }
}

/// Lets go of this process's standard output: whoever reads it sees its end.
pub fn close_stdout() -> IoResult<()> {
    let null = Path::new("/dev/null");
    let file = crate::fs::open_rw(null)?;
    rustix::stdio::dup2_stdout(&file).at("replace standard output by", null)
}

/// Collects children that ended while nobody waited for them.
pub fn reap_any() -> Option<i32> {
    let (pid, _) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
    Some(pid.as_raw_nonzero().get())
}

/// Returns whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns this program's own file.
pub fn own_program() -> Result<PathBuf, IoError> {
    std::env::current_exe().at("find", "/proc/self/exe")
}
