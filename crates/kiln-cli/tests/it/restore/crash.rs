//! Whoever is killed while a template is captured or a machine restored: the store is whole, and a second try works.

use super::capture::{console_says, create, with_hooks};
use super::{Lab, is_staged, kill};
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn boot_a_killed_capture_leaves_a_whole_store() {
    let lab = with_hooks();
    let artifacts = lab.artifacts();
    type Reached = fn(&Lab) -> bool;
    let hang = &["touch", "/run/hang-pre-snapshot"][..];
    let steps: [(&str, &[&str], Reached); 5] = [
        ("qemu runs", &["true"], |lab| {
            lab.context.processes().iter().any(|(_, line)| line.contains("qemu-system"))
        }),
        ("a hook is at work", hang, |lab| {
            console_says(&lab.context, "in pre-snapshot");
            true
        }),
        ("the state is written", &["true"], |lab| is_staged(lab, "state")),
        ("the memory is there", &["true"], |lab| is_staged(lab, "memory")),
        ("a file is taken in", &["true"], |lab| is_staged(lab, "memory") && !is_staged(lab, "disk.raw")),
    ];
    for (what, warm_up, reached) in steps {
        let running = lab.context.start(create(warm_up));
        lab.context.eventually(what, || reached(&lab));
        running.signal(Signal::KILL);
        running.finish();
        lab.context.eventually("the machine is gone", || {
            lab.context.processes().is_empty() && lab.context.kiln(["ps", "-aq"]).ok().is_empty()
        });
        assert_eq!(lab.store().snapshot_ids().unwrap(), [], "{what}");
        // What the next one sweeps anyway.
        lab.context.kiln(["gc", "--grace", "0s"]).ok();
        lab.assert_whole();
        assert_eq!(lab.artifacts(), artifacts, "{what}");
    }
    lab.context.kiln(create(&["true"])).ok();
    assert_eq!(lab.run(&["--restore", "require"], "echo up").ok(), "up\n");
    lab.assert_whole();
}

#[test]
fn boot_a_guest_that_dies_while_it_becomes_its_own_is_reported() {
    let lab = with_hooks();
    let id = lab.context.kiln(create(&["touch", "/run/hang-post-restore"])).ok();
    let running = lab.context.start(["run", "-d", "--restore", "require", "--name", "w", "web"]);
    console_says(&lab.context, "in post-restore");
    let nobody = lab.context.kiln(["exec", "w", "--", "true"]).fails(1);
    assert!(nobody.contains("machine `w`"), "nobody reaches it yet: {nobody}");
    kill(lab.pid("vmm_pid"));
    let told = running.finish().fails(1);
    assert!(told.contains("signal 9"), "{told}");
    let listed = lab.context.kiln(["ps", "-a", "--json"]).json();
    assert_eq!(listed[0]["end"], serde_json::json!({"cause": "vmm_killed", "signal": 9}));
    lab.context.kiln(["rm", "w"]).ok();
    lab.assert_whole();

    lab.context.kiln(["snapshot", "rm", id.trim()]).ok();
    lab.context.kiln(create(&["touch", "/run/fail-post-restore"])).ok();
    let told = lab.run(&[], "true").fails(1);
    assert!(told.contains("could not be made a machine of its own: post-restore hook 10-hook"), "{told}");
    assert!(told.contains("not post-restore today"), "{told}");
    lab.assert_whole();
}

#[test]
fn boot_a_monitor_killed_at_once_is_reported() {
    let lab = Lab::captured("");
    let running = lab.context.start(["run", "-d", "--restore", "require", "--name", "w", "web"]);
    let mut qemu = None;
    lab.context.eventually("qemu runs", || {
        let processes = lab.context.processes();
        qemu = processes.iter().find(|(_, line)| line.contains("qemu-system")).map(|(pid, _)| *pid);
        qemu.is_some()
    });
    let pid = i32::try_from(qemu.unwrap()).unwrap();
    kill(rustix::process::Pid::from_raw(pid).unwrap());
    let told = running.finish().fails(1);
    assert!(told.contains("signal 9"), "{told}");
    lab.context.eventually("no process is left", || lab.context.processes().is_empty());
    lab.context.kiln(["rm", "w"]).ok();
    lab.assert_whole();
}

#[test]
fn boot_a_monitor_that_cannot_load_boots_or_is_refused() {
    let lab = Lab::captured("");
    // The same QEMU, but for loading a state.
    let script = "#!/bin/sh\nreal=$(PATH=\"${PATH#*:}\" command -v qemu-system-x86_64)\n\
                  case \" $* \" in *' -incoming '*) echo 'no state today' >&2; exit 1;; esac\nexec \"$real\" \"$@\"\n";
    let program = lab.context.write("bin/qemu-system-x86_64", script);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let run = |restore: &str| {
        let words = ["--progress", "plain", "run", "--rm", "--restore", restore, "web", "--", "echo", "up"];
        lab.context.command(words).env("PATH", &path).output().unwrap()
    };
    let booted = run("auto");
    let said = String::from_utf8(booted.stderr).unwrap();
    assert_eq!(String::from_utf8(booted.stdout).unwrap(), "up\n", "{said}");
    assert!(said.contains("it booted, since it could not be restored: "), "{said}");
    assert!(said.contains("no state today"), "{said}");
    lab.assert_nothing_left();
    let refused = run("require");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("no state today"), "{said}");
    lab.assert_whole();
}
