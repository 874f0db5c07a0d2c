//! Pausing and resuming, times to live, restarts.

use crate::context;
use kiln_testing::{TestContext, recipe};
use rustix::process::{Pid, Signal};
use serde_json::Value;

fn machine(context: &TestContext, name: &str) -> Value {
    context.kiln(["show", "--machine", name, "--json"]).json()
}

fn is(context: &TestContext, name: &str, phase: &str) -> bool {
    machine(context, name)["phase"] == phase
}

#[test]
fn what_does_not_go_together_is_bad_usage() {
    let context = context();
    insta::assert_snapshot!(context.kiln(["run", "-d", "--rm", "--restart", "always", "web"]).fails(2), @r"
    error: --rm and --restart want opposite things when it ends
    try: kiln --help
    ");
    insta::assert_snapshot!(context.kiln(["run", "--restart", "on-failure:3", "web"]).fails(2), @r"
    error: --restart needs -d: a machine in the foreground ends with kiln
    try: kiln --help
    ");
    insta::assert_snapshot!(context.kiln(["run", "--ttl", "0", "web"]).fails(2), @r"
    error: --ttl 0 leaves a machine no time
    try: kiln --help
    ");
    insta::assert_snapshot!(context.kiln(["run", "-d", "--restart", "on-failure:0", "web"]).fails(2), @r"
    error: invalid value 'on-failure:0' for '--restart <POLICY>': `on-failure:0` is not a restart policy: no, on-failure, on-failure:N with N from 1, and always are

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(context.kiln(["run", "--ttl", "10", "web"]).fails(2), @r"
    error: invalid value '10' for '--ttl <TIME>': `10` is not a span of time: a whole number with s, m, h, d or w is, such as 30m or 7d, and 0

    For more information, try '--help'.
    ");
    // The default may be said.
    context.kiln(["run", "--rm", "--restart", "no", "web"]).fails(1);
    context.kiln(["pause"]).fails(2);
    context.kiln(["resume"]).fails(2);
}

#[test]
fn each_machine_that_cannot_be_paused_is_told() {
    let context = context();
    insta::assert_snapshot!(context.kiln(["pause", "a", "b"]).fails(1), @r"
    error: machine `a` not found
    try: kiln ps -a lists machines, kiln ls templates
    error: machine `b` not found
    try: kiln ps -a lists machines, kiln ls templates
    error: 2 of 2 failed
    ");
    insta::assert_snapshot!(context.kiln(["resume", "a"]).fails(1), @r"
    error: machine `a` not found
    try: kiln ps -a lists machines, kiln ls templates
    ");
    let own = |verb: &str| {
        let help = context.kiln([verb, "--help"]).ok();
        let (above, rest) = help.split_once("Global options:").unwrap();
        format!("{above}{}", rest.split_once("[default: auto]").unwrap().1)
    };
    insta::assert_snapshot!(own("pause"), @r"
    Let the processors of machines stand

    Usage: kiln pause [OPTIONS] <MACHINES>...

    Arguments:
      <MACHINES>...
              Machines

    Options:
      -h, --help
              Print help (see a summary with '-h')



    A paused machine keeps its memory and does nothing. Nobody reaches it until kiln resume;
    kiln stop ends it. Its time to live goes on.

    Examples:
      kiln pause w1 w2
    ");
    insta::assert_snapshot!(own("resume"), @r"
    Let paused or suspended machines go on

    Usage: kiln resume [OPTIONS] <MACHINES>...

    Arguments:
      <MACHINES>...
              Machines

    Options:
      -h, --help
              Print help (see a summary with '-h')



    The guest's clock is set right.

    Examples:
      kiln resume w1 w2
    ");
}

#[test]
fn boot_pause_stands_still_is_refused_at_once_and_goes_on() {
    const COUNT: &str = "i=0; while :; do i=$((i+1)); echo count $i > /dev/console; sleep 0.1; done";
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    // A machine in the foreground is paused from elsewhere too.
    let foreground = context.start(["run", "--name", "w", "web", "--", "sh", "-c", COUNT]);
    let count = || context.kiln(["logs", "w"]).stdout.matches("count ").count();
    context.eventually("it counts", || count() > 3);
    assert_eq!(context.kiln(["pause", "w"]).ok(), "w\n");
    let again = context.kiln(["pause", "w"]);
    assert_eq!(
        (again.stdout.as_str(), again.stderr.as_str(), again.code),
        ("w\n", "w is paused already\n", 0)
    );
    let stood = count();
    let shown = machine(&context, "w");
    assert_eq!(shown["phase"], "paused");
    assert!(shown["paused_unix_ms"].as_u64() >= shown["started_unix_ms"].as_u64());
    assert!(context.kiln(["ps"]).ok().contains(" paused "));
    for refused in [
        vec!["exec", "w", "--", "true"],
        vec!["cp", "w:/etc/hostname", "."],
        vec!["shell", "w"],
        vec!["start", "w"],
    ] {
        let words = context.kiln(&refused).fails(1);
        assert!(words.contains("machine `w` is paused") && words.contains("kiln resume w"), "{words}");
    }
    // All these commands took longer than many counts would.
    assert_eq!(count(), stood);
    let mixed = context.kiln(["resume", "nobody", "w"]);
    assert_eq!((mixed.stdout.as_str(), mixed.code), ("w\n", 1));
    context.eventually("it counts again", || count() > stood + 3);
    let drift = context.kiln(["exec", "w", "--", "date", "+%s"]).ok();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(drift.trim().parse::<u64>().unwrap().abs_diff(now) < 30, "{drift}");
    context.kiln(["pause", "w"]).ok();
    let waiting = context.start(["wait", "w"]);
    assert_eq!(context.kiln(["stop", "w"]).ok(), "w\n");
    assert_eq!(waiting.finish().ok(), "stopped on request\n");
    foreground.finish();
    assert!(is(&context, "w", "stopped"));
    let error = context.kiln(["pause", "w"]).fails(1);
    assert!(error.contains("machine `w` is stopped: it cannot be paused"), "{error}");
    context.eventually("no process is left", || context.processes().is_empty());
}

#[test]
fn boot_restart_brings_a_machine_back_until_it_is_stopped() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["run", "-d", "--name", "w", "--restart", "always", "web"]).ok();
    context.kiln(["exec", "w", "--", "sh", "-c", "echo kept > /root/file; sync"]).ok();
    let first = machine(&context, "w");
    assert_eq!((first["restart"].as_str(), first["restarts"].as_u64()), (Some("always"), Some(0)));
    // The connection may be lost before the command's end is told.
    context.kiln(["exec", "w", "--", "sh", "-c", "poweroff -f || echo o > /proc/sysrq-trigger; sleep 60"]);
    context.eventually("it is back", || {
        let shown = machine(&context, "w");
        shown["phase"] == "running" && shown["restarts"] == 1
    });
    let second = machine(&context, "w");
    assert_eq!(first["supervisor_pid"], second["supervisor_pid"]);
    assert_ne!(first["vmm_pid"], second["vmm_pid"]);
    assert_eq!(context.kiln(["exec", "w", "--", "cat", "/root/file"]).ok(), "kept\n");
    assert!(context.kiln(["ps"]).ok().contains("running, 1 restart"));
    context.kiln(["stop", "w"]).ok();
    let ended = machine(&context, "w");
    assert_eq!(
        (ended["phase"].as_str(), ended["end"]["cause"].as_str()),
        (Some("stopped"), Some("requested"))
    );
    context.eventually("no process is left", || context.processes().is_empty());
    context.kiln(["start", "w"]).ok();
    assert_eq!(machine(&context, "w")["restarts"], 0);
    context.kiln(["rm", "-f", "w"]).ok();
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}

#[test]
fn boot_ttl_ends_a_machine_in_order() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["run", "-d", "--name", "w", "--ttl", "30s", "--restart", "always", "web"]).ok();
    let shown = machine(&context, "w");
    let started = shown["started_unix_ms"].as_u64().unwrap();
    assert_eq!(
        (shown["ttl_ms"].as_u64(), shown["expires_unix_ms"].as_u64()),
        (Some(30_000), Some(started + 30_000))
    );
    assert_eq!(context.kiln(["wait", "w"]).ok(), "its time to live had passed\n");
    let ended = machine(&context, "w");
    assert_eq!((ended["phase"].as_str(), ended["end"]["cause"].as_str()), (Some("stopped"), Some("expired")));
    assert!(ended["ended_unix_ms"].as_u64().unwrap() >= started + 30_000);
    context.eventually("no process is left", || context.processes().is_empty());
}

#[test]
fn boot_ttl_ends_a_machine_in_the_foreground() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let console = context.start(["run", "--rm", "--ttl", "30s", "web"]);
    let command = context.kiln(["run", "--name", "c", "--ttl", "15s", "web", "--", "sleep", "600"]);
    assert_ne!(command.code, 0, "{}", command.stderr);
    console.finish().ok();
    assert_eq!(machine(&context, "c")["end"]["cause"], "expired");
    let early = context.kiln(["run", "-d", "--rm", "--ttl", "1s", "web"]).fails(1);
    assert!(early.contains("ended: its time to live had passed"), "{early}");
    context.eventually("no process is left", || context.processes().is_empty());
    assert_eq!(context.machine_dirs().len(), 1);
}

#[test]
fn boot_pause_is_no_hiding_place_from_a_lost_owner() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let owner = context.start(["run", "--name", "w", "web", "--", "sleep", "600"]);
    context.eventually("it runs", || context.kiln(["exec", "w", "--", "true"]).code == 0);
    context.kiln(["pause", "w"]).ok();
    owner.signal(Signal::KILL);
    assert_eq!(context.kiln(["wait", "w"]).ok(), "the client that owned it went away\n");
    context.eventually("no process is left", || context.processes().is_empty());
}

#[test]
fn boot_restart_on_failure_counts_and_gives_up() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["run", "-d", "--name", "w", "--restart", "on-failure:1", "web"]).ok();
    let kill = || {
        let pid = machine(&context, "w")["vmm_pid"].as_i64().unwrap();
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    };
    kill();
    context.eventually("it is back", || {
        let shown = machine(&context, "w");
        shown["phase"] == "running" && shown["restarts"] == 1
    });
    kill();
    assert_eq!(context.kiln(["wait", "w"]).code, 0);
    let ended = machine(&context, "w");
    assert_eq!((ended["phase"].as_str(), ended["restarts"].as_u64()), (Some("failed"), Some(1)));
    assert_eq!(ended["end"]["cause"], "vmm_killed");
    context.eventually("no process is left", || context.processes().is_empty());
}
