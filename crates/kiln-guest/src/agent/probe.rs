//! Checks that need no program of the image: a port, a request, a file.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use super::stream::invalid;
use crate::error::RemoteError;
use crate::limits::{HTTP_PATH_BYTES_MAX, PROBE_ANSWER_BYTES_MAX, PROBE_TIMEOUT_MAX};
use crate::probe::{ProbeCheck, Probed};

/// Least time a connection is given: the system takes no zero.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Makes a check, within the time given or [`PROBE_TIMEOUT_MAX`].
pub(super) fn run(check: &ProbeCheck, timeout: Duration) -> Result<Probed, RemoteError> {
    let clock = Clock::start(timeout.clamp(TIMEOUT_MIN, PROBE_TIMEOUT_MAX));
    let found = match check {
        ProbeCheck::Tcp { port } => connect(*port, &clock).map(|_| None),
        ProbeCheck::Http { port, path } => {
            let is_plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
            if !is_plain || path.len() > HTTP_PATH_BYTES_MAX {
                return Err(invalid("the path of the request is not valid".to_owned()));
            }
            connect(*port, &clock).and_then(|stream| status(stream, *port, path, &clock)).map(Some)
        }
        ProbeCheck::File { path } => match fs::metadata(path) {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("{path} does not exist")),
            Err(error) => Err(format!("cannot look at {path}: {error}")),
        },
    };
    Ok(match found {
        Ok(status) => Probed { failure: None, status },
        Err(failure) => Probed { failure: Some(failure), status: None },
    })
}

/// The time a check has.
struct Clock {
    end: Instant,
    whole: Duration,
}

impl Clock {
    fn start(whole: Duration) -> Self {
        Self { end: Instant::now() + whole, whole }
    }

    fn left(&self) -> Option<Duration> {
        Some(self.end.saturating_duration_since(Instant::now())).filter(|left| *left >= TIMEOUT_MIN)
    }

    /// Puts a failure into words.
    fn words(&self, what: &str, error: &io::Error) -> String {
        match error.kind() {
            // A socket's own time limit is reported as the former.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("no answer from {what} within {} ms", self.whole.as_millis())
            }
            io::ErrorKind::ConnectionRefused => format!("connection refused on {what}"),
            io::ErrorKind::ConnectionReset => format!("connection reset by {what}"),
            _ => format!("{what}: {error}"),
        }
    }
}

/// Connects to a port of the loopback address within a time.
pub(super) fn connect_within(port: NonZeroU16, within: Duration) -> io::Result<TcpStream> {
    reach(port, &Clock::start(within))
}

fn connect(port: NonZeroU16, clock: &Clock) -> Result<TcpStream, String> {
    reach(port, clock).map_err(|error| clock.words(&format!("port {port}"), &error))
}

/// Connects to the newer protocol's loopback address where the older one's refuses.
fn reach(port: NonZeroU16, clock: &Clock) -> io::Result<TcpStream> {
    let to = |address: SocketAddr| {
        TcpStream::connect_timeout(&address, clock.left().ok_or(io::ErrorKind::TimedOut)?)
    };
    to((Ipv4Addr::LOCALHOST, port.get()).into()).or_else(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => to((Ipv6Addr::LOCALHOST, port.get()).into()).map_err(|_| error),
        _ => Err(error),
    })
}

/// Requests a path and returns the status of the answer. What follows the answer's first line is not read.
fn status(mut stream: TcpStream, port: NonZeroU16, path: &str, clock: &Clock) -> Result<u16, String> {
    let what = format!("port {port}");
    let words = |error: io::Error| clock.words(&what, &error);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: kiln\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream
        .set_write_timeout(clock.left())
        .and_then(|()| stream.write_all(request.as_bytes()))
        .map_err(words)?;
    let mut answer = [0; PROBE_ANSWER_BYTES_MAX];
    let mut length = 0;
    loop {
        let read = answer.get(..length).unwrap_or_default();
        if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            return parse_status(&read[..end]).ok_or_else(|| format!("the answer from {what} is not HTTP"));
        }
        let Some(free) = answer.get_mut(length..).filter(|free| !free.is_empty()) else {
            return Err(format!("the answer from {what} is not HTTP"));
        };
        // Each read has what is left: an answer in small pieces gains no time by them.
        let left = clock.left().ok_or_else(|| words(io::ErrorKind::TimedOut.into()))?;
        match stream.set_read_timeout(Some(left)).and_then(|()| stream.read(free)) {
            Ok(0) if length == 0 => return Err(format!("{what} closed the connection without an answer")),
            Ok(0) => return Err(format!("the answer from {what} is not HTTP")),
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(words(error)),
        }
    }
}

/// Parses `HTTP/1.1 200 OK` to 200.
fn parse_status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let (minor, rest) = rest.split_first()?;
    let digits = rest.strip_prefix(b" ")?.get(..3)?;
    let ends = matches!(rest.get(4), None | Some(b' ' | b'\r'));
    let is_number = minor.is_ascii_digit() && digits.iter().all(u8::is_ascii_digit);
    (is_number && ends).then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::GuestPath;
    use std::net::TcpListener;
    use std::thread;

    const LONG: Duration = Duration::from_secs(30);

    fn port_of(listener: &TcpListener) -> NonZeroU16 {
        NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap()
    }

    fn failure(check: &ProbeCheck, timeout: Duration) -> String {
        run(check, timeout).unwrap().failure.unwrap()
    }

    /// Answers one request with these bytes, and keeps the connection until the other side closes it.
    fn ask(answer: &'static [u8], timeout: Duration) -> (Probed, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port_of(&listener);
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let mut length = 0;
            while !request[..length].ends_with(b"\r\n\r\n") {
                length += stream.read(&mut request[length..]).unwrap();
            }
            let _ = stream.write_all(answer);
            if !answer.is_empty() {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            let _ = stream.read(&mut [0; 1]);
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let probed = run(&ProbeCheck::Http { port, path: "/up?x=1".to_owned() }, timeout).unwrap();
        (probed, server.join().unwrap())
    }

    #[test]
    fn a_port_is_open_or_refuses() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A host without the newer protocol has nothing to listen on.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let check = ProbeCheck::Tcp { port: port_of(&listener) };
            assert_eq!(run(&check, LONG).unwrap(), Probed::default());
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port_of(&listener);
        drop(listener);
        assert_eq!(failure(&ProbeCheck::Tcp { port }, LONG), format!("connection refused on port {port}"));
    }

    #[test]
    fn a_request_has_the_status_of_its_answer() {
        let (probed, request) = ask(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", LONG);
        assert_eq!(probed, Probed { failure: None, status: Some(503) });
        assert!(request.starts_with("GET /up?x=1 HTTP/1.1\r\nHost: localhost:"), "{request}");
        assert_eq!(ask(b"HTTP/1.0 200\n", LONG).0.status, Some(200));
    }

    #[test]
    fn what_is_no_answer_is_a_failure_with_a_reason() {
        static ENDLESS: [u8; PROBE_ANSWER_BYTES_MAX + 1] = [b'x'; PROBE_ANSWER_BYTES_MAX + 1];
        for answer in [&b"SSH-2.0-x\r\n"[..], b"HTTP/1.1 200 OK", &ENDLESS] {
            let said = ask(answer, LONG).0.failure.unwrap();
            assert!(said.starts_with("the answer from port ") && said.ends_with(" is not HTTP"), "{said}");
        }
        let silent = ask(b"", Duration::from_millis(20)).0.failure.unwrap();
        assert!(silent.starts_with("no answer from port ") && silent.ends_with(" within 20 ms"), "{silent}");
    }

    #[test]
    fn paths_that_would_be_another_request_are_refused() {
        let port = NonZeroU16::MIN;
        let long = format!("/{}", "x".repeat(HTTP_PATH_BYTES_MAX));
        for path in ["", "x", "/ HTTP/1.1\r\nX: y", "/\u{fc}", &long] {
            run(&ProbeCheck::Http { port, path: path.to_owned() }, LONG).unwrap_err();
        }
    }

    #[test]
    fn a_file_is_there_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let there = GuestPath::new(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(run(&ProbeCheck::File { path: there }, LONG).unwrap(), Probed::default());
        let path = dir.path().join("absent");
        let check = ProbeCheck::File { path: GuestPath::new(path.to_str().unwrap()).unwrap() };
        assert_eq!(failure(&check, LONG), format!("{} does not exist", path.display()));
    }

    #[test]
    fn status_lines_are_read_strictly() {
        for (line, status) in
            [("HTTP/1.1 200 OK\r", Some(200)), ("HTTP/1.0 404\r", Some(404)), ("HTTP/1.1 204", Some(204))]
        {
            assert_eq!(parse_status(line.as_bytes()), status, "{line}");
        }
        for line in [
            "",
            "HTTP/2 200",
            "HTTP/1.1  200",
            "HTTP/1.1 20",
            "HTTP/1.1 2000",
            "HTTP/1.1 2x0 OK",
            "HTTP/1.x 200",
        ] {
            assert_eq!(parse_status(line.as_bytes()), None, "{line}");
        }
    }
}
