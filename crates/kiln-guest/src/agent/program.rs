//! Runs a program of the image for the agent itself: no input, a clean environment, a time limit, output taken as it
//! comes.
//!
//! The program leads a session and a process group. One that is out of time is killed with its group; what a program
//! leaves behind when it ends by itself lives on, without an output.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, kill_process_group};

use super::exec::timespec;
use super::launch::{self, DEFAULT_PATH, Launched, Spec, Streams};
use super::process::Process;
use super::reaper::Reaper;
use super::stream::AgentStream;
use crate::hook::{HookCause, HookTimeout};
use crate::message::{ExecRequest, ExitStatus};

/// How long a killed program may take to end.
const KILL_WAIT: Duration = Duration::from_secs(2);

const READ_BYTES: usize = 4096;

/// Most bytes taken from one output after the program's end, so that what it left behind cannot go on for ever.
const REST_BYTES_MAX: usize = 256 * 1024;

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// Path and arguments.
    pub(super) argv: Vec<String>,
    /// Environment beside `PATH`.
    pub(super) env: BTreeMap<String, String>,
    pub(super) limit: HookTimeout,
}

/// Which of its outputs a program wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

/// Runs programs.
pub(super) trait Runner {
    /// Runs a program to its end, handing over its output in pieces.
    fn run(&self, program: Program, take: &mut dyn FnMut(Output, &[u8])) -> Result<(), HookCause>;
    /// Returns whether the host has given up what this is for.
    fn abandoned(&self) -> bool;
}

/// Runs programs for a stream: its end is theirs.
pub(super) struct Programs<'a> {
    reaper: &'a Reaper,
    stream: &'a Arc<AgentStream>,
}

impl<'a> Programs<'a> {
    pub(super) fn new(reaper: &'a Reaper, stream: &'a Arc<AgentStream>) -> Self {
        Self { reaper, stream }
    }

    fn start(&self, program: Program) -> Result<Running, HookCause> {
        let reason = |what: &'static str| {
            move |error: Errno| HookCause::NotStarted { reason: format!("cannot {what}: {error}") }
        };
        let (stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC).map_err(reason("make a pipe"))?;
        let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC).map_err(reason("make a pipe"))?;
        for output in [&stdout, &stderr] {
            let flags = fcntl_getfl(output).map_err(reason("read a pipe"))?;
            fcntl_setfl(output, flags | OFlags::NONBLOCK).map_err(reason("read a pipe"))?;
        }
        let null = File::open("/dev/null")
            .map_err(|error| HookCause::NotStarted { reason: format!("cannot open /dev/null: {error}") })?;
        let mut env = program.env;
        env.insert("PATH".to_owned(), DEFAULT_PATH.to_owned());
        let request = ExecRequest { argv: program.argv, env, clear_env: true, ..ExecRequest::default() };
        let spec = Spec::new(request, false);
        let streams = Streams { stdin: null.into(), stdout: their_stdout, stderr: their_stderr };
        let Launched { process, exited } = launch::start(self.reaper, &spec, streams, None)
            .map_err(|error| HookCause::NotStarted { reason: error.message })?;
        self.stream.set_process(&process);
        Ok(Running { process, exited, outputs: [Some(File::from(stdout)), Some(File::from(stderr))] })
    }
}

impl Runner for Programs<'_> {
    fn run(&self, program: Program, take: &mut dyn FnMut(Output, &[u8])) -> Result<(), HookCause> {
        let limit = program.limit;
        let deadline = Instant::now() + limit.duration();
        if self.abandoned() {
            return Err(HookCause::Abandoned);
        }
        let mut running = self.start(program)?;
        let in_time = running.pump(deadline, take);
        if !in_time {
            // Its end was not seen, so the number is still its own.
            let _ = kill_process_group(running.process.pid(), Signal::KILL);
        }
        let status = running.exited.recv_timeout(KILL_WAIT);
        self.stream.clear_process();
        running.rest(take);
        match status {
            _ if self.abandoned() => Err(HookCause::Abandoned),
            _ if !in_time => Err(HookCause::TimedOut { limit_ms: limit.into() }),
            Ok(ExitStatus { code: Some(0), .. }) => Ok(()),
            Ok(ExitStatus { code: Some(code), .. }) => Err(HookCause::Exited { code }),
            Ok(ExitStatus { signal, .. }) => Err(HookCause::Killed { signal: signal.unwrap_or(0) }),
            Err(_) => Err(HookCause::Unknown),
        }
    }

    fn abandoned(&self) -> bool {
        self.stream.is_over()
    }
}

struct Running {
    process: Arc<Process>,
    exited: Receiver<ExitStatus>,
    outputs: [Option<File>; 2],
}

impl Running {
    /// Takes output until the program ends; `false` at the deadline.
    fn pump(&mut self, deadline: Instant, take: &mut dyn FnMut(Output, &[u8])) -> bool {
        let process = Arc::clone(&self.process);
        let ended = process.ended();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
            fds.extend(self.outputs.iter().flatten().map(|output| PollFd::new(output, PollFlags::IN)));
            match poll(&mut fds, timespec(left).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
            let over = fds.first().is_some_and(|fd| !fd.revents().is_empty());
            drop(fds);
            if over {
                return true;
            }
            for which in [Output::Stdout, Output::Stderr] {
                self.read(which, take);
            }
        }
    }

    /// Takes what is left in the pipes.
    fn rest(&mut self, take: &mut dyn FnMut(Output, &[u8])) {
        for which in [Output::Stdout, Output::Stderr] {
            let mut taken = 0;
            while taken < REST_BYTES_MAX {
                match self.read(which, take) {
                    0 => break,
                    count => taken += count,
                }
            }
        }
    }

    /// Reads once without waiting; closes an output at its end.
    fn read(&mut self, which: Output, take: &mut dyn FnMut(Output, &[u8])) -> usize {
        let [stdout, stderr] = &mut self.outputs;
        let output = match which {
            Output::Stdout => stdout,
            Output::Stderr => stderr,
        };
        let Some(file) = output else { return 0 };
        let mut buffer = [0; READ_BYTES];
        match file.read(&mut buffer) {
            Ok(count) if count > 0 => {
                take(which, buffer.get(..count).unwrap_or_default());
                count
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            _ => {
                *output = None;
                0
            }
        }
    }
}
