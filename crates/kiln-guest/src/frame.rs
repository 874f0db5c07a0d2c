//! Frames: the bytes of the guest channel.
//!
//! ```text
//! u32 LE payload length | u8 kind | u32 LE stream id | payload
//! ```
//!
//! This module knows lengths and kinds; what a payload means is [`crate::message`]'s business. A byte stream
//! may begin with the rest of another session (a virtio-serial port keeps what a client left behind), so a
//! [`Decoder`] can also scan for a handshake frame and discard everything before it.

use crate::limits::FRAME_PAYLOAD_MAX;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 9;

/// Bytes a handshake payload starts with.
pub const MAGIC: [u8; 8] = *b"\xffKILNgc\x01";

/// Bytes of the nonce behind [`MAGIC`].
pub const NONCE_BYTES: usize = 16;

/// Names one session; chosen at random by the host.
pub type Nonce = [u8; NONCE_BYTES];

/// Kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Host to agent: starts a session.
    Hello = 1,
    /// Agent to host: accepts it.
    HelloAck = 2,
    /// Asks for a `PONG` with the same payload.
    Ping = 3,
    /// Answers a `PING`.
    Pong = 4,
    /// Host to agent: opens a stream with a request.
    Open = 5,
    /// Agent to host: the request is accepted.
    Opened = 6,
    /// Bytes of a channel; the first byte names it.
    Data = 7,
    /// The end of a channel; the only byte names it.
    Eof = 8,
    /// Returns credit for consumed bytes.
    Credit = 9,
    /// Agent to host: the stream ended.
    Exit = 10,
    /// Agent to host: the stream failed; on stream 0, the session did.
    Error = 11,
    /// Host to agent: signals a process group.
    Signal = 12,
    /// Host to agent: resizes a terminal.
    Resize = 13,
    /// Either side: the stream is abandoned.
    Reset = 14,
    /// Agent to host, stream 0: something happened in the guest.
    Event = 15,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::Hello,
        Self::HelloAck,
        Self::Ping,
        Self::Pong,
        Self::Open,
        Self::Opened,
        Self::Data,
        Self::Eof,
        Self::Credit,
        Self::Exit,
        Self::Error,
        Self::Signal,
        Self::Resize,
        Self::Reset,
        Self::Event,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }
}

/// A byte stream of one `DATA` or `EOF` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Host to agent.
    Stdin = 0,
    /// Agent to host.
    Stdout = 1,
    /// Agent to host.
    Stderr = 2,
}

impl Channel {
    /// Returns the channel a `DATA` or `EOF` payload starts with.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stdin),
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The stream it belongs to, 0 for the session.
    pub stream: u32,
    /// At most [`FRAME_PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Makes a frame.
    #[must_use]
    pub fn new(kind: Kind, stream: u32, payload: Vec<u8>) -> Self {
        Self { kind, stream, payload }
    }

    /// Makes a `DATA` frame.
    #[must_use]
    pub fn data(stream: u32, channel: Channel, bytes: &[u8]) -> Self {
        let mut payload = Vec::with_capacity(bytes.len() + 1);
        payload.push(channel as u8);
        payload.extend_from_slice(bytes);
        Self::new(Kind::Data, stream, payload)
    }

    /// Makes an `EOF` frame.
    #[must_use]
    pub fn eof(stream: u32, channel: Channel) -> Self {
        Self::new(Kind::Eof, stream, vec![channel as u8])
    }

    /// Makes a `CREDIT` frame.
    #[must_use]
    pub fn credit(stream: u32, bytes: u32) -> Self {
        Self::new(Kind::Credit, stream, bytes.to_le_bytes().to_vec())
    }

    /// Makes a handshake frame: magic, nonce, JSON.
    #[must_use]
    pub fn handshake(kind: Kind, nonce: &Nonce, json: &[u8]) -> Self {
        let mut payload = Vec::with_capacity(MAGIC.len() + NONCE_BYTES + json.len());
        payload.extend_from_slice(&MAGIC);
        payload.extend_from_slice(nonce);
        payload.extend_from_slice(json);
        Self::new(kind, 0, payload)
    }

    /// Splits a handshake payload into nonce and JSON.
    #[must_use]
    pub fn handshake_parts(&self) -> Option<(Nonce, &[u8])> {
        let rest = self.payload.strip_prefix(&MAGIC)?;
        let (nonce, json) = rest.split_first_chunk::<NONCE_BYTES>()?;
        Some((*nonce, json))
    }

    /// Splits a `DATA` payload into channel and bytes.
    #[must_use]
    pub fn data_parts(&self) -> Option<(Channel, &[u8])> {
        let (channel, bytes) = self.payload.split_first()?;
        Some((Channel::from_byte(*channel)?, bytes))
    }

    /// Returns the bytes of a `CREDIT` payload.
    #[must_use]
    pub fn credit_bytes(&self) -> Option<u32> {
        Some(u32::from_le_bytes(self.payload.as_slice().try_into().ok()?))
    }

    /// Encodes the frame.
    ///
    /// # Errors
    /// Refuses a payload over [`FRAME_PAYLOAD_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let length = match u32::try_from(self.payload.len()) {
            Ok(length) if self.payload.len() <= FRAME_PAYLOAD_MAX => length,
            _ => return Err(FrameError::Oversized { length: self.payload.len() }),
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.stream.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        Ok(bytes)
    }
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length over the limit.
    #[error("frame payload of {length} bytes, more than {FRAME_PAYLOAD_MAX}")]
    Oversized {
        /// The length.
        length: usize,
    },
    /// A kind this version does not have.
    #[error("unknown frame kind {kind}")]
    UnknownKind {
        /// The byte.
        kind: u8,
    },
}

/// Cuts a byte stream into frames.
///
/// It never holds more than one frame and one read beyond it, because a length is checked before its payload
/// is awaited.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns whether no byte of an unfinished frame is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// Forgets every held byte.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.start = 0;
    }

    /// Takes the next frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// Refuses an oversized or unknown frame; the position is kept, so that [`Decoder::scan`] can go on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let held = self.buffer.get(self.start..).unwrap_or_default();
        let Some((length, kind, stream)) = header(held) else { return Ok(None) };
        if length > FRAME_PAYLOAD_MAX {
            return Err(FrameError::Oversized { length });
        }
        let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind { kind })?;
        let Some(payload) = held.get(HEADER_BYTES..HEADER_BYTES + length) else { return Ok(None) };
        let frame = Frame::new(kind, stream, payload.to_vec());
        self.start += HEADER_BYTES + length;
        Ok(Some(frame))
    }

    /// Discards bytes up to the next handshake frame of the kind and takes it; `None` when more bytes are
    /// needed.
    pub fn scan(&mut self, kind: Kind) -> Option<Frame> {
        loop {
            let held = self.buffer.get(self.start..).unwrap_or_default();
            let Some(found) = held.windows(MAGIC.len()).position(|window| window == MAGIC) else {
                // A header and all but one byte of the magic may still be the start of a handshake.
                let keep = (HEADER_BYTES + MAGIC.len() - 1).min(held.len());
                self.start = self.buffer.len() - keep;
                return None;
            };
            if let Some(begin) = found.checked_sub(HEADER_BYTES) {
                let candidate = held.get(begin..).unwrap_or_default();
                if let Some((length, byte, 0)) = header(candidate)
                    && byte == kind as u8
                    && (MAGIC.len() + NONCE_BYTES..=FRAME_PAYLOAD_MAX).contains(&length)
                {
                    self.start += begin;
                    if candidate.len() < HEADER_BYTES + length {
                        return None;
                    }
                    return self.next_frame().ok().flatten();
                }
            }
            self.start += found + 1;
        }
    }
}

fn header(bytes: &[u8]) -> Option<(usize, u8, u32)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first()?;
    let stream = rest.first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*length)).ok()?, *kind, u32::from_le_bytes(*stream)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        (0..Kind::ALL.len(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(kind, stream, payload)| Frame::new(Kind::ALL[kind], stream, payload))
    }

    proptest! {
        #[test]
        fn frames_survive_any_chunking(frames in proptest::collection::vec(any_frame(), 0..8), chunk in 1_usize..64) {
            let bytes: Vec<u8> = frames.iter().flat_map(|f| f.encode().unwrap()).collect();
            let mut decoder = Decoder::default();
            let mut decoded = Vec::new();
            for part in bytes.chunks(chunk) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    decoded.push(frame);
                }
            }
            prop_assert_eq!(decoded, frames);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..16)) {
            let mut decoder = Decoder::default();
            let mut scanner = Decoder::default();
            for chunk in chunks {
                decoder.push(&chunk);
                while let Ok(Some(_)) = decoder.next_frame() {}
                scanner.push(&chunk);
                while scanner.scan(Kind::Hello).is_some() {}
            }
        }

        #[test]
        fn a_handshake_is_found_behind_garbage(garbage in proptest::collection::vec(any::<u8>(), 0..200), chunk in 1_usize..64) {
            let wanted = Frame::handshake(Kind::HelloAck, &[7; NONCE_BYTES], b"{}");
            let mut bytes = garbage;
            bytes.extend(wanted.encode().unwrap());
            let mut decoder = Decoder::default();
            let mut found = None;
            for part in bytes.chunks(chunk) {
                decoder.push(part);
                found = found.or_else(|| decoder.scan(Kind::HelloAck));
            }
            prop_assert_eq!(found, Some(wanted));
        }
    }

    #[test]
    fn an_oversized_length_is_refused_before_its_payload() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 0x7f, 7, 1, 0, 0, 0]);
        assert_eq!(decoder.next_frame(), Err(FrameError::Oversized { length: 0x7fff_ffff }));
        assert!(Frame::new(Kind::Data, 1, vec![0; FRAME_PAYLOAD_MAX + 1]).encode().is_err());
    }

    #[test]
    fn a_magic_with_a_wrong_header_is_skipped() {
        let mut decoder = Decoder::default();
        decoder.push(&MAGIC);
        decoder.push(&Frame::handshake(Kind::Hello, &[1; NONCE_BYTES], b"{}").encode().unwrap());
        decoder.push(&Frame::handshake(Kind::HelloAck, &[2; NONCE_BYTES], b"{}").encode().unwrap());
        let frame = decoder.scan(Kind::HelloAck).unwrap();
        assert_eq!(frame.handshake_parts().unwrap().0, [2; NONCE_BYTES]);
    }
}
