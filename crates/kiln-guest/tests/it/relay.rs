//! One session, many clients.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread;

use kiln_guest::limits::RELAY_CLIENTS_MAX;
use kiln_guest::message::{AgentEvent, AgentState, ShutdownMode};
use kiln_guest::relay::Relay;
use kiln_guest::{Session, SessionError};

use crate::harness::{Agent, assert_ends, read_until, sh, soon, stdout_of};

fn client(relay: &Relay) -> Session {
    let (ours, theirs) = UnixStream::pair().unwrap();
    relay.serve_client(theirs).unwrap();
    Session::connect(Box::new(ours), soon()).unwrap()
}

#[test]
fn two_clients_use_one_agent_at_once() {
    let agent = Agent::start();
    let relay = Relay::new(agent.session());
    let threads: Vec<_> = (0..2)
        .map(|number| {
            let session = client(&relay);
            thread::spawn(move || {
                assert_eq!(session.state(), AgentState::Ready);
                assert_eq!(session.agent().boot_id.len(), 32);
                session.ping(soon()).unwrap();
                for _ in 0..10 {
                    let text =
                        stdout_of(&session, &format!("head -c 700000 /dev/zero | wc -c; echo {number}"));
                    assert_eq!(text, format!("700000\n{number}\n"));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(stdout_of(relay.session(), "echo own"), "own\n");
}

#[test]
fn a_leaving_client_takes_only_its_programs() {
    let agent = Agent::start();
    let relay = Relay::new(agent.session());
    let (stays, leaves) = (client(&relay), client(&relay));
    let mut kept = stays.exec(sh("sleep 60; echo never")).unwrap();
    let mut gone = leaves.exec(sh("sleep 60 & echo $!; wait")).unwrap();
    let child: u32 = read_until(&mut gone, "\n").trim().parse().unwrap();
    let leader = gone.pid();
    drop((gone, leaves));
    assert_ends(child);
    assert_ends(leader);
    kept.control().signal(kiln_guest::SignalNumber::TERM).unwrap();
    assert!(kept.recv().is_ok());
}

#[test]
fn a_stalled_client_does_not_block_another() {
    let agent = Agent::start();
    let relay = Relay::new(agent.session());
    let (stalled, other) = (client(&relay), client(&relay));
    let _streams: Vec<_> = (0..4).map(|_| stalled.exec(sh("yes")).unwrap()).collect();
    for _ in 0..5 {
        assert_eq!(stdout_of(&other, "echo alive"), "alive\n");
    }
}

#[test]
fn bulk_passes_through_untouched() {
    let agent = Agent::start();
    let relay = Relay::new(agent.session());
    let session = client(&relay);
    std::fs::write(agent.file("big"), crate::harness::noise(5_000_000)).unwrap();
    let mut bytes = Vec::new();
    session.read_file(agent.path("big"), 0).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == std::fs::read(agent.file("big")).unwrap());
    assert!(session.stat(agent.path("missing")).unwrap_err().is_not_found());
}

#[test]
fn losing_the_agent_closes_every_client() {
    let mut agent = Agent::start();
    let relay = Relay::new(agent.session());
    let sessions = [client(&relay), client(&relay)];
    let mut stream = sessions[0].exec(sh("sleep 60")).unwrap();
    agent.kill();
    for session in &sessions {
        assert!(session.wait_lost(soon()));
    }
    assert!(matches!(stream.recv(), Err(SessionError::SessionLost { .. })));
    assert!(relay.session().wait_lost(soon()));
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert!(relay.serve_client(theirs).is_err());
    drop(ours);
}

#[test]
fn events_reach_every_client() {
    let agent = Agent::start();
    let relay = Relay::new(agent.session());
    let sessions = [client(&relay), client(&relay)];
    let events: Vec<_> = sessions.iter().map(Session::events).collect();
    sessions[0].shutdown(ShutdownMode::Poweroff, std::time::Duration::ZERO).unwrap();
    for receiver in events {
        let heard: Vec<AgentEvent> = receiver.iter().collect();
        assert_eq!(heard, [AgentEvent::ShuttingDown]);
    }
}

#[test]
fn clients_over_the_limit_are_refused() {
    let agent = Agent::start();
    let relay = Relay::new(agent.session());
    let mut clients: Vec<_> = (0..RELAY_CLIENTS_MAX).map(|_| client(&relay)).collect();
    assert!(!relay.has_room());
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let error = relay.serve_client(theirs).unwrap_err();
    assert_eq!(error.to_string(), "more than 64 clients");
    clients.pop().unwrap().ping(soon()).unwrap();
    drop(clients);
}
