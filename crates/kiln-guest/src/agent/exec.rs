//! Runs a program for a stream: pipes or a terminal, and the threads that pump them.
//!
//! The program is started through the trampoline, which becomes it. The end is reported when the program has
//! ended and its output is drained; a child it left behind that keeps the output open and silent does not
//! delay the end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::tcsetwinsize;

use super::process::{Process, winsize};
use super::reaper::Reaper;
use super::stream::{AgentStream, Input};
use super::trampoline::{self, Spec};
use crate::error::{ErrorKind, RemoteError};
use crate::frame::Channel;
use crate::message::{ExecRequest, ExitStatus, Opened};

/// How long output may be silent after the program's end before it counts as drained.
const DRAIN_IDLE: Duration = Duration::from_millis(500);

/// Ends a terminal's input.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

const PUMP_STACK_BYTES: usize = 256 * 1024;

/// What the program and the agent hold of its standard streams.
struct Wiring {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    ours: Ours,
}

struct Ours {
    stdin: Option<OwnedFd>,
    outputs: Vec<(Channel, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

/// Serves an `Exec` stream to its end.
pub(super) fn run(reaper: &Reaper, stream: &Arc<AgentStream>, input: Receiver<Input>, request: ExecRequest) {
    let tty = request.tty.is_some();
    let started = request.check().and_then(|()| wire(&request)).and_then(|wiring| {
        let spec = Spec::new(request, tty);
        let (pid, exited) = start(reaper, &spec, wiring.stdin, wiring.stdout, wiring.stderr)?;
        Ok((pid, exited, wiring.ours))
    });
    let (pid, exited, ours) = match started {
        Ok(started) => started,
        Err(error) => return stream.fail(&error),
    };
    let process = Process::new(pid, ours.terminal);
    stream.opened(&Opened { pid: u32::try_from(pid.as_raw_nonzero().get()).ok(), ..Opened::default() });
    stream.set_process(&process);
    let status = pump(stream, input, ours.stdin, ours.outputs, &process, &exited, tty);
    match status {
        Ok(status) => stream.exit(status),
        Err(error) => {
            process.kill();
            stream.fail(&error);
        }
    }
}

/// Starts a program through the trampoline and waits until it is itself.
pub(super) fn start(
    reaper: &Reaper,
    spec: &Spec,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<(Pid, Receiver<ExitStatus>), RemoteError> {
    let io = |what: &'static str| move |error| RemoteError::from_io(what, &error);
    let (control, theirs) = UnixStream::pair().map_err(io("cannot make a socket pair"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(trampoline::MODE).env_clear();
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    let (pid, exited) = reaper
        .spawn(|| command.spawn().map(|child| child.id()))
        .map_err(io("cannot start /proc/self/exe"))?;
    // The command holds the other end of the socket and the program's side of the pipes.
    drop(command);
    trampoline::send_spec(&control, spec, stdin).map_err(io("cannot talk to the trampoline"))?;
    let mut answer = Vec::new();
    let limit = trampoline::ANSWER_BYTES_MAX;
    control.take(limit).read_to_end(&mut answer).map_err(io("cannot talk to the trampoline"))?;
    if answer.is_empty() {
        return Ok((pid, exited));
    }
    Err(serde_json::from_slice(&answer)
        .unwrap_or_else(|_| RemoteError::new(ErrorKind::Io, "the trampoline gave no reason")))
}

fn wire(request: &ExecRequest) -> Result<Wiring, RemoteError> {
    let io = |what: &'static str| move |error: Errno| RemoteError::from_io(what, &error.into());
    if let Some(size) = request.tty {
        let terminal = || -> Result<(OwnedFd, OwnedFd), Errno> {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let master = openpt(flags)?;
            unlockpt(&master)?;
            let slave = ioctl_tiocgptpeer(&master, flags)?;
            tcsetwinsize(&master, winsize(size))?;
            Ok((master, slave))
        };
        let (master, slave) = terminal().map_err(io("cannot open a terminal"))?;
        let copy = |fd: &OwnedFd| {
            fd.try_clone().map_err(|error| RemoteError::from_io("cannot open a terminal", &error))
        };
        let (stdout, stderr) = (copy(&slave)?, copy(&slave)?);
        let ours = Ours {
            stdin: Some(copy(&master)?),
            outputs: vec![(Channel::Stdout, copy(&master)?)],
            terminal: Some(master),
        };
        return Ok(Wiring { stdin: slave, stdout, stderr, ours });
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io("cannot make a pipe"));
    let (stdout_ours, stdout) = pipe()?;
    let (stderr_ours, stderr) = pipe()?;
    let (stdin, stdin_ours) = if request.stdin {
        let (stdin, ours) = pipe()?;
        (stdin, Some(ours))
    } else {
        let null =
            File::open("/dev/null").map_err(|error| RemoteError::from_io("cannot open /dev/null", &error))?;
        (null.into(), None)
    };
    let outputs = vec![(Channel::Stdout, stdout_ours), (Channel::Stderr, stderr_ours)];
    Ok(Wiring { stdin, stdout, stderr, ours: Ours { stdin: stdin_ours, outputs, terminal: None } })
}

fn pump(
    stream: &Arc<AgentStream>,
    input: Receiver<Input>,
    stdin: Option<OwnedFd>,
    outputs: Vec<(Channel, OwnedFd)>,
    process: &Arc<Process>,
    exited: &Receiver<ExitStatus>,
    tty: bool,
) -> Result<ExitStatus, RemoteError> {
    let io = |error| RemoteError::from_io("cannot serve the program", &error);
    // Every thread polls the reading end; that the writing end is closed means the program has ended.
    let (ended, alive) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| io(error.into()))?;
    let ended = Arc::new(ended);
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    for (channel, output) in outputs {
        let (stream, ended) = (Arc::clone(stream), Arc::clone(&ended));
        threads.push(spawn("output", move || send_output(&stream, channel, output, &ended)).map_err(io)?);
    }
    let (reading, ended_stdin) = (Arc::clone(stream), Arc::clone(&ended));
    spawn("stdin", move || feed_stdin(&reading, &input, stdin, &ended_stdin, tty)).map_err(io)?;
    let status = exited.recv();
    process.set_exited();
    drop(alive);
    for thread in threads {
        // A panic aborts the process.
        let _ = thread.join();
    }
    status.map_err(|_| RemoteError::new(ErrorKind::Io, "the program's end was missed"))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(PUMP_STACK_BYTES).spawn(work)
}

fn send_output(stream: &AgentStream, channel: Channel, output: OwnedFd, ended: &OwnedFd) {
    let mut file = File::from(output);
    let mut buffer = vec![0; crate::limits::DATA_CHUNK_BYTES];
    let mut program_ended = false;
    loop {
        // Wait for bytes before taking credit: the other output of the program needs it too.
        if !wait_output(&file, ended, &mut program_ended) {
            break;
        }
        let Some(credit) = stream.take_credit() else { return };
        let count = match file.read(buffer.get_mut(..credit).unwrap_or_default()) {
            Ok(count) => count,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock
                ) =>
            {
                stream.send(channel, &[], credit);
                continue;
            }
            // A terminal that no program holds any more fails with EIO.
            Err(_) => 0,
        };
        if !stream.send(channel, buffer.get(..count).unwrap_or_default(), credit) {
            return;
        }
        if count == 0 {
            break;
        }
    }
    stream.eof(channel);
}

/// Waits until the output can be read, which may be its end; `false` when it counts as drained.
fn wait_output(output: &File, ended: &OwnedFd, program_ended: &mut bool) -> bool {
    loop {
        let mut fds = [PollFd::new(output, PollFlags::IN), PollFd::new(ended, PollFlags::empty())];
        let polled = if *program_ended {
            let (fds, _) = fds.split_at_mut(1);
            poll(fds, timespec(DRAIN_IDLE).as_ref())
        } else {
            poll(&mut fds, None)
        };
        match polled {
            Ok(0) => return false,
            Ok(_) if !fds[0].revents().is_empty() => return true,
            Ok(_) => *program_ended = true,
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// Converts a timeout for `poll`.
pub(super) fn timespec(timeout: Duration) -> Option<Timespec> {
    Timespec::try_from(timeout).ok()
}

fn feed_stdin(
    stream: &AgentStream,
    input: &Receiver<Input>,
    stdin: Option<OwnedFd>,
    ended: &OwnedFd,
    tty: bool,
) {
    let mut target = stdin.map(File::from);
    if let Some(file) = &target {
        // A program that does not read must not hold this thread after its end.
        let flags = fcntl_getfl(file).unwrap_or(OFlags::empty());
        let _ = fcntl_setfl(file, flags | OFlags::NONBLOCK);
    }
    while let Ok(next) = input.recv() {
        match next {
            Input::Data(bytes) => {
                if let Some(file) = &mut target
                    && !write_stdin(file, &bytes, ended)
                {
                    target = None;
                }
                // What a program does not want is dropped, so that the host is not held up.
                stream.consumed(bytes.len());
            }
            Input::Eof if tty => {
                if let Some(file) = &mut target {
                    write_stdin(file, END_OF_TRANSMISSION, ended);
                }
            }
            Input::Eof => target = None,
            Input::Over => return,
        }
    }
}

/// Writes everything; `false` when no one will read it.
fn write_stdin(file: &mut File, mut bytes: &[u8], ended: &OwnedFd) -> bool {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return false,
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let mut fds = [
                    PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT),
                    PollFd::new(ended, PollFlags::empty()),
                ];
                if poll(&mut fds, None).is_ok() && !fds[1].revents().is_empty() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}
