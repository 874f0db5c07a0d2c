//! Shares one session between many local clients.
//!
//! A guest's transport takes one client at a time. The supervisor that holds it serves others over a unix
//! socket, where each speaks the same protocol: the relay answers the greeting from what the agent told it,
//! renumbers streams, and passes everything else on untouched. Credit stays end to end, so what the relay
//! holds for a client is bounded by the windows of its streams; a client that breaks that bound is
//! disconnected.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{ErrorKind, RemoteError};
use crate::flow::lock;
use crate::frame::{Decoder, Frame, Kind, Nonce};
use crate::limits::{PROTOCOL_VERSION, RELAY_CLIENTS_MAX, RELAY_QUEUE_BYTES_MAX, STREAMS_MAX};
use crate::message::{Hello, HelloAck, parse_json, to_json};
use crate::outbox::Outbox;
use crate::session::{Inner, Observer, Session, StreamSink};
use crate::transport::WriteHalf;

/// Time that clients have to take what the agent said before it was lost.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

const READ_BYTES: usize = 64 * 1024;

/// Serves clients from one session; it and its clients keep the session alive.
#[derive(Debug, Clone)]
pub struct Relay {
    shared: Arc<Shared>,
}

struct Shared {
    session: Session,
    clients: Mutex<HashMap<u64, Arc<Client>>>,
    next: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("clients", &lock(&self.clients).len()).finish_non_exhaustive()
    }
}

struct Client {
    outbox: Outbox,
    closer: Box<dyn Fn() + Send + Sync>,
    state: Mutex<ClientState>,
}

#[derive(Default)]
struct ClientState {
    /// The client's current session: its nonce and the outbox epoch.
    greeted: Option<(Nonce, u64)>,
    /// Stream ids: the client's to the session's.
    streams: HashMap<u32, u32>,
}

impl Client {
    fn close(&self) {
        self.outbox.close();
        (self.closer)();
    }

    fn send(&self, epoch: u64, frame: &Frame) {
        if !self.outbox.push_limited(epoch, frame) {
            let current = lock(&self.state).greeted.map(|(_, epoch)| epoch);
            // A frame of the client's former session is dropped; a full queue is the client's fault.
            if current == Some(epoch) {
                self.close();
            }
        }
    }
}

/// Passes the frames of one stream to its client.
struct ClientStream {
    client: Weak<Client>,
    epoch: u64,
    id: u32,
}

impl StreamSink for ClientStream {
    fn deliver(&self, mut frame: Frame) {
        let Some(client) = self.client.upgrade() else { return };
        if matches!(frame.kind, Kind::Exit | Kind::Error | Kind::Reset) {
            lock(&client.state).streams.remove(&self.id);
        }
        frame.stream = self.id;
        client.send(self.epoch, &frame);
    }

    fn lost(&self, _reason: &str) {
        if let Some(client) = self.client.upgrade() {
            client.close();
        }
    }
}

struct Broadcast(Weak<Shared>);

impl Observer for Broadcast {
    fn event(&self, payload: &[u8]) {
        let Some(shared) = self.0.upgrade() else { return };
        let frame = Frame::new(Kind::Event, 0, payload.to_vec());
        // Greetings are sent under the same lock, so a client misses no change of state.
        for client in lock(&shared.clients).values() {
            let epoch = lock(&client.state).greeted.map(|(_, epoch)| epoch);
            if let Some(epoch) = epoch {
                client.send(epoch, &frame);
            }
        }
    }

    fn lost(&self) {
        let Some(shared) = self.0.upgrade() else { return };
        // The agent's last words explain its end; a client that does not read gets only so much time for them.
        let deadline = Instant::now() + LAST_WORDS_WITHIN;
        for client in lock(&shared.clients).values() {
            client.outbox.wait_drained(deadline);
            client.close();
        }
    }
}

impl Relay {
    /// Makes a relay for a session.
    #[must_use]
    pub fn new(session: Session) -> Self {
        let shared = Arc::new(Shared { session, clients: Mutex::default(), next: AtomicU64::new(1) });
        shared.session.inner().observe(Box::new(Broadcast(Arc::downgrade(&shared))));
        Self { shared }
    }

    /// Returns the session the relay shares.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.shared.session
    }

    /// Whether another client would be served now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        lock(&self.shared.clients).len() < RELAY_CLIENTS_MAX
    }

    /// Whether a client is served now.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        !lock(&self.shared.clients).is_empty()
    }

    /// Serves a client in threads of its own and returns at once.
    ///
    /// The client is served until it disconnects, breaks the protocol, or the session is lost.
    ///
    /// # Errors
    /// Refuses a client over [`RELAY_CLIENTS_MAX`] or of a lost session, and reports what the system refused.
    pub fn serve_client(&self, stream: UnixStream) -> io::Result<()> {
        let reader = stream.try_clone()?;
        let closer = WriteHalf::closer(&stream)?;
        let client =
            Arc::new(Client { outbox: Outbox::new(RELAY_QUEUE_BYTES_MAX), closer, state: Mutex::default() });
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut clients = lock(&self.shared.clients);
            if clients.len() >= RELAY_CLIENTS_MAX {
                let reason = format!("more than {RELAY_CLIENTS_MAX} clients");
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason));
            }
            clients.insert(number, Arc::clone(&client));
        }
        // After the insertion, so that a session lost meanwhile is seen here or closes the client.
        if self.shared.session.wait_lost(Instant::now()) {
            lock(&self.shared.clients).remove(&number);
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the guest agent is lost"));
        }
        let removal = Removal { shared: Arc::clone(&self.shared), number, client: Arc::clone(&client) };
        let writing = Arc::clone(&client);
        let mut writer = stream;
        thread::Builder::new().name("kiln-relay-write".to_owned()).spawn(move || {
            if writing.outbox.run(&mut writer).is_err() {
                writing.close();
            }
        })?;
        thread::Builder::new().name("kiln-relay-read".to_owned()).spawn(move || {
            removal.serve(reader);
        })?;
        Ok(())
    }
}

/// Ends a client, however its reader ends.
struct Removal {
    shared: Arc<Shared>,
    number: u64,
    client: Arc<Client>,
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.client.close();
        lock(&self.shared.clients).remove(&self.number);
        self.reset_all("the relay client disconnected");
    }
}

impl Removal {
    fn inner(&self) -> &Arc<Inner> {
        self.shared.session.inner()
    }

    fn reset_all(&self, reason: &str) {
        let streams = std::mem::take(&mut lock(&self.client.state).streams);
        for id in streams.into_values() {
            self.inner().reset(id, reason);
        }
    }

    fn serve(&self, mut reader: UnixStream) {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut synchronized = false;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => decoder.push(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
            loop {
                let frame = if synchronized {
                    match decoder.next_frame() {
                        Ok(frame) => frame,
                        Err(_) => {
                            self.reset_all("the relay client broke the protocol");
                            synchronized = false;
                            continue;
                        }
                    }
                } else {
                    decoder.scan(Kind::Hello)
                };
                let Some(frame) = frame else { break };
                if frame.kind == Kind::Hello {
                    synchronized = self.greet(&frame);
                } else if self.pass_on(frame).is_none() {
                    return;
                }
            }
        }
    }

    /// Answers a greeting; returns whether a session exists then.
    fn greet(&self, frame: &Frame) -> bool {
        let Some((nonce, json)) = frame.handshake_parts() else { return false };
        let Ok(hello) = parse_json::<Hello>("greeting", json) else { return false };
        let again = lock(&self.client.state).greeted.is_some_and(|(known, _)| known == nonce);
        if !again {
            self.reset_all("the relay client began a new session");
        }
        let _clients = lock(&self.shared.clients);
        let inner = self.inner();
        let ack = HelloAck { protocol: PROTOCOL_VERSION, state: inner.state(), ..inner.ack.clone() };
        let ack = Frame::handshake(Kind::HelloAck, &nonce, &to_json(&ack));
        let mut state = lock(&self.client.state);
        match state.greeted {
            Some((_, epoch)) if again => {
                self.client.outbox.push(epoch, &ack);
            }
            _ => {
                let epoch = self.client.outbox.begin(&ack);
                let same_version = hello.protocol == PROTOCOL_VERSION;
                state.greeted = same_version.then_some((nonce, epoch));
            }
        }
        state.greeted.is_some()
    }

    /// Passes a frame to the agent; `None` ends the client.
    fn pass_on(&self, mut frame: Frame) -> Option<()> {
        let (_, epoch) = lock(&self.client.state).greeted?;
        match frame.kind {
            Kind::Open => self.open(frame, epoch),
            Kind::Ping => {
                let client = Arc::downgrade(&self.client);
                let payload = frame.payload;
                let answer = move || {
                    if let Some(client) = client.upgrade() {
                        client.send(epoch, &Frame::new(Kind::Pong, 0, payload));
                    }
                };
                match self.inner().ping(Box::new(answer)) {
                    Err(error) if error.is_lost() => None,
                    // An unanswered ping is what the client's deadline is for.
                    _ => Some(()),
                }
            }
            Kind::Reset => {
                let id = lock(&self.client.state).streams.remove(&frame.stream);
                if let Some(id) = id {
                    self.inner().reset(id, "the relay client reset it");
                }
                Some(())
            }
            Kind::Data | Kind::Eof | Kind::Credit | Kind::Signal | Kind::Resize => {
                let id = lock(&self.client.state).streams.get(&frame.stream).copied();
                // No id: the stream has ended and the client has not heard it yet.
                if let Some(id) = id {
                    frame.stream = id;
                    self.inner().send(&frame).ok()?;
                }
                Some(())
            }
            _ => None,
        }
    }

    fn open(&self, mut frame: Frame, epoch: u64) -> Option<()> {
        let client_id = frame.stream;
        let refusal = {
            let state = lock(&self.client.state);
            if client_id == 0 || state.streams.contains_key(&client_id) {
                return None;
            }
            (state.streams.len() >= STREAMS_MAX)
                .then(|| RemoteError::new(ErrorKind::Busy, "too many streams in this session"))
        };
        if let Some(error) = refusal {
            self.client.send(epoch, &Frame::new(Kind::Error, client_id, to_json(&error)));
            return Some(());
        }
        let sink = ClientStream { client: Arc::downgrade(&self.client), epoch, id: client_id };
        let id = self.inner().register(Arc::new(sink)).ok()?;
        lock(&self.client.state).streams.insert(client_id, id);
        frame.stream = id;
        self.inner().send(&frame).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::limits::FRAME_PAYLOAD_MAX;

    #[test]
    fn a_client_that_does_not_read_is_disconnected_at_a_limit() {
        let closed = Arc::new(AtomicBool::new(false));
        let noted = Arc::clone(&closed);
        let closer = Box::new(move || noted.store(true, Ordering::Relaxed));
        let client = Client { outbox: Outbox::new(RELAY_QUEUE_BYTES_MAX), closer, state: Mutex::default() };
        let greeting = Frame::new(Kind::HelloAck, 0, Vec::new());
        let epoch = client.outbox.begin(&greeting);
        let nonce: Nonce = [0; std::mem::size_of::<Nonce>()];
        lock(&client.state).greeted = Some((nonce, epoch));
        let frame = Frame::new(Kind::Data, 1, vec![0; FRAME_PAYLOAD_MAX]);
        let frame_bytes = frame.encode().unwrap().len();
        let mut queued = greeting.encode().unwrap().len();
        while queued <= RELAY_QUEUE_BYTES_MAX {
            client.send(epoch, &frame);
            assert!(!closed.load(Ordering::Relaxed), "{queued} bytes queued");
            queued += frame_bytes;
        }
        client.send(epoch, &frame);
        assert!(closed.load(Ordering::Relaxed), "{queued} bytes queued");
    }
}
