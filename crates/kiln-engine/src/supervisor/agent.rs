//! Attending to the guest's agent: greeting it, giving the machine its identity, and finding out when it is ready.

use super::OLD_AGENT;
use super::desk::{Desk, News};
use super::life::Arrival;
use super::probe::{Tried, Tries, attempt};
use crate::EngineResult;
use crate::guest::hook_words;
use crate::spec::mac_of;
use kiln_core::machine::{IdentityPolicy, MachineRecord, Network};
use kiln_core::text::tail;
use kiln_guest::identity::{Identity, IdentityNetwork, PartResult};
use kiln_guest::message::{AgentEvent, AgentState, Configure, FEATURE_ENVIRONMENT, NetworkConfig};
use kiln_guest::name::NameError;
use kiln_guest::private::Private;
use kiln_guest::relay::Relay;
use kiln_guest::secret::Entropy;
use kiln_guest::token::{Epoch, Hostname, MachineId};
use kiln_guest::{Session, SessionError};
use kiln_sys::{IoResult, IoResultExt as _, clock};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Time to readiness where the recipe has no probe.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The same for a guest that firmware boots, whose agent its cloud-init brings: minutes where it is emulated.
const FIRMWARE_READY_WITHIN: Duration = Duration::from_secs(600);
/// Time a restored guest has to become a machine of its own, hooks and the keys of an SSH server included.
const IDENTIFY_WITHIN: Duration = Duration::from_secs(180);
/// Time its agent, which is up already, has to answer.
const GREETS_WITHIN: Duration = Duration::from_secs(60);
/// Time that an answer to the clock's setting may take for the clock to be right.
const CLOCK_WITHIN: Duration = Duration::from_millis(500);
/// How often a clock is set at most that may have been told the time late.
const CLOCK_TRIES: u32 = 3;
/// Characters of the reason why a machine is not ready: a part of it may be the guest's own words.
const REASON_CHARS_MAX: usize = 1000;
/// The guest's end of the machine monitor's user-mode network, fixed by QEMU's defaults.
const USER_ADDRESS: &str = "10.0.2.15/24";
const USER_GATEWAY: &str = "10.0.2.2";
const USER_DNS: &str = "10.0.2.3";

/// Attends to the agent of a run, behind `stream`, from a thread of its own.
pub(super) fn attend(
    record: &MachineRecord,
    private: &Private,
    stream: IoResult<UnixStream>,
    desk: &Arc<Desk>,
    run: u32,
    begun: Instant,
    arrival: Arrival,
) -> EngineResult<()> {
    let attendant = Attendant {
        record: record.clone(),
        private: private.clone(),
        desk: Arc::clone(desk),
        run,
        begun,
        arrival,
    };
    std::thread::Builder::new()
        .name("agent".to_owned())
        .spawn(move || attendant.run(stream))
        .at("start", "the agent's thread")?;
    Ok(())
}

struct Attendant {
    record: MachineRecord,
    private: Private,
    desk: Arc<Desk>,
    run: u32,
    begun: Instant,
    arrival: Arrival,
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
            Err(Unready::Never(reason)) => return self.never(&reason),
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

    fn never(&self, reason: &str) {
        self.post(News::NeverReady { reason: shortened(reason) });
    }

    fn hear(&self, event: &AgentEvent) {
        match event {
            AgentEvent::EntrypointExited { status } => {
                let code = status.code.unwrap_or_else(|| 128 + status.signal.unwrap_or(0));
                self.post(News::EntrypointExited { code });
            }
            AgentEvent::State { state: AgentState::Failed { reason } } => {
                self.never(reason);
            }
            _ => {}
        }
    }

    fn make_ready(&self, stream: IoResult<UnixStream>) -> Result<Receiver<AgentEvent>, Unready> {
        if !self.record.has_agent() {
            return self.without_agent();
        }
        let within = time_to_readiness(&self.record, self.arrival != Arrival::Booted);
        let deadline = self.begun + within;
        let late = |what: &str, within: Duration| {
            Unready::Never(format!("{what} within {} s", within.as_secs_f32()))
        };
        // A restored agent is up already, unless its guest is no guest any more.
        let is_up = matches!(self.arrival, Arrival::Restored | Arrival::Resumed);
        let greets_within = if is_up { within.min(GREETS_WITHIN) } else { within };
        let stream = stream.map_err(|error| Unready::Never(kiln_core::text::chain(&error)))?;
        let session = match Session::connect(Box::new(stream), self.begun + greets_within) {
            Err(SessionError::Timeout { .. }) => {
                return Err(late("the guest's agent did not answer", greets_within));
            }
            Err(error @ SessionError::Io { .. }) if !is_timeout(&error) => return Err(Unready::Ended),
            other => other?,
        };
        let knows = session.agent().features.iter().any(|feature| feature == FEATURE_ENVIRONMENT);
        if !self.private.is_empty() && !knows {
            return Err(Unready::Never(OLD_AGENT.to_owned()));
        }
        let events = session.events();
        if is_up {
            if self.arrival == Arrival::Resumed {
                session.configure(now())?;
            } else {
                // Nobody reaches a guest that is not a machine of its own yet.
                self.identify(&session, deadline)?;
            }
            self.desk.set_relay(self.run, Relay::new(session.clone()));
            self.probe(&session, &events, deadline)?;
            return Ok(events);
        }
        let copied = self.arrival == Arrival::Copied;
        if !copied {
            self.desk.set_relay(self.run, Relay::new(session.clone()));
        }
        match session.wait_ready(deadline) {
            Err(SessionError::Timeout { .. }) => {
                return Err(late("the guest did not finish booting", within));
            }
            Err(SessionError::BootFailed { reason }) => return Err(Unready::Never(reason)),
            other => other?,
        }
        session.configure(self.identity())?;
        if copied {
            // Its disk has the names and keys of the machine it was copied from.
            self.identify(&session, deadline)?;
            self.desk.set_relay(self.run, Relay::new(session.clone()));
        }
        self.probe(&session, &events, deadline)?;
        Ok(events)
    }

    /// Finds out whether a guest that has no agent can be what is wanted; it is ready as soon as it runs.
    fn without_agent(&self) -> Result<Receiver<AgentEvent>, Unready> {
        let never = |what: &str| Err(Unready::Never(format!("its guest has no agent {what}")));
        if !self.private.is_empty() {
            return never("to take its environment and secrets");
        }
        let was_another = matches!(self.arrival, Arrival::Restored | Arrival::Copied);
        if was_another && self.record.identity == IdentityPolicy::Require {
            return never("that could make it a machine of its own");
        }
        // Nobody tells of its events.
        Ok(std::sync::mpsc::channel().1)
    }

    /// Makes a restored guest a machine of its own.
    fn identify(&self, session: &Session, deadline: Instant) -> Result<(), Unready> {
        if self.record.identity == IdentityPolicy::Skip {
            return if self.private.is_empty() {
                Ok(())
            } else {
                Err(Unready::Never(
                    "its environment and secrets are part of the identity that was left out".to_owned(),
                ))
            };
        }
        let asked = Instant::now();
        let identity = self.new_identity().map_err(|error| Unready::Never(kiln_core::text::chain(&error)))?;
        let error = match session.identify(identity, deadline.min(asked + IDENTIFY_WITHIN)) {
            Ok(_) => return set_clock(session, asked),
            Err(error) if error.is_lost() => return Err(Unready::Ended),
            Err(error) => error,
        };
        if self.record.identity == IdentityPolicy::Try && self.private.is_empty() {
            return Ok(());
        }
        let reason = match &error {
            SessionError::NotIdentified { report } => match (&report.hooks.failure, report.failed()) {
                (Some(failure), _) => hook_words(failure),
                (None, Some(part)) => format!("{}: {}", part.part, result_words(&part.result)),
                (None, None) => kiln_core::text::chain(&error),
            },
            _ => kiln_core::text::chain(&error),
        };
        Err(Unready::Never(format!("the restored guest could not be made a machine of its own: {reason}")))
    }

    /// Returns who a restored guest is from now on.
    fn new_identity(&self) -> Result<Identity, NameError> {
        let record = &self.record;
        let mac = Some(mac_of(record).to_string());
        let (address, gateway, dns) = match record.network {
            Network::User { .. } => (USER_ADDRESS, Some(USER_GATEWAY.to_owned()), vec![USER_DNS.to_owned()]),
            // Its device is connected to nothing, and has an address of its own all the same.
            _ => ("", None, Vec::new()),
        };
        let config = NetworkConfig { mac, address: address.to_owned(), gateway, dns };
        let machine_id = kiln_core::Digest::of(format!("machine-id {}", record.id).as_bytes()).hex();
        Ok(Identity {
            clock_unix_ns: Some(clock::now_unix_ms().saturating_mul(1_000_000)),
            hostname: Some(Hostname::new(record.name.as_str())?),
            // What was put back has these, and nobody else has.
            machine_id: (!record.put_back).then(|| MachineId::new(&machine_id[..32])).transpose()?,
            network: Some(IdentityNetwork { interface: None, config }),
            ssh_host_keys: !record.put_back,
            // Also when there is none: what the captured guest had is not this machine's.
            environment: Some(self.private.environment().clone()),
            secrets: Some(self.private.secrets().clone()),
            ..Identity::new(Epoch::new(random_uuid())?, Entropy::new(clock::random::<64>().to_vec())?)
        })
    }

    /// Returns what makes this machine itself.
    fn identity(&self) -> Configure {
        // The cloud-init that brought the agent has set up the network too, as the seed says.
        let is_connected = matches!(self.record.network, Network::User { .. });
        let network = (is_connected && !self.record.boot.is_firmware()).then(|| NetworkConfig {
            mac: None,
            address: USER_ADDRESS.to_owned(),
            gateway: Some(USER_GATEWAY.to_owned()),
            dns: vec![USER_DNS.to_owned()],
        });
        // A machine that boots has no former life; one without any of its own is not kept waiting for none.
        let private = Some(&self.private).filter(|private| !private.is_empty());
        Configure {
            hostname: Some(self.record.name.to_string()),
            network,
            environment: private.map(|private| private.environment().clone()),
            secrets: private.map(|private| private.secrets().clone()),
            ..now()
        }
    }

    /// Tries the recipe's probe until it succeeds.
    fn probe(
        &self,
        session: &Session,
        events: &Receiver<AgentEvent>,
        deadline: Instant,
    ) -> Result<(), Unready> {
        let Some(probe) = &self.record.ready else { return Ok(()) };
        let mut tries = Tries::new(probe);
        loop {
            match attempt(session, &probe.check, deadline)? {
                Tried::Succeeded => return Ok(()),
                Tried::CutShort => {}
                Tried::Failed(words) => {
                    if let Some(reason) = tries.failed(words, self.begun.elapsed()) {
                        return Err(Unready::Never(reason));
                    }
                }
            }
            self.pause(events, deadline.min(Instant::now() + Duration::from_millis(probe.interval_ms)))?;
            if Instant::now() >= deadline {
                return Err(Unready::Never(tries.out_of_time()));
            }
        }
    }

    /// Lets time pass, hearing what happens; it ends early when the machine does.
    fn pause(&self, events: &Receiver<AgentEvent>, until: Instant) -> Result<(), Unready> {
        loop {
            match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(event) => self.hear(&event),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Unready::Ended),
            }
        }
    }
}

/// Returns the time and fresh random numbers: what a machine needs that stood still.
fn now() -> Configure {
    Configure {
        clock_unix_ns: Some(clock::now_unix_ms().saturating_mul(1_000_000)),
        entropy: Some(clock::random_hex::<32>()),
        ..Configure::default()
    }
}

/// Sets a guest's clock again where it was told the time so long ago that it may have arrived late: on a host that is busy
/// with others, a guest may be.
fn set_clock(session: &Session, mut asked: Instant) -> Result<(), Unready> {
    for _ in 0..CLOCK_TRIES {
        if asked.elapsed() < CLOCK_WITHIN {
            break;
        }
        asked = Instant::now();
        session.configure(now())?;
    }
    Ok(())
}

/// Returns what became of a part, in words; they may be the guest's own.
fn result_words(result: &PartResult) -> String {
    match result {
        PartResult::Failed { error } => error.message.clone(),
        PartResult::Skipped { after } => format!("not done, since the {after} failed"),
        _ => "it is not known what became of it".to_owned(),
    }
}

/// Returns a random UUID (version 4).
fn random_uuid() -> String {
    let mut bytes = clock::random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Returns the time a machine has to become ready, from its supervisor's start.
fn time_to_readiness(record: &MachineRecord, restored: bool) -> Duration {
    let without = match restored {
        _ if record.boot.is_firmware() => FIRMWARE_READY_WITHIN,
        true => READY_WITHIN.max(IDENTIFY_WITHIN),
        false => READY_WITHIN,
    };
    record.ready.as_ref().map_or(without, |probe| Duration::from_millis(probe.timeout_ms))
}

/// Returns a reason in one line whose beginning, which says what was waited for, and end are kept.
fn shortened(reason: &str) -> String {
    let half = REASON_CHARS_MAX / 2;
    let middle = reason.char_indices().nth(half).map_or(reason.len(), |(index, _)| index);
    let (head, rest) = reason.split_at(middle);
    let head = head.chars().map(|c| if c.is_control() { ' ' } else { c });
    head.collect::<String>() + &tail(rest, half)
}

fn is_timeout(error: &SessionError) -> bool {
    matches!(error, SessionError::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_readiness_is_the_probes_or_two_minutes() {
        let mut record = crate::supervisor::record_for_tests(None, "no");
        assert_eq!(time_to_readiness(&record, false), Duration::from_secs(120));
        // The keys of an SSH server alone may take two minutes under emulation.
        assert_eq!(time_to_readiness(&record, true), Duration::from_secs(180));
        let firmware = kiln_core::Digest::of(b"firmware");
        record.boot = kiln_core::machine::BootArtifacts::Firmware { firmware };
        assert_eq!(time_to_readiness(&record, false), Duration::from_secs(600));
        record.ready = Some(kiln_core::ready::ReadyProbe {
            check: kiln_core::ready::ReadyCheck::Agent,
            interval_ms: 1,
            timeout_ms: 86_400_000,
            start_period_ms: None,
            retries: None,
        });
        assert_eq!(time_to_readiness(&record, true), Duration::from_secs(86_400));
    }

    #[test]
    fn a_reason_is_bounded_and_keeps_both_ends() {
        assert_eq!(shortened("sh\nort"), "sh ort");
        let long = shortened(&format!("begin{}end", "x".repeat(9000)));
        assert!(long.starts_with("beginx") && long.ends_with("xend"), "{long}");
        assert_eq!(long.chars().count(), REASON_CHARS_MAX + 1);
    }
}
