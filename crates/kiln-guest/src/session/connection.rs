//! A connection to a port of the guest.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::stream::{Delivery, Port, Stream};
use crate::error::SessionError;

/// A connection to a port of the guest. Its directions end one by one, as those of a TCP connection do.
#[derive(Debug)]
pub struct Connection {
    writer: ConnectionWriter,
    reader: ConnectionReader,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        let writer = ConnectionWriter { port: Some(Arc::clone(&stream.port)) };
        Self { writer, reader: ConnectionReader { stream, rest: Vec::new(), start: 0, ended: false } }
    }

    /// Splits it into parts that different threads can own.
    #[must_use]
    pub fn split(self) -> (ConnectionWriter, ConnectionReader) {
        (self.writer, self.reader)
    }
}

/// Writes to the port. Dropping it tells the port that nothing follows; what comes from there still can be read.
///
/// A write waits while the port does not take bytes, and fails with `BrokenPipe` once the connection has ended.
#[derive(Debug)]
pub struct ConnectionWriter {
    port: Option<Arc<Port>>,
}

impl ConnectionWriter {
    /// Tells the port that nothing follows.
    ///
    /// # Errors
    /// Fails when the session is lost.
    pub fn close(&mut self) -> Result<(), SessionError> {
        match self.port.take() {
            Some(port) => port.send_eof(),
            None => Ok(()),
        }
    }
}

impl Drop for ConnectionWriter {
    fn drop(&mut self) {
        // A lost session has closed it.
        let _ = self.close();
    }
}

impl Write for ConnectionWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let port = self.port.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        match port.send_stdin(bytes) {
            Ok(Some(count)) => Ok(count),
            Ok(None) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(error.into_io()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
