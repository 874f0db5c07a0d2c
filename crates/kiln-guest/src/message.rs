//! JSON payloads of the guest channel: the wire types.
//!
//! A payload is at most [`FRAME_PAYLOAD_MAX`] bytes. Unknown fields are ignored, so a minor addition needs no
//! new version; what an older side must not misread needs a new [`PROTOCOL_VERSION`](crate::limits::PROTOCOL_VERSION).

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{ErrorKind, RemoteError, SessionError};
use crate::frame::{Frame, Kind};
use crate::identity::{Identity, IdentityReport};
use crate::limits::{ARGV_ENV_BYTES_MAX, FRAME_PAYLOAD_MAX};
use crate::name::{GuestPath, SignalNumber, UserSpec};
use crate::private::{Environment, Secrets, check_environment, check_secrets};
use crate::probe::{ProbeCheck, Probed};
use crate::quiesce::{Quiesce, Quiesced};
use crate::token::Epoch;

/// Names the operation `quiesce` among an agent's features.
pub const FEATURE_QUIESCE: &str = "quiesce";

/// Names the operation `identity` among an agent's features.
pub const FEATURE_IDENTITY: &str = "identity";

/// Names, among an agent's features, that `configure` takes environment and secrets, and that programs get the environment.
pub const FEATURE_ENVIRONMENT: &str = "environment";

/// Names the operation `connect` among an agent's features.
pub const FEATURE_CONNECT: &str = "connect";

/// Every feature of this version's agent.
pub(crate) const FEATURES: [&str; 4] =
    [FEATURE_QUIESCE, FEATURE_IDENTITY, FEATURE_ENVIRONMENT, FEATURE_CONNECT];

/// `HELLO`, behind magic and nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Major version of the host.
    pub protocol: u32,
    /// Optional abilities of the host.
    #[serde(default)]
    pub features: Vec<String>,
}

/// `HELLO_ACK`, behind magic and the host's nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAck {
    /// Major version of the agent; when it differs from the host's, no session exists.
    pub protocol: u32,
    /// Version of the agent program.
    pub agent_version: String,
    /// The guest kernel's boot id, empty before `/proc` is mounted.
    #[serde(default)]
    pub boot_id: String,
    /// State of the guest.
    pub state: AgentState,
    /// Operations of the agent that not every agent of this version has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// The restore the guest was last told of, absent before the first. A relay repeats what its own session heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
}

/// State of the guest as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum AgentState {
    /// The root filesystem is not mounted yet; requests are refused.
    Booting,
    /// Requests are served.
    Ready,
    /// The guest cannot boot and will power off.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

/// `EVENT` on stream 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AgentEvent {
    /// The state changed.
    State {
        /// The new state.
        state: AgentState,
    },
    /// The entry point ended; the guest powers off next.
    EntrypointExited {
        /// How.
        status: ExitStatus,
    },
    /// The guest is going down.
    ShuttingDown,
    /// An event this version does not know.
    #[serde(other)]
    Unknown,
}

/// `OPEN`: what a stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// Runs a program.
    Exec(ExecRequest),
    /// Sends a file as stdout.
    ReadFile {
        /// The file.
        path: GuestPath,
        /// Where to start.
        #[serde(default)]
        offset: u64,
    },
    /// Stores stdin as a file, at once or not at all unless appending.
    WriteFile(WriteFile),
    /// Sends a file or tree as a tar stream whose top entry is named by the path's last part.
    Pack {
        /// The file or tree.
        path: GuestPath,
    },
    /// Extracts a tar stream from stdin.
    Unpack {
        /// An existing directory.
        dest: GuestPath,
    },
    /// Describes a file, without following a symlink.
    Stat {
        /// The file.
        path: GuestPath,
    },
    /// Sets the guest's identity: after a boot, and after every restore.
    Configure(Box<Configure>),
    /// Checks something in the guest, once.
    Probe {
        /// What.
        check: ProbeCheck,
        /// Time it may take, at most [`PROBE_TIMEOUT_MAX`](crate::limits::PROBE_TIMEOUT_MAX).
        timeout_ms: u32,
    },
    /// Connects to a port of the guest's loopback address: stdin goes there, stdout comes from there.
    Connect {
        /// The port.
        port: NonZeroU16,
    },
    /// Makes the guest ready to be captured.
    Quiesce(Quiesce),
    /// Makes a restored guest a machine of its own.
    Identity(Box<Identity>),
    /// Stops the guest.
    Shutdown {
        /// How.
        mode: ShutdownMode,
        /// Time for processes to end by themselves.
        grace_ms: u32,
    },
}

/// Runs a program.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; a program without `/` is looked up in the `PATH` of the new environment.
    pub argv: Vec<String>,
    /// Added to the default environment, or all of it with `clear_env`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Leaves out `PATH`, `HOME`, `USER` and `TERM`.
    #[serde(default)]
    pub clear_env: bool,
    /// Working directory, `/` when absent.
    #[serde(default)]
    pub cwd: Option<GuestPath>,
    /// User to run as, root when absent.
    #[serde(default)]
    pub user: Option<UserSpec>,
    /// Gives the program a terminal; stderr is then part of stdout.
    #[serde(default)]
    pub tty: Option<TtySize>,
    /// Value of `TERM` when there is a terminal.
    #[serde(default)]
    pub term: Option<String>,
    /// Connects stdin; otherwise it reads `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
}

impl ExecRequest {
    /// Makes a request that runs a program with arguments and nothing else set.
    pub fn new<I, S>(argv: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Checks what the kernel or the channel would refuse.
    ///
    /// # Errors
    /// Names the first rule that is broken.
    pub fn check(&self) -> Result<(), RemoteError> {
        let invalid = |message: String| Err(RemoteError::new(ErrorKind::Invalid, message));
        if self.argv.first().is_none_or(String::is_empty) {
            return invalid("no program to run".to_owned());
        }
        let argv: usize = self.argv.iter().map(|a| a.len() + 1).sum();
        let env: usize = self.env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
        if argv + env > ARGV_ENV_BYTES_MAX {
            return invalid(format!(
                "arguments and environment have {} bytes, more than {ARGV_ENV_BYTES_MAX}",
                argv + env
            ));
        }
        if self.argv.iter().any(|a| a.contains('\0')) {
            return invalid("an argument contains a zero byte".to_owned());
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return invalid(format!("environment variable {name:?} is not valid"));
            }
        }
        Ok(())
    }
}

/// Size of a terminal, in characters; also the `RESIZE` payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}

/// Stores a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFile {
    /// The file; its directory must exist.
    pub path: GuestPath,
    /// Permission bits.
    pub mode: u32,
    /// Owner, kept as the agent's when absent.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Group, kept as the agent's when absent.
    #[serde(default)]
    pub gid: Option<u32>,
    /// Appends to an existing file, in place, instead of replacing it.
    #[serde(default)]
    pub append: bool,
}

/// Sets the guest's identity; absent parts are left alone.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Configure {
    /// Host name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Network of the first, or named, interface.
    #[serde(default)]
    pub network: Option<NetworkConfig>,
    /// Wall-clock time in nanoseconds since 1970.
    #[serde(default)]
    pub clock_unix_ns: Option<u64>,
    /// 32 fresh random bytes, in hex, credited to the kernel's generator.
    #[serde(default)]
    pub entropy: Option<String>,
    /// The machine's own environment, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// The machine's own secrets, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Secrets>,
}

impl Configure {
    /// Checks the limits that no single type has.
    ///
    /// # Errors
    /// Names the first limit that is broken; no value is part of the text.
    pub fn check(&self) -> Result<(), RemoteError> {
        self.environment.as_ref().map(check_environment).transpose()?;
        self.secrets.as_ref().map(check_secrets).transpose()?;
        Ok(())
    }

    /// Returns whether it gives the machine an environment or secrets, empty ones included.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.environment.is_some() || self.secrets.is_some()
    }
}

/// Values may be secrets: only their number is shown.
impl fmt::Debug for Configure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configure")
            .field("hostname", &self.hostname)
            .field("network", &self.network)
            .field("clock_unix_ns", &self.clock_unix_ns)
            .field("environment", &self.environment.as_ref().map(Environment::len))
            .field("secrets", &self.secrets.as_ref().map(Secrets::len))
            .finish_non_exhaustive()
    }
}

/// Configuration of one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Selects the interface that has this address; when none has, the first one gets it.
    #[serde(default)]
    pub mac: Option<String>,
    /// Address and prefix length, as `10.0.2.15/24`; empty for an interface that is to have a hardware address only.
    #[serde(default)]
    pub address: String,
    /// Default gateway.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Servers written to `/etc/resolv.conf`; left alone when empty.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// How the guest stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// Power off.
    Poweroff,
    /// Restart.
    Reboot,
}

/// `OPENED`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Opened {
    /// Process id, for `Exec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Answer to `Stat`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stat: Option<FileStat>,
    /// Answer to `Configure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<Configured>,
    /// Answer to `Probe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed: Option<Probed>,
    /// Answer to `Quiesce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesced: Option<Quiesced>,
    /// Answer to `Identity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identified: Option<IdentityReport>,
}

/// What `Configure` did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Configured {
    /// The interface that was configured.
    #[serde(default)]
    pub interface: Option<String>,
    /// What a caller may want to know, in words.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Device, socket, pipe.
    #[serde(other)]
    Other,
}

/// Description of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Kind.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Target of a symlink.
    #[serde(default)]
    pub link_target: Option<String>,
}

/// `EXIT`: how a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code of a process that returned.
    #[serde(default)]
    pub code: Option<i32>,
    /// Signal that ended a process.
    #[serde(default)]
    pub signal: Option<i32>,
}

impl ExitStatus {
    /// The end of a request that is no process.
    pub const SUCCESS: Self = Self { code: Some(0), signal: None };

    /// Returns whether the code is 0.
    #[must_use]
    pub fn success(self) -> bool {
        self.code == Some(0)
    }
}

/// `SIGNAL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalMessage {
    /// Sent to the process group.
    pub signal: SignalNumber,
}

/// `RESET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetMessage {
    /// Why, in words.
    pub reason: String,
}

/// Makes a frame with a JSON payload.
///
/// # Errors
/// Refuses a payload over the frame limit.
pub fn json_frame<T: Serialize>(
    kind: Kind,
    stream: u32,
    what: &'static str,
    message: &T,
) -> Result<Frame, SessionError> {
    let payload = to_json(message);
    if payload.len() > FRAME_PAYLOAD_MAX {
        return Err(SessionError::TooLarge { what, size: payload.len(), limit: FRAME_PAYLOAD_MAX });
    }
    Ok(Frame::new(kind, stream, payload))
}

/// Parses the JSON payload of a frame.
///
/// # Errors
/// Names the frame that does not parse.
pub fn parse_json<T: DeserializeOwned>(what: &'static str, payload: &[u8]) -> Result<T, SessionError> {
    serde_json::from_slice(payload).map_err(|_| SessionError::Violation { what })
}

pub(crate) fn to_json<T: Serialize>(message: &T) -> Vec<u8> {
    // Wire types have string keys and no failing serializer.
    serde_json::to_vec(message).unwrap_or_default()
}

/// Shortens a text that ends up in a payload, at a character boundary.
pub(crate) fn clip(text: &str) -> String {
    const TEXT_BYTES_MAX: usize = 8 * 1024;
    clip_to(text, TEXT_BYTES_MAX)
}

/// Shortens a text to a number of bytes, at a character boundary.
pub(crate) fn clip_to(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// Makes a guest's text harmless to show: control characters but line ends and tabs are replaced. At most
/// `bytes_max` bytes of its beginning stay, at a character boundary.
pub(crate) fn plain(text: &str, bytes_max: usize) -> String {
    clip_to(&replace_controls(text), bytes_max)
}

/// As [`plain`], but of its end, and what is not text is replaced too.
pub(crate) fn plain_tail(bytes: &[u8], bytes_max: usize) -> String {
    let text = replace_controls(&String::from_utf8_lossy(bytes));
    let mut start = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default().to_owned()
}

fn replace_controls(text: &str) -> String {
    let kept = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if kept(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_events_are_tolerated() {
        let hello: Hello = parse_json("hello", br#"{"protocol":1,"colour":"red"}"#).unwrap();
        assert_eq!(hello.protocol, 1);
        let event: AgentEvent = parse_json("event", br#"{"event":"eclipse","of":"sun"}"#).unwrap();
        assert_eq!(event, AgentEvent::Unknown);
        let error: RemoteError = parse_json("error", br#"{"kind":"new","message":"m"}"#).unwrap();
        assert_eq!(error.kind, ErrorKind::Unknown);
    }

    #[test]
    fn requests_have_a_stable_shape() {
        let request = Request::Exec(ExecRequest::new(["true"]));
        let text = String::from_utf8(to_json(&request)).unwrap();
        assert!(text.starts_with(r#"{"op":"exec","argv":["true"]"#), "{text}");
        assert_eq!(parse_json::<Request>("open", text.as_bytes()).unwrap(), request);
        let stat = Request::Stat { path: GuestPath::new("/etc").unwrap() };
        assert_eq!(String::from_utf8(to_json(&stat)).unwrap(), r#"{"op":"stat","path":"/etc"}"#);
        assert!(parse_json::<Request>("open", br#"{"op":"stat","path":"etc"}"#).is_err());
        let check = ProbeCheck::Http { port: NonZeroU16::MIN, path: "/up".to_owned() };
        let probe = Request::Probe { check, timeout_ms: 500 };
        let text = r#"{"op":"probe","check":{"http":{"port":1,"path":"/up"}},"timeout_ms":500}"#;
        assert_eq!(String::from_utf8(to_json(&probe)).unwrap(), text);
        assert_eq!(parse_json::<Request>("open", text.as_bytes()).unwrap(), probe);
        assert!(parse_json::<Request>("open", text.replace(":1,", ":0,").as_bytes()).is_err());
        let connect = Request::Connect { port: NonZeroU16::MAX };
        assert_eq!(String::from_utf8(to_json(&connect)).unwrap(), r#"{"op":"connect","port":65535}"#);
    }

    #[test]
    fn exec_is_checked() {
        assert!(ExecRequest::new(["true"]).check().is_ok());
        assert!(ExecRequest::default().check().is_err());
        assert!(ExecRequest::new(["a\0"]).check().is_err());
        assert!(ExecRequest::new(["x".repeat(ARGV_ENV_BYTES_MAX)]).check().is_err());
        let mut request = ExecRequest::new(["true"]);
        request.env.insert("A=B".to_owned(), String::new());
        assert!(request.check().is_err());
    }
}
