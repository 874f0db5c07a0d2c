//! Captures that fail: the revision is as it was, and nothing is left.

use super::{Lab, kill};
use crate::context;
use kiln_testing::{FileSystem, Mounted, TestContext, busybox_rootfs};
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt as _;

/// A hook that does what files of the guest's memory say.
const HOOK: &str = r#"#!/bin/sh
if test -e "/run/hang-$KILN_HOOK"; then echo "in $KILN_HOOK" > /dev/console; sleep 98765; fi
if test -e "/run/fail-$KILN_HOOK"; then echo "not $KILN_HOOK today" >&2; exit 3; fi
"#;

/// Builds the template with that hook before captures and after restores.
pub(super) fn with_hooks() -> Lab {
    let context = context();
    let root = busybox_rootfs(&context, "rootfs");
    for stage in ["pre-snapshot", "post-restore"] {
        let dir = root.join("etc/kiln/hooks").join(format!("{stage}.d"));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("10-hook");
        std::fs::write(&path, HOOK).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    Lab::of(context, "")
}

/// Returns what a capture with a warm-up is asked by.
pub(super) fn create<'a>(warm_up: &[&'a str]) -> Vec<&'a str> {
    [&["snapshot", "create", "--name", "warm", "web", "--"], warm_up].concat()
}

/// Waits until the console of the only machine says something.
pub(super) fn console_says(context: &TestContext, words: &str) {
    context.eventually(words, || {
        context.machine_dirs().iter().any(|id| {
            let path = context.home().join("machines").join(id).join("console.log");
            std::fs::read(path).is_ok_and(|said| String::from_utf8_lossy(&said).contains(words))
        })
    });
}

/// Lets the store lie on another file system.
fn home_on(mounted: &Mounted, context: &TestContext) {
    let home = mounted.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::symlink(home, context.home()).unwrap();
}

/// Asserts that a capture failed and left the store as it was.
#[track_caller]
fn assert_unchanged(lab: &Lab, artifacts: &[String]) {
    assert_eq!(lab.store().snapshot_ids().unwrap(), []);
    assert_eq!(lab.artifacts(), artifacts);
    lab.assert_whole();
}

#[test]
fn boot_a_warm_up_or_hook_that_fails_leaves_nothing() {
    let lab = with_hooks();
    let artifacts = lab.artifacts();
    let long = "echo cold >&2; exit 4";
    for (warm_up, words) in [
        (&["sh", "-c", long][..], "ended with code 4: cold"),
        (&["no-such-program"], "no-such-program"),
        (&["touch", "/run/fail-pre-snapshot"], "not pre-snapshot today"),
        // The guest ends under whoever warms it up.
        (&["poweroff", "-f"], "the guest shut down"),
    ] {
        let told = lab.context.kiln(create(warm_up)).fails(1);
        assert!(told.contains(words) && told.contains("error: "), "{words}: {told}");
        assert_unchanged(&lab, &artifacts);
    }
    // How much a command says is its own affair.
    lab.context.kiln(create(&["seq", "1", "100000"])).ok();
    assert_eq!(lab.run(&["--restore", "require"], "echo up").ok(), "up\n");
    lab.assert_whole();
}

#[test]
fn boot_a_hook_that_hangs_is_given_up() {
    let lab = with_hooks();
    let artifacts = lab.artifacts();
    let told = lab.context.kiln(create(&["touch", "/run/hang-pre-snapshot"])).fails(1);
    assert!(told.contains("hook 10-hook did not end within 30000 ms"), "{told}");
    assert_unchanged(&lab, &artifacts);
}

#[test]
fn boot_a_capture_is_cancelled_wherever_it_waits() {
    let lab = with_hooks();
    let artifacts = lab.artifacts();
    let warm_up = ["sh", "-c", "echo in warm-up > /dev/console; sleep 98765"];
    for (warm_up, words) in
        [(&warm_up[..], "in warm-up"), (&["touch", "/run/hang-pre-snapshot"], "in pre-snapshot")]
    {
        let running = lab.context.start(create(warm_up));
        console_says(&lab.context, words);
        running.signal(Signal::INT);
        let output = running.finish();
        assert_eq!(output.code, 130, "{}", output.stderr);
        assert_unchanged(&lab, &artifacts);
    }
}

#[test]
fn boot_what_is_never_ready_is_not_captured() {
    let lab = Lab::new("[ready]\nfile = \"/run/never\"\ninterval = \"100ms\"\nretries = 3\n");
    let artifacts = lab.artifacts();
    let told = lab.build().fails(1);
    assert!(told.contains("it never became ready: probe `file /run/never` failed 3 times"), "{told}");
    assert_unchanged(&lab, &artifacts);
}

#[test]
fn boot_a_machine_that_dies_at_its_capture_is_reported() {
    let lab = with_hooks();
    let artifacts = lab.artifacts();
    for part in ["vmm_pid", "supervisor_pid"] {
        let running = lab.context.start(create(&["touch", "/run/hang-pre-snapshot"]));
        console_says(&lab.context, "in pre-snapshot");
        kill(lab.pid(part));
        let told = running.finish().fails(1);
        assert!(told.contains("error: machine `web-"), "{part}: {told}");
        assert_unchanged(&lab, &artifacts);
    }
}

#[test]
fn boot_a_full_store_refuses_before_anything_boots() {
    for kind in [FileSystem::Tmpfs, FileSystem::Ext4] {
        let Some(mounted) = Mounted::new(kind, 1024) else { continue };
        let context = context();
        home_on(&mounted, &context);
        let lab = Lab::of(context, "");
        let artifacts = lab.artifacts();
        let available = kiln_sys::fs::space(mounted.path()).unwrap().available;
        // The disk has room, the memory has not.
        let filler = std::fs::File::create(mounted.path().join("filler")).unwrap();
        let rest = 150 << 20;
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, available - rest).unwrap();
        let told = lab.build();
        assert!(told.stderr.contains("not enough space in "), "{}", told.stderr);
        assert_eq!(told.code, 1);
        assert_unchanged(&lab, &artifacts);
        filler.set_len(0).unwrap();
        lab.build().ok();
        assert_eq!(lab.run(&["--restore", "require"], "echo up").ok(), "up\n");
        lab.assert_whole();
    }
}

#[test]
fn boot_a_store_that_fills_up_during_the_capture_is_left_whole() {
    let Some(mounted) = Mounted::new(FileSystem::Tmpfs, 1024) else { return };
    let context = context();
    home_on(&mounted, &context);
    let lab = Lab::of(context, "");
    let artifacts = lab.artifacts();
    let warm_up = ["sh", "-c", "echo in warm-up > /dev/console; while ! test -e /run/go; do sleep 0.1; done"];
    let running = lab.context.start(create(&warm_up));
    console_says(&lab.context, "in warm-up");
    // Nothing is left for the state of its devices.
    let name = lab.context.kiln(["ps", "-q"]).ok();
    let filler = std::fs::File::create(mounted.path().join("filler")).unwrap();
    let available = kiln_sys::fs::space(mounted.path()).unwrap().available;
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, available - (1 << 20)).unwrap();
    lab.exec(name.trim(), "touch /run/go");
    let output = running.finish();
    assert_eq!(output.code, 1, "{}", output.stdout);
    filler.set_len(0).unwrap();
    assert_unchanged(&lab, &artifacts);
}
