//! A program running in the guest.

use std::sync::Arc;
use std::time::Instant;

use super::input::InputWriter;
use super::stream::{Delivery, Port, Stream};
use crate::error::SessionError;
use crate::frame::{Channel, Kind};
use crate::message::{ExitStatus, SignalMessage, TtySize};
use crate::name::SignalNumber;

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote to stdout, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to stderr.
    Stderr(Vec<u8>),
    /// It ended; nothing follows.
    Exit(ExitStatus),
}

/// What a program did, as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// How it ended.
    pub status: ExitStatus,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// All of stderr.
    pub stderr: Vec<u8>,
}

/// A program running in the guest.
///
/// Dropping it, or its [`ExecOutput`], before the end was received kills the program's process group.
#[derive(Debug)]
pub struct ExecStream {
    stdin: InputWriter,
    control: ExecControl,
    output: ExecOutput,
}

impl ExecStream {
    pub(super) fn new(stream: Stream, pid: u32, stdin: bool) -> Self {
        let control = ExecControl { port: Arc::clone(&stream.port), pid };
        let stdin = InputWriter::of(&stream, stdin);
        Self { stdin, control, output: ExecOutput { stream, ended: false } }
    }

    /// Returns the process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.control.pid
    }

    /// Splits it into parts that different threads can own.
    #[must_use]
    pub fn split(self) -> (InputWriter, ExecControl, ExecOutput) {
        (self.stdin, self.control, self.output)
    }

    /// Returns the writer of stdin.
    pub fn stdin(&mut self) -> &mut InputWriter {
        &mut self.stdin
    }

    /// Returns a handle that signals and resizes.
    #[must_use]
    pub fn control(&self) -> ExecControl {
        self.control.clone()
    }

    /// Waits for what the program does next; see [`ExecOutput::recv`].
    ///
    /// # Errors
    /// Fails when the stream or the session ended.
    pub fn recv(&mut self) -> Result<ExecEvent, SessionError> {
        self.output.recv()
    }

    /// Closes stdin, collects the output and waits for the end.
    ///
    /// # Errors
    /// Fails at the deadline, when either output has more than `limit` bytes, or when the stream ended.
    pub fn collect(mut self, limit: usize, deadline: Instant) -> Result<ExecOutcome, SessionError> {
        let begun = Instant::now();
        self.stdin.close()?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let (target, bytes) = match self.output.recv_deadline(deadline)? {
                None => {
                    return Err(SessionError::Timeout {
                        action: "running a program",
                        waited: begun.elapsed(),
                    });
                }
                Some(ExecEvent::Exit(status)) => return Ok(ExecOutcome { status, stdout, stderr }),
                Some(ExecEvent::Stdout(bytes)) => (&mut stdout, bytes),
                Some(ExecEvent::Stderr(bytes)) => (&mut stderr, bytes),
            };
            if target.len() + bytes.len() > limit {
                let size = target.len() + bytes.len();
                return Err(SessionError::TooLarge { what: "the output of a program", size, limit });
            }
            target.extend_from_slice(&bytes);
        }
    }
}

/// Signals and resizes a program.
#[derive(Debug, Clone)]
pub struct ExecControl {
    port: Arc<Port>,
    pid: u32,
}

impl ExecControl {
    /// Returns the process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Signals the program's process group; nothing happens once it has ended.
    ///
    /// # Errors
    /// Fails when the session is lost.
    pub fn signal(&self, signal: SignalNumber) -> Result<(), SessionError> {
        self.port.send_message(Kind::Signal, "the signal", &SignalMessage { signal })
    }

    /// Resizes the program's terminal; nothing happens when it has none.
    ///
    /// # Errors
    /// Fails when the session is lost.
    pub fn resize(&self, size: TtySize) -> Result<(), SessionError> {
        self.port.send_message(Kind::Resize, "the size", &size)
    }

    /// Abandons the stream: the agent kills the process group and the receiver gets an error.
    pub fn reset(&self) {
        self.port.reset("the host reset it");
    }
}

/// Receives what a program does; receiving output is what lets the program write more.
#[derive(Debug)]
pub struct ExecOutput {
    stream: Stream,
    ended: bool,
}

impl ExecOutput {
    /// Waits for what the program does next.
    ///
    /// # Errors
    /// Fails when the session is lost, or when the stream was reset or has already ended.
    pub fn recv(&mut self) -> Result<ExecEvent, SessionError> {
        loop {
            if let Some(event) = self.next(None)? {
                return Ok(event);
            }
        }
    }

    /// As [`ExecOutput::recv`], but returns `None` at the deadline.
    ///
    /// # Errors
    /// As [`ExecOutput::recv`].
    pub fn recv_deadline(&mut self, deadline: Instant) -> Result<Option<ExecEvent>, SessionError> {
        self.next(Some(deadline))
    }

    fn next(&mut self, deadline: Option<Instant>) -> Result<Option<ExecEvent>, SessionError> {
        if self.ended {
            return Err(SessionError::Reset { reason: "it has ended".to_owned() });
        }
        let delivery = loop {
            let delivery = self.stream.receive(deadline).inspect_err(|_| self.ended = true)?;
            if !matches!(delivery, Some(Delivery::Eof)) {
                break delivery;
            }
        };
        Ok(match delivery {
            None | Some(Delivery::Eof) => None,
            Some(Delivery::Data(Channel::Stderr, bytes)) => Some(ExecEvent::Stderr(bytes)),
            Some(Delivery::Data(_, bytes)) => Some(ExecEvent::Stdout(bytes)),
            Some(Delivery::Exit(status)) => {
                self.ended = true;
                Some(ExecEvent::Exit(status))
            }
        })
    }
}
