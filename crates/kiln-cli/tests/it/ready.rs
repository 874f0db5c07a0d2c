//! When a machine is ready: probes without a program of the image, and waiting for them.

use crate::context;
use kiln_testing::{TestContext, busybox_rootfs, recipe};
use std::os::unix::fs::PermissionsExt as _;

fn build(context: &TestContext, extra: &str) {
    let dir = recipe(context, "web", extra);
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
}

/// Waits until a machine is there, whatever its phase.
fn wait_made(context: &TestContext, name: &str) {
    context.eventually("the machine is made", || {
        context.kiln(["ps", "-aq"]).ok().lines().any(|line| line == name)
    });
}

#[test]
fn boot_http_is_ready_once_the_status_is_a_success() {
    let context = context();
    let script = busybox_rootfs(&context, "rootfs").join("www/cgi-bin/up");
    std::fs::create_dir_all(script.parent().unwrap()).unwrap();
    let answers = "#!/bin/sh
if [ -e /run/asked ]; then status='200 OK'; else status='503 Service Unavailable'; fi
echo \"$status\" >> /run/asked
printf 'HTTP/1.0 %s\\r\\n\\r\\n' \"$status\"
";
    std::fs::write(&script, answers).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    build(
        &context,
        "[ready]\nhttp = \"8080/cgi-bin/up\"\ninterval = \"50ms\"\n[entrypoint]\ncommand = [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]",
    );
    let shown = context.kiln(["show", "web"]).ok();
    assert!(shown.contains("http 8080/cgi-bin/up"), "{shown}");
    context.kiln(["run", "-d", "--name", "w", "web"]).ok();
    let asked = context.kiln(["exec", "w", "--", "cat", "/run/asked"]).ok();
    assert_eq!(asked, "503 Service Unavailable\n200 OK\n");
    context.kiln(["rm", "-f", "w"]).ok();
}

#[test]
fn boot_tcp_is_ready_once_something_listens_and_wait_tells() {
    let context = context();
    build(
        &context,
        "[ready]\ntcp = 8080\ninterval = \"50ms\"\n[entrypoint]\ncommand = [\"httpd\", \"-f\", \"-p\", \"8080\"]",
    );
    let starting = context.start(["run", "-d", "--name", "w", "web"]);
    wait_made(&context, "w");
    assert_eq!(context.kiln(["wait", "--ready", "w"]).ok(), "w\n");
    assert_eq!(context.kiln(["ps", "--json"]).json()[0]["phase"], "running");
    starting.finish().ok();
    assert_eq!(context.kiln(["wait", "--ready", "--timeout", "1ms", "w"]).ok(), "w\n", "it is ready already");
    context.kiln(["stop", "w"]).ok();
    let ended = context.kiln(["wait", "--ready", "w"]).fails(1);
    assert!(ended.contains("machine `w` ended: stopped on request"), "{ended}");
    let nobody = context.kiln(["wait", "--ready", "nobody"]).fails(1);
    assert!(nobody.contains("machine `nobody` not found"), "{nobody}");
    context.kiln(["rm", "w"]).ok();
}

#[test]
fn boot_never_ready_is_told_to_whoever_waits() {
    let context = context();
    build(
        &context,
        "[ready]\nfile = \"/run/never\"\ninterval = \"100ms\"\nretries = 3\n[entrypoint]\ncommand = [\"sh\", \"-c\", \"echo a line > /dev/console; sleep 600\"]",
    );
    let starting = context.start(["run", "-d", "--name", "w", "web"]);
    wait_made(&context, "w");
    let early = context.kiln(["wait", "--ready", "--timeout", "1ms", "w"]).fails(1);
    assert!(early.contains("machine `w` was not ready within 0.001 s"), "{early}");
    let why = "probe `file /run/never` failed 3 times in a row (3 tries): /run/never does not exist";
    let waited = context.kiln(["wait", "--ready", "w"]).fails(1);
    assert!(waited.contains(&format!("machine `w` ended: it never became ready: {why}")), "{waited}");
    assert!(waited.contains("  | a line"), "the console's tail is shown: {waited}");
    let told = starting.finish().fails(1);
    assert!(told.contains(why), "{told}");
    let end = context.kiln(["ps", "-a", "--json"]).json()[0]["end"].clone();
    assert_eq!((end["cause"].as_str(), end["reason"].as_str()), (Some("never_ready"), Some(why)));
    context.eventually("no process is left", || context.processes().is_empty());
}
