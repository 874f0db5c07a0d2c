//! Commands in a running machine: streams, signals, terminals.

use crate::context;
use kiln_testing::{TestContext, recipe};
use rustix::process::Signal;

fn machine(context: &TestContext) {
    let dir = recipe(context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["run", "-d", "--name", "w", "web"]).ok();
}

/// Counts bytes and sums them up, so that a lost or doubled block shows.
fn check_pattern(text: &str, lines: usize) {
    assert_eq!(text.lines().count(), lines);
    for (index, line) in text.lines().enumerate() {
        assert_eq!(line.parse::<usize>().ok(), Some(index + 1));
    }
}

#[test]
fn boot_exec_streams_environment_users_and_directories() {
    let context = context();
    machine(&context);
    let exec = |args: &[&str]| context.kiln([&["exec"], args].concat());
    assert_eq!(exec(&["-e", "A=1 2", "w", "--", "sh", "-c", "echo $A"]).ok(), "1 2\n");
    assert_eq!(exec(&["-w", "/etc", "w", "--", "pwd"]).ok(), "/etc\n");
    assert_eq!(exec(&["-u", "nobody", "w", "--", "id", "-u"]).ok(), "65534\n");
    assert!(exec(&["-w", "/nowhere", "w", "--", "pwd"]).stderr.contains("/nowhere"));
    assert_eq!(exec(&["w", "--", "no-such-program"]).code, 127);
    assert_eq!(exec(&["w", "--", "/etc/passwd"]).code, 126);
    assert_eq!(exec(&["w", "--", "sh", "-c", "kill -9 $$"]).code, 137);
    assert_eq!(exec(&["w", "--", "sh", "-c", "exit 255"]).code, 255);
    assert_eq!(exec(&["w", "--", "cat"]).ok(), "", "without -i there is no input");
    let echoed = context.kiln_with_input(["exec", "-i", "w", "--", "cat"], b"hello\n".repeat(100_000));
    assert_eq!(echoed.ok().len(), 600_000);
    assert_eq!(exec(&["w", "ls", "-d", "/etc"]).ok(), "/etc\n", "the dashes may be left out");
}

#[test]
fn boot_exec_100_mib_and_eight_at_once() {
    let context = context();
    machine(&context);
    let bytes = context.kiln(["exec", "w", "--", "head", "-c", "104857600", "/dev/zero"]).ok();
    assert_eq!(bytes.len(), 104_857_600);
    assert!(bytes.bytes().all(|byte| byte == 0));
    let all: Vec<_> = (0..8).map(|_| context.start(["exec", "w", "--", "seq", "200000"])).collect();
    for one in all {
        check_pattern(&one.finish().ok(), 200_000);
    }
}

#[test]
fn boot_signals_reach_the_command() {
    let context = context();
    machine(&context);
    let script = "trap 'echo got it; exit 42' TERM; echo up; while :; do sleep 1; done";
    let running = context.start(["exec", "w", "--", "sh", "-c", script]);
    context.eventually("the command is up", || running.said().contains("up"));
    running.signal(Signal::TERM);
    let output = running.finish();
    assert_eq!((output.code, output.stdout.contains("got it")), (42, true), "{}", output.stdout);
    let sleeping = context.start(["exec", "w", "--", "sh", "-c", "echo up; exec sleep 98765"]);
    context.eventually("the command is up", || sleeping.said().contains("up"));
    sleeping.signal(Signal::INT);
    assert_eq!(sleeping.finish().code, 130);
}

#[test]
fn boot_a_killed_client_takes_its_command_with_it() {
    let context = context();
    machine(&context);
    let running = context.start(["exec", "w", "--", "sh", "-c", "echo up; exec sleep 98765"]);
    context.eventually("the command is up", || running.said().contains("up"));
    running.signal(Signal::KILL);
    running.finish();
    context.eventually("the command is gone", || {
        !context.kiln(["exec", "w", "--", "ps"]).ok().contains("98765")
    });
}

#[test]
fn boot_a_terminal_is_one() {
    let context = context();
    machine(&context);
    let tty = context.kiln(["exec", "-t", "w", "--", "sh", "-c", "test -t 0 && test -t 1 && stty size"]).ok();
    assert_eq!(tty.trim(), "24 80");
}
