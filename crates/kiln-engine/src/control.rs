//! The control socket of a machine: how commands reach its supervisor. One line of JSON asks, one line answers; after
//! `agent` the connection speaks the guest channel's protocol. `docs/formats/control.md` describes both.

use crate::{EngineError, EngineResult};
use kiln_sys::process::poll_within;
use kiln_sys::{Cancel, IoResultExt as _, socket};
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The control socket, in the machine's directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// The longest line, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// How long a supervisor may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why an agent cannot be reached just before its machine is suspended.
pub(crate) const IS_SUSPENDING: &str = "it is being suspended";
/// How long a supervisor may take to capture a machine.
const CAPTURE_WITHIN: Duration = Duration::from_secs(120);

/// What a command asks of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ask {
    /// To connect to the guest's agent: from then on the connection speaks the guest channel's protocol.
    Agent,
    /// To be answered once the guest is ready. When the machine ends before, the connection does without an answer.
    Ready,
    /// To end the machine.
    Stop {
        /// Milliseconds the guest has to power off by itself; 0 ends it at once.
        grace_ms: u64,
    },
    /// To let the guest's processors stand.
    Pause,
    /// To let them go on.
    Resume,
    /// To save the machine as it is at one instant, after which it goes on. Copies of its disks are made, and with
    /// `memory` a file `machine` with memory and state in one stream.
    Save {
        /// A directory below the store's `staging`.
        into: PathBuf,
        /// Whether more than the disks is wanted.
        memory: bool,
    },
    /// To save the machine into its directory, and end it.
    Suspend,
    /// To capture the machine and end it. Its files are moved away: `memory`, `state`, the disks.
    Capture {
        /// A directory below the store's `staging`, on the same file system.
        into: PathBuf,
    },
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
    /// The machine was captured.
    Captured {
        /// Microseconds from the command to stop the guest until its state was written.
        paused_us: u64,
    },
    /// The machine was saved.
    Saved(SavedMachine),
    /// It is not.
    Refused {
        /// Why.
        reason: String,
    },
}

/// A machine that was saved and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMachine {
    /// Microseconds the guest stood for it; 0 for one that stood before.
    pub paused_us: u64,
    /// Whether it has a network device although it is connected to nothing.
    pub unplugged_nic: bool,
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
        /// Why that one, or why it booted; empty when there is nothing to say.
        reason: String,
        /// Whether it was restored from a snapshot, or was suspended, and did not boot.
        #[serde(default)]
        restored: bool,
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

/// Connects to a machine's supervisor and has the machine captured; returns the microseconds the guest stood still for it.
pub fn ask_capture(dir: &Path, name: &str, into: &Path) -> EngineResult<u64> {
    let path = dir.join(CONTROL_SOCKET);
    let mut stream = socket::connect(dir, CONTROL_SOCKET)?;
    stream.set_read_timeout(Some(CAPTURE_WITHIN)).at("use", &path)?;
    write_line(&mut stream, &Ask::Capture { into: into.to_owned() }).at("write to", &path)?;
    match read_line(&mut stream).at("read from", &path)? {
        Answer::Captured { paused_us } => Ok(paused_us),
        Answer::Refused { reason } => Err(EngineError::NotCaptured { name: name.to_owned(), reason }),
        Answer::Ok { .. } | Answer::Saved(_) => Err(strange(name)),
    }
}

/// Connects to a machine's supervisor and has the machine saved; it goes on.
pub fn ask_save(dir: &Path, name: &str, into: &Path, memory: bool) -> EngineResult<SavedMachine> {
    let path = dir.join(CONTROL_SOCKET);
    let mut stream = socket::connect(dir, CONTROL_SOCKET)?;
    stream.set_read_timeout(Some(CAPTURE_WITHIN)).at("use", &path)?;
    write_line(&mut stream, &Ask::Save { into: into.to_owned(), memory }).at("write to", &path)?;
    match read_line(&mut stream).at("read from", &path)? {
        Answer::Saved(saved) => Ok(saved),
        Answer::Refused { reason } => Err(EngineError::NotCaptured { name: name.to_owned(), reason }),
        Answer::Ok { .. } | Answer::Captured { .. } => Err(strange(name)),
    }
}

/// Connects to a machine's supervisor and has the machine saved; waits `within` for the answer.
pub(crate) fn ask_suspend(dir: &Path, name: &str, within: Duration) -> EngineResult<()> {
    let path = dir.join(CONTROL_SOCKET);
    let mut stream = socket::connect(dir, CONTROL_SOCKET)?;
    stream.set_read_timeout(Some(within)).at("use", &path)?;
    write_line(&mut stream, &Ask::Suspend).at("write to", &path)?;
    match read_line(&mut stream).at("read from", &path)? {
        Answer::Ok { .. } => Ok(()),
        Answer::Refused { reason } => Err(EngineError::NotSuspended { name: name.to_owned(), reason }),
        Answer::Captured { .. } | Answer::Saved(_) => Err(strange(name)),
    }
}

fn strange(name: &str) -> EngineError {
    let reason = "it answers something that was not asked".to_owned();
    EngineError::SupervisorRefused { name: name.to_owned(), reason }
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
        Answer::Captured { .. } | Answer::Saved(_) => Err(strange(name)),
    }
}

/// What came of waiting for readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The guest is ready.
    Ready,
    /// The supervisor ended without a word.
    Gone,
    /// The time is over.
    Late,
}

/// Connects to a machine's supervisor and waits, until `deadline`, to be told that the guest is ready.
pub(crate) fn await_ready(
    dir: &Path,
    name: &str,
    cancel: &Cancel,
    deadline: Option<Instant>,
) -> EngineResult<Told> {
    let mut stream = socket::connect(dir, CONTROL_SOCKET)?;
    await_ready_over(&mut stream, &dir.join(CONTROL_SOCKET), name, cancel, deadline)
}

fn await_ready_over(
    stream: &mut UnixStream,
    path: &Path,
    name: &str,
    cancel: &Cancel,
    deadline: Option<Instant>,
) -> EngineResult<Told> {
    write_line(stream, &Ask::Ready).at("write to", path)?;
    loop {
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let told = {
            let cancelled = cancel.fd();
            let mut fds = [PollFd::new(&*stream, PollFlags::IN), PollFd::new(&cancelled, PollFlags::IN)];
            poll_within(&mut fds, left).at("wait for", path)?;
            !fds[0].revents().is_empty()
        };
        if told {
            break;
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Told::Late);
        }
    }
    stream.set_read_timeout(Some(ANSWER_WITHIN)).at("use", path)?;
    match read_line(stream) {
        Ok(Answer::Ok { .. }) => Ok(Told::Ready),
        Ok(Answer::Captured { .. } | Answer::Saved(_)) => Err(strange(name)),
        Ok(Answer::Refused { reason }) => {
            Err(EngineError::SupervisorRefused { name: name.to_owned(), reason })
        }
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            Ok(Told::Gone)
        }
        Err(error) => Err(error).at("read from", path)?,
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

    /// Waits with what the other side of the connection has said.
    fn wait_over(said: &str, deadline: Option<Instant>, cancel: &Cancel) -> EngineResult<Told> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said.as_bytes()).unwrap();
        // Without a deadline it ends what it says: nothing would wake the wait.
        if deadline.is_none() {
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
        }
        await_ready_over(&mut ours, Path::new("control.sock"), "vm", cancel, deadline)
    }

    #[test]
    fn waiting_for_readiness_ends_with_a_word_the_connection_the_time_or_a_cancellation() {
        let cancel = Cancel::new().unwrap();
        assert_eq!(wait_over("{\"answer\":\"ok\"}\n", None, &cancel).unwrap(), Told::Ready);
        assert_eq!(wait_over("", None, &cancel).unwrap(), Told::Gone);
        assert_eq!(wait_over("", Some(Instant::now()), &cancel).unwrap(), Told::Late);
        let old = wait_over("{\"answer\":\"refused\",\"reason\":\"unknown\"}\n", None, &cancel).unwrap_err();
        assert_eq!(old.to_string(), "the supervisor of machine `vm` refused: unknown");
        cancel.cancel();
        assert!(matches!(wait_over("", None, &cancel), Err(EngineError::Cancelled)));
    }

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
