//! A connection to a port of the guest.

use std::io::{self, Read};

use super::input::InputWriter;
use super::stream::{Delivery, Stream};
use crate::error::SessionError;

/// A connection to a port of the guest. Its directions end one by one, as those of a TCP connection do.
#[derive(Debug)]
pub struct Connection {
    writer: InputWriter,
    reader: ConnectionReader,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        let writer = InputWriter::of(&stream, true);
        Self { writer, reader: ConnectionReader { stream, rest: Vec::new(), start: 0, ended: false } }
    }

    /// Splits it into parts that different threads can own.
    #[must_use]
    pub fn split(self) -> (InputWriter, ConnectionReader) {
        (self.writer, self.reader)
    }
}

/// Reads from the port; reading is what lets it send more. Dropping it ends the connection in both directions.
///
/// A connection that breaks is an [`io::Error`] that holds a [`SessionError`].
#[derive(Debug)]
pub struct ConnectionReader {
    stream: Stream,
    rest: Vec<u8>,
    start: usize,
    ended: bool,
}

impl ConnectionReader {
    /// Waits until the other direction has ended too, so that the port has all that was written.
    ///
    /// # Errors
    /// Reports a connection that breaks before.
    pub fn finish(mut self) -> Result<(), SessionError> {
        self.stream.wait_exit(None).map(|_| ())
    }
}

impl Read for ConnectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.start == self.rest.len() {
            if self.ended || buffer.is_empty() {
                return Ok(0);
            }
            match self.stream.receive(None).map_err(SessionError::into_io)? {
                None => {}
                Some(Delivery::Data(_, bytes)) => {
                    self.rest = bytes;
                    self.start = 0;
                }
                // The agent sends it before the end of the stream, which is left for `finish`.
                Some(Delivery::Eof) => self.ended = true,
                Some(Delivery::Exit(_)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let rest = self.rest.get(self.start..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(target), Some(source)) = (buffer.get_mut(..count), rest.get(..count)) {
            target.copy_from_slice(source);
        }
        self.start += count;
        Ok(count)
    }
}
