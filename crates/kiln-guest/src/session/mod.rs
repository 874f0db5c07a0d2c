//! The host's side of the guest channel.
//!
//! A [`Session`] is one handshake with the agent, over a transport or a relay. One thread reads and hands each
//! frame to its stream, one writes; handles may be cloned and used from any thread. Dropping the last handle
//! and the last stream ends the session, and the agent then kills what the session had started.

mod connection;
mod exec;
mod file;
mod handshake;
mod identity;
mod input;
mod stream;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use connection::{Connection, ConnectionReader};
pub use exec::{ExecControl, ExecEvent, ExecOutcome, ExecOutput, ExecStream};
pub use file::{StreamReader, StreamWriter};
pub use input::InputWriter;

use crate::error::{ErrorKind, RemoteError, SessionError};
use crate::flow::lock;
use crate::frame::{Decoder, Frame, Kind, Nonce};
use crate::limits::OUTBOX_BYTES_MAX;
use crate::message::{
    AgentEvent, AgentState, Configure, Configured, ExecRequest, FEATURE_CONNECT, FEATURE_ENVIRONMENT,
    FileStat, HelloAck, Opened, Request, ResetMessage, ShutdownMode, WriteFile, json_frame, parse_json,
    to_json,
};
use crate::name::GuestPath;
use crate::outbox::Outbox;
use crate::probe::{ProbeCheck, Probed};
use crate::transport::{ReadHalf, Transport};
use stream::Stream;

/// Pings in flight; more are refused.
const PINGS_MAX: usize = 1024;

/// Bytes of one read from the transport.
const READ_BYTES: usize = 64 * 1024;

/// A connection to the agent of one guest.
#[derive(Debug, Clone)]
pub struct Session {
    handle: Arc<Handle>,
}

/// Ends the session with its last owner; the reader thread owns only [`Inner`].
pub(crate) struct Handle {
    pub(crate) inner: Arc<Inner>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.lose("the session was closed");
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("ack", &self.inner.ack).finish_non_exhaustive()
    }
}

/// Takes the frames of one stream.
pub(crate) trait StreamSink: Send + Sync {
    /// Takes a frame; it must not wait, because every stream waits behind it.
    fn deliver(&self, frame: Frame);
    /// Hears that no frame will come any more.
    fn lost(&self, reason: &str);
}

/// Takes the events of the session.
pub(crate) trait Observer: Send + Sync {
    /// Takes the payload of an `EVENT`; it must not wait.
    fn event(&self, payload: &[u8]);
    /// Hears that the connection is gone.
    fn lost(&self);
}

pub(crate) struct Inner {
    pub(crate) ack: HelloAck,
    outbox: Arc<Outbox>,
    epoch: u64,
    nonce: Nonce,
    closer: Box<dyn Fn() + Send + Sync>,
    status: Mutex<Status>,
    status_changed: Condvar,
    streams: Mutex<Streams>,
    pings: Mutex<HashMap<u64, Box<dyn FnOnce() + Send>>>,
    ping_next: AtomicU64,
    observers: Mutex<Vec<Box<dyn Observer>>>,
}

#[derive(Debug)]
struct Status {
    state: AgentState,
    lost: Option<String>,
}

#[derive(Default)]
struct Streams {
    sinks: HashMap<u32, Arc<dyn StreamSink>>,
    last: u32,
}

struct ChannelObserver(Sender<AgentEvent>);

impl Observer for ChannelObserver {
    fn event(&self, payload: &[u8]) {
        if let Ok(event) = parse_json("event", payload) {
            // A dropped receiver does not want it.
            let _ = self.0.send(event);
        }
    }

    fn lost(&self) {}
}

impl Session {
    /// Shakes hands with the agent.
    ///
    /// The agent need not listen yet: the greeting is repeated until the deadline. Bytes of an earlier session
    /// are discarded.
    ///
    /// # Errors
    /// Fails at the deadline, when the transport ends, or when the agent speaks another version.
    pub fn connect(transport: Box<dyn Transport>, deadline: Instant) -> Result<Self, SessionError> {
        let io = |action| move |source| SessionError::Io { action, source };
        let (mut reader, mut writer) = transport.split().map_err(io("split the transport"))?;
        let closer = writer.closer().map_err(io("split the transport"))?;
        let outbox = Arc::new(Outbox::new(OUTBOX_BYTES_MAX));
        let writer_outbox = Arc::clone(&outbox);
        let writer_thread = thread::Builder::new().name("kiln-guest-write".to_owned()).spawn(move || {
            if writer_outbox.run(&mut *writer).is_err() {
                writer_outbox.close();
            }
        });
        writer_thread.map_err(io("start the writer"))?;
        let greeted = handshake::greet(&mut *reader, &outbox, deadline).and_then(|greeted| {
            reader.set_read_timeout(None).map_err(io("set a deadline on the transport"))?;
            Ok(greeted)
        });
        let greeted = match greeted {
            Ok(greeted) => greeted,
            Err(error) => {
                outbox.close();
                closer();
                return Err(error);
            }
        };
        let inner = Arc::new(Inner {
            status: Mutex::new(Status { state: greeted.ack.state.clone(), lost: None }),
            ack: greeted.ack,
            outbox,
            epoch: greeted.epoch,
            nonce: greeted.nonce,
            closer,
            status_changed: Condvar::new(),
            streams: Mutex::default(),
            pings: Mutex::default(),
            ping_next: AtomicU64::new(1),
            observers: Mutex::default(),
        });
        let handle = Arc::new(Handle { inner: Arc::clone(&inner) });
        thread::Builder::new()
            .name("kiln-guest-read".to_owned())
            .spawn(move || inner.read_loop(reader, greeted.decoder))
            .map_err(io("start the reader"))?;
        Ok(Self { handle })
    }

    /// Returns what the agent said about itself when it accepted the session.
    #[must_use]
    pub fn agent(&self) -> &HelloAck {
        &self.handle.inner.ack
    }

    /// Returns the guest's state as last heard.
    #[must_use]
    pub fn state(&self) -> AgentState {
        lock(&self.handle.inner.status).state.clone()
    }

    /// Waits for the guest to be ready.
    ///
    /// # Errors
    /// Fails at the deadline, when the guest reports that it cannot boot, or when the connection is lost.
    pub fn wait_ready(&self, deadline: Instant) -> Result<(), SessionError> {
        let begun = Instant::now();
        let inner = &self.handle.inner;
        let mut status = lock(&inner.status);
        loop {
            if let AgentState::Failed { reason } = &status.state {
                return Err(SessionError::BootFailed { reason: reason.clone() });
            }
            if let Some(reason) = &status.lost {
                return Err(SessionError::lost(reason));
            }
            if status.state == AgentState::Ready {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(SessionError::Timeout { action: "booting the guest", waited: begun.elapsed() });
            }
            status =
                inner.status_changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the connection to end; `false` at the deadline.
    #[must_use]
    pub fn wait_lost(&self, deadline: Instant) -> bool {
        let inner = &self.handle.inner;
        let mut status = lock(&inner.status);
        while status.lost.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            status =
                inner.status_changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Returns a receiver of every event from now on; it ends when the connection does.
    #[must_use]
    pub fn events(&self) -> Receiver<AgentEvent> {
        let (sender, receiver) = mpsc::channel();
        self.handle.inner.observe(Box::new(ChannelObserver(sender)));
        receiver
    }

    /// Asks the agent for a sign of life; returns the round trip.
    ///
    /// # Errors
    /// Fails at the deadline or when the connection is lost.
    pub fn ping(&self, deadline: Instant) -> Result<Duration, SessionError> {
        let begun = Instant::now();
        let inner = &self.handle.inner;
        let (sender, receiver) = mpsc::channel();
        let token = inner.ping(Box::new(move || {
            let _ = sender.send(());
        }))?;
        match receiver.recv_timeout(deadline.saturating_duration_since(begun)) {
            Ok(()) => Ok(begun.elapsed()),
            Err(RecvTimeoutError::Disconnected) => Err(inner.lost_error()),
            Err(RecvTimeoutError::Timeout) => {
                lock(&inner.pings).remove(&token);
                Err(SessionError::Timeout { action: "pinging the guest agent", waited: begun.elapsed() })
            }
        }
    }

    /// Runs a program.
    ///
    /// # Errors
    /// Reports a program, directory or user that does not exist, among others, as the agent's error.
    pub fn exec(&self, request: ExecRequest) -> Result<ExecStream, SessionError> {
        request.check()?;
        let (stdin, tty) = (request.stdin, request.tty.is_some());
        let (stream, opened) = self.open(&Request::Exec(request))?;
        let pid = opened.pid.ok_or(SessionError::Violation { what: "exec was opened without a pid" })?;
        Ok(ExecStream::new(stream, pid, stdin || tty))
    }

    /// Reads a file from an offset.
    ///
    /// # Errors
    /// Reports a file that cannot be opened as the agent's error; later ones come from the reader.
    pub fn read_file(&self, path: GuestPath, offset: u64) -> Result<StreamReader, SessionError> {
        let (stream, _) = self.open(&Request::ReadFile { path, offset })?;
        Ok(StreamReader::new(stream))
    }

    /// Writes a file; it is visible after [`StreamWriter::finish`].
    ///
    /// # Errors
    /// Reports a directory that does not exist, among others, as the agent's error.
    pub fn write_file(&self, request: WriteFile) -> Result<StreamWriter, SessionError> {
        let (stream, _) = self.open(&Request::WriteFile(request))?;
        Ok(StreamWriter::new(stream))
    }

    /// Reads a file or tree as a tar stream; the top entry is named by the path's last part.
    ///
    /// # Errors
    /// Reports a path that does not exist as the agent's error; later ones come from the reader.
    pub fn pack(&self, path: GuestPath) -> Result<StreamReader, SessionError> {
        let (stream, _) = self.open(&Request::Pack { path })?;
        Ok(StreamReader::new(stream))
    }

    /// Extracts a tar stream inside an existing directory.
    ///
    /// # Errors
    /// Reports a directory that does not exist as the agent's error; later ones come from the writer.
    pub fn unpack(&self, dest: GuestPath) -> Result<StreamWriter, SessionError> {
        let (stream, _) = self.open(&Request::Unpack { dest })?;
        Ok(StreamWriter::new(stream))
    }

    /// Describes a file, without following a symlink.
    ///
    /// # Errors
    /// [`SessionError::is_not_found`] tells an absent file from other failures.
    pub fn stat(&self, path: GuestPath) -> Result<FileStat, SessionError> {
        let opened = self.request(&Request::Stat { path })?;
        opened.stat.ok_or(SessionError::Violation { what: "stat was answered without a result" })
    }

    /// Sets the guest's identity.
    ///
    /// # Errors
    /// Reports the part that could not be set as the agent's error; earlier parts stay set. [`SessionError::Lacks`] for
    /// an environment or secrets that the agent would ignore.
    pub fn configure(&self, request: Configure) -> Result<Configured, SessionError> {
        if request.is_private() {
            self.require(FEATURE_ENVIRONMENT)?;
            request.check()?;
        }
        let opened = self.request(&Request::Configure(Box::new(request)))?;
        opened.configured.ok_or(SessionError::Violation { what: "configure was answered without a result" })
    }

    /// Checks something in the guest, once, within `timeout` or the longest time the agent takes.
    ///
    /// # Errors
    /// Reports an agent that knows no such check as the agent's error. A check that did not succeed is an answer.
    pub fn probe(&self, check: ProbeCheck, timeout: Duration) -> Result<Probed, SessionError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let opened = self.request(&Request::Probe { check, timeout_ms })?;
        opened.probed.ok_or(SessionError::Violation { what: "probe was answered without a result" })
    }

    /// Connects to a port of the guest's loopback address.
    ///
    /// # Errors
    /// [`SessionError::Lacks`] for an agent that does not do this; a port that refuses is the agent's error, which
    /// [`SessionError::is_refused`] tells from others.
    pub fn dial(&self, port: NonZeroU16) -> Result<Connection, SessionError> {
        self.require(FEATURE_CONNECT)?;
        let (stream, _) = self.open(&Request::Connect { port })?;
        Ok(Connection::new(stream))
    }

    /// Starts stopping the guest; the connection is lost when it is down.
    ///
    /// # Errors
    /// Reports a refusal as the agent's error.
    pub fn shutdown(&self, mode: ShutdownMode, grace: Duration) -> Result<(), SessionError> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.request(&Request::Shutdown { mode, grace_ms }).map(|_| ())
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.handle.inner
    }

    fn open(&self, request: &Request) -> Result<(Stream, Opened), SessionError> {
        Stream::open(&self.handle, request, None)
    }

    fn request(&self, request: &Request) -> Result<Opened, SessionError> {
        let (mut stream, opened) = self.open(request)?;
        stream.wait_exit(None)?;
        Ok(opened)
    }
}

impl Inner {
    /// Sends a frame; data frames wait behind a full queue, others never do.
    pub(crate) fn send(&self, frame: &Frame) -> Result<(), SessionError> {
        let sent = match frame.kind {
            Kind::Data => self.outbox.push_wait(self.epoch, frame),
            _ => self.outbox.push(self.epoch, frame),
        };
        if sent { Ok(()) } else { Err(self.lost_error()) }
    }

    /// Registers a stream under a new id.
    pub(crate) fn register(&self, sink: Arc<dyn StreamSink>) -> Result<u32, SessionError> {
        let mut streams = lock(&self.streams);
        // Taken inside the lock, so that `lose` cannot miss a stream that is being registered.
        if let Some(reason) = &lock(&self.status).lost {
            return Err(SessionError::lost(reason));
        }
        let mut id = streams.last;
        loop {
            id = id.wrapping_add(1).max(1);
            if !streams.sinks.contains_key(&id) {
                break;
            }
        }
        streams.last = id;
        streams.sinks.insert(id, sink);
        Ok(id)
    }

    /// Forgets a stream; returns whether it was still open.
    pub(crate) fn forget(&self, id: u32) -> bool {
        lock(&self.streams).sinks.remove(&id).is_some()
    }

    /// Abandons a stream: the agent kills what it runs.
    pub(crate) fn reset(&self, id: u32, reason: &str) {
        if self.forget(id) {
            let message = ResetMessage { reason: reason.to_owned() };
            // A lost session has reset everything already.
            let _ = self.send(&Frame::new(Kind::Reset, id, to_json(&message)));
        }
    }

    pub(crate) fn ping(&self, answered: Box<dyn FnOnce() + Send>) -> Result<u64, SessionError> {
        let token = self.ping_next.fetch_add(1, Ordering::Relaxed);
        {
            let mut pings = lock(&self.pings);
            if pings.len() >= PINGS_MAX {
                return Err(RemoteError::new(ErrorKind::Busy, "too many unanswered pings").into());
            }
            pings.insert(token, answered);
        }
        let sent = self.send(&Frame::new(Kind::Ping, 0, token.to_le_bytes().to_vec()));
        if sent.is_err() {
            lock(&self.pings).remove(&token);
        }
        sent.map(|()| token)
    }

    pub(crate) fn observe(&self, observer: Box<dyn Observer>) {
        let mut observers = lock(&self.observers);
        if lock(&self.status).lost.is_some() {
            observer.lost();
        } else {
            observers.push(observer);
        }
    }

    pub(crate) fn state(&self) -> AgentState {
        lock(&self.status).state.clone()
    }

    pub(crate) fn lost_error(&self) -> SessionError {
        let reason = lock(&self.status).lost.clone();
        SessionError::lost(reason.unwrap_or_else(|| "the transport does not take bytes".to_owned()))
    }

    fn lose(&self, reason: &str) {
        {
            let mut status = lock(&self.status);
            if status.lost.is_some() {
                return;
            }
            status.lost = Some(reason.to_owned());
            self.status_changed.notify_all();
        }
        self.outbox.close();
        (self.closer)();
        let sinks = std::mem::take(&mut lock(&self.streams).sinks);
        for sink in sinks.into_values() {
            sink.lost(reason);
        }
        lock(&self.pings).clear();
        for observer in std::mem::take(&mut *lock(&self.observers)) {
            observer.lost();
        }
    }

    fn read_loop(&self, mut reader: Box<dyn ReadHalf>, mut decoder: Decoder) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => self.dispatch(frame),
                    Ok(None) => break,
                    Err(error) => return self.lose(&error.to_string()),
                }
            }
            match reader.read(&mut buffer) {
                Ok(0) => return self.lose("the other side closed it"),
                Ok(count) => decoder.push(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.lose(&error.to_string()),
            }
        }
    }

    fn dispatch(&self, frame: Frame) {
        if frame.stream != 0 {
            let sink = {
                let mut streams = lock(&self.streams);
                match frame.kind {
                    Kind::Exit | Kind::Error | Kind::Reset => streams.sinks.remove(&frame.stream),
                    _ => streams.sinks.get(&frame.stream).cloned(),
                }
            };
            // No sink: the rest of a stream that was reset here.
            if let Some(sink) = sink {
                sink.deliver(frame);
            }
            return;
        }
        match frame.kind {
            Kind::Pong => {
                let token = frame.payload.as_slice().try_into().map(u64::from_le_bytes);
                let answered = token.ok().and_then(|token| lock(&self.pings).remove(&token));
                if let Some(answered) = answered {
                    answered();
                }
            }
            Kind::Event => {
                if let Ok(AgentEvent::State { state }) = parse_json("event", &frame.payload) {
                    self.set_state(state);
                }
                for observer in lock(&self.observers).iter() {
                    observer.event(&frame.payload);
                }
            }
            Kind::HelloAck => self.acknowledged_again(&frame),
            Kind::Error => {
                let reason = match parse_json::<RemoteError>("error", &frame.payload) {
                    Ok(error) => error.message,
                    Err(error) => error.to_string(),
                };
                self.lose(&reason);
            }
            _ => {}
        }
    }

    fn set_state(&self, state: AgentState) -> bool {
        let mut status = lock(&self.status);
        let changed = status.state != state;
        status.state = state;
        self.status_changed.notify_all();
        changed
    }

    /// Every repeated greeting is answered. Between two of them the agent may have had no session to send a
    /// change of state to, so the later answer counts.
    fn acknowledged_again(&self, frame: &Frame) {
        let Some((nonce, json)) = frame.handshake_parts() else { return };
        let Ok(HelloAck { state, .. }) = parse_json("greeting", json) else { return };
        if nonce == self.nonce && self.set_state(state.clone()) {
            let payload = to_json(&AgentEvent::State { state });
            for observer in lock(&self.observers).iter() {
                observer.event(&payload);
            }
        }
    }
}

pub(crate) fn open_frame(id: u32, request: &Request) -> Result<Frame, SessionError> {
    json_frame(Kind::Open, id, "the request", request)
}
