//! Following machines: console, wait, the guest's own end.

use crate::context;
use kiln_testing::recipe;

#[test]
fn boot_the_guest_s_own_power_off_is_an_end_and_wait_tells() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["run", "-d", "--name", "w", "web"]).ok();
    let waiting = context.start(["wait", "w"]);
    let logs = context.start(["logs", "-f", "w"]);
    context.kiln(["exec", "w", "--", "sh", "-c", "echo to the console > /dev/console"]).ok();
    context.kiln(["stop", "w"]).ok();
    assert_eq!(waiting.finish().ok(), "stopped on request\n");
    assert!(logs.finish().ok().contains("to the console"));
    let tail = context.kiln(["logs", "-n", "1", "w"]).ok();
    assert_eq!(tail.trim_end().lines().count(), 1, "{tail}");
}

#[test]
fn boot_data_disk_is_blank_and_its_own() {
    let context = context();
    let dir = recipe(&context, "data", "[machine]\ndata_disk = \"64M\"");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let size = context.kiln(["run", "--rm", "data", "--", "cat", "/sys/block/vdb/size"]).ok();
    assert_eq!(size.trim(), "131072");
}

#[test]
fn boot_a_long_home_is_no_obstacle() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let home = context.home().join("x".repeat(120)).join("y".repeat(60));
    let home = home.to_str().unwrap();
    context.kiln(["--home".as_ref(), home.as_ref(), "build".as_ref(), dir.as_os_str()]).ok();
    let output = context.kiln(["--home", home, "run", "--rm", "web", "--", "echo", "up"]);
    assert_eq!(output.ok(), "up\n");
}
