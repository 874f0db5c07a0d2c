//! The agent's side of the protocol: sessions, streams and the state of the guest.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::link::{Link, LinkRead};
use super::machine::Machine;
use super::private::with_environment;
use super::program::Programs;
use super::reaper::Reaper;
use super::stream::{AgentStream, InputReader, OutputWriter};
use super::workers::Workers;
use super::{connect, exec, files, identity, private, probe, quiesce, tree};
use crate::error::{ErrorKind, RemoteError};
use crate::flow::lock;
use crate::frame::{Decoder, Frame, FrameError, Kind, Nonce};
use crate::limits::{PROTOCOL_VERSION, STREAMS_MAX};
use crate::message::{
    AgentEvent, AgentState, Configure, Configured, ExitStatus, FEATURES, Hello, HelloAck, Opened, Request,
    ShutdownMode, clip, to_json,
};
use crate::outbox::Outbox;

const READ_BYTES: usize = 64 * 1024;

/// Stack of a thread of its own.
const WORKER_STACK_BYTES: usize = 512 * 1024;

/// Longest a pause waits for the rest of a frame.
const PAUSE_PATIENCE: Duration = Duration::from_secs(1);

/// What the server can do to the machine it runs on.
pub(super) trait Platform: Send + Sync {
    fn configure(&self, request: &Configure) -> Result<Configured, RemoteError>;
    /// Returns what an identity is given to, if there is such a thing.
    fn machine(&self) -> Option<&Machine>;
    /// Stops the guest, or has it stopped; called in a thread of its own, at most once.
    fn shutdown(&self, mode: ShutdownMode, grace: Duration);
}

/// One handshake with a host.
#[derive(Debug)]
pub(super) struct AgentSession {
    nonce: Nonce,
    epoch: u64,
    outbox: Arc<Outbox>,
    streams: Mutex<HashMap<u32, Arc<AgentStream>>>,
}

impl AgentSession {
    /// Queues a frame; one of a former session is dropped.
    pub(super) fn send(&self, frame: &Frame) {
        self.outbox.push(self.epoch, frame);
    }

    /// Queues data, waiting behind a full queue; `false` when the session is over.
    pub(super) fn send_data(&self, frame: &Frame) -> bool {
        self.outbox.push_wait(self.epoch, frame)
    }

    pub(super) fn forget(&self, id: u32) {
        lock(&self.streams).remove(&id);
    }

    fn abandon(&self) {
        let streams = std::mem::take(&mut *lock(&self.streams));
        for stream in streams.into_values() {
            stream.abandon();
        }
    }
}

pub(super) struct Server {
    platform: Box<dyn Platform>,
    reaper: Arc<Reaper>,
    workers: Arc<Workers>,
    boot_id: String,
    status: Mutex<Status>,
    changed: Condvar,
    stopping: AtomicBool,
}

struct Status {
    state: AgentState,
    session: Option<Arc<AgentSession>>,
}

/// Why the server stopped reading a link.
#[derive(Debug)]
pub(super) enum LinkEnd {
    Closed,
    /// It was paused between two frames of this session, if there is one.
    Paused(Option<Nonce>),
}

impl Server {
    pub(super) fn new(
        platform: Box<dyn Platform>,
        reaper: Arc<Reaper>,
        boot_id: String,
        state: AgentState,
    ) -> Arc<Self> {
        Arc::new(Self {
            platform,
            reaper,
            workers: Arc::default(),
            boot_id,
            status: Mutex::new(Status { state, session: None }),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Returns the machine this agent serves, where it is not a plain process.
    pub(super) fn served_machine(&self) -> Option<&Machine> {
        self.platform.machine()
    }

    pub(super) fn reaper(&self) -> &Arc<Reaper> {
        &self.reaper
    }

    /// Changes the state and tells the host.
    pub(super) fn set_state(&self, state: AgentState) {
        let state = match state {
            AgentState::Failed { reason } => AgentState::Failed { reason: clip(&reason) },
            other => other,
        };
        let mut status = lock(&self.status);
        status.state = state.clone();
        send_event(&status, &AgentEvent::State { state });
    }

    /// Tells the host; no one hears it without a session.
    pub(super) fn event(&self, event: &AgentEvent) {
        send_event(&lock(&self.status), event);
    }

    /// Refuses new requests and tells the host why; `false` when that was done before.
    pub(super) fn begin_shutdown(&self) -> bool {
        let first = !self.stopping.swap(true, Ordering::AcqRel);
        if first {
            self.event(&AgentEvent::ShuttingDown);
        }
        first
    }

    /// Waits until a host has been sent everything, or the deadline.
    pub(super) fn wait_reported(&self, deadline: Instant) {
        let mut status = lock(&self.status);
        while status.session.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return;
            }
            status = self.changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let outbox = status.session.as_ref().map(|session| Arc::clone(&session.outbox));
        drop(status);
        if let Some(outbox) = outbox {
            outbox.wait_drained(deadline);
        }
    }

    /// Takes over a session that another process of this guest began.
    pub(super) fn resume(&self, outbox: &Arc<Outbox>, nonce: Nonce) {
        let mut status = lock(&self.status);
        let event = AgentEvent::State { state: status.state.clone() };
        let epoch = outbox.begin(&Frame::new(Kind::Event, 0, to_json(&event)));
        status.session = Some(new_session(nonce, epoch, outbox));
        self.changed.notify_all();
    }

    /// Serves a link until it ends or pauses.
    pub(super) fn serve(self: &Arc<Self>, link: &mut dyn Link, outbox: &Arc<Outbox>) -> io::Result<LinkEnd> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut paused_at: Option<Instant> = None;
        loop {
            self.decode(&mut decoder, outbox);
            match link.read(&mut buffer)? {
                LinkRead::Bytes(count) => decoder.push(buffer.get(..count).unwrap_or_default()),
                LinkRead::Disconnected => {
                    decoder.clear();
                    self.end_session();
                }
                LinkRead::Closed => {
                    self.end_session();
                    return Ok(LinkEnd::Closed);
                }
                LinkRead::Paused => {
                    let session = lock(&self.status).session.clone();
                    let begun = *paused_at.get_or_insert_with(Instant::now);
                    if session.is_none() || decoder.is_empty() {
                        return Ok(LinkEnd::Paused(session.map(|session| session.nonce)));
                    }
                    if begun.elapsed() > PAUSE_PATIENCE {
                        return Ok(LinkEnd::Paused(None));
                    }
                }
            }
        }
    }

    fn decode(self: &Arc<Self>, decoder: &mut Decoder, outbox: &Arc<Outbox>) {
        loop {
            let session = lock(&self.status).session.clone();
            let Some(session) = session else {
                // Between sessions there are no frames, only bytes of someone who gave up.
                let Some(frame) = decoder.scan(Kind::Hello) else { return };
                self.greet(&frame, outbox);
                continue;
            };
            match decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) if frame.kind == Kind::Hello => self.greet(&frame, outbox),
                Ok(Some(frame)) => self.dispatch(&session, frame),
                // Zero bytes are how a host clears the link before it greets again: nothing to complain about.
                Err(FrameError::UnknownKind { kind: 0 }) => self.end_session(),
                Err(error) => {
                    let error = RemoteError::new(ErrorKind::Protocol, error.to_string());
                    session.send(&Frame::new(Kind::Error, 0, to_json(&error)));
                    self.end_session();
                }
            }
        }
    }

    pub(super) fn end_session(&self) {
        let session = lock(&self.status).session.take();
        if let Some(session) = session {
            session.abandon();
        }
    }

    fn greet(&self, frame: &Frame, outbox: &Arc<Outbox>) {
        let Some((nonce, json)) = frame.handshake_parts() else { return };
        let Ok(hello) = serde_json::from_slice::<Hello>(json) else { return };
        let machine = self.platform.machine();
        let mut status = lock(&self.status);
        let ack = HelloAck {
            protocol: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.boot_id.clone(),
            state: status.state.clone(),
            features: machine.map(|_| FEATURES.map(str::to_owned).to_vec()).unwrap_or_default(),
            epoch: machine.and_then(Machine::epoch),
        };
        let ack = Frame::handshake(Kind::HelloAck, &nonce, &to_json(&ack));
        if let Some(session) = &status.session
            && session.nonce == nonce
        {
            session.send(&ack);
            return;
        }
        let former = status.session.take();
        let epoch = outbox.begin(&ack);
        if hello.protocol == PROTOCOL_VERSION {
            status.session = Some(new_session(nonce, epoch, outbox));
            self.changed.notify_all();
        }
        drop(status);
        if let Some(former) = former {
            former.abandon();
        }
    }

    fn dispatch(self: &Arc<Self>, session: &Arc<AgentSession>, frame: Frame) {
        match frame.kind {
            Kind::Ping => session.send(&Frame::new(Kind::Pong, 0, frame.payload)),
            Kind::Open => {
                if let Err(error) = self.open(session, &frame) {
                    session.send(&Frame::new(Kind::Error, frame.stream, to_json(&error)));
                }
            }
            _ => {
                let stream = lock(&session.streams).get(&frame.stream).cloned();
                // No stream: it has ended and the host has not heard it yet.
                if let Some(stream) = stream {
                    stream.deliver(&frame);
                }
            }
        }
    }

    fn open(self: &Arc<Self>, session: &Arc<AgentSession>, frame: &Frame) -> Result<(), RemoteError> {
        let refuse = |kind, message: String| Err(RemoteError::new(kind, message));
        match &lock(&self.status).state {
            AgentState::Ready if self.stopping.load(Ordering::Acquire) => {
                return refuse(ErrorKind::Busy, "the guest is shutting down".to_owned());
            }
            AgentState::Ready => {}
            AgentState::Booting => return refuse(ErrorKind::Busy, "the guest is booting".to_owned()),
            AgentState::Failed { reason } => {
                return refuse(ErrorKind::Busy, format!("the guest failed to boot: {reason}"));
            }
        }
        let request: Request = serde_json::from_slice(&frame.payload)
            .map_err(|error| RemoteError::new(ErrorKind::Invalid, clip(&format!("bad request: {error}"))))?;
        let (sender, input) = mpsc::channel();
        let stream = {
            let mut streams = lock(&session.streams);
            if frame.stream == 0 || streams.contains_key(&frame.stream) {
                return refuse(ErrorKind::Invalid, format!("stream id {} is not free", frame.stream));
            }
            if streams.len() >= STREAMS_MAX {
                return refuse(ErrorKind::Busy, format!("more than {STREAMS_MAX} streams"));
            }
            let stream = Arc::new(AgentStream::new(frame.stream, Arc::clone(session), sender));
            streams.insert(frame.stream, Arc::clone(&stream));
            stream
        };
        let server = Arc::clone(self);
        let worker = Arc::clone(&stream);
        let spawned = self.workers.run(move || server.work(&worker, input, request));
        if let Err(error) = spawned {
            stream.abandon();
            return Err(RemoteError::from_io("cannot start a thread", &error));
        }
        Ok(())
    }

    fn machine(&self) -> Result<&Machine, RemoteError> {
        self.platform.machine().ok_or_else(|| {
            RemoteError::new(ErrorKind::Unsupported, "an agent that is a plain process has no identity")
        })
    }

    fn work(&self, stream: &Arc<AgentStream>, input: mpsc::Receiver<super::stream::Input>, request: Request) {
        let output = || OutputWriter::new(Arc::clone(stream));
        let answer = |opened: Result<Opened, RemoteError>| {
            stream.finish(opened.map(|opened| stream.opened(&opened)));
        };
        match request {
            Request::Exec(request) => {
                exec::run(&self.reaper, stream, input, with_environment(self.platform.machine(), request));
            }
            Request::ReadFile { path, offset } => stream.finish(files::read(stream, output(), &path, offset)),
            Request::WriteFile(request) => {
                let reader = InputReader::new(Arc::clone(stream), input);
                stream.finish(files::write(stream, reader, &request));
            }
            Request::Pack { path } => stream.finish(tree::pack(stream, output(), &path)),
            Request::Unpack { dest } => {
                let reader = InputReader::new(Arc::clone(stream), input);
                stream.finish(tree::unpack(stream, reader, &dest));
            }
            Request::Stat { path } => {
                answer(files::stat(&path).map(|stat| Opened { stat: Some(stat), ..Opened::default() }));
            }
            Request::Configure(request) => {
                // What the platform starts may read what the machine is told.
                let configured = private::write(self.platform.machine(), &request)
                    .and_then(|()| self.platform.configure(&request));
                answer(configured.map(|done| Opened { configured: Some(done), ..Opened::default() }));
            }
            Request::Probe { check, timeout_ms } => {
                answer(
                    probe::run(&check, Duration::from_millis(timeout_ms.into()))
                        .map(|probed| Opened { probed: Some(probed), ..Opened::default() }),
                );
            }
            Request::Connect { port } => connect::run(stream, input, port),
            Request::Quiesce(request) => {
                let quiesced = self.machine().and_then(|machine| {
                    quiesce::apply(machine, &Programs::new(&self.reaper, stream), &request)
                });
                answer(quiesced.map(|quiesced| Opened { quiesced: Some(quiesced), ..Opened::default() }));
            }
            Request::Identity(request) => {
                let identified = self.machine().and_then(|machine| {
                    identity::apply(machine, &Programs::new(&self.reaper, stream), &request)
                });
                answer(identified.map(|report| Opened { identified: Some(report), ..Opened::default() }));
            }
            Request::Shutdown { mode, grace_ms } => {
                // Answered first: the guest may be down before an answer that comes after.
                stream.opened(&Opened::default());
                let first = self.begin_shutdown();
                stream.exit(ExitStatus::SUCCESS);
                if first {
                    self.platform.shutdown(mode, Duration::from_millis(grace_ms.into()));
                }
            }
        }
    }
}

fn new_session(nonce: Nonce, epoch: u64, outbox: &Arc<Outbox>) -> Arc<AgentSession> {
    Arc::new(AgentSession { nonce, epoch, outbox: Arc::clone(outbox), streams: Mutex::default() })
}

fn send_event(status: &Status, event: &AgentEvent) {
    if let Some(session) = &status.session {
        session.send(&Frame::new(Kind::Event, 0, to_json(event)));
    }
}

/// Starts a thread with a stack that suits a guest with little memory.
pub(super) fn spawn_worker(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(WORKER_STACK_BYTES).spawn(work).map(|_| ())
}
