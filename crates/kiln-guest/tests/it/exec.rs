//! Programs.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use kiln_guest::limits::WINDOW_BYTES;
use kiln_guest::message::{ExecRequest, ExitStatus, TtySize};
use kiln_guest::session::ExecEvent;
use kiln_guest::{ErrorKind, GuestPath, Session, SessionError, SignalNumber};
use sha2::{Digest, Sha256};

use crate::harness::{Agent, assert_ends, noise, read_until, run, sh, soon, stdout_of};

fn refusal(session: &Session, request: ExecRequest) -> (ErrorKind, String) {
    match session.exec(request) {
        Err(SessionError::Remote(error)) => (error.kind, error.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_exit_code_arrives_behind_the_output() {
    let agent = Agent::start();
    let session = agent.session();
    let outcome = run(&session, sh("echo out; echo err >&2; exit 7"));
    assert_eq!(outcome.status, ExitStatus { code: Some(7), signal: None });
    assert_eq!((outcome.stdout.as_slice(), outcome.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn a_fatal_signal_is_reported() {
    let agent = Agent::start();
    let outcome = run(&agent.session(), sh("kill -KILL $$"));
    assert_eq!(outcome.status, ExitStatus { code: None, signal: Some(9) });
}

#[test]
fn the_environment_has_defaults_and_additions() {
    let agent = Agent::start();
    let session = agent.session();
    let mut request = sh("echo $PATH:$A:$HOME:$TERM");
    request.env.insert("A".to_owned(), "x y".to_owned());
    let text = String::from_utf8(run(&session, request).stdout).unwrap();
    assert!(text.starts_with("/usr/local/sbin:/usr/local/bin:/usr/sbin"), "{text}");
    assert!(text.contains(":x y:/"), "{text}");
    let mut request = ExecRequest::new(["env"]);
    request.clear_env = true;
    request.env.insert("ONLY".to_owned(), "1".to_owned());
    assert_eq!(run(&session, request).stdout, b"ONLY=1\n");
}

#[test]
fn the_working_directory_is_entered_or_named() {
    let agent = Agent::start();
    let session = agent.session();
    let mut request = ExecRequest::new(["pwd"]);
    request.cwd = Some(agent.path(""));
    let text = String::from_utf8(run(&session, request).stdout).unwrap();
    assert_eq!(text.trim_end().trim_end_matches('/'), agent.dir().canonicalize().unwrap().to_str().unwrap());
    let mut request = ExecRequest::new(["pwd"]);
    request.cwd = Some(agent.path("missing"));
    let (kind, message) = refusal(&session, request);
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(message.contains("working directory") && message.contains("missing"), "{message}");
}

#[test]
fn programs_that_cannot_run_are_told_apart() {
    let agent = Agent::start();
    let session = agent.session();
    let (kind, message) = refusal(&session, ExecRequest::new(["no-such-program"]));
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(message.contains("no-such-program"), "{message}");
    assert_eq!(refusal(&session, ExecRequest::new(["/no/such/program"])).0, ErrorKind::NotFound);
    std::fs::write(agent.file("plain"), "#!/bin/sh\n").unwrap();
    let plain = agent.path("plain").to_string();
    assert_eq!(refusal(&session, ExecRequest::new([plain.as_str()])).0, ErrorKind::Permission);
    std::fs::write(agent.file("orphan"), "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(agent.file("orphan"), PermissionsExt::from_mode(0o755)).unwrap();
    let orphan = agent.path("orphan").to_string();
    let (kind, message) = refusal(&session, ExecRequest::new([orphan.as_str()]));
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(message.contains("interpreter"), "{message}");
    for (name, bytes) in
        [("text", &b"echo hi\n"[..]), ("foreign", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf3\0....")]
    {
        std::fs::write(agent.file(name), bytes).unwrap();
        std::fs::set_permissions(agent.file(name), PermissionsExt::from_mode(0o755)).unwrap();
        let path = agent.path(name).to_string();
        assert_eq!(refusal(&session, ExecRequest::new([path.as_str()])).0, ErrorKind::Invalid, "{name}");
    }
    assert_eq!(refusal(&session, ExecRequest::new([agent.dir().to_str().unwrap()])).0, ErrorKind::Permission);
}

#[test]
fn a_numeric_user_needs_no_entry() {
    let agent = Agent::start();
    let session = agent.session();
    if stdout_of(&session, "id -u").trim() != "0" {
        return;
    }
    let mut request = sh("id -u; id -g; id -G; pwd");
    request.user = Some("54321:54322".parse().unwrap());
    assert_eq!(run(&session, request).stdout, b"54321\n54322\n54322\n/\n");
    let mut request = sh("true");
    request.user = Some("no-such-user".parse().unwrap());
    assert_eq!(refusal(&session, request).0, ErrorKind::NotFound);
}

#[test]
fn children_inherit_nothing_of_the_agent() {
    let agent = Agent::start();
    let session = agent.session();
    let _other = session.exec(sh("sleep 60")).unwrap();
    // What the test itself passes on is not the agent's.
    let direct = |script: &str| {
        let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let script = "ls /proc/self/fd | tr '\\n' ' '";
    assert_eq!(stdout_of(&session, script), direct(script));
    for which in ["SigBlk", "SigIgn"] {
        let script = format!("sed -n 's/^{which}:\t//p' /proc/self/status");
        // The C library leaves its own two ignored where it starts a program.
        let set = |text: String| u64::from_str_radix(text.trim(), 16).unwrap() & !(3 << 31);
        assert_eq!(set(stdout_of(&session, &script)), set(direct(&script)), "{which}");
    }
    let ids = stdout_of(&session, "cut -d' ' -f1,5,6 /proc/$$/stat");
    let ids: Vec<&str> = ids.split_whitespace().collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "{ids:?}");
}

#[test]
fn eight_mebibytes_come_back_through_cat() {
    let agent = Agent::start();
    let session = agent.session();
    let sent = noise(8 * 1024 * 1024);
    let mut request = ExecRequest::new(["cat"]);
    request.stdin = true;
    let (mut stdin, _, mut output) = session.exec(request).unwrap().split();
    let expected = Sha256::digest(&sent);
    let writer = thread::spawn(move || stdin.write_all(&sent));
    let mut received = Sha256::new();
    let status = loop {
        match output.recv().unwrap() {
            ExecEvent::Stdout(bytes) => received.update(&bytes),
            ExecEvent::Stderr(bytes) => panic!("{bytes:?}"),
            ExecEvent::Exit(status) => break status,
        }
    };
    writer.join().unwrap().unwrap();
    assert!(status.success());
    assert_eq!(received.finalize(), expected);
}

#[test]
fn a_hundred_mebibytes_of_output_are_complete() {
    let agent = Agent::start();
    let session = agent.session();
    let mut stream = session.exec(sh("yes 0123456789abcde | head -c 104857600")).unwrap();
    let line = b"0123456789abcde\n";
    let mut count = 0_usize;
    loop {
        match stream.recv().unwrap() {
            ExecEvent::Stdout(bytes) => {
                for (at, byte) in (count..).zip(&bytes) {
                    assert_eq!(*byte, line[at % line.len()], "at {at}");
                }
                count += bytes.len();
            }
            ExecEvent::Stderr(bytes) => panic!("{bytes:?}"),
            ExecEvent::Exit(status) => {
                assert!(status.success());
                break;
            }
        }
    }
    assert_eq!(count, 104_857_600);
}

#[test]
fn eight_programs_run_at_once() {
    let agent = Agent::start();
    let session = agent.session();
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let session = session.clone();
            thread::spawn(move || {
                for round in 0..5 {
                    let text = stdout_of(
                        &session,
                        &format!("head -c 300000 /dev/zero | wc -c; echo {number}.{round}"),
                    );
                    assert_eq!(text, format!("300000\n{number}.{round}\n"));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_stalled_consumer_blocks_only_its_program() {
    let agent = Agent::start();
    let session = agent.session();
    let stalled: Vec<_> = (0..4).map(|_| session.exec(ExecRequest::new(["yes"])).unwrap()).collect();
    assert_eq!(stdout_of(&session, "echo alive"), "alive\n");
    session.ping(soon()).unwrap();
    let before = agent.resident_kib();
    for _ in 0..20 {
        assert_eq!(stdout_of(&session, "echo alive"), "alive\n");
    }
    assert!(agent.resident_kib() < before + 16 * 1024, "the agent's memory grows");
    for stream in stalled {
        let pid = stream.pid();
        stream.control().signal(SignalNumber::KILL).unwrap();
        let (_stdin, _, mut output) = stream.split();
        let mut total = 0;
        let status = loop {
            match output.recv().unwrap() {
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => total += bytes.len(),
                ExecEvent::Exit(status) => break status,
            }
        };
        assert_eq!(status.signal, Some(9));
        // The window, and what the pipe held when the program ended.
        assert!(total <= usize::try_from(WINDOW_BYTES).unwrap() + 2 * 65536, "{total}");
        assert_ends(pid);
    }
}

#[test]
fn a_program_that_does_not_read_blocks_only_its_writer() {
    let agent = Agent::start();
    let session = agent.session();
    let mut request = ExecRequest::new(["sleep", "60"]);
    request.stdin = true;
    let (mut stdin, control, mut output) = session.exec(request).unwrap().split();
    let writer = thread::spawn(move || stdin.write_all(&vec![0; 4 * 1024 * 1024]));
    assert_eq!(stdout_of(&session, "echo alive"), "alive\n");
    control.signal(SignalNumber::TERM).unwrap();
    assert_eq!(output.recv().unwrap(), ExecEvent::Exit(ExitStatus { code: None, signal: Some(15) }));
    // Its pipe is known to be closed before its end is: until then what comes is dropped, afterwards refused.
    if let Err(error) = writer.join().unwrap() {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
}

#[test]
fn input_a_program_refuses_does_not_hold_up_the_host() {
    let agent = Agent::start();
    let session = agent.session();
    let mut request = sh("exec <&-; sleep 1; echo done");
    request.stdin = true;
    let mut stream = session.exec(request).unwrap();
    stream.stdin().write_all(&noise(2 * 1024 * 1024)).unwrap();
    assert_eq!(read_until(&mut stream, "done\n"), "done\n");
}

#[test]
fn a_terminal_has_a_size_that_changes() {
    let agent = Agent::start();
    let session = agent.session();
    let mut request = sh("stty size; tty >/dev/null && echo tty=$TERM; trap 'stty size' WINCH; echo set; \
         until read line; do :; done; echo got $line; cat; echo end");
    request.tty = Some(TtySize { rows: 30, cols: 100 });
    request.term = Some("vt100".to_owned());
    let mut stream = session.exec(request).unwrap();
    let text = read_until(&mut stream, "set\r\n");
    assert!(text.starts_with("30 100\r\ntty=vt100\r\n"), "{text:?}");
    stream.control().resize(TtySize { rows: 41, cols: 90 }).unwrap();
    read_until(&mut stream, "41 90\r\n");
    stream.stdin().write_all(b"hello\n").unwrap();
    read_until(&mut stream, "got hello\r\n");
    stream.stdin().close().unwrap();
    read_until(&mut stream, "end\r\n");
    assert_eq!(stream.recv().unwrap(), ExecEvent::Exit(ExitStatus::SUCCESS));
}

#[test]
fn an_interrupt_character_reaches_the_terminals_program() {
    let agent = Agent::start();
    let session = agent.session();
    let mut request = sh("echo ready; exec sleep 60");
    request.tty = Some(TtySize { rows: 24, cols: 80 });
    let mut stream = session.exec(request).unwrap();
    read_until(&mut stream, "ready");
    stream.stdin().write_all(b"\x03").unwrap();
    loop {
        if let ExecEvent::Exit(status) = stream.recv().unwrap() {
            assert_eq!(status.signal, Some(2));
            break;
        }
    }
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let agent = Agent::start();
    let session = agent.session();
    let mut stream = session
        .exec(sh("trap 'wait; echo caught; exit 3' TERM; sh -c 'echo $$; exec sleep 60' & wait"))
        .unwrap();
    let child: u32 = read_until(&mut stream, "\n").trim().parse().unwrap();
    stream.control().signal(SignalNumber::TERM).unwrap();
    read_until(&mut stream, "caught\n");
    assert_eq!(stream.recv().unwrap(), ExecEvent::Exit(ExitStatus { code: Some(3), signal: None }));
    assert_ends(child);
}

#[test]
fn dropping_a_stream_kills_its_group() {
    let agent = Agent::start();
    let session = agent.session();
    let mut stream = session.exec(sh("trap '' HUP; sleep 60 & echo $!; while :; do wait; done")).unwrap();
    let child: u32 = read_until(&mut stream, "\n").trim().parse().unwrap();
    let leader = stream.pid();
    drop(stream);
    assert_ends(child);
    assert_ends(leader);
    assert_eq!(stdout_of(&session, "echo alive"), "alive\n");
}

#[test]
fn losing_the_host_kills_its_programs() {
    let agent = Agent::start();
    let session = agent.session();
    let (_stdin, _control, output) = session.exec(sh("sleep 60")).unwrap().split();
    let pid = _control.pid();
    drop((_stdin, output, _control, session));
    assert_ends(pid);
    let again = agent.session();
    assert_eq!(stdout_of(&again, "echo alive"), "alive\n");
}

#[test]
fn a_child_left_behind_does_not_delay_the_end() {
    let agent = Agent::start();
    let session = agent.session();
    let begun = Instant::now();
    let left: u32 = stdout_of(&session, "sleep 60 & echo $!").trim().parse().unwrap();
    let elapsed = begun.elapsed();
    let killed = run(&session, sh(&format!("kill {left}")));
    assert!(killed.status.success(), "{killed:?}");
    assert!(elapsed < Duration::from_secs(20));
}

#[test]
fn requests_over_a_limit_are_refused_before_they_are_sent() {
    let agent = Agent::start();
    let session = agent.session();
    let (kind, message) = refusal(&session, ExecRequest::new(["true".to_owned(), "x".repeat(50_000)]));
    assert_eq!(kind, ErrorKind::Invalid);
    assert!(message.contains("more than"), "{message}");
    assert_eq!(refusal(&session, ExecRequest::new(["/"; 0])).0, ErrorKind::Invalid);
    assert!(session.stat(GuestPath::new("/").unwrap()).is_ok());
}

#[test]
fn streams_over_the_limit_are_busy() {
    let agent = Agent::start();
    let session = agent.session();
    let mut request = ExecRequest::new(["cat"]);
    request.stdin = true;
    let mut streams = Vec::new();
    let refused = loop {
        match session.exec(request.clone()) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert_eq!(streams.len(), kiln_guest::limits::STREAMS_MAX);
    assert!(matches!(refused, SessionError::Remote(error) if error.kind == ErrorKind::Busy));
    drop(streams.pop());
    assert_eq!(stdout_of(&session, "echo alive"), "alive\n");
}
