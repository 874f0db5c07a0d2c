//! One stream of a session, whatever it is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use super::{Handle, StreamSink, open_frame};
use crate::error::{RemoteError, SessionError};
use crate::flow::{Credit, Window};
use crate::frame::{Channel, Frame, Kind};
use crate::limits::{DATA_CHUNK_BYTES, OPEN_TIMEOUT};
use crate::message::{ExitStatus, Opened, Request, ResetMessage, json_frame, parse_json};

/// What a stream delivers.
#[derive(Debug)]
pub(super) enum Incoming {
    Opened(Box<Opened>),
    Data(Channel, Vec<u8>),
    Eof,
    Exit(ExitStatus),
    Failed(SessionError),
}

/// The receiving end, fed by the reader thread.
pub(super) struct Feed {
    sender: Sender<Incoming>,
    window: Window,
    credit: Credit,
    finished: AtomicBool,
    /// The end of stdout was told, which counts once.
    stdout_ended: AtomicBool,
}

impl Feed {
    fn require(&self, kept: bool, what: &'static str) {
        if !kept {
            self.finish(Incoming::Failed(SessionError::Violation { what }));
        }
    }

    fn finish(&self, last: Incoming) {
        self.finished.store(true, Ordering::Release);
        // Data precedes the end in the channel; a dropped receiver wants neither.
        let _ = self.sender.send(last);
        self.credit.close();
    }
}

impl StreamSink for Feed {
    fn deliver(&self, frame: Frame) {
        match frame.kind {
            Kind::Opened => match parse_json("the answer to a request does not parse", &frame.payload) {
                Ok(opened) => {
                    let _ = self.sender.send(Incoming::Opened(Box::new(opened)));
                }
                Err(error) => self.finish(Incoming::Failed(error)),
            },
            Kind::Data => match frame.data_parts() {
                Some((channel, bytes)) if self.window.receive(bytes.len()) => {
                    let _ = self.sender.send(Incoming::Data(channel, bytes.to_vec()));
                }
                Some(_) => self.require(false, "it sent more than its credit"),
                None => self.require(false, "it sent data without a channel"),
            },
            Kind::Credit => {
                let returned = frame.credit_bytes().is_some_and(|bytes| self.credit.add(bytes));
                self.require(returned, "it returned more credit than it was sent");
            }
            Kind::Exit => match parse_json("the end of a stream does not parse", &frame.payload) {
                Ok(status) => self.finish(Incoming::Exit(status)),
                Err(error) => self.finish(Incoming::Failed(error)),
            },
            Kind::Error => {
                let error = parse_json::<RemoteError>("an error does not parse", &frame.payload);
                self.finish(Incoming::Failed(error.map_or_else(|error| error, SessionError::Remote)));
            }
            Kind::Reset => {
                let reason = parse_json::<ResetMessage>("reset", &frame.payload)
                    .map_or_else(|_| String::from("no reason given"), |message| message.reason);
                self.finish(Incoming::Failed(SessionError::Reset { reason }));
            }
            Kind::Eof => {
                let is_stdout = frame.payload.first() == Some(&(Channel::Stdout as u8));
                if is_stdout && !self.stdout_ended.swap(true, Ordering::AcqRel) {
                    let _ = self.sender.send(Incoming::Eof);
                }
            }
            _ => {}
        }
    }

    fn lost(&self, reason: &str) {
        self.finish(Incoming::Failed(SessionError::lost(reason)));
    }
}

/// The sending end; resets the stream when it is dropped before the end was seen.
pub(super) struct Port {
    handle: Arc<Handle>,
    feed: Arc<Feed>,
    id: u32,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Port {
    /// Sends some of the bytes to stdin, waiting for credit; `None` when the stream has ended.
    pub(super) fn send_stdin(&self, bytes: &[u8]) -> Result<Option<usize>, SessionError> {
        let Some(count) = self.feed.credit.take(bytes.len().min(DATA_CHUNK_BYTES)) else { return Ok(None) };
        let part = bytes.get(..count).unwrap_or_default();
        self.handle.inner.send(&Frame::data(self.id, Channel::Stdin, part))?;
        Ok(Some(count))
    }

    pub(super) fn send_eof(&self) -> Result<(), SessionError> {
        self.send_unless_ended(&Frame::eof(self.id, Channel::Stdin))
    }

    pub(super) fn send_message<T: serde::Serialize>(
        &self,
        kind: Kind,
        what: &'static str,
        message: &T,
    ) -> Result<(), SessionError> {
        self.send_unless_ended(&json_frame(kind, self.id, what, message)?)
    }

    pub(super) fn ended(&self) -> bool {
        self.feed.finished.load(Ordering::Acquire)
    }

    /// Abandons the stream; its receiver gets an error.
    pub(super) fn reset(&self, reason: &str) {
        if !self.ended() {
            self.handle.inner.reset(self.id, reason);
            self.feed.finish(Incoming::Failed(SessionError::Reset { reason: reason.to_owned() }));
        }
    }

    fn send_unless_ended(&self, frame: &Frame) -> Result<(), SessionError> {
        if self.ended() { Ok(()) } else { self.handle.inner.send(frame) }
    }

    fn consumed(&self, bytes: usize) {
        if let Some(credit) = self.feed.window.consume(bytes) {
            // Losing the session is reported where the stream ends.
            let _ = self.send_unless_ended(&Frame::credit(self.id, credit));
        }
    }
}

/// Both ends. Dropping it before the end was seen resets the stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) port: Arc<Port>,
    receiver: Receiver<Incoming>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.port.reset("the host abandoned it");
        // A violation finishes the stream here only; the agent still has it.
        self.port.handle.inner.reset(self.port.id, "the host abandoned it");
    }
}

impl Stream {
    /// Opens a stream and waits for the agent's answer, for [`OPEN_TIMEOUT`] unless there is a deadline.
    pub(super) fn open(
        handle: &Arc<Handle>,
        request: &Request,
        deadline: Option<Instant>,
    ) -> Result<(Self, Opened), SessionError> {
        let begun = Instant::now();
        let patience = deadline.map_or(OPEN_TIMEOUT, |deadline| deadline.saturating_duration_since(begun));
        // Encoded once before an id is taken, so that a request over the limit leaves nothing behind.
        let mut frame = open_frame(0, request)?;
        let (sender, receiver) = mpsc::channel();
        let feed = Arc::new(Feed {
            sender,
            window: Window::default(),
            credit: Credit::default(),
            finished: AtomicBool::new(false),
            stdout_ended: AtomicBool::new(false),
        });
        let sink: Arc<dyn StreamSink> = Arc::<Feed>::clone(&feed);
        let id = handle.inner.register(sink)?;
        frame.stream = id;
        let stream = Self { port: Arc::new(Port { handle: Arc::clone(handle), feed, id }), receiver };
        handle.inner.send(&frame)?;
        match stream.receiver.recv_timeout(patience) {
            Ok(Incoming::Opened(opened)) => Ok((stream, *opened)),
            Ok(Incoming::Failed(error)) => Err(error),
            Ok(_) => Err(SessionError::Violation { what: "a stream began without an answer" }),
            Err(RecvTimeoutError::Timeout) => {
                Err(SessionError::Timeout { action: "answering a request", waited: begun.elapsed() })
            }
            Err(RecvTimeoutError::Disconnected) => Err(handle.inner.lost_error()),
        }
    }

    /// Takes the next delivery; `None` at the deadline. Data counts as consumed.
    pub(super) fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Delivery>, SessionError> {
        let incoming = match deadline {
            None => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        match incoming {
            Ok(Incoming::Data(channel, bytes)) => {
                self.port.consumed(bytes.len());
                Ok(Some(Delivery::Data(channel, bytes)))
            }
            Ok(Incoming::Eof) => Ok(Some(Delivery::Eof)),
            Ok(Incoming::Exit(status)) => Ok(Some(Delivery::Exit(status))),
            Ok(Incoming::Failed(error)) => Err(error),
            Ok(Incoming::Opened(_)) => Err(SessionError::Violation { what: "a request was answered twice" }),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.port.handle.inner.lost_error()),
        }
    }

    /// Waits for the end, dropping data.
    pub(super) fn wait_exit(&mut self, deadline: Option<Instant>) -> Result<ExitStatus, SessionError> {
        let begun = Instant::now();
        loop {
            match self.receive(deadline)? {
                Some(Delivery::Exit(status)) => return Ok(status),
                Some(Delivery::Data(..) | Delivery::Eof) => {}
                None => {
                    let waited = begun.elapsed();
                    return Err(SessionError::Timeout { action: "ending a request", waited });
                }
            }
        }
    }
}

/// What [`Stream::receive`] returns.
#[derive(Debug)]
pub(super) enum Delivery {
    Data(Channel, Vec<u8>),
    /// Stdout has ended, and the stream goes on.
    Eof,
    Exit(ExitStatus),
}
