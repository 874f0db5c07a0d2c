//! Whatever is killed, whenever: nothing half-made is visible, nothing is left over, a second try works.

use crate::context;
use kiln_testing::{TestContext, recipe};
use rustix::process::{Pid, Signal};

fn template(context: &TestContext) {
    let dir = recipe(context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
}

fn kill(pid: &serde_json::Value) {
    let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn only_machine(context: &TestContext) -> serde_json::Value {
    context.kiln(["ps", "-a", "--json"]).json()[0].clone()
}

/// Asserts that nothing of a machine is left, once whatever is on its way out is out.
fn assert_clean(context: &TestContext) {
    context.eventually("no process is left", || context.processes().is_empty());
    assert_eq!(context.kiln(["ps", "-aq"]).ok(), "");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}

#[test]
fn boot_a_killed_qemu_is_reported_as_such() {
    let context = context();
    template(&context);
    context.kiln(["run", "-d", "--name", "w", "web"]).ok();
    kill(&only_machine(&context)["vmm_pid"]);
    context.kiln(["wait", "w"]).ok();
    let machine = only_machine(&context);
    assert_eq!(machine["phase"], "failed");
    assert_eq!(machine["end"], serde_json::json!({"cause": "vmm_killed", "signal": 9}));
    context.eventually("no process is left", || context.processes().is_empty());
    context.kiln(["start", "w"]).ok();
    context.kiln(["exec", "w", "--", "true"]).ok();
}

#[test]
fn boot_a_killed_supervisor_takes_qemu_along_and_is_reported() {
    let context = context();
    template(&context);
    context.kiln(["run", "-d", "--name", "w", "web"]).ok();
    kill(&only_machine(&context)["supervisor_pid"]);
    // A dying process has no command line for a moment and still its locks.
    context.eventually("its end is noticed", || only_machine(&context)["phase"] == "failed");
    let machine = only_machine(&context);
    assert_eq!(machine["end"]["cause"], "supervisor_lost");
    context.eventually("no process is left", || context.processes().is_empty());
    assert!(!context.home().join("machines").join(machine["id"].as_str().unwrap()).join("qmp.sock").exists());
    context.kiln(["start", "w"]).ok();
    assert_eq!(context.kiln(["exec", "w", "--", "hostname"]).ok(), "w\n");
}

#[test]
fn boot_a_killed_client_of_a_foreground_run_ends_its_machine() {
    let context = context();
    template(&context);
    let running = context.start(["run", "--rm", "web", "--", "sh", "-c", "echo up; sleep 98765"]);
    context.eventually("the command is up", || running.said().contains("up"));
    running.signal(Signal::KILL);
    running.finish();
    assert_clean(&context);
}

#[test]
fn boot_a_client_killed_at_any_time_leaves_nothing() {
    let context = context();
    template(&context);
    // Each round ends the client a step later, found by what is there so far, from before the first file to a guest
    // on its way up.
    type Reached = fn(&TestContext) -> bool;
    let steps: [(&str, Reached); 4] = [
        ("nothing yet", |_| true),
        ("something is staged or published", |c| !c.staged().is_empty() || !c.machine_dirs().is_empty()),
        ("the machine is published", |c| !c.machine_dirs().is_empty()),
        ("qemu runs", |c| c.processes().iter().any(|(_, line)| line.contains("qemu-system"))),
    ];
    for (what, reached) in steps {
        let running = context.start(["run", "--rm", "web", "--", "true"]);
        context.eventually(what, || reached(&context));
        running.signal(Signal::KILL);
        running.finish();
        context.eventually("nothing is left", || {
            context.processes().is_empty() && context.kiln(["ps", "-aq"]).ok().is_empty()
        });
        assert_eq!(context.machine_dirs(), Vec::<String>::new(), "{what}");
    }
    context.kiln(["run", "--rm", "web", "--", "true"]).ok();
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn boot_ctrl_c_while_booting_leaves_nothing() {
    let context = context();
    template(&context);
    let running = context.start(["run", "--rm", "web", "--", "true"]);
    context
        .eventually("qemu runs", || context.processes().iter().any(|(_, line)| line.contains("qemu-system")));
    running.signal(Signal::INT);
    let output = running.finish();
    assert_eq!(output.code, 130, "{}", output.stderr);
    assert_clean(&context);
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn a_build_that_is_interrupted_or_killed_leaves_nothing() {
    let context = context();
    let dir = recipe(&context, "web", "");
    for signal in [Signal::INT, Signal::KILL] {
        let running = context.start(["build".as_ref(), dir.as_os_str()]);
        context.eventually("the build is at work", || !context.staged().is_empty());
        running.signal(signal);
        let output = running.finish();
        assert_ne!(output.code, 0, "{}", output.stdout);
        context.eventually("no process is left", || context.processes().is_empty());
        assert_eq!(context.kiln(["ls", "-aq"]).ok(), "");
    }
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    assert_eq!(context.staged(), Vec::<String>::new(), "the second build swept what the killed one left");
}

#[test]
fn a_damaged_machine_record_is_a_line_and_not_the_end_of_the_list() {
    let context = context();
    context.kiln(["ls"]).ok();
    let dir = context.home().join("machines/0123456789ab");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("machine.json"), "{").unwrap();
    let output = context.kiln(["ps"]);
    assert_eq!(output.code, 1);
    assert!(
        output.stderr.contains("machine 0123456789ab") && output.stderr.contains("is damaged"),
        "{}",
        output.stderr
    );
    assert!(output.stdout.starts_with("NAME"));
    let stopped = context.kiln(["gc"]).fails(1);
    assert!(stopped.contains("try: kiln rm -f 0123456789ab removes the machine"), "{stopped}");
    assert_eq!(context.kiln(["rm", "-f", "0123456789ab"]).ok(), "0123456789ab\n");
    assert!(!dir.exists());
    let disk = context.home().join("clones/vm");
    std::fs::create_dir_all(&disk).unwrap();
    std::fs::write(disk.join("clone.json"), "{").unwrap();
    let stopped = context.kiln(["gc"]).fails(1);
    assert!(stopped.contains("try: kiln rm --disk vm removes the disk"), "{stopped}");
    assert_eq!(context.kiln(["rm", "--disk", "vm"]).ok(), "vm\n");
    let lease = context.home().join("leases/0123456789abcdef.json");
    std::fs::write(&lease, "{").unwrap();
    let stopped = context.kiln(["gc"]).fails(1);
    assert!(stopped.contains("try: remove this file"), "{stopped}");
    std::fs::remove_file(lease).unwrap();
    context.kiln(["gc"]).ok();
}
