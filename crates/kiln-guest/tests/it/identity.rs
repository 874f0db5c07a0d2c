//! Capture and restore: the whole agent on a pretended guest, with real hooks.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use kiln_guest::frame::{Frame, Kind};
use kiln_guest::hook::{HookCause, HookTimeout};
use kiln_guest::identity::{Identity, Part};
use kiln_guest::limits::PROTOCOL_VERSION;
use kiln_guest::message::Hello;
use kiln_guest::quiesce::Quiesce;
use kiln_guest::secret::Entropy;
use kiln_guest::token::{Epoch, Hostname};
use kiln_guest::{ErrorKind, Session, SessionError};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Agent, soon, tick};

const EPOCH: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

fn hook(agent: &Agent, stage: &str, name: &str, script: &str) {
    let directory = agent.file(&format!("root/etc/kiln/hooks/{stage}.d"));
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn identity() -> Identity {
    Identity::new(Epoch::new(EPOCH).unwrap(), Entropy::new(vec![7; 64]).unwrap())
}

fn quick(millis: u64) -> Quiesce {
    let hook_timeout_ms = HookTimeout::new(Duration::from_millis(millis)).unwrap();
    Quiesce { hook_timeout_ms, drop_caches: true }
}

fn asked(agent: &Agent) -> Vec<String> {
    let text = fs::read_to_string(agent.file("root/kernel-was-asked")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn failure(session: &Session, request: Quiesce) -> kiln_guest::hook::HookFailure {
    match session.quiesce(request, soon()) {
        Err(SessionError::Hook(failure)) => *failure,
        other => panic!("{other:?}"),
    }
}

/// Waits until a process, named by a file it wrote, has ended.
fn assert_killed(agent: &Agent, file: &str) {
    let pid: u32 = fs::read_to_string(agent.file(file)).unwrap().trim().parse().unwrap();
    crate::harness::assert_ends(pid);
}

#[test]
fn an_identity_makes_the_round_trip_and_the_next_greeting_names_it() {
    let agent = Agent::start_pretended();
    let dir = agent.dir().display();
    hook(&agent, "post-restore", "20-env", &format!("env | sort > {dir}/env; pwd > {dir}/pwd"));
    hook(&agent, "post-restore", "10-fact", "echo text; echo '{\"event\":\"restarted\",\"unit\":\"sshd\"}'");
    let session = agent.session();
    assert_eq!(session.agent().epoch, None);
    let mut request = identity();
    request.clock_unix_ns = Some(3_000_000_000);
    request.hostname = Some(Hostname::new("clone").unwrap());
    let report = session.identify(request.clone(), soon()).unwrap();
    assert_eq!(report.clock_offset_ns, Some(2_000_000_000));
    assert_eq!(report.hooks.ran.len(), 2);
    let fact = report.hooks.facts.first().unwrap();
    assert_eq!((fact.hook.as_str(), fact.event.as_str()), ("10-fact", "restarted"));
    assert_eq!(asked(&agent), ["entropy 64", "clock 3000000000", "hostname clone"]);
    let env = fs::read_to_string(agent.file("env")).unwrap();
    let names: Vec<_> =
        env.lines().filter(|line| !line.starts_with("PWD=") && !line.starts_with("_=")).collect();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let shell_made = |line: &&&str| !line.starts_with("SHLVL=") && !line.starts_with("OLDPWD");
    let names: Vec<_> = names.iter().filter(shell_made).copied().collect();
    assert_eq!(names, [&format!("KILN_EPOCH={EPOCH}"), "KILN_HOOK=post-restore", path]);
    assert_eq!(fs::read_to_string(agent.file("pwd")).unwrap(), "/\n");
    // The same again is no error, and the former session is over when a new one begins.
    session.identify(request, soon()).unwrap();
    drop(session);
    assert_eq!(agent.session().agent().epoch.as_ref().unwrap().as_str(), EPOCH);
}

#[test]
fn what_failed_is_told_part_by_part() {
    let agent = Agent::start_pretended();
    fs::write(agent.file("root/run"), "no directory").unwrap();
    let session = agent.session();
    let error = session.identify(identity(), soon()).unwrap_err();
    let SessionError::NotIdentified { report } = &error else { panic!("{error:?}") };
    assert_eq!(report.failed().unwrap().part, Part::Epoch);
    assert!(error.to_string().contains("epoch: cannot make"), "{error}");
    drop(session);
    assert_eq!(agent.session().agent().epoch, None);
}

#[test]
fn a_capture_runs_hooks_and_then_writes_filesystems() {
    let agent = Agent::start_pretended();
    hook(&agent, "pre-snapshot", "10-db", "echo '{\"event\":\"flushed\",\"pages\":3}'; echo done >&2");
    let done = agent.session().quiesce(quick(30_000), soon()).unwrap();
    assert_eq!(done.hooks.ran.first().unwrap().hook.as_str(), "10-db");
    assert_eq!(done.hooks.facts.len(), 1);
    assert!(done.sync_ms.is_some() && done.drop_caches_ms.is_some());
    assert_eq!(asked(&agent), ["sync", "drop_caches"]);
}

#[test]
fn a_hook_that_fails_is_named_and_its_output_bounded() {
    let agent = Agent::start_pretended();
    hook(&agent, "pre-snapshot", "10-ok", "exit 0");
    hook(&agent, "pre-snapshot", "20-bad", "seq 100000; seq 100000 >&2; echo last words >&2; exit 7");
    hook(&agent, "pre-snapshot", "30-never", &format!("touch {}/ran", agent.dir().display()));
    let session = agent.session();
    let failed = failure(&session, quick(30_000));
    assert_eq!((failed.hook.as_str(), &failed.cause), ("20-bad", &HookCause::Exited { code: 7 }));
    assert_eq!((failed.stdout_tail.len(), failed.stderr_tail.len()), (1024, 1024));
    assert!(failed.stderr_tail.ends_with("100000\nlast words\n"));
    assert!(!agent.file("ran").exists());
    assert_eq!(asked(&agent), Vec::<String>::new());
    hook(&agent, "pre-snapshot", "20-bad", "kill -9 $$");
    assert_eq!(failure(&session, quick(30_000)).cause, HookCause::Killed { signal: 9 });
    fs::write(agent.file("root/etc/kiln/hooks/pre-snapshot.d/20-bad"), "no interpreter").unwrap();
    let cause = failure(&session, quick(30_000)).cause;
    assert!(cause.to_string().contains("neither ELF nor a script"), "{cause}");
}

#[test]
fn a_hook_that_hangs_is_killed_with_its_group() {
    let agent = Agent::start_pretended();
    let dir = agent.dir().display();
    let script = format!("trap '' HUP TERM; sleep 1000 & echo $! > {dir}/child; echo up; wait");
    hook(&agent, "pre-snapshot", "10-hang", &script);
    let failed = failure(&agent.session(), quick(2000));
    assert_eq!(failed.cause, HookCause::TimedOut { limit_ms: 2000 });
    assert_eq!(failed.stdout_tail, "up\n");
    assert_killed(&agent, "child");
}

#[test]
fn what_a_hook_leaves_behind_holds_nothing_up() {
    let agent = Agent::start_pretended();
    let script = format!("sleep 1000 & echo $! > {}/child", agent.dir().display());
    hook(&agent, "pre-snapshot", "10-daemon", &script);
    agent.session().quiesce(quick(600_000), soon()).unwrap();
    let child = fs::read_to_string(agent.file("child")).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn a_host_that_gives_up_ends_the_hook() {
    let agent = Agent::start_pretended();
    let script =
        format!("echo $$ > {0}/pid.new; mv {0}/pid.new {0}/pid; exec sleep 1000", agent.dir().display());
    hook(&agent, "pre-snapshot", "10-hang", &script);
    let stream = agent.stream();
    let mut wire = stream.try_clone().unwrap();
    let session = Session::connect(Box::new(stream), soon()).unwrap();
    let other = session.clone();
    let waiting = std::thread::spawn(move || other.quiesce(quick(600_000), soon()));
    while !agent.file("pid").exists() {
        tick();
    }
    let busy = session.quiesce(quick(1000), soon()).unwrap_err();
    assert!(matches!(&busy, SessionError::Remote(error) if error.kind == ErrorKind::Busy), "{busy}");
    // A greeting on the same link, as after a restore, ends what the former session had begun.
    let hello = serde_json::to_vec(&Hello { protocol: PROTOCOL_VERSION, features: Vec::new() }).unwrap();
    wire.write_all(&Frame::handshake(Kind::Hello, &[9; 16], &hello).encode().unwrap()).unwrap();
    assert_killed(&agent, "pid");
    wire.shutdown(Shutdown::Both).unwrap();
    waiting.join().unwrap().unwrap_err();
    assert_eq!(asked(&agent), Vec::<String>::new());
}

#[test]
fn a_deadline_is_kept() {
    let agent = Agent::start_pretended();
    let script =
        format!("echo $$ > {0}/pid.new; mv {0}/pid.new {0}/pid; exec sleep 1000", agent.dir().display());
    hook(&agent, "pre-snapshot", "10-hang", &script);
    let session = agent.session();
    let late = session.quiesce(quick(600_000), Instant::now() + Duration::from_secs(2)).unwrap_err();
    assert!(matches!(late, SessionError::Timeout { .. }), "{late}");
    // On a busy host it may not have come to run.
    if agent.file("pid").exists() {
        assert_killed(&agent, "pid");
    }
    // The agent goes on.
    fs::remove_file(agent.file("root/etc/kiln/hooks/pre-snapshot.d/10-hang")).unwrap();
    let deadline = soon();
    while let Err(error) = session.quiesce(quick(1000), soon()) {
        assert!(Instant::now() < deadline, "{error}");
        tick();
    }
}

#[test]
fn an_agent_without_a_guest_does_not_offer_it() {
    let agent = Agent::start();
    let session = agent.session();
    let lacks = session.identify(identity(), soon()).unwrap_err();
    assert!(matches!(lacks, SessionError::Lacks { feature: "identity" }), "{lacks}");
    assert!(session.quiesce(quick(1000), soon()).is_err());
}

#[test]
fn a_request_over_a_limit_is_not_sent() {
    let agent = Agent::start_pretended();
    let mut request = identity();
    let value = "x".repeat(kiln_guest::limits::ENVIRONMENT_BYTES_MAX);
    request.environment = Some([(kiln_guest::token::VariableName::new("A").unwrap(), value)].into());
    let refused = agent.session().identify(request, soon()).unwrap_err();
    assert!(matches!(&refused, SessionError::Remote(error) if error.kind == ErrorKind::Invalid), "{refused}");
    assert_eq!(asked(&agent), Vec::<String>::new());
}
