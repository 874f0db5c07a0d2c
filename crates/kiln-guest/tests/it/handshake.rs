//! Beginnings of sessions, clean and not.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use kiln_guest::frame::{Decoder, Frame, Kind};
use kiln_guest::limits::{FRAME_PAYLOAD_MAX, WINDOW_BYTES};
use kiln_guest::message::{AgentState, Hello, HelloAck};
use kiln_guest::{ErrorKind, RemoteError, Session, SessionError};

use crate::harness::{Agent, PATIENCE, noise, soon, stdout_of};

/// Speaks frames by hand.
struct Wire {
    stream: UnixStream,
    decoder: Decoder,
}

impl Wire {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, decoder: Decoder::default() }
    }

    fn send(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.encode().unwrap()).unwrap();
    }

    fn hello(&mut self, nonce: u8, protocol: u32) -> HelloAck {
        let json = serde_json::to_vec(&Hello { protocol, features: vec!["new".to_owned()] }).unwrap();
        self.send(&Frame::handshake(Kind::Hello, &[nonce; 16], &json));
        loop {
            if let Some(frame) = self.decoder.scan(Kind::HelloAck) {
                let (answered, json) = frame.handshake_parts().unwrap();
                assert_eq!(answered, [nonce; 16]);
                return serde_json::from_slice(json).unwrap();
            }
            self.read();
        }
    }

    fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            self.read();
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the agent closed the connection");
        self.decoder.push(&buffer[..count]);
    }
}

#[test]
fn the_agent_says_who_it_is() {
    let agent = Agent::start();
    let session = agent.session();
    assert_eq!(session.agent().agent_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(session.agent().boot_id.len(), 32);
    assert_eq!(session.state(), AgentState::Ready);
    session.wait_ready(soon()).unwrap();
    assert!(session.ping(soon()).unwrap() < PATIENCE);
}

#[test]
fn garbage_before_the_greeting_is_survived() {
    let agent = Agent::start();
    let mut stream = agent.stream();
    stream.write_all(&noise(100_000)).unwrap();
    let session = Session::connect(Box::new(stream), soon()).unwrap();
    assert_eq!(stdout_of(&session, "echo alive"), "alive\n");
}

#[test]
fn an_abandoned_frame_does_not_reach_the_next_session() {
    let agent = Agent::start();
    let mut wire = Wire::new(agent.stream());
    wire.hello(1, 1);
    wire.send(&Frame::new(Kind::Open, 1, br#"{"op":"exec","argv":["sh","-c","yes"]}"#.to_vec()));
    assert_eq!(wire.next().kind, Kind::Opened);
    // The rest of this frame never comes: the next client's greeting falls into it.
    let partial = Frame::new(Kind::Ping, 0, vec![0; FRAME_PAYLOAD_MAX]).encode().unwrap();
    wire.stream.write_all(&partial[..20]).unwrap();
    wire.stream.set_read_timeout(None).unwrap();
    let session = Session::connect(Box::new(wire.stream), soon()).unwrap();
    assert_eq!(stdout_of(&session, "echo alive"), "alive\n");
}

#[test]
fn a_new_connection_is_a_clean_session() {
    let agent = Agent::start();
    let mut wire = Wire::new(agent.stream());
    wire.hello(1, 1);
    let partial = Frame::new(Kind::Ping, 0, vec![0; 1000]).encode().unwrap();
    wire.stream.write_all(&partial[..500]).unwrap();
    drop(wire);
    assert_eq!(stdout_of(&agent.session(), "echo alive"), "alive\n");
}

#[test]
fn a_new_greeting_kills_the_old_session() {
    let agent = Agent::start();
    let mut wire = Wire::new(agent.stream());
    wire.hello(1, 1);
    wire.send(&Frame::new(Kind::Open, 5, br#"{"op":"exec","argv":["sleep","60"]}"#.to_vec()));
    let opened = wire.next();
    assert_eq!((opened.kind, opened.stream), (Kind::Opened, 5));
    let opened: kiln_guest::message::Opened = serde_json::from_slice(&opened.payload).unwrap();
    wire.hello(2, 1);
    crate::harness::assert_ends(opened.pid.unwrap());
    // The same greeting again is the same session.
    wire.send(&Frame::new(Kind::Open, 5, br#"{"op":"exec","argv":["cat"],"stdin":true}"#.to_vec()));
    assert_eq!(wire.next().kind, Kind::Opened);
    wire.hello(2, 1);
    wire.send(&Frame::eof(5, kiln_guest::frame::Channel::Stdin));
    let kinds: Vec<Kind> = (0..3).map(|_| wire.next().kind).collect();
    assert_eq!(kinds, [Kind::Eof, Kind::Eof, Kind::Exit]);
}

#[test]
fn an_oversized_frame_ends_the_session_with_a_reason() {
    let agent = Agent::start();
    let mut wire = Wire::new(agent.stream());
    wire.hello(1, 1);
    wire.stream.write_all(&[0xff, 0xff, 0xff, 0xff, 7, 1, 0, 0, 0]).unwrap();
    let frame = wire.next();
    assert_eq!((frame.kind, frame.stream), (Kind::Error, 0));
    let error: RemoteError = serde_json::from_slice(&frame.payload).unwrap();
    assert_eq!(error.kind, ErrorKind::Protocol);
    assert!(error.message.contains("more than 65536"), "{}", error.message);
    wire.hello(2, 1);
}

#[test]
fn an_overrun_of_credit_ends_only_its_stream() {
    let agent = Agent::start();
    let mut wire = Wire::new(agent.stream());
    wire.hello(1, 1);
    wire.send(&Frame::new(Kind::Open, 9, br#"{"op":"exec","argv":["sleep","60"],"stdin":true}"#.to_vec()));
    assert_eq!(wire.next().kind, Kind::Opened);
    // The program does not read: only its pipe is consumed, so this is too much for certain.
    for _ in 0..(WINDOW_BYTES + 2 * 65536) / 32768 + 1 {
        wire.send(&Frame::data(9, kiln_guest::frame::Channel::Stdin, &[0; 32768]));
    }
    loop {
        let frame = wire.next();
        if frame.kind == Kind::Reset {
            assert_eq!(frame.stream, 9);
            break;
        }
    }
    wire.send(&Frame::new(Kind::Ping, 0, b"p".to_vec()));
    let answer = loop {
        let frame = wire.next();
        if frame.stream == 0 {
            break frame;
        }
    };
    assert_eq!(answer, Frame::new(Kind::Pong, 0, b"p".to_vec()));
}

#[test]
fn another_version_is_refused_by_both_sides() {
    let agent = Agent::start();
    let mut wire = Wire::new(agent.stream());
    assert_eq!(wire.hello(1, 2).protocol, 1);
    // No session: a request is not looked at, and a proper greeting still works.
    wire.send(&Frame::new(Kind::Ping, 0, b"p".to_vec()));
    wire.hello(2, 1);

    let (host, guest) = UnixStream::pair().unwrap();
    let fake = thread::spawn(move || {
        let mut wire = Wire::new(guest);
        let hello = loop {
            if let Some(frame) = wire.decoder.scan(Kind::Hello) {
                break frame;
            }
            wire.read();
        };
        let (nonce, _) = hello.handshake_parts().unwrap();
        wire.send(&Frame::handshake(Kind::HelloAck, &[9; 16], br#"{"protocol":1}"#));
        wire.send(&Frame::handshake(Kind::HelloAck, &nonce, br#"{"protocol":2,"shape":"other"}"#));
        wire.stream
    });
    let refused = Session::connect(Box::new(host), soon()).unwrap_err();
    assert!(matches!(refused, SessionError::ProtocolMismatch { ours: 1, theirs: 2 }), "{refused:?}");
    drop(fake.join().unwrap());
}

#[test]
fn a_silent_transport_fails_at_the_deadline() {
    let (host, guest) = UnixStream::pair().unwrap();
    let begun = Instant::now();
    let refused = Session::connect(Box::new(host), begun + Duration::from_millis(700)).unwrap_err();
    assert!(matches!(refused, SessionError::Timeout { .. }), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(guest);
}

#[test]
fn an_agent_that_comes_late_is_still_greeted() {
    let (host, guest) = UnixStream::pair().unwrap();
    let late = thread::spawn(move || {
        let mut wire = Wire::new(guest);
        // The first greetings are lost.
        let mut lost = 0;
        while lost < 3 {
            if wire.decoder.scan(Kind::Hello).is_some() {
                lost += 1;
            } else {
                wire.read();
            }
        }
        let hello = loop {
            if let Some(frame) = wire.decoder.scan(Kind::Hello) {
                break frame;
            }
            wire.read();
        };
        let (nonce, _) = hello.handshake_parts().unwrap();
        let ack = br#"{"protocol":1,"agent_version":"x","boot_id":"","state":{"name":"booting"}}"#;
        wire.send(&Frame::handshake(Kind::HelloAck, &nonce, ack));
        let failed = br#"{"event":"state","state":{"name":"failed","reason":"no root"}}"#;
        wire.send(&Frame::new(Kind::Event, 0, failed.to_vec()));
        wire
    });
    let session = Session::connect(Box::new(host), soon()).unwrap();
    let failed = session.wait_ready(soon()).unwrap_err();
    assert!(matches!(&failed, SessionError::BootFailed { reason } if reason == "no root"), "{failed:?}");
    drop(late.join().unwrap());
    assert!(session.wait_lost(soon()));
    assert!(session.ping(soon()).unwrap_err().is_lost());
}

#[test]
fn a_greeting_repeated_around_a_flush_is_one_session() {
    let agent = Agent::start();
    let mut wire = Wire::new(agent.stream());
    // As when the agent starts to read late: everything a waiting host has sent arrives at once.
    let json = serde_json::to_vec(&Hello { protocol: 1, features: Vec::new() }).unwrap();
    let hello = Frame::handshake(Kind::Hello, &[3; 16], &json).encode().unwrap();
    let mut bytes = hello.repeat(2);
    bytes.extend(vec![0; FRAME_PAYLOAD_MAX + 9]);
    bytes.extend(hello.repeat(3));
    bytes.extend(Frame::new(Kind::Ping, 0, b"p".to_vec()).encode().unwrap());
    wire.stream.write_all(&bytes).unwrap();
    loop {
        let frame = wire.next();
        if frame.kind == Kind::Pong {
            break;
        }
        assert_eq!(frame.kind, Kind::HelloAck);
    }
}

#[test]
fn the_state_of_a_repeated_answer_counts() {
    let (host, guest) = UnixStream::pair().unwrap();
    let fake = thread::spawn(move || {
        let mut wire = Wire::new(guest);
        let hello = loop {
            if let Some(frame) = wire.decoder.scan(Kind::Hello) {
                break frame;
            }
            wire.read();
        };
        let (nonce, _) = hello.handshake_parts().unwrap();
        for state in ["booting", "ready"] {
            let ack = format!(r#"{{"protocol":1,"agent_version":"x","state":{{"name":"{state}"}}}}"#);
            wire.send(&Frame::handshake(Kind::HelloAck, &nonce, ack.as_bytes()));
        }
        wire
    });
    let session = Session::connect(Box::new(host), soon()).unwrap();
    session.wait_ready(soon()).unwrap();
    drop(fake.join().unwrap());
}
