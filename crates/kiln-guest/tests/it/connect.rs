//! Connections to ports of the guest.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::thread;

use kiln_guest::SessionError;
use kiln_guest::relay::Relay;
use kiln_guest::session::Connection;

use crate::harness::{Agent, noise};

/// Listens, and serves one connection.
fn port(serve: impl FnOnce(TcpStream) + Send + 'static) -> (NonZeroU16, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || serve(listener.accept().unwrap().0));
    (NonZeroU16::new(port).unwrap(), server)
}

/// Sends all of it, and returns all that came.
fn exchange(connection: Connection, sent: Vec<u8>) -> Vec<u8> {
    let (mut writer, mut reader) = connection.split();
    let sending = thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    reader.finish().unwrap();
    received
}

#[test]
fn what_is_sent_comes_back_after_the_end_of_one_direction() {
    let agent = Agent::start_pretended();
    let relay = Relay::new(agent.session());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    relay.serve_client(theirs).unwrap();
    let relayed = kiln_guest::Session::connect(Box::new(ours), crate::harness::soon()).unwrap();
    for session in [relay.session(), &relayed] {
        // Everything is taken before anything is sent back: more than both windows hold.
        let (port, server) = port(|mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let sent = noise(8 * 1024 * 1024 + 3);
        assert!(exchange(session.dial(port).unwrap(), sent.clone()) == sent);
        server.join().unwrap();
    }
}

#[test]
fn both_directions_carry_at_once() {
    let agent = Agent::start_pretended();
    let (port, server) = port(|mut stream| {
        let mut back = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut back).unwrap();
    });
    let sent = noise(4 * 1024 * 1024);
    assert!(exchange(agent.session().dial(port).unwrap(), sent.clone()) == sent);
    server.join().unwrap();
}

#[test]
fn a_port_that_ends_first_still_gets_what_is_sent() {
    let agent = Agent::start_pretended();
    let (port, server) = port(|mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "and good night");
    });
    let (mut writer, mut reader) = agent.session().dial(port).unwrap().split();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "bye");
    writer.write_all(b"and good night").unwrap();
    writer.close().unwrap();
    reader.finish().unwrap();
    server.join().unwrap();
}

#[test]
fn a_connection_that_is_given_up_is_closed_in_the_guest() {
    let agent = Agent::start_pretended();
    let session = agent.session();
    // One that waits to be told something, and one that takes nothing.
    for chatty in [false, true] {
        let (port, server) = port(move |mut stream| {
            if chatty {
                // Until the other side is gone.
                while stream.write_all(&[0; 4096]).is_ok() {}
            } else {
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        drop(session.dial(port).unwrap());
        server.join().unwrap();
    }
    let (port, server) = port(drop);
    let (mut writer, mut reader) = session.dial(port).unwrap().split();
    server.join().unwrap();
    // A port that has closed ends the connection once it is written to.
    while writer.write_all(&[0; 4096]).is_ok() {}
    let _ = reader.read_to_end(&mut Vec::new());
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let agent = Agent::start_pretended();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap();
    drop(listener);
    let error = agent.session().dial(port).unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert!(error.to_string().starts_with(&format!("cannot connect to port {port}: ")), "{error}");
}

#[test]
fn an_agent_that_does_not_connect_is_told() {
    let agent = Agent::start();
    let error = agent.session().dial(NonZeroU16::MIN).unwrap_err();
    assert!(matches!(error, SessionError::Lacks { feature: "connect" }), "{error}");
    assert!(!error.is_refused());
}
