//! The control socket of a machine: how commands reach its supervisor. One line of JSON asks, one line answers; after
//! `agent` the connection speaks the guest channel's protocol. `docs/formats/control.md` describes both.

use crate::{EngineError, EngineResult};
use kiln_sys::{IoResultExt as _, socket};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The control socket, in the machine's directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// The longest line, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// How long a supervisor may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What a command asks of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ask {
    /// To connect to the guest's agent: from then on the connection speaks the guest channel's protocol.
    Agent,
    /// To end the machine.
    Stop {
        /// Milliseconds the guest has to power off by itself; 0 ends it at once.
        grace_ms: u64,
    },
    /// To let the guest's processors stand.
    Pause,
    /// To let them go on.
    Resume,
}

/// What a supervisor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Answer {
    /// It is done, or has begun.
    Ok {
        /// Whether it was so before anybody asked.
        #[serde(default, skip_serializing_if = "is_false")]
        already: bool,
    },
    /// It is not.
    Refused {
        /// Why.
        reason: String,
    },
}

impl Answer {
    /// Says that it is done, or has begun.
    pub fn ok() -> Self {
        Self::Ok { already: false }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// What a supervisor tells whoever started it, a line of JSON each on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Report {
    /// It holds the machine.
    Supervising,
    /// The machine monitor runs.
    Started {
        /// The accelerator in use.
        accelerator: String,
        /// Why that one.
        reason: String,
    },
    /// The guest is ready.
    Ready {
        /// Milliseconds since the supervisor's start.
        after_ms: u64,
    },
    /// The machine ended.
    Ended {
        /// Why.
        cause: kiln_core::machine::EndCause,
        /// The console's last lines.
        console: Vec<String>,
    },
}

/// Connects to a machine's supervisor and asks.
pub fn ask(dir: &Path, name: &str, question: &Ask) -> EngineResult<UnixStream> {
    let mut stream = socket::connect(dir, CONTROL_SOCKET)?;
    ask_over(&mut stream, &dir.join(CONTROL_SOCKET), name, question)?;
    Ok(stream)
}

/// Connects to a machine's supervisor and asks; returns whether it was so already.
pub fn ask_for(dir: &Path, name: &str, question: &Ask) -> EngineResult<bool> {
    let mut stream = socket::connect(dir, CONTROL_SOCKET)?;
    ask_over(&mut stream, &dir.join(CONTROL_SOCKET), name, question)
}

/// Asks over a connection, which has no time limit any more once the answer is there. `path` is for errors.
fn ask_over(stream: &mut UnixStream, path: &Path, name: &str, question: &Ask) -> EngineResult<bool> {
    stream.set_read_timeout(Some(ANSWER_WITHIN)).at("use", path)?;
    write_line(stream, question).at("write to", path)?;
    match read_line(stream).at("read from", path)? {
        Answer::Ok { already } => {
            stream.set_read_timeout(None).at("use", path)?;
            Ok(already)
        }
        Answer::Refused { reason } => Err(EngineError::SupervisorRefused { name: name.to_owned(), reason }),
    }
}

/// Writes one line of JSON.
pub(crate) fn write_line(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one line of JSON, and not a byte more: what follows may be another protocol.
pub(crate) fn read_line<T: serde::de::DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if from.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if byte[0] == b'\n' {
            return Ok(serde_json::from_slice(&line)?);
        }
        if line.len() == LINE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line has more than {LINE_BYTES_MAX} bytes"),
            ));
        }
        line.push(byte[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_to_its_end_and_no_further() {
        let mut bytes = io::Cursor::new(b"{\"ask\":\"stop\",\"grace_ms\":5}\nrest".to_vec());
        assert_eq!(read_line::<Ask>(&mut bytes).unwrap(), Ask::Stop { grace_ms: 5 });
        let mut rest = String::new();
        bytes.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
    }

    #[test]
    fn answers_of_before_and_of_later_are_read() {
        let read = |line: &str| read_line::<Answer>(&mut format!("{line}\n").as_bytes());
        assert_eq!(read(r#"{"answer":"ok"}"#).unwrap(), Answer::ok());
        assert_eq!(
            read(r#"{"answer":"ok","already":true,"later":1}"#).unwrap(),
            Answer::Ok { already: true }
        );
        assert!(read(r#"{"answer":"ok","already":"yes"}"#).is_err());
        assert!(read(r#"{"answer":"perhaps"}"#).is_err());
        for (answer, line) in [
            (Answer::ok(), r#"{"answer":"ok"}"#),
            (Answer::Ok { already: true }, r#"{"answer":"ok","already":true}"#),
        ] {
            let mut bytes = Vec::new();
            write_line(&mut bytes, &answer).unwrap();
            assert_eq!(bytes, format!("{line}\n").as_bytes());
        }
    }

    #[test]
    fn an_endless_line_and_a_broken_one_are_errors() {
        let endless = vec![b'x'; LINE_BYTES_MAX + 1];
        let error = read_line::<Ask>(&mut endless.as_slice()).unwrap_err();
        assert_eq!(error.to_string(), "a line has more than 65536 bytes");
        let mut longest = b"{\"ask\":\"agent\"}".to_vec();
        longest.resize(LINE_BYTES_MAX, b' ');
        longest.push(b'\n');
        assert_eq!(read_line::<Ask>(&mut longest.as_slice()).unwrap(), Ask::Agent);
        assert!(read_line::<Ask>(&mut b"{}\n".as_slice()).is_err());
        assert!(read_line::<Ask>(&mut b"{\"ask\":".as_slice()).is_err());
    }

    #[test]
    fn an_answer_has_so_much_time_and_what_follows_has_all() {
        let path = Path::new("control.sock");
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        write_line(&mut theirs, &Answer::ok()).unwrap();
        ask_over(&mut ours, path, "vm", &Ask::Agent).unwrap();
        assert_eq!(ours.read_timeout().unwrap(), None);
        drop(theirs);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        // The other side reads and says no more.
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        ask_over(&mut ours, path, "vm", &Ask::Agent).unwrap_err();
        assert_eq!(ours.read_timeout().unwrap(), Some(Duration::from_secs(10)));
    }
}
