//! Files and trees on their way into and out of the guest.

use std::io::{self, Read, Write};
use std::time::Instant;

use super::stream::{Delivery, Stream};
use crate::error::SessionError;

/// Reads what the agent sends; the end of the stream is the end of the file.
///
/// An error of the agent is an [`io::Error`] that holds a [`SessionError`].
#[derive(Debug)]
pub struct StreamReader {
    stream: Stream,
    rest: Vec<u8>,
    start: usize,
    ended: bool,
    deadline: Option<Instant>,
}

impl StreamReader {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, rest: Vec::new(), start: 0, ended: false, deadline: None }
    }

    /// Makes reads fail with `TimedOut` after a deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.start == self.rest.len() {
            if self.ended || buffer.is_empty() {
                return Ok(0);
            }
            match self.stream.receive(self.deadline).map_err(SessionError::into_io)? {
                None => return Err(io::ErrorKind::TimedOut.into()),
                Some(Delivery::Data(_, bytes)) => {
                    self.rest = bytes;
                    self.start = 0;
                }
                // The end of stdout is followed by that of the stream.
                Some(Delivery::Eof) => {}
                Some(Delivery::Exit(_)) => self.ended = true,
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

/// Writes what the agent stores; only [`StreamWriter::finish`] makes it visible.
///
/// Dropping it before that abandons the file. An error of the agent is an [`io::Error`] that holds a
/// [`SessionError`].
#[derive(Debug)]
pub struct StreamWriter {
    stream: Stream,
}

impl StreamWriter {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream }
    }

    /// Ends the data and waits until the agent has stored it.
    ///
    /// # Errors
    /// Reports what the agent could not store.
    pub fn finish(mut self) -> Result<(), SessionError> {
        self.stream.port.send_eof()?;
        self.stream.wait_exit(None).map(|_| ())
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match self.stream.port.send_stdin(bytes) {
            Ok(Some(count)) => Ok(count),
            Ok(None) => Err(match self.stream.wait_exit(None) {
                Ok(_) => io::ErrorKind::BrokenPipe.into(),
                Err(error) => error.into_io(),
            }),
            Err(error) => Err(error.into_io()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
