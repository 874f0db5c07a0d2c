//! Runs a program for a stream: pipes or a terminal, and what pumps them.
//!
//! The stream's thread sends the output; only input takes another. The end is reported when the program has
//! ended and its output is drained; a child it left behind that keeps the output open and silent does not
//! delay the end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::tcsetwinsize;

use super::launch::{self, Launched, Spec, Streams};
use super::process::{Process, winsize};
use super::reaper::Reaper;
use super::stream::{AgentStream, Input};
use crate::error::{ErrorKind, RemoteError};
use crate::frame::Channel;
use crate::limits::DATA_CHUNK_BYTES;
use crate::message::{ExecRequest, Opened};

/// How long output may be silent after the program's end before it counts as drained.
const DRAIN_IDLE: Duration = Duration::from_millis(500);

/// Ends a terminal's input.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

const FEEDER_STACK_BYTES: usize = 256 * 1024;

/// Size of the first reads: a page of a small guest that is not touched need not be found.
const BUFFER_BYTES: usize = 4096;

/// What the program and the agent hold of its standard streams.
struct Wiring {
    theirs: Streams,
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
        let Ours { stdin, outputs, terminal } = wiring.ours;
        let launched = launch::start(reaper, &spec, wiring.theirs, terminal)?;
        Ok((launched, stdin, outputs))
    });
    let (Launched { process, exited }, stdin, outputs) = match started {
        Ok(started) => started,
        Err(error) => return stream.fail(&error),
    };
    let pid = process.pid().as_raw_nonzero().get();
    stream.opened(&Opened { pid: u32::try_from(pid).ok(), ..Opened::default() });
    stream.set_process(&process);
    if let Some(stdin) = stdin {
        let (reading, fed) = (Arc::clone(stream), Arc::clone(&process));
        let feeder = thread::Builder::new().name("stdin".to_owned()).stack_size(FEEDER_STACK_BYTES);
        if let Err(error) = feeder.spawn(move || feed_stdin(&reading, &input, stdin, &fed, tty)) {
            process.kill();
            return stream.fail(&RemoteError::from_io("cannot serve the program", &error));
        }
    } else {
        drop(input);
    }
    send_outputs(stream, outputs, &process);
    match exited.recv() {
        Ok(status) => stream.exit(status),
        Err(_) => stream.fail(&RemoteError::new(ErrorKind::Io, "the program's end was missed")),
    }
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
        return Ok(Wiring { theirs: Streams { stdin: slave, stdout, stderr }, ours });
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
    let ours = Ours { stdin: stdin_ours, outputs, terminal: None };
    Ok(Wiring { theirs: Streams { stdin, stdout, stderr }, ours })
}

/// Sends a program's output until it has ended and the output is drained, or the stream is over.
fn send_outputs(stream: &AgentStream, outputs: Vec<(Channel, OwnedFd)>, process: &Process) {
    let mut outputs: Vec<(Channel, File)> =
        outputs.into_iter().map(|(channel, output)| (channel, File::from(output))).collect();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut ended = false;
    while !outputs.is_empty() {
        let ready = wait_outputs(&outputs, process, &mut ended);
        if ready.is_empty() {
            break;
        }
        for at in ready.into_iter().rev() {
            let Some((channel, file)) = outputs.get_mut(at) else { continue };
            match send_output(stream, *channel, file, &mut buffer) {
                Sent::Some => {}
                Sent::Eof => {
                    let (channel, _) = outputs.remove(at);
                    stream.eof(channel);
                }
                Sent::Over => return,
            }
        }
    }
    for (channel, _) in outputs {
        stream.eof(channel);
    }
}

/// Returns which outputs can be read, which may be their end; none when they count as drained.
fn wait_outputs(outputs: &[(Channel, File)], process: &Process, ended: &mut bool) -> Vec<usize> {
    loop {
        let mut fds: Vec<PollFd<'_>> =
            outputs.iter().map(|(_, file)| PollFd::new(file, PollFlags::IN)).collect();
        let idle = if *ended {
            timespec(DRAIN_IDLE)
        } else {
            fds.push(PollFd::from_borrowed_fd(process.ended(), PollFlags::IN));
            None
        };
        match poll(&mut fds, idle.as_ref()) {
            Ok(0) => return Vec::new(),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            // Reading tells what is wrong.
            Err(_) => return (0..outputs.len()).collect(),
        }
        let ready = |(at, fd): (usize, &PollFd<'_>)| (!fd.revents().is_empty()).then_some(at);
        let ready: Vec<usize> = fds.iter().enumerate().filter_map(ready).collect();
        *ended |= ready.contains(&outputs.len());
        let readable: Vec<usize> = ready.into_iter().filter(|at| *at < outputs.len()).collect();
        if !readable.is_empty() {
            return readable;
        }
    }
}

/// What one read of an output gave.
enum Sent {
    Some,
    Eof,
    /// Nobody takes any more.
    Over,
}

fn send_output(stream: &AgentStream, channel: Channel, file: &mut File, buffer: &mut Vec<u8>) -> Sent {
    // There are bytes before credit is taken: the other output of the program needs it too.
    let Some(credit) = stream.take_credit() else { return Sent::Over };
    let room = credit.min(buffer.len());
    let count = match file.read(buffer.get_mut(..room).unwrap_or_default()) {
        Ok(count) => count,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock) =>
        {
            stream.send(channel, &[], credit);
            return Sent::Some;
        }
        // A terminal that no program holds any more fails with EIO.
        Err(_) => 0,
    };
    if !stream.send(channel, buffer.get(..count).unwrap_or_default(), credit) {
        return Sent::Over;
    }
    if count == buffer.len() {
        // A program that has much to say is read in larger pieces.
        buffer.resize(DATA_CHUNK_BYTES, 0);
    }
    if count == 0 { Sent::Eof } else { Sent::Some }
}

/// Converts a timeout for `poll`.
pub(super) fn timespec(timeout: Duration) -> Option<Timespec> {
    Timespec::try_from(timeout).ok()
}

fn feed_stdin(stream: &AgentStream, input: &Receiver<Input>, stdin: OwnedFd, process: &Process, tty: bool) {
    // A program that does not read must not hold this thread after its end.
    let flags = fcntl_getfl(&stdin).unwrap_or(OFlags::empty());
    let _ = fcntl_setfl(&stdin, flags | OFlags::NONBLOCK);
    let mut target = Some(File::from(stdin));
    while let Ok(next) = input.recv() {
        match next {
            Input::Data(bytes) => {
                if let Some(file) = &mut target
                    && !write_stdin(file, &bytes, process)
                {
                    target = None;
                }
                // What a program does not want is dropped, so that the host is not held up.
                stream.consumed(bytes.len());
            }
            Input::Eof if tty => {
                if let Some(file) = &mut target {
                    write_stdin(file, END_OF_TRANSMISSION, process);
                }
            }
            Input::Eof => target = None,
            Input::Over => return,
        }
    }
}

/// Writes everything; `false` when no one will read it.
fn write_stdin(file: &mut File, mut bytes: &[u8], process: &Process) -> bool {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return false,
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let mut fds = [
                    PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT),
                    PollFd::from_borrowed_fd(process.ended(), PollFlags::IN),
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
