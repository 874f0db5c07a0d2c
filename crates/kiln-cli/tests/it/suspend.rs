//! Machines that are saved to disk and go on: what they keep, what stops them, and what becomes of it when somebody dies.

use crate::context;
use kiln_testing::{FileSystem, Mounted, TestContext, check_store, recipe};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

fn machine(context: &TestContext, name: &str) -> Value {
    context.kiln(["show", "--machine", name, "--json"]).json()
}

fn phase(context: &TestContext, name: &str) -> String {
    machine(context, name)["phase"].as_str().unwrap().to_owned()
}

fn dir(context: &TestContext, name: &str) -> PathBuf {
    context.home().join("machines").join(machine(context, name)["id"].as_str().unwrap())
}

fn exec(context: &TestContext, name: &str, script: &str) -> String {
    context.kiln(["exec", name, "--", "sh", "-c", script]).ok()
}

/// Builds a template and starts a machine `w` of it that keeps a word in its memory.
fn running(options: &[&str]) -> TestContext {
    let context = context();
    let recipe = recipe(&context, "web", "[machine]\nmemory = \"128M\"\n");
    context.kiln(["build".as_ref(), recipe.as_os_str()]).ok();
    let run = ["run", "-d", "--name", "w"];
    context.kiln([&run, options, &["web"]].concat()).ok();
    exec(&context, "w", "echo kept > /run/word");
    context
}

/// Asserts that the machine goes on where it stood: a boot would have lost the word.
#[track_caller]
fn goes_on(context: &TestContext) {
    context.kiln(["start", "w"]).ok();
    assert_eq!(exec(context, "w", "cat /run/word"), "kept\n");
}

fn kill(machine: &Value, process: &str) {
    let pid = i32::try_from(machine[process].as_i64().unwrap()).unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// Waits until the end of a machine is noticed; returns whether it is suspended. A dying process has its locks for a moment.
fn saved_or_lost(context: &TestContext) -> bool {
    context.eventually("it has ended", || {
        context.processes().is_empty() && ["suspended", "failed"].contains(&phase(context, "w").as_str())
    });
    phase(context, "w") == "suspended"
}

fn edit(path: &std::path::Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
}

#[test]
fn what_cannot_be_suspended_is_told() {
    let context = context();
    insta::assert_snapshot!(context.kiln(["suspend", "a", "b"]).fails(1), @r"
    error: machine `a` not found
    try: kiln ps -a lists machines, kiln ls templates
    error: machine `b` not found
    try: kiln ps -a lists machines, kiln ls templates
    error: 2 of 2 failed
    ");
    insta::assert_snapshot!(context.kiln(["run", "--idle-suspend", "10m", "web"]).fails(2), @r"
    error: --idle-suspend needs -d: a machine in the foreground is in use
    try: kiln --help
    ");
    insta::assert_snapshot!(context.kiln(["run", "-d", "--idle-suspend", "0", "web"]).fails(2), @r"
    error: --idle-suspend 0 leaves a machine no time
    try: kiln --help
    ");
    context.kiln(["fork", "--idle-suspend", "0", "web"]).fails(2);
    context.kiln(["suspend"]).fails(2);
    let own = |verb: &str| {
        let help = context.kiln([verb, "--help"]).ok();
        let (above, rest) = help.split_once("Global options:").unwrap();
        format!("{above}{}", rest.split_once("[default: auto]").unwrap().1)
    };
    insta::assert_snapshot!(own("suspend"), @r"
    Save machines to disk and end their processes

    Usage: kiln suspend [OPTIONS] <MACHINES>...

    Arguments:
      <MACHINES>...
              Machines

    Options:
      -h, --help
              Print help (see a summary with '-h')



    Memory, processors and devices are written to a file in the machine's directory, and nothing of it
    runs any more. kiln resume, or kiln start, lets it go on where it stood, its clock set right;
    kiln start --boot discards what was saved. Commands that are attached to it lose their connection.
    Its time to live goes on. When it cannot be saved, it goes on.

    Examples:
      kiln suspend w1 w2
      kiln resume w1
      kiln run -d --name web --idle-suspend 10m -p 8080:80 web
    ");
    insta::assert_snapshot!(own("start"), @r"
    Start machines that ended or are suspended

    Usage: kiln start [OPTIONS] <MACHINES>...

    Arguments:
      <MACHINES>...
              Machines

    Options:
          --boot
              Discard what was saved of suspended machines: they boot

      -h, --help
              Print help (see a summary with '-h')



    A machine keeps its disk over stop and start. A suspended one goes on where it stood.

    Examples:
      kiln start web-1a2b
      kiln start --boot w1       boot it though it is suspended; what was saved is gone
    ");
}

#[test]
fn boot_suspend_keeps_processes_memory_and_what_was_not_synced() {
    let context = context();
    let recipe = recipe(&context, "web", "[machine]\nmemory = \"128M\"\ndata_disk = \"16M\"\n");
    context.kiln(["build".as_ref(), recipe.as_os_str()]).ok();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let publish = format!("{port}:80");
    context
        .kiln(["run", "-d", "--rm", "--restart", "no", "--ttl", "1h", "-p", &publish, "--name", "w", "web"])
        .ok();
    let count = "(i=0; while :; do i=$((i+1)); echo $i > /run/count.new; cat /run/count.new > /run/count; sleep 0.05; done) \
        >/dev/null 2>&1 &";
    exec(&context, "w", count);
    exec(&context, "w", "mkdir /www; echo page > /www/index.html; httpd -h /www; echo data > /dev/vdb");
    exec(&context, "w", "echo not synced > /root/file");
    let counted = || exec(&context, "w", "cat /run/count").trim().parse::<u64>().unwrap_or(0);
    context.eventually("it counts", || counted() > 3);
    let (before, shown) = (counted(), machine(&context, "w"));
    for _ in 0..2 {
        let suspended = context.kiln(["suspend", "w"]);
        assert!(suspended.stderr.starts_with("w is suspended: "), "{}", suspended.stderr);
        assert_eq!(suspended.ok(), "w\n");
        assert_eq!(context.processes(), []);
        let line = machine(&context, "w");
        assert_eq!((line["phase"].as_str(), &line["vmm_pid"]), (Some("suspended"), &Value::Null));
        let listed = context.kiln(["ps", "--json"]).json();
        assert!(listed[0]["suspended_bytes"].as_u64().unwrap() > 1 << 20, "{listed}");
        assert!(context.kiln(["ps", "--memory"]).stderr.starts_with("w is suspended: "));
        let used = context.kiln(["df", "--json"]).json();
        let allocated = used["machines"][0]["allocated_bytes"].as_u64().unwrap();
        assert!(allocated > listed[0]["suspended_bytes"].as_u64().unwrap(), "{used}");
        for refused in [vec!["exec", "w", "--", "true"], vec!["wait", "--ready", "w"], vec!["pause", "w"]] {
            let words = context.kiln(&refused).fails(1);
            assert!(words.contains("machine `w` is suspended") && words.contains("kiln resume w"), "{words}");
        }
        for refused in ["stop", "suspend"] {
            let words = context.kiln([refused, "w"]).fails(1);
            assert!(words.contains("kiln start --boot w discards what was saved"), "{words}");
        }
        assert_eq!(context.kiln(["resume", "w"]).ok(), "w\n");
        assert!(!dir(&context, "w").join("suspended.state").exists());
        context.eventually("it counts on", || counted() > before);
    }
    assert_eq!(exec(&context, "w", "cat /root/file; head -n 1 /dev/vdb"), "not synced\ndata\n");
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("page\n"), "{answer}");
    let drift = exec(&context, "w", "date +%s");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(drift.trim().parse::<u64>().unwrap().abs_diff(now) < 30, "{drift}");
    assert_eq!(machine(&context, "w")["expires_unix_ms"], shown["expires_unix_ms"]);
    // A paused one is saved too, and goes on.
    context.kiln(["pause", "w"]).ok();
    context.kiln(["suspend", "w"]).ok();
    context.kiln(["start", "w"]).ok();
    let stood = counted();
    context.eventually("it counts on", || counted() > stood);
    // Suspended, it outlives its time to live until somebody looks.
    context.kiln(["suspend", "w"]).ok();
    edit(&dir(&context, "w").join("status.json"), |status| status["expires_unix_ms"] = 1.into());
    assert_eq!(context.kiln(["ps", "-aq"]).ok(), "");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}

#[test]
fn boot_suspend_of_what_began_as_a_snapshot() {
    let context = context();
    let recipe = recipe(&context, "web", "[machine]\nmemory = \"128M\"\n");
    context.kiln(["build".as_ref(), "--snapshot".as_ref(), recipe.as_os_str()]).ok();
    context.kiln(["run", "-d", "--restore", "require", "--clone", "copy", "--name", "w", "web"]).ok();
    exec(&context, "w", "echo kept > /run/word");
    for _ in 0..2 {
        context.kiln(["suspend", "w"]).ok();
        goes_on(&context);
    }
    context.kiln(["suspend", "w"]).ok();
    assert_eq!(context.kiln(["rm", "w"]).ok(), "w\n");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}

#[test]
fn boot_suspend_is_kept_when_something_differs_until_it_is_discarded() {
    let context = running(&["--restart", "always"]);
    context.kiln(["suspend", "w"]).ok();
    let dir = dir(&context, "w");
    let (record, state) = (dir.join("suspended.json"), dir.join("suspended.state"));
    let whole = std::fs::read(&record).unwrap();
    let refused = |reason: &str| {
        for verb in ["start", "resume"] {
            let words = context.kiln([verb, "w"]).fails(1);
            assert!(words.contains("machine `w` stays suspended: ") && words.contains(reason), "{words}");
            assert!(words.contains("kiln start --boot w"), "{words}");
            assert_eq!(phase(&context, "w"), "suspended");
        }
    };
    edit(&record, |record| record["compatibility"][1]["value"] = "1.2.3".into());
    refused("vmm_version was 1.2.3 when it was suspended and is ");
    edit(&record, |record| record["version"] = 2.into());
    refused("suspended.json has version 2, this kiln reads 1");
    std::fs::write(&record, "{").unwrap();
    refused("suspended.json does not parse");
    std::fs::write(&record, vec![b' '; (64 << 10) + 1]).unwrap();
    refused("more than 65536 bytes");
    std::fs::write(&record, &whole).unwrap();
    edit(&record, |record| record["disks"][0]["written_unix_ns"] = 7.into());
    refused("was written to since it was suspended");
    std::fs::write(&record, &whole).unwrap();
    edit(&record, |record| record["state_bytes"] = 7.into());
    refused("suspended.state has ");
    // A state that is not taken changes nothing about the disk: the whole one is taken afterwards.
    std::fs::write(&record, &whole).unwrap();
    let saved = std::fs::read(&state).unwrap();
    let mut changed = saved.clone();
    changed[saved.len() / 2] ^= 1;
    std::fs::write(&state, changed).unwrap();
    refused("suspended.state is not what was written");
    std::fs::write(&state, &saved).unwrap();
    goes_on(&context);
    context.kiln(["suspend", "w"]).ok();
    context.kiln(["start", "--boot", "w"]).ok();
    assert_eq!(exec(&context, "w", "cat /run/word || echo booted"), "booted\n");
    assert!(!record.exists() && !state.exists());
    // Where nothing is saved, there is nothing to discard.
    context.kiln(["stop", "w"]).ok();
    context.kiln(["start", "--boot", "w"]).ok();
}

#[test]
fn boot_a_supervisor_killed_while_it_suspends_or_resumes() {
    let context = running(&[]);
    let dir = dir(&context, "w");
    let (record, state) = (dir.join("suspended.json"), dir.join("suspended.state"));
    type Reached = fn(&TestContext, &std::path::Path) -> bool;
    let staged: Reached = |context, _| !context.staged().is_empty();
    let suspending: [Reached; 3] =
        [staged, |_, dir| dir.join("suspended.state").exists(), |_, dir| dir.join("suspended.json").exists()];
    for reached in suspending {
        let supervisor = machine(&context, "w");
        let running = context.start(["suspend", "w"]);
        context.eventually("it is under way", || reached(&context, &dir));
        let pid = i32::try_from(supervisor["supervisor_pid"].as_i64().unwrap()).unwrap();
        // It may have done its work.
        let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        running.finish();
        // Either it was saved, or it was killed as it ran.
        let saved = saved_or_lost(&context);
        assert_eq!((record.exists(), state.exists()), (saved, saved));
        assert_eq!(context.staged(), Vec::<String>::new());
        context.kiln(["start", "w"]).ok();
        let word = exec(&context, "w", "cat /run/word || echo lost");
        assert_eq!(word, if saved { "kept\n" } else { "lost\n" });
        exec(&context, "w", "echo kept > /run/word");
    }
    // After the record and before the status.
    context.kiln(["suspend", "w"]).ok();
    let ran = |status: &mut Value| {
        status["phase"] = "running".into();
        status["suspended_unix_ms"] = Value::Null;
    };
    edit(&dir.join("status.json"), ran);
    assert_eq!(phase(&context, "w"), "suspended");
    // Before what was saved is removed.
    edit(&dir.join("status.json"), |status| {
        ran(status);
        status["phase"] = "starting".into();
    });
    goes_on(&context);
    context.kiln(["suspend", "w"]).ok();
    // Killed while it loads.
    let starting = context.start(["start", "w"]);
    let mut listed = Value::Null;
    context.eventually("qemu runs", || {
        listed = machine(&context, "w");
        listed["supervisor_pid"].is_u64() && !context.processes().is_empty()
    });
    kill(&listed, "supervisor_pid");
    starting.finish();
    let saved = saved_or_lost(&context);
    assert_eq!((record.exists(), state.exists()), (saved, saved));
    context.kiln(["start", "w"]).ok();
    let word = exec(&context, "w", "cat /run/word || echo lost");
    assert_eq!(word, if saved { "kept\n" } else { "lost\n" });
    // After the record and before the state: nothing that is left counts.
    exec(&context, "w", "echo kept > /run/word; sync");
    context.kiln(["suspend", "w"]).ok();
    std::fs::remove_file(&record).unwrap();
    edit(&dir.join("status.json"), |status| {
        ran(status);
        status["phase"] = "starting".into();
    });
    let lost = machine(&context, "w");
    assert_eq!(
        (lost["phase"].as_str(), lost["end"]["cause"].as_str()),
        (Some("failed"), Some("supervisor_lost"))
    );
    assert!(!state.exists());
    context.kiln(["start", "w"]).ok();
    context.kiln(["rm", "-f", "w"]).ok();
    let store = kiln_store::Store::open(&context.home()).unwrap();
    assert_eq!(check_store(&store), Vec::<String>::new());
}

#[test]
fn boot_suspend_without_space_or_a_monitor_is_none() {
    let context = context();
    let Some(mounted) = Mounted::new(FileSystem::Tmpfs, 320) else { return };
    std::os::unix::fs::symlink(mounted.path(), context.home()).unwrap();
    let recipe = recipe(&context, "web", "[machine]\nmemory = \"128M\"\n");
    context.kiln(["build".as_ref(), recipe.as_os_str()]).ok();
    context.kiln(["run", "-d", "--name", "w", "web"]).ok();
    exec(&context, "w", "echo kept > /run/word");
    let ballast = context.home().join("ballast");
    let free = || {
        let space = rustix::fs::statvfs(context.home()).unwrap();
        space.f_bavail * space.f_frsize
    };
    // 128 MiB of memory, 64 MiB beside it, and a margin of 16 MiB.
    let left = 200 << 20;
    std::fs::write(&ballast, vec![1; usize::try_from(free() - left).unwrap()]).unwrap();
    let refused = context.kiln(["suspend", "w"]).fails(1);
    assert!(refused.contains("machine `w` could not be suspended: "), "{refused}");
    assert!(refused.contains("space"), "{refused}");
    assert_eq!(phase(&context, "w"), "running");
    assert_eq!(exec(&context, "w", "cat /run/word"), "kept\n");
    assert_eq!(context.staged(), Vec::<String>::new());
    std::fs::remove_file(ballast).unwrap();
    kill(&machine(&context, "w"), "vmm_pid");
    context.eventually("it has ended", || phase(&context, "w") == "failed");
    let refused = context.kiln(["suspend", "w"]).fails(1);
    assert!(refused.contains("machine `w` is failed: it cannot be suspended"), "{refused}");
    context.kiln(["rm", "-f", "w"]).ok();
    drop(context);
}

#[test]
fn boot_an_idle_machine_suspends_itself_and_is_woken_by_whoever_asks() {
    let context = running(&["--idle-suspend", "2s"]);
    let sleeps = || context.eventually("it is suspended", || phase(&context, "w") == "suspended");
    assert_eq!(machine(&context, "w")["idle_suspend_ms"], 2000);
    sleeps();
    let all: Vec<_> = (0..3).map(|_| context.start(["exec", "w", "--", "cat", "/run/word"])).collect();
    let all: Vec<_> = all.into_iter().map(kiln_testing::Running::finish).collect();
    let told = all.iter().filter(|output| output.stderr.starts_with("w was suspended: resumed in ")).count();
    assert!(told >= 1, "{all:?}");
    for output in all {
        assert_eq!(output.ok(), "kept\n");
    }
    // A command that is attached keeps it awake however little it does.
    exec(&context, "w", "sleep 5");
    assert_eq!(phase(&context, "w"), "running");
    sleeps();
    let ready = context.kiln(["wait", "--ready", "w"]);
    assert!(ready.stderr.starts_with("w was suspended: resumed in "), "{}", ready.stderr);
    ready.ok();
    sleeps();
    context.kiln(["cp", "w:/run/word", "."]).ok();
    // One that works is not idle.
    exec(&context, "w", "(while :; do :; done) >/dev/null 2>&1 & echo $! > /run/busy; sleep 4");
    let busy = machine(&context, "w");
    assert_eq!(busy["phase"], "running");
    exec(&context, "w", "kill $(cat /run/busy)");
    sleeps();
    goes_on(&context);
    context.kiln(["rm", "-f", "w"]).ok();
}
