//! Byte streams a session can run over.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name of the agent's virtio-serial port.
pub const AGENT_PORT_NAME: &str = "kiln.agent.0";

/// Port of the agent on vsock.
pub const AGENT_VSOCK_PORT: u32 = 1024;

/// Longest line of the hybrid vsock handshake.
pub const HYBRID_LINE_MAX: usize = 64;

/// One ordered byte stream in each direction.
pub trait Transport: Send + fmt::Debug {
    /// Splits the stream into its halves.
    ///
    /// # Errors
    /// Reports what the system refused.
    fn split(self: Box<Self>) -> io::Result<(Box<dyn ReadHalf>, Box<dyn WriteHalf>)>;
}

/// The reading half.
pub trait ReadHalf: Read + Send {
    /// Limits how long one read waits; a read over it fails with `WouldBlock` or `TimedOut`.
    ///
    /// # Errors
    /// Reports what the system refused.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
}

/// The writing half.
pub trait WriteHalf: Write + Send {
    /// Returns a function that ends both halves, and every read and write waiting in them.
    ///
    /// # Errors
    /// Reports what the system refused.
    fn closer(&self) -> io::Result<Box<dyn Fn() + Send + Sync>>;
}

impl Transport for UnixStream {
    fn split(self: Box<Self>) -> io::Result<(Box<dyn ReadHalf>, Box<dyn WriteHalf>)> {
        let reader = self.try_clone()?;
        Ok((Box::new(reader), self))
    }
}

impl ReadHalf for UnixStream {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Self::set_read_timeout(self, timeout)
    }
}

impl WriteHalf for UnixStream {
    fn closer(&self) -> io::Result<Box<dyn Fn() + Send + Sync>> {
        let stream = self.try_clone()?;
        Ok(Box::new(move || {
            // It fails only when the stream is gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }))
    }
}

/// A hybrid vsock connection that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HybridVsockError {
    /// The socket failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The machine monitor answered something else, or nothing: no one listens on the port in the guest.
    #[error("{} refused guest port {port}, answering {answer:?}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The port.
        port: u32,
        /// The answer.
        answer: String,
    },
}

/// Connects to a guest port through a machine monitor's hybrid vsock socket.
///
/// # Errors
/// Refuses an answer other than `OK` within the deadline.
pub fn connect_hybrid_vsock(
    path: &Path,
    port: u32,
    deadline: Instant,
) -> Result<UnixStream, HybridVsockError> {
    let io = |action| move |source| HybridVsockError::Io { action, path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(io("connect to"))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(io("write to"))?;
    let mut line = Vec::new();
    // Byte by byte: what follows the line belongs to the session.
    while line.last() != Some(&b'\n') && line.len() < HYBRID_LINE_MAX {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).map_err(io("set a deadline on"))?;
        let mut byte = [0];
        if stream.read(&mut byte).map_err(io("read from"))? == 0 {
            break;
        }
        line.extend_from_slice(&byte);
    }
    stream.set_read_timeout(None).map_err(io("set a deadline on"))?;
    let answer = String::from_utf8_lossy(&line).trim_end().to_owned();
    let accepted = line.last() == Some(&b'\n')
        && answer.strip_prefix("OK ").is_some_and(|number| number.parse::<u32>().is_ok());
    if accepted { Ok(stream) } else { Err(HybridVsockError::Refused { path: path.to_owned(), port, answer }) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn answer_with(answer: &'static [u8]) -> (String, Result<UnixStream, HybridVsockError>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            let mut reader = BufReader::new(stream);
            reader.read_line(&mut line).unwrap();
            reader.get_mut().write_all(answer).unwrap();
            line
        });
        let stream = connect_hybrid_vsock(&path, AGENT_VSOCK_PORT, Instant::now() + Duration::from_secs(5));
        (server.join().unwrap(), stream)
    }

    #[test]
    fn bytes_behind_the_answer_belong_to_the_session() {
        let (line, stream) = answer_with(b"OK 1073741824\nrest");
        assert_eq!(line, "CONNECT 1024\n");
        let mut rest = String::new();
        stream.unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
    }

    #[test]
    fn other_answers_are_refused() {
        for answer in [&b""[..], b"NO\n", b"OK\n", b"OK x\n", &[b'O'; 200]] {
            let (_, stream) = answer_with(answer);
            assert!(matches!(stream, Err(HybridVsockError::Refused { .. })), "{stream:?}");
        }
    }
}
