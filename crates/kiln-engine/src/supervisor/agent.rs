//! Attending to the guest's agent: greeting it, giving the machine its identity, and finding out when it is ready.

use super::desk::{Desk, News};
use crate::EngineResult;
use kiln_core::machine::{MachineRecord, Network};
use kiln_core::variant::ReadyProbe;
use kiln_guest::message::{AgentEvent, AgentState, Configure, ExecRequest, NetworkConfig};
use kiln_guest::relay::Relay;
use kiln_guest::{Session, SessionError};
use kiln_sys::{IoResult, IoResultExt as _, clock, socket};
use kiln_vmm::AGENT_SOCKET;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Time to readiness where the recipe has no probe.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Time one run of the recipe's probe may take.
const PROBE_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a probe's output that are kept.
const PROBE_OUTPUT_MAX: usize = 16 << 10;
/// The guest's end of the machine monitor's user-mode network, fixed by QEMU's defaults.
const USER_ADDRESS: &str = "10.0.2.15/24";
const USER_GATEWAY: &str = "10.0.2.2";
const USER_DNS: &str = "10.0.2.3";

/// Attends to the agent of a run from a thread of its own.
pub(super) fn attend(
    record: &MachineRecord,
    dir: &Path,
    desk: &Arc<Desk>,
    run: u32,
    begun: Instant,
) -> EngineResult<()> {
    let attendant = Attendant { record: record.clone(), desk: Arc::clone(desk), run, begun };
    // Connected to here, where the socket is this run's for certain.
    let stream = socket::connect(dir, AGENT_SOCKET);
    std::thread::Builder::new()
        .name("agent".to_owned())
        .spawn(move || attendant.run(stream))
        .at("start", "the agent's thread")?;
    Ok(())
}

struct Attendant {
    record: MachineRecord,
    desk: Arc<Desk>,
    run: u32,
    begun: Instant,
}

/// Why a guest is not ready.
enum Unready {
    /// It will not be.
    Never(String),
    /// The machine ended; its supervisor knows more.
    Ended,
}

impl From<SessionError> for Unready {
    fn from(error: SessionError) -> Self {
        if error.is_lost() { Self::Ended } else { Self::Never(kiln_core::text::chain(&error)) }
    }
}

impl Attendant {
    fn run(self, stream: IoResult<UnixStream>) {
        let events = match self.make_ready(stream) {
            Ok(events) => events,
            Err(Unready::Never(reason)) => return self.post(News::NeverReady { reason }),
            Err(Unready::Ended) => return,
        };
        self.post(News::Ready);
        while let Ok(event) = events.recv() {
            self.hear(&event);
        }
    }

    fn post(&self, news: News) {
        self.desk.post_of(self.run, news);
    }

    fn hear(&self, event: &AgentEvent) {
        match event {
            AgentEvent::EntrypointExited { status } => {
                let code = status.code.unwrap_or_else(|| 128 + status.signal.unwrap_or(0));
                self.post(News::EntrypointExited { code });
            }
            AgentEvent::State { state: AgentState::Failed { reason } } => {
                self.post(News::NeverReady { reason: reason.clone() });
            }
            _ => {}
        }
    }

    fn make_ready(&self, stream: IoResult<UnixStream>) -> Result<Receiver<AgentEvent>, Unready> {
        let within = time_to_readiness(self.record.ready.as_ref());
        let deadline = self.begun + within;
        let late = |what: &str| Unready::Never(format!("{what} within {} s", within.as_secs_f32()));
        let stream = stream.map_err(|error| Unready::Never(kiln_core::text::chain(&error)))?;
        let session = match Session::connect(Box::new(stream), deadline) {
            Err(SessionError::Timeout { .. }) => return Err(late("the guest's agent did not answer")),
            Err(error @ SessionError::Io { .. }) if !is_timeout(&error) => return Err(Unready::Ended),
            other => other?,
        };
        let events = session.events();
        self.desk.set_relay(self.run, Relay::new(session.clone()));
        match session.wait_ready(deadline) {
            Err(SessionError::Timeout { .. }) => return Err(late("the guest did not finish booting")),
            Err(SessionError::BootFailed { reason }) => return Err(Unready::Never(reason)),
            other => other?,
        }
        session.configure(self.identity())?;
        self.probe(&session, &events, deadline)?;
        Ok(events)
    }

    /// Returns what makes this machine itself.
    fn identity(&self) -> Configure {
        let network = matches!(self.record.network, Network::User { .. }).then(|| NetworkConfig {
            mac: None,
            address: USER_ADDRESS.to_owned(),
            gateway: Some(USER_GATEWAY.to_owned()),
            dns: vec![USER_DNS.to_owned()],
        });
        Configure {
            hostname: Some(self.record.name.to_string()),
            network,
            clock_unix_ns: Some(clock::now_unix_ms().saturating_mul(1_000_000)),
            entropy: Some(clock::random_hex::<32>()),
        }
    }

    /// Runs the recipe's probe until it succeeds.
    fn probe(
        &self,
        session: &Session,
        events: &Receiver<AgentEvent>,
        deadline: Instant,
    ) -> Result<(), Unready> {
        let Some(probe) = &self.record.ready else { return Ok(()) };
        let mut said = "it never ran".to_owned();
        while Instant::now() < deadline {
            let until = end_of_try(Instant::now(), deadline);
            let outcome = session
                .exec(ExecRequest::new(probe.command.iter().cloned()))
                .and_then(|stream| stream.collect(PROBE_OUTPUT_MAX, until));
            said = match outcome {
                Ok(outcome) if outcome.status.success() => return Ok(()),
                Ok(outcome) => {
                    let words = if outcome.stderr.is_empty() { outcome.stdout } else { outcome.stderr };
                    let words = String::from_utf8_lossy(&words).trim().to_owned();
                    let end =
                        outcome.status.code.map_or("a signal".to_owned(), |code| format!("exit code {code}"));
                    format!("{end} {}", kiln_core::text::clip(&words))
                }
                Err(error) if error.is_lost() => return Err(Unready::Ended),
                // The last end says more than that the time ran out over the next try.
                Err(SessionError::Timeout { .. }) => said,
                Err(error) => kiln_core::text::chain(&error),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            // The pause ends early when the machine does.
            match events.recv_timeout(left.min(Duration::from_millis(probe.interval_ms))) {
                Ok(event) => self.hear(&event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Unready::Ended),
            }
        }
        let command = kiln_core::text::clip(&probe.command.join(" "));
        let timeout = Duration::from_millis(probe.timeout_ms).as_secs_f32();
        let said = said.trim();
        Err(Unready::Never(format!("probe `{command}` did not succeed within {timeout} s: {said}")))
    }
}

/// Returns the time a machine has to become ready, from its supervisor's start.
fn time_to_readiness(probe: Option<&ReadyProbe>) -> Duration {
    probe.map_or(READY_WITHIN, |probe| Duration::from_millis(probe.timeout_ms))
}

/// Returns when one run of the probe that begins now ends at the latest.
fn end_of_try(now: Instant, deadline: Instant) -> Instant {
    deadline.min(now + PROBE_WITHIN)
}

fn is_timeout(error: &SessionError) -> bool {
    matches!(error, SessionError::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_readiness_is_the_probes_or_two_minutes() {
        assert_eq!(time_to_readiness(None), Duration::from_secs(120));
        let probe = ReadyProbe { command: vec!["true".to_owned()], interval_ms: 1, timeout_ms: 86_400_000 };
        assert_eq!(time_to_readiness(Some(&probe)), Duration::from_secs(86_400));
    }

    #[test]
    fn one_run_of_a_probe_ends_in_half_a_minute_or_with_the_time_to_readiness() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(end_of_try(now, now + 31 * second), now + 30 * second);
        assert_eq!(end_of_try(now, now + 29 * second), now + 29 * second);
    }
}
