//! How a machine is reached by SSH: as whom, through what, and by which keys it is known.

mod own_key;

pub use own_key::OwnSshKey;

use crate::machines::LOOK_AGAIN;
use crate::suspend::Woken;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::LoginName;
use kiln_core::machine::{MachineRecord, Network};
use kiln_guest::message::FEATURE_CONNECT;
use kiln_guest::probe::ProbeCheck;
use kiln_guest::session::Connection;
use kiln_guest::{GuestPath, Session, SessionError};
use kiln_store::MachineEntry;
use kiln_sys::lock::wait_cancelled;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The internal verb that connects standard input and output with a port of a guest: machine and port follow.
pub const DIAL_COMMAND: &str = "__dial";
/// The port of a guest's SSH server.
pub const SSH_PORT: NonZeroU16 = NonZeroU16::new(22).unwrap();
/// Host keys that a machine's server has shown, in the machine's directory.
pub const KNOWN_HOSTS_FILE: &str = "known_hosts";

/// Time one look at the server's port has.
const PROBE_WITHIN: Duration = Duration::from_secs(2);
/// Where images have a server of SSH.
const SERVERS: [&str; 4] =
    ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/sbin/dropbear", "/run/current-system/sw/bin/sshd"];

/// The way to a machine's SSH server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SshTransport {
    /// This port of 127.0.0.1 leads there.
    Port(u16),
    /// The guest's agent connects to it: [`DIAL_COMMAND`].
    Agent,
}

/// What a client of SSH needs to know of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshTarget {
    /// Who logs in where nobody else is named.
    pub user: LoginName,
    /// The way there.
    pub transport: SshTransport,
    /// The file of the host keys it has shown, which may not be there yet.
    pub known_hosts: PathBuf,
    /// The name that its host keys have there: the machine's id.
    pub host_key_alias: String,
}

/// Returns the way to the SSH server of a machine.
fn transport(record: &MachineRecord) -> SshTransport {
    let forwards = match &record.network {
        Network::User { forwards, .. } => forwards.as_slice(),
        _ => &[],
    };
    let published = forwards.iter().find(|forward| forward.guest == SSH_PORT.get());
    published.map_or(SshTransport::Agent, |forward| SshTransport::Port(forward.host))
}

impl Engine {
    /// Returns what a client of SSH needs to know of a machine. Nothing is asked of the machine.
    ///
    /// # Errors
    /// When its revision cannot be read.
    pub fn ssh_target(&self, entry: &MachineEntry) -> EngineResult<SshTarget> {
        let seed = self.store.revision(&entry.record.revision)?.manifest.seed;
        Ok(SshTarget {
            user: seed.and_then(|seed| seed.user).unwrap_or_else(LoginName::root),
            transport: transport(&entry.record),
            known_hosts: entry.dir.join(KNOWN_HOSTS_FILE),
            host_key_alias: entry.record.id.to_string(),
        })
    }

    /// Waits until a machine's SSH server takes connections, for `within` at most where the guest has one. `told` hears of a
    /// machine that was woken, `waiting` that there is something to wait for.
    ///
    /// # Errors
    /// [`EngineError::NoSshServer`] when nothing listens; [`EngineError::Phase`] for a machine that does not run;
    /// [`SessionError::Lacks`] where only the agent leads there and it is too old.
    pub fn await_ssh(
        &self,
        entry: &MachineEntry,
        within: Duration,
        told: &mut dyn FnMut(&Woken),
        waiting: &mut dyn FnMut(),
    ) -> EngineResult<()> {
        let begun = Instant::now();
        let session = self.session_woken(entry.record.id.as_str(), told)?;
        let has_way = session.agent().features.iter().any(|feature| feature == FEATURE_CONNECT);
        if transport(&entry.record) == SshTransport::Agent && !has_way {
            return Err(SessionError::Lacks { feature: FEATURE_CONNECT }.into());
        }
        let mut waited = false;
        while let Some(reason) = session.probe(ProbeCheck::Tcp { port: SSH_PORT }, PROBE_WITHIN)?.failure {
            let installed = waited || has_server(&session);
            if !installed || begun.elapsed() >= within {
                let machine = entry.record.name.to_string();
                return Err(EngineError::NoSshServer { machine, installed, reason });
            }
            if !waited {
                waiting();
                waited = true;
            }
            if wait_cancelled(&self.cancel, LOOK_AGAIN) {
                return Err(EngineError::Cancelled);
            }
        }
        Ok(())
    }

    /// Connects to a port of a machine's guest, through its agent. `told` hears that the machine was woken.
    ///
    /// # Errors
    /// [`EngineError::Phase`] for a machine that does not run; [`EngineError::Guest`] where nothing listens, which
    /// [`SessionError::is_refused`] tells, and where the agent is too old.
    pub fn dial(
        &self,
        machine: &str,
        port: NonZeroU16,
        told: &mut dyn FnMut(&Woken),
    ) -> EngineResult<Connection> {
        Ok(self.session_woken(machine, told)?.dial(port)?)
    }
}

/// Whether the guest has a server that may yet listen.
fn has_server(session: &Session) -> bool {
    SERVERS.iter().any(|path| GuestPath::new(*path).is_ok_and(|path| session.stat(path).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::machine::Forward;

    #[test]
    fn a_published_port_is_the_way_where_there_is_one() {
        let of = |network| {
            let record = MachineRecord { network, ..crate::supervisor::record_for_tests(None, "no") };
            transport(&record)
        };
        assert_eq!(of(Network::None), SshTransport::Agent);
        let forwards = vec![Forward { host: 8080, guest: 80 }];
        assert_eq!(of(Network::User { forwards: forwards.clone(), outbound: true }), SshTransport::Agent);
        let forwards = [forwards, vec![Forward { host: 2222, guest: 22 }]].concat();
        assert_eq!(of(Network::User { forwards, outbound: false }), SshTransport::Port(2222));
    }
}
