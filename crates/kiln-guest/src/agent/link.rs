//! What the server reads from: a virtio-serial port or a socket.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// What one read of a link gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkRead {
    /// So many bytes.
    Bytes(usize),
    /// The host side is gone and may come back on this link.
    Disconnected,
    /// The link has been asked to pause.
    Paused,
    /// The link has ended.
    Closed,
}

/// One incoming byte stream.
pub(super) trait Link {
    /// Waits for bytes.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<LinkRead>;
}

impl Link for UnixStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<LinkRead> {
        loop {
            match Read::read(self, buffer) {
                Ok(0) => return Ok(LinkRead::Closed),
                Ok(count) => return Ok(LinkRead::Bytes(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
