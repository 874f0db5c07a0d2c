//! When a machine is ready: one check, how often it is tried, and for how long.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;

/// The longest path of a check's file, in bytes.
pub const FILE_PATH_BYTES_MAX: usize = 4096;
/// The longest path of a check's request, in bytes.
pub const HTTP_PATH_BYTES_MAX: usize = 1024;

/// A check that tells when a machine is ready, and its times.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "ProbeFields", into = "ProbeFields")]
pub struct ReadyProbe {
    /// What is checked.
    pub check: ReadyCheck,
    /// Time between two tries, in milliseconds.
    pub interval_ms: u64,
    /// Time after which the machine counts as never ready, in milliseconds from its start.
    pub timeout_ms: u64,
    /// Time from the machine's start in which a failed try does not count, in milliseconds.
    pub start_period_ms: Option<u64>,
    /// Failed tries in a row after which the machine counts as never ready; none means that only time ends it.
    pub retries: Option<NonZeroU32>,
}

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReadyCheck {
    /// The guest's agent answers.
    Agent,
    /// A program, run in the guest with these arguments, exits with 0.
    Command(Vec<String>),
    /// Something in the guest takes connections to this port of its loopback address.
    Tcp(NonZeroU16),
    /// A GET over plain HTTP in the guest is answered with a certain status.
    Http(HttpCheck),
    /// A file, directory or anything else exists in the guest.
    File(FilePath),
}

impl fmt::Display for ReadyCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.write_str("the agent answers"),
            Self::Command(command) => f.write_str(&command.join(" ")),
            Self::Tcp(port) => write!(f, "tcp {port}"),
            Self::Http(check) => write!(f, "http {check}"),
            Self::File(path) => write!(f, "file {path}"),
        }
    }
}

/// A request to the guest's loopback address, and the answer that is a success.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    /// The port.
    pub port: NonZeroU16,
    /// What is requested.
    pub path: HttpPath,
    /// The statuses that are a success.
    pub status: StatusRange,
}

impl fmt::Display for HttpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.port, self.path)?;
        if self.status == StatusRange::default() { Ok(()) } else { write!(f, " status {}", self.status) }
    }
}

/// A part of a check that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidReady {
    /// Two kinds of check at once.
    #[error("`{0}` and `{1}` exclude each other: a machine has one check")]
    Two(&'static str, &'static str),
    /// A command without a program.
    #[error("a list of program and arguments is wanted")]
    Command,
    /// A text that is not a port and a path.
    #[error("`{0}` is not a port and a path: 80/health is")]
    Http(String),
    /// A text that is not the path of a request.
    #[error(
        "`{0}` is not the path of a request: /health is; printable ASCII, at most {HTTP_PATH_BYTES_MAX} bytes"
    )]
    HttpPath(String),
    /// A text that is not a range of statuses.
    #[error("`{0}` is not a status or a range of them: 204 and 200-399 are, from 100 to 599")]
    Status(String),
    /// A text that is not an absolute path.
    #[error("`{0}` is not an absolute path of at most {FILE_PATH_BYTES_MAX} bytes")]
    FilePath(String),
    /// A time without failures that is as long as the time to readiness.
    #[error("a start period of {start} ms is not shorter than the timeout of {timeout} ms")]
    StartPeriod {
        /// The start period.
        start: u64,
        /// The timeout.
        timeout: u64,
    },
}

impl FromStr for HttpCheck {
    type Err = InvalidReady;

    /// Parses `80/health`, or `80` for `80/`.
    fn from_str(text: &str) -> Result<Self, InvalidReady> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (port, path) = text.split_at(digits);
        let port = port.parse().map_err(|_| InvalidReady::Http(crate::text::clip(text)))?;
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { port, path: path.parse()?, status: StatusRange::default() })
    }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $error:ident, $is_valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidReady;

            fn from_str(text: &str) -> Result<Self, InvalidReady> {
                let is_valid: fn(&str) -> bool = $is_valid;
                if is_valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidReady::$error(crate::text::clip(text)))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidReady;

            fn try_from(text: String) -> Result<Self, InvalidReady> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(path: $name) -> Self {
                path.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_type!(
    /// An absolute path in the guest, at most [`FILE_PATH_BYTES_MAX`] bytes.
    FilePath,
    FilePath,
    |text| text.starts_with('/') && text.len() <= FILE_PATH_BYTES_MAX && !text.contains('\0')
);
text_type!(
    /// The path of a request, as it stands in its first line: printable ASCII without spaces, at most
    /// [`HTTP_PATH_BYTES_MAX`] bytes.
    HttpPath,
    HttpPath,
    |text| {
        text.starts_with('/')
            && text.len() <= HTTP_PATH_BYTES_MAX
            && text.bytes().all(|byte| byte.is_ascii_graphic())
    }
);

/// Statuses of HTTP answers, first and last included. Written as `204` or `200-399`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StatusRange {
    min: u16,
    max: u16,
}

impl Default for StatusRange {
    fn default() -> Self {
        Self { min: 200, max: 399 }
    }
}

impl StatusRange {
    /// Returns the lowest status in it.
    pub fn min(self) -> u16 {
        self.min
    }

    /// Returns the highest status in it.
    pub fn max(self) -> u16 {
        self.max
    }
}

impl FromStr for StatusRange {
    type Err = InvalidReady;

    fn from_str(text: &str) -> Result<Self, InvalidReady> {
        let status = |part: &str| {
            let digits = part.len() == 3 && part.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten().filter(|status| (100..=599).contains(status))
        };
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        match (status(min), status(max)) {
            (Some(min), Some(max)) if min <= max => Ok(Self { min, max }),
            _ => Err(InvalidReady::Status(crate::text::clip(text))),
        }
    }
}

impl TryFrom<String> for StatusRange {
    type Error = InvalidReady;

    fn try_from(text: String) -> Result<Self, InvalidReady> {
        text.parse()
    }
}

impl From<StatusRange> for String {
    fn from(range: StatusRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.min)?;
        if self.min == self.max { Ok(()) } else { write!(f, "-{}", self.max) }
    }
}

/// A probe as manifests and records have it. The order of the fields is part of a revision's id, and a probe that is a
/// command with its two times has the bytes it always had.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Vec<String>>,
    interval_ms: u64,
    timeout_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<NonZeroU16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<HttpCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<FilePath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_period_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retries: Option<NonZeroU32>,
}

impl ReadyCheck {
    /// Returns the one check that is given, or that the agent answers.
    ///
    /// # Errors
    /// Names two that are given together, and refuses a command without a program.
    pub fn one_of(
        command: Option<Vec<String>>,
        tcp: Option<NonZeroU16>,
        http: Option<HttpCheck>,
        file: Option<FilePath>,
    ) -> Result<Self, InvalidReady> {
        if command.as_ref().is_some_and(Vec::is_empty) {
            return Err(InvalidReady::Command);
        }
        let given = [
            ("command", command.map(Self::Command)),
            ("tcp", tcp.map(Self::Tcp)),
            ("http", http.map(Self::Http)),
            ("file", file.map(Self::File)),
        ];
        let mut given = given.into_iter().filter_map(|(name, check)| Some((name, check?)));
        match (given.next(), given.next()) {
            (None, _) => Ok(Self::Agent),
            (Some((_, check)), None) => Ok(check),
            (Some((one, _)), Some((other, _))) => Err(InvalidReady::Two(one, other)),
        }
    }
}

impl ReadyProbe {
    /// Returns the probe when its times go together.
    ///
    /// # Errors
    /// Refuses a start period that is not shorter than the timeout.
    pub fn checked(self) -> Result<Self, InvalidReady> {
        match self.start_period_ms {
            Some(start) if start >= self.timeout_ms => {
                Err(InvalidReady::StartPeriod { start, timeout: self.timeout_ms })
            }
            _ => Ok(self),
        }
    }
}

impl TryFrom<ProbeFields> for ReadyProbe {
    type Error = InvalidReady;

    fn try_from(fields: ProbeFields) -> Result<Self, InvalidReady> {
        Self {
            check: ReadyCheck::one_of(fields.command, fields.tcp, fields.http, fields.file)?,
            interval_ms: fields.interval_ms,
            timeout_ms: fields.timeout_ms,
            start_period_ms: fields.start_period_ms,
            retries: fields.retries,
        }
        .checked()
    }
}

impl From<ReadyProbe> for ProbeFields {
    fn from(probe: ReadyProbe) -> Self {
        let mut fields = Self {
            command: None,
            interval_ms: probe.interval_ms,
            timeout_ms: probe.timeout_ms,
            tcp: None,
            http: None,
            file: None,
            start_period_ms: probe.start_period_ms,
            retries: probe.retries,
        };
        match probe.check {
            ReadyCheck::Agent => {}
            ReadyCheck::Command(command) => fields.command = Some(command),
            ReadyCheck::Tcp(port) => fields.tcp = Some(port),
            ReadyCheck::Http(check) => fields.http = Some(check),
            ReadyCheck::File(path) => fields.file = Some(path),
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(check: ReadyCheck) -> ReadyProbe {
        ReadyProbe { check, interval_ms: 500, timeout_ms: 120_000, start_period_ms: None, retries: None }
    }

    fn refusal(json: &str) -> String {
        serde_json::from_str::<ReadyProbe>(json).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_has_pinned_bytes() {
        let http = HttpCheck { status: "204".parse().unwrap(), .."8080/up?x=1".parse().unwrap() };
        let full = ReadyProbe {
            start_period_ms: Some(5000),
            retries: NonZeroU32::new(3),
            ..probe(ReadyCheck::File("/run/ready".parse().unwrap()))
        };
        let command = ReadyCheck::Command(vec!["true".to_owned()]);
        for (probe, json) in [
            (probe(ReadyCheck::Agent), r#"{"interval_ms":500,"timeout_ms":120000}"#),
            (probe(command), r#"{"command":["true"],"interval_ms":500,"timeout_ms":120000}"#),
            (
                probe(ReadyCheck::Tcp(NonZeroU16::MAX)),
                r#"{"interval_ms":500,"timeout_ms":120000,"tcp":65535}"#,
            ),
            (
                probe(ReadyCheck::Http(http)),
                r#"{"interval_ms":500,"timeout_ms":120000,"http":{"port":8080,"path":"/up?x=1","status":"204"}}"#,
            ),
            (
                full,
                r#"{"interval_ms":500,"timeout_ms":120000,"file":"/run/ready","start_period_ms":5000,"retries":3}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&probe).unwrap(), json);
            assert_eq!(serde_json::from_str::<ReadyProbe>(json).unwrap(), probe);
        }
    }

    #[test]
    fn a_probe_that_is_read_is_checked_as_one_that_is_written() {
        let two = refusal(r#"{"command":["x"],"interval_ms":1,"timeout_ms":1,"file":"/x"}"#);
        assert_eq!(two, "`command` and `file` exclude each other: a machine has one check");
        let none = refusal(r#"{"command":[],"interval_ms":1,"timeout_ms":1}"#);
        assert_eq!(none, "a list of program and arguments is wanted");
        let long = refusal(r#"{"interval_ms":1,"timeout_ms":7,"start_period_ms":7}"#);
        assert_eq!(long, "a start period of 7 ms is not shorter than the timeout of 7 ms");
        for part in [
            r#""tcp":0"#,
            r#""tcp":65536"#,
            r#""file":"run""#,
            r#""retries":0"#,
            r#""http":{"port":1,"path":"/","status":"200","host":"x"}"#,
            r#""http":{"port":1,"path":"/ HTTP/1.1\r\n","status":"200"}"#,
        ] {
            refusal(&format!(r#"{{"interval_ms":1,"timeout_ms":1,{part}}}"#));
        }
    }

    #[test]
    fn http_checks_are_a_port_and_a_path() {
        let check: HttpCheck = "80/health".parse().unwrap();
        assert_eq!((check.port.get(), check.path.as_str()), (80, "/health"));
        assert_eq!((check.status.min(), check.status.max()), (200, 399));
        assert_eq!("80".parse::<HttpCheck>().unwrap().to_string(), "80/");
        for text in
            ["", "/", "0/", "65536/", "+80/", "80health", "80:/", "http://x", "80/a b", "80/ü", "80/\n"]
        {
            assert!(text.parse::<HttpCheck>().is_err(), "{text}");
        }
    }

    #[test]
    fn statuses_are_a_range_of_three_digits() {
        assert_eq!("200-399".parse::<StatusRange>().unwrap(), StatusRange::default());
        assert_eq!("100-599".parse::<StatusRange>().unwrap().to_string(), "100-599");
        assert_eq!("204-204".parse::<StatusRange>().unwrap().to_string(), "204");
        for text in ["", "-", "99", "600", "0200", "200-", "-200", "300-200", "2xx", "200-300-400", "+20"] {
            assert!(text.parse::<StatusRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths_have_a_longest_form() {
        let of = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        assert!(of(FILE_PATH_BYTES_MAX).parse::<FilePath>().is_ok());
        assert!(of(FILE_PATH_BYTES_MAX + 1).parse::<FilePath>().is_err());
        assert!(of(HTTP_PATH_BYTES_MAX).parse::<HttpPath>().is_ok());
        assert!(of(HTTP_PATH_BYTES_MAX + 1).parse::<HttpPath>().is_err());
        assert!("/a\0".parse::<FilePath>().is_err() && "relative".parse::<FilePath>().is_err());
    }
}
