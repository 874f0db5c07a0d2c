//! Forks: many machines that begin as one snapshot.

use crate::context;
use kiln_testing::{TestContext, recipe};
use serde_json::Value;
use std::collections::HashSet;

const MEMORY: &str = "[machine]\nmemory = \"128M\"\n";

fn built(context: &TestContext) {
    let dir = recipe(context, "web", MEMORY);
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
}

#[test]
fn a_template_without_a_snapshot_is_not_forked() {
    let context = context();
    built(&context);
    insta::assert_snapshot!(context.kiln(["fork", "web"]).fails(1), @r"
    error: `web:latest` cannot be restored: there is no snapshot with memory
    try: kiln snapshot create web:latest makes a snapshot for this host; kiln run boots it
    ");
    assert_eq!(context.kiln(["ps", "-aq"]).ok(), "");
    context.kiln(["fork", "-n", "0", "web"]).fails(2);
    context.kiln(["fork", "-n", "4097", "web"]).fails(2);
}

#[test]
fn boot_forks_are_machines_of_their_own_and_too_many_are_refused_up_front() {
    let context = context();
    built(&context);
    let made: Value = context
        .kiln(["snapshot", "create", "--name", "warm", "--json", "web", "--", "touch", "/dev/warm"])
        .json();
    assert!(made["paused_us"].as_u64().unwrap() > 0);
    let report: Value = context.kiln(["fork", "-n", "3", "--name", "w", "--rm", "--json", "web"]).json();
    assert_eq!(report["snapshot"], made["id"]);
    let names: Vec<&str> =
        report["machines"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["w-1", "w-2", "w-3"]);
    let mut seen = HashSet::new();
    for name in names {
        // Only who was captured after the warm-up has the file.
        let facts = "ls /dev/warm; cat /etc/machine-id /run/kiln/epoch; hostname; head -c 16 /dev/urandom | od -An -tx1";
        let said = context.kiln(["exec", name, "--", "sh", "-c", facts]).ok();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((lines[0], lines[3]), ("/dev/warm", name));
        assert!(lines[1..].iter().all(|line| seen.insert((*line).to_owned())), "{said}");
        context.kiln(["rm", "-f", name]).ok();
    }
    // What holds of a host: 4,096 clones of any size want more than 384 GiB.
    let refused = context.kiln(["fork", "-n", "4096", "web"]).fails(1);
    assert!(refused.starts_with("error: 4096 machines would need "), "{refused}");
    assert_eq!(context.kiln(["ps", "-aq"]).ok(), "");
}
