//! QEMU's control protocol, as much of it as a supervisor needs: one JSON text a line, commands with an id, and
//! events that come in between. Without a thread: events are read while a command waits for its answer, and by
//! [`Qmp::take_events`] when [`Qmp::fd`] is readable.

use kiln_sys::process::poll_within;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest line that is read, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// The most events kept for a reader; the oldest go first.
pub const EVENTS_MAX: usize = 256;
const CHUNK_BYTES: usize = 8 << 10;

/// Why a control connection is of no use, or a command was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The other end closed it.
    #[error("the connection is closed")]
    Closed,
    /// No answer in time.
    #[error("no answer to `{command}` within {} ms", within.as_millis())]
    TimedOut {
        /// What was asked.
        command: String,
        /// The time it had.
        within: Duration,
    },
    /// A line over [`LINE_BYTES_MAX`].
    #[error("a line has more than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    /// A line that is not a message of the protocol.
    #[error("`{0}` is not a message of the protocol")]
    Garbage(String),
    /// The command was refused.
    #[error("`{command}` was refused: {description} ({class})")]
    Refused {
        /// What was asked.
        command: String,
        /// The kind of the error.
        class: String,
        /// Its words.
        description: String,
    },
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// Something that happened in the monitor.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name, such as `SHUTDOWN`, `RESET` or `STOP`.
    pub name: String,
    /// What comes with it.
    pub data: Map<String, Value>,
}

impl QmpEvent {
    /// Returns a text of its data.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key)?.as_str()
    }
}

#[derive(Debug)]
enum Message {
    Greeting,
    Event(QmpEvent),
    Return { id: Option<u64>, value: Value },
    Error { id: Option<u64>, class: String, description: String },
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Map<String, Value>,
    #[serde(rename = "return", default, deserialize_with = "some")]
    value: Option<Value>,
    error: Option<WireError>,
    id: Option<Value>,
}

#[derive(Deserialize)]
struct WireError {
    #[serde(rename = "class", default)]
    class: String,
    #[serde(rename = "desc", default)]
    description: String,
}

/// Keeps `"return": null` apart from no return.
fn some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let garbage = || QmpError::Garbage(kiln_core::text::clip(&String::from_utf8_lossy(line)));
    let wire: Wire = serde_json::from_slice(line).map_err(|_| garbage())?;
    let id = wire.id.as_ref().and_then(Value::as_u64);
    match wire {
        Wire { greeting: Some(_), .. } => Ok(Message::Greeting),
        Wire { event: Some(name), data, .. } => Ok(Message::Event(QmpEvent { name, data })),
        Wire { error: Some(error), .. } => {
            Ok(Message::Error { id, class: error.class, description: error.description })
        }
        Wire { value: Some(value), .. } => Ok(Message::Return { id, value }),
        _ => Err(garbage()),
    }
}

/// A control connection in command mode.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Bytes of the buffer known to hold no line end.
    scanned: usize,
    closed: bool,
    events: VecDeque<QmpEvent>,
    last_id: u64,
}

impl Qmp {
    /// Waits for the greeting on a fresh connection and enters command mode.
    ///
    /// # Errors
    /// When the other end does not speak the protocol, or not in time.
    pub fn open(stream: UnixStream, within: Duration) -> Result<Self, QmpError> {
        stream.set_nonblocking(true)?;
        let mut qmp = Self {
            stream,
            buffer: Vec::new(),
            scanned: 0,
            closed: false,
            events: VecDeque::new(),
            last_id: 0,
        };
        let deadline = Instant::now() + within;
        let late = || QmpError::TimedOut { command: "greeting".to_owned(), within };
        match qmp.next_message(deadline)?.ok_or_else(late)? {
            Message::Greeting => {}
            other => return Err(QmpError::Garbage(format!("{other:?} before the greeting"))),
        }
        qmp.execute("qmp_capabilities", None, deadline.saturating_duration_since(Instant::now()))?;
        Ok(qmp)
    }

    /// Has a command done and returns its result.
    ///
    /// # Errors
    /// When it is refused or not answered in time, or the connection fails.
    pub fn execute(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        within: Duration,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, None, within)
    }

    /// As [`Qmp::execute`], and hands a descriptor over with the command.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_with_fd(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        fd: BorrowedFd<'_>,
        within: Duration,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, Some(fd), within)
    }

    fn request(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        fd: Option<BorrowedFd<'_>>,
        within: Duration,
    ) -> Result<Value, QmpError> {
        let deadline = Instant::now() + within;
        let late = || QmpError::TimedOut { command: command.to_owned(), within };
        self.last_id += 1;
        let mut request = json!({"execute": command, "id": self.last_id});
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string();
        line.push('\n');
        if !self.send(line.as_bytes(), fd, deadline)? {
            return Err(late());
        }
        loop {
            match self.next_message(deadline)?.ok_or_else(late)? {
                Message::Return { id, value } if id == Some(self.last_id) => return Ok(value),
                // The monitor has no id for what it could not parse.
                Message::Error { id, class, description } if id.is_none() || id == Some(self.last_id) => {
                    return Err(QmpError::Refused { command: command.to_owned(), class, description });
                }
                Message::Event(event) => self.keep(event),
                // Late answers to commands that were given up.
                Message::Return { .. } | Message::Error { .. } | Message::Greeting => {}
            }
        }
    }

    /// Waits for an event of one of these names and takes it, or returns none when the deadline passes before one
    /// comes. Other events are kept for [`Qmp::take_events`].
    ///
    /// # Errors
    /// When the connection fails or carries something else.
    pub fn await_event(&mut self, names: &[&str], deadline: Instant) -> Result<Option<QmpEvent>, QmpError> {
        let is_one = |event: &QmpEvent| names.contains(&event.name.as_str());
        if let Some(at) = self.events.iter().position(is_one) {
            return Ok(self.events.remove(at));
        }
        loop {
            match self.next_message(deadline)? {
                Some(Message::Event(event)) if is_one(&event) => return Ok(Some(event)),
                Some(Message::Event(event)) => self.keep(event),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Returns the events that have come, without waiting; the last ones also when the connection is closed.
    ///
    /// # Errors
    /// When the connection fails or carries something else; [`QmpError::Closed`] only when no event is left.
    pub fn take_events(&mut self) -> Result<Vec<QmpEvent>, QmpError> {
        let ended = loop {
            match self.next_message(Instant::now()) {
                Ok(Some(Message::Event(event))) => self.keep(event),
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        match ended {
            Some(error) if self.events.is_empty() => Err(error),
            _ => Ok(self.events.drain(..).collect()),
        }
    }

    /// Returns the descriptor that is readable when something has come.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn keep(&mut self, event: QmpEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Returns the next message, or none when the deadline passes before it is complete.
    fn next_message(&mut self, deadline: Instant) -> Result<Option<Message>, QmpError> {
        loop {
            while let Some(line) = self.take_line()? {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    return parse(&line).map(Some);
                }
            }
            if self.closed {
                return Err(QmpError::Closed);
            }
            let mut chunk = [0; CHUNK_BYTES];
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.closed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.ready(PollFlags::IN, deadline)? {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take_line(&mut self) -> Result<Option<Vec<u8>>, QmpError> {
        match self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
            Some(at) if self.scanned + at <= LINE_BYTES_MAX => {
                let line = self.buffer.drain(..=self.scanned + at).collect();
                self.scanned = 0;
                Ok(Some(line))
            }
            None if self.buffer.len() <= LINE_BYTES_MAX => {
                self.scanned = self.buffer.len();
                Ok(None)
            }
            _ => {
                self.buffer = Vec::new();
                self.scanned = 0;
                self.closed = true;
                Err(QmpError::LineTooLong)
            }
        }
    }

    fn send(
        &mut self,
        mut bytes: &[u8],
        mut fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<bool, QmpError> {
        while !bytes.is_empty() {
            match write_with(&self.stream, bytes, fd) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    // It goes with the first byte.
                    fd = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.ready(PollFlags::OUT, deadline)? {
                        // A part of a command may be out: nothing can follow it.
                        self.closed = true;
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(QmpError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn ready(&self, flags: PollFlags, deadline: Instant) -> Result<bool, QmpError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.stream, flags)];
            if poll_within(&mut fds, Some(left))? > 0 {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }
}

fn write_with(mut stream: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let Some(fd) = fd else { return stream.write(bytes) };
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests;
