//! The host's greeting, repeated until the agent answers it.

use std::io;
use std::time::{Duration, Instant};

use crate::error::SessionError;
use crate::frame::{Decoder, Frame, HEADER_BYTES, Kind, NONCE_BYTES, Nonce};
use crate::limits::{FRAME_PAYLOAD_MAX, PROTOCOL_VERSION};
use crate::message::{Hello, HelloAck, parse_json, to_json};
use crate::outbox::Outbox;
use crate::transport::ReadHalf;

const REPEAT_MIN: Duration = Duration::from_millis(100);
const REPEAT_MAX: Duration = Duration::from_secs(1);

/// Greetings without an answer before the flush.
const FLUSH_AFTER: u32 = 2;

const READ_BYTES: usize = 4096;

/// An accepted greeting.
pub(super) struct Greeted {
    pub(super) ack: HelloAck,
    /// Holds what the agent sent behind its answer.
    pub(super) decoder: Decoder,
    pub(super) epoch: u64,
    pub(super) nonce: Nonce,
}

pub(super) fn greet(
    reader: &mut dyn ReadHalf,
    outbox: &Outbox,
    deadline: Instant,
) -> Result<Greeted, SessionError> {
    let mut nonce: Nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)
        .map_err(|error| SessionError::Io { action: "make a nonce", source: io::Error::other(error) })?;
    let hello = Hello { protocol: PROTOCOL_VERSION, features: Vec::new() };
    let hello = Frame::handshake(Kind::Hello, &nonce, &to_json(&hello));
    let begun = Instant::now();
    let epoch = outbox.begin(&hello);
    let mut sent = 1;
    let mut repeat_at = begun + REPEAT_MIN;
    let mut decoder = Decoder::default();
    let mut buffer = [0; READ_BYTES];
    loop {
        while let Some(frame) = decoder.scan(Kind::HelloAck) {
            let Some((answered, json)) = frame.handshake_parts() else { continue };
            if answered != nonce {
                continue;
            }
            // The version is looked at first: the rest of another version may have another shape.
            let version: Version = parse_json("the agent's greeting does not parse", json)?;
            if version.protocol != PROTOCOL_VERSION {
                let theirs = version.protocol;
                return Err(SessionError::ProtocolMismatch { ours: PROTOCOL_VERSION, theirs });
            }
            let ack = parse_json("the agent's greeting does not parse", json)?;
            return Ok(Greeted { ack, decoder, epoch, nonce });
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(SessionError::Timeout {
                action: "reaching the guest agent",
                waited: begun.elapsed(),
            });
        }
        if now >= repeat_at {
            // Nothing is added to a transport that does not take what it has.
            if outbox.wait_drained(now) {
                if sent == FLUSH_AFTER {
                    // The agent may be waiting for the rest of a frame another client began: this fills any
                    // frame, and what is left is no frame, which makes the agent look for a greeting.
                    outbox.push_raw(vec![0; FRAME_PAYLOAD_MAX + HEADER_BYTES]);
                }
                outbox.push(epoch, &hello);
                sent += 1;
            }
            repeat_at = now + (begun.elapsed() / 8).clamp(REPEAT_MIN, REPEAT_MAX);
        }
        let wait = repeat_at.min(deadline).saturating_duration_since(now).max(Duration::from_millis(1));
        reader
            .set_read_timeout(Some(wait))
            .map_err(|source| SessionError::Io { action: "set a deadline on the transport", source })?;
        match reader.read(&mut buffer) {
            Ok(0) => return Err(SessionError::lost("the other side closed it before its greeting")),
            Ok(count) => decoder.push(buffer.get(..count).unwrap_or_default()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                _ => return Err(SessionError::lost(error.to_string())),
            },
        }
    }
}

#[derive(serde::Deserialize)]
struct Version {
    protocol: u32,
}
