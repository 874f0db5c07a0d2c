//! The recipe's probe: one try of it, and what many tries come to.

use kiln_core::ready::{HttpCheck, ReadyCheck, ReadyProbe};
use kiln_core::text::{clip, count, tail};
use kiln_guest::message::{ExecRequest, ExitStatus};
use kiln_guest::probe::{ProbeCheck, Probed};
use kiln_guest::session::ExecEvent;
use kiln_guest::{GuestPath, Session, SessionError};
use std::time::{Duration, Instant};

/// Time one try may take.
const TRY_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of the end of a probe's output that are kept, of each of its two kinds.
const OUTPUT_TAIL_BYTES: usize = 4 << 10;
/// Characters of a try's last words that a report repeats.
const WORDS_CHARS_MAX: usize = 400;

/// What one try came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tried {
    Succeeded,
    /// It did not succeed, and why.
    Failed(String),
    /// The time to readiness ended it: it would say less than the try before it.
    CutShort,
}

/// Tries a check once. The try ends with the time to readiness, `deadline`, at the latest.
///
/// # Errors
/// When the connection to the agent is lost.
pub(crate) fn attempt(
    session: &Session,
    check: &ReadyCheck,
    deadline: Instant,
) -> Result<Tried, SessionError> {
    let now = Instant::now();
    let until = end_of_try(now, deadline);
    let tried = match check {
        ReadyCheck::Command(command) => run(session, command, until),
        ReadyCheck::Tcp(port) => ask(session, ProbeCheck::Tcp { port: *port }, until - now).map(judge_any),
        ReadyCheck::Http(http) => {
            let check = ProbeCheck::Http { port: http.port, path: http.path.as_str().to_owned() };
            ask(session, check, until - now).map(|probed| judge_status(http, probed))
        }
        ReadyCheck::File(path) => match GuestPath::new(path.as_str()) {
            Ok(path) => ask(session, ProbeCheck::File { path }, until - now).map(judge_any),
            Err(error) => Ok(Tried::Failed(error.to_string())),
        },
        // Whoever comes here has its answer.
        _ => Ok(Tried::Succeeded),
    };
    match tried {
        Err(error) if error.is_lost() => Err(error),
        Err(SessionError::Timeout { .. }) if until == deadline => Ok(Tried::CutShort),
        Err(SessionError::Timeout { .. }) => {
            Ok(Tried::Failed(format!("it did not end within {} s", TRY_WITHIN.as_secs())))
        }
        Err(error) => Ok(Tried::Failed(tail(&kiln_core::text::chain(&error), WORDS_CHARS_MAX))),
        Ok(tried) => Ok(tried),
    }
}

/// Returns when one try that begins now ends at the latest.
fn end_of_try(now: Instant, deadline: Instant) -> Instant {
    deadline.min(now + TRY_WITHIN).max(now)
}

fn ask(session: &Session, check: ProbeCheck, within: Duration) -> Result<Probed, SessionError> {
    session.probe(check, within)
}

fn judge_any(probed: Probed) -> Tried {
    probed.failure.map_or(Tried::Succeeded, |words| Tried::Failed(tail(&words, WORDS_CHARS_MAX)))
}

fn judge_status(check: &HttpCheck, probed: Probed) -> Tried {
    match probed.status {
        Some(status) if (check.status.min()..=check.status.max()).contains(&status) => Tried::Succeeded,
        Some(status) => Tried::Failed(format!("status {status}, not {}", check.status)),
        None if probed.failure.is_none() => Tried::Failed("the agent told no status".to_owned()),
        None => judge_any(probed),
    }
}

/// Runs a program to its end. Of its output only the last part is kept, however much there is.
fn run(session: &Session, command: &[String], until: Instant) -> Result<Tried, SessionError> {
    let begun = Instant::now();
    let mut stream = session.exec(ExecRequest::new(command.iter().cloned()))?;
    stream.stdin().close()?;
    let (_stdin, _control, mut output) = stream.split();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match output.recv_deadline(until)? {
            Some(ExecEvent::Stdout(bytes)) => keep_tail(&mut stdout, &bytes),
            Some(ExecEvent::Stderr(bytes)) => keep_tail(&mut stderr, &bytes),
            Some(ExecEvent::Exit(status)) if status.success() => return Ok(Tried::Succeeded),
            Some(ExecEvent::Exit(status)) => return Ok(Tried::Failed(words_of(status, &stdout, &stderr))),
            None => {
                return Err(SessionError::Timeout { action: "running the probe", waited: begun.elapsed() });
            }
        }
    }
}

fn keep_tail(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(bytes);
    kept.drain(..kept.len().saturating_sub(OUTPUT_TAIL_BYTES));
}

/// Puts a program's end into words: how it ended, and what it said last, errors before the rest.
fn words_of(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> String {
    let end = match (status.code, status.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    };
    let said = if stderr.is_empty() { stdout } else { stderr };
    let said = tail(String::from_utf8_lossy(said).trim(), WORDS_CHARS_MAX);
    if said.is_empty() { end } else { format!("{end}: {said}") }
}

/// The tries of one probe.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    probe: &'a ReadyProbe,
    made: u32,
    counted: u32,
    said: String,
}

impl<'a> Tries<'a> {
    pub(super) fn new(probe: &'a ReadyProbe) -> Self {
        Self { probe, made: 0, counted: 0, said: "it was never tried".to_owned() }
    }

    /// Takes in a try that did not succeed and ended so long after the machine's start. Returns why the machine
    /// will not be ready where no other try is made.
    pub(super) fn failed(&mut self, words: String, since_start: Duration) -> Option<String> {
        self.made = self.made.saturating_add(1);
        self.said = words;
        let counts = self.probe.start_period_ms.is_none_or(|ms| since_start >= Duration::from_millis(ms));
        self.counted = self.counted.saturating_add(counts.into());
        let retries = self.probe.retries?.get();
        (self.counted >= retries).then(|| {
            let what =
                if retries == 1 { "failed".to_owned() } else { format!("failed {retries} times in a row") };
            self.reason(&what)
        })
    }

    /// Returns why the machine is not ready when its time is over.
    pub(super) fn out_of_time(&self) -> String {
        let timeout = Duration::from_millis(self.probe.timeout_ms).as_secs_f32();
        self.reason(&format!("did not succeed within {timeout} s"))
    }

    fn reason(&self, what: &str) -> String {
        let check = clip(&self.probe.check.to_string());
        let tries = count(self.made, "try");
        format!("probe `{check}` {what} ({tries}): {}", self.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(start_period_ms: Option<u64>, retries: u32) -> ReadyProbe {
        ReadyProbe {
            check: ReadyCheck::Http("80/up".parse().unwrap()),
            interval_ms: 100,
            timeout_ms: 2500,
            start_period_ms,
            retries: retries.try_into().ok(),
        }
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_retries_only_time_ends_it() {
        let probe = probe(None, 0);
        let mut tries = Tries::new(&probe);
        assert_eq!(
            tries.out_of_time(),
            "probe `http 80/up` did not succeed within 2.5 s (0 tries): it was never tried"
        );
        for round in 0..5 {
            assert_eq!(tries.failed(format!("status {}", 500 + round), at(round)), None);
        }
        assert_eq!(
            tries.out_of_time(),
            "probe `http 80/up` did not succeed within 2.5 s (5 tries): status 504"
        );
    }

    #[test]
    fn so_many_failures_in_a_row_end_it() {
        let probe = probe(None, 2);
        let mut tries = Tries::new(&probe);
        assert_eq!(tries.failed("a".to_owned(), at(0)), None);
        let why = tries.failed("b".to_owned(), at(0)).unwrap();
        assert_eq!(why, "probe `http 80/up` failed 2 times in a row (2 tries): b");
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        let probe = probe(Some(1000), 1);
        let mut tries = Tries::new(&probe);
        assert_eq!(tries.failed("early".to_owned(), at(999)), None);
        let why = tries.failed("late".to_owned(), at(1000)).unwrap();
        assert_eq!(why, "probe `http 80/up` failed (2 tries): late");
    }

    #[test]
    fn a_status_is_a_success_or_named() {
        let check: HttpCheck = "80/".parse().unwrap();
        let of = |status| judge_status(&check, Probed { failure: None, status });
        for status in [200, 399] {
            assert_eq!(of(Some(status)), Tried::Succeeded);
        }
        assert_eq!(of(Some(199)), Tried::Failed("status 199, not 200-399".to_owned()));
        assert_eq!(of(Some(400)), Tried::Failed("status 400, not 200-399".to_owned()));
        assert_eq!(of(None), Tried::Failed("the agent told no status".to_owned()));
        let refused = Probed { failure: Some("connection refused on port 80".to_owned()), status: None };
        assert_eq!(judge_status(&check, refused), Tried::Failed("connection refused on port 80".to_owned()));
    }

    #[test]
    fn the_last_words_are_bounded_and_the_last() {
        let mut kept = Vec::new();
        for _ in 0..1000 {
            keep_tail(&mut kept, b"line of output\n");
        }
        keep_tail(&mut kept, b"the end\x1b[2J\n");
        assert_eq!(kept.len(), OUTPUT_TAIL_BYTES);
        let failed = ExitStatus { code: Some(3), signal: None };
        let words = words_of(failed, b"unused", &kept);
        assert!(words.starts_with("exit code 3: …") && words.ends_with("the end\\u{1b}[2J"), "{words}");
        assert!(words.chars().count() <= WORDS_CHARS_MAX + 40, "{words}");
        assert_eq!(words_of(failed, b" said\n", b""), "exit code 3: said");
        assert_eq!(words_of(ExitStatus { code: None, signal: Some(9) }, b"", b""), "signal 9");
    }

    #[test]
    fn one_try_ends_in_half_a_minute_or_with_the_time_to_readiness() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(end_of_try(now, now + 31 * second), now + 30 * second);
        assert_eq!(end_of_try(now, now + 29 * second), now + 29 * second);
        assert_eq!(end_of_try(now + second, now), now + second);
    }
}
