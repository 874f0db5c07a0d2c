//! One stream of a session, as its worker threads see it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

use super::process::Process;
use super::server::AgentSession;
use crate::error::{ErrorKind, RemoteError};
use crate::flow::{Credit, Window, lock};
use crate::frame::{Channel, Frame, Kind};
use crate::limits::DATA_CHUNK_BYTES;
use crate::message::{ExitStatus, Opened, ResetMessage, clip, to_json};

/// What the host sends on a stream.
#[derive(Debug)]
pub(super) enum Input {
    Data(Vec<u8>),
    Eof,
    /// The stream is over; nothing more will be read from it.
    Over,
}

#[derive(Debug)]
pub(super) struct AgentStream {
    id: u32,
    session: Arc<AgentSession>,
    credit: Credit,
    window: Window,
    input: Sender<Input>,
    over: AtomicBool,
    process: Mutex<Option<Arc<Process>>>,
    socket: Mutex<Option<Arc<TcpStream>>>,
}

impl AgentStream {
    pub(super) fn new(id: u32, session: Arc<AgentSession>, input: Sender<Input>) -> Self {
        Self {
            id,
            session,
            credit: Credit::default(),
            window: Window::default(),
            input,
            over: AtomicBool::new(false),
            process: Mutex::default(),
            socket: Mutex::default(),
        }
    }

    /// Takes a frame from the host; it never waits.
    pub(super) fn deliver(&self, frame: &Frame) {
        match frame.kind {
            Kind::Data => match frame.data_parts() {
                Some((Channel::Stdin, bytes)) if self.window.receive(bytes.len()) => {
                    if self.input.send(Input::Data(bytes.to_vec())).is_err() {
                        // Nobody reads it, which must not hold the host up.
                        self.consumed(bytes.len());
                    }
                }
                _ => self.refuse("the host sent more than its credit"),
            },
            Kind::Eof => {
                let _ = self.input.send(Input::Eof);
            }
            Kind::Credit => {
                if !frame.credit_bytes().is_some_and(|bytes| self.credit.add(bytes)) {
                    self.refuse("the host returned more credit than it was sent");
                }
            }
            Kind::Signal => {
                let message = serde_json::from_slice::<crate::message::SignalMessage>(&frame.payload);
                if let (Ok(message), Some(process)) = (message, lock(&self.process).as_ref()) {
                    process.signal(message.signal.get());
                }
            }
            Kind::Resize => {
                if let (Ok(size), Some(process)) =
                    (serde_json::from_slice(&frame.payload), lock(&self.process).as_ref())
                {
                    process.resize(size);
                }
            }
            Kind::Reset => self.abandon(),
            _ => self.refuse("the host sent a frame that is for the agent to send"),
        }
    }

    /// Ends the stream without an answer and kills what it runs.
    pub(super) fn abandon(&self) {
        self.over.store(true, Ordering::Release);
        self.credit.close();
        let _ = self.input.send(Input::Over);
        if let Some(process) = lock(&self.process).take() {
            process.kill();
        }
        self.close_socket();
        self.session.forget(self.id);
    }

    /// Hands over the connection, so that who waits for it is woken when the stream is over.
    pub(super) fn set_socket(&self, socket: &Arc<TcpStream>) {
        *lock(&self.socket) = Some(Arc::clone(socket));
        if self.is_over() {
            self.close_socket();
        }
    }

    fn close_socket(&self) {
        if let Some(socket) = lock(&self.socket).take() {
            // One that the other side has closed needs no closing.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Hands over the process, so that signals reach it; kills it when the stream was abandoned meanwhile.
    pub(super) fn set_process(&self, process: &Arc<Process>) {
        *lock(&self.process) = Some(Arc::clone(process));
        if self.is_over() {
            self.abandon();
        }
    }

    /// Forgets a process that has ended, when the stream goes on.
    pub(super) fn clear_process(&self) {
        lock(&self.process).take();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn opened(&self, opened: &Opened) {
        self.session.send(&Frame::new(Kind::Opened, self.id, to_json(opened)));
    }

    pub(super) fn eof(&self, channel: Channel) {
        self.session.send(&Frame::eof(self.id, channel));
    }

    pub(super) fn exit(&self, status: ExitStatus) {
        self.end(Frame::new(Kind::Exit, self.id, to_json(&status)));
    }

    pub(super) fn fail(&self, error: &RemoteError) {
        let error = RemoteError { message: clip(&error.message), ..error.clone() };
        self.end(Frame::new(Kind::Error, self.id, to_json(&error)));
    }

    /// Ends the stream with the result of a request.
    pub(super) fn finish(&self, result: Result<(), RemoteError>) {
        match result {
            Ok(()) => self.exit(ExitStatus::SUCCESS),
            Err(error) => self.fail(&error),
        }
    }

    /// Waits for credit for up to one chunk; `None` once the stream is over.
    pub(super) fn take_credit(&self) -> Option<usize> {
        self.credit.take(DATA_CHUNK_BYTES)
    }

    /// Sends bytes that credit was taken for.
    pub(super) fn send(&self, channel: Channel, bytes: &[u8], credit: usize) -> bool {
        self.credit.put_back(credit.saturating_sub(bytes.len()));
        bytes.is_empty() || self.session.send_data(&Frame::data(self.id, channel, bytes))
    }

    /// Returns credit for consumed input.
    pub(super) fn consumed(&self, bytes: usize) {
        if let Some(credit) = self.window.consume(bytes)
            && !self.is_over()
        {
            self.session.send(&Frame::credit(self.id, credit));
        }
    }

    fn end(&self, last: Frame) {
        self.credit.close();
        lock(&self.process).take();
        self.close_socket();
        self.session.forget(self.id);
        if !self.over.swap(true, Ordering::AcqRel) {
            self.session.send(&last);
        }
        // The thread that feeds stdin waits for input of a stream that has none to come.
        let _ = self.input.send(Input::Over);
    }

    fn refuse(&self, reason: &str) {
        let message = ResetMessage { reason: reason.to_owned() };
        self.session.send(&Frame::new(Kind::Reset, self.id, to_json(&message)));
        self.abandon();
    }
}

/// Reads what the host sends on a stream.
#[derive(Debug)]
pub(super) struct InputReader {
    stream: Arc<AgentStream>,
    input: Receiver<Input>,
    rest: Vec<u8>,
    start: usize,
    ended: bool,
}

impl InputReader {
    pub(super) fn new(stream: Arc<AgentStream>, input: Receiver<Input>) -> Self {
        Self { stream, input, rest: Vec::new(), start: 0, ended: false }
    }
}

impl Read for InputReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.start == self.rest.len() {
            if self.ended || buffer.is_empty() {
                return Ok(0);
            }
            match self.input.recv() {
                Ok(Input::Data(bytes)) => {
                    self.rest = bytes;
                    self.start = 0;
                }
                Ok(Input::Eof) => self.ended = true,
                Ok(Input::Over) | Err(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let rest = self.rest.get(self.start..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(target), Some(source)) = (buffer.get_mut(..count), rest.get(..count)) {
            target.copy_from_slice(source);
        }
        self.start += count;
        self.stream.consumed(count);
        Ok(count)
    }
}

/// Sends bytes to the host as stdout of a stream.
#[derive(Debug)]
pub(super) struct OutputWriter {
    stream: Arc<AgentStream>,
}

impl OutputWriter {
    pub(super) fn new(stream: Arc<AgentStream>) -> Self {
        Self { stream }
    }
}

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let Some(credit) = self.stream.take_credit() else {
            return Err(io::ErrorKind::ConnectionAborted.into());
        };
        let part = bytes.get(..credit.min(bytes.len())).unwrap_or_default();
        if !self.stream.send(Channel::Stdout, part, credit) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says that a request is wrong.
pub(super) fn invalid(message: impl Into<String>) -> RemoteError {
    RemoteError::new(ErrorKind::Invalid, message)
}
