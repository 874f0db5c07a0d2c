//! What the host writes into a stream.

use std::io::{self, Write};
use std::sync::Arc;

use super::stream::{Port, Stream};
use crate::error::SessionError;

/// Writes to a program's stdin, or to a port of the guest. Dropping it tells that nothing follows; what comes from there
/// still can be read.
///
/// A write waits while nobody there takes bytes, and fails with `BrokenPipe` once the program or the connection has ended.
#[derive(Debug)]
pub struct InputWriter {
    port: Option<Arc<Port>>,
}

impl InputWriter {
    /// Returns the writer of a stream; without `open` there is nothing to write to.
    pub(super) fn of(stream: &Stream, open: bool) -> Self {
        Self { port: open.then(|| Arc::clone(&stream.port)) }
    }

    /// Tells that nothing follows; telling it twice does nothing.
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

impl Drop for InputWriter {
    fn drop(&mut self) {
        // A lost session has closed it.
        let _ = self.close();
    }
}

impl Write for InputWriter {
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
