//! Snapshots of builds: made once, warmed as the recipe says, and made again where they fit no more.

use super::shop::Shop;
use crate::context;
use kiln_core::Digest;
use kiln_core::snapshot::SnapshotKeep;
use kiln_store::Store;
use kiln_testing::{TestContext, plain, recipe};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

#[test]
fn what_would_be_captured_anew_is_told_and_a_failure_leaves_the_others() {
    let shop = Shop::new();
    let rewarm = |args: &[&str]| shop.context.kiln([&["rewarm"], args].concat());
    assert_eq!(rewarm(&["--all"]).stderr, "no build made a snapshot\n");
    assert_eq!(rewarm(&["web"]).ok(), "web:latest: no build made a snapshot of it\n");
    assert_eq!(rewarm(&["--all", "--json"]).json(), serde_json::json!([]));
    // The user's own and those of disks are nothing of it.
    shop.snapshot(Some("mine"), "disk", Some("state"), SnapshotKeep::Always, 4);
    shop.snapshot(None, "rootfs", None, SnapshotKeep::Revision, 3);
    assert_eq!(rewarm(&["web"]).ok(), "web:latest: no build made a snapshot of it\n");
    let old = shop.snapshot(None, "disk", Some("older state"), SnapshotKeep::Revision, 2);
    let young = shop.snapshot(None, "disk", Some("younger state"), SnapshotKeep::Revision, 1);
    shop.machine("w1", old);
    let told = rewarm(&["web", "--dry-run"]).ok();
    insta::assert_snapshot!(plain(&shop.context, &told), @r"
    web:latest: would be captured anew: its memory is a part of its state
      snapshot [ID] would go
      snapshot [ID] stays while w1 continues it
    ");
    let json = rewarm(&["--all", "-n", "--json"]).json();
    assert_eq!((json.as_array().unwrap().len(), &json[0]["result"]), (1, &"stale".into()));
    assert_eq!((&json[0]["tags"][0], &json[0]["vcpus"]), (&"web:latest".into(), &1.into()));
    assert_eq!(json[0]["removed"], serde_json::json!([young.to_string()]));
    let in_use = serde_json::json!([{"snapshot": old.to_string(), "machines": ["w1"]}]);
    assert_eq!(json[0]["in_use"], in_use);
    // This revision's kernel is none: no machine of it starts.
    let all = shop.context.kiln(["snapshot", "ls", "-q"]).ok();
    let failed = rewarm(&["--all", "-q"]);
    assert_eq!((failed.code, failed.stdout.lines().count()), (1, 1), "{failed:?}");
    assert!(failed.stdout.starts_with("web:latest: failed: its memory is"), "{failed:?}");
    assert!(failed.stderr.contains("error: 1 of 1 failed"), "{failed:?}");
    let json = shop.context.kiln(["rewarm", "web", "-q", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&json[0]["result"], json[0]["error"].is_string()), (&"failed".into(), true));
    assert_eq!(shop.context.kiln(["snapshot", "ls", "-q"]).ok(), all);
    assert_eq!(rewarm(&[]).code, 2);
    assert_eq!(rewarm(&["--all", "web"]).code, 2);
    assert!(rewarm(&["wep"]).fails(1).contains("did you mean `web`?"));
}

/// Makes a snapshot look as if another version of the machine monitor had made it; returns its new id.
fn age(context: &TestContext, id: &str) -> Digest {
    let store = Store::open(&context.home()).unwrap();
    let mut snapshot = store.snapshot(&id.parse().unwrap()).unwrap();
    snapshot.manifest.memory.as_mut().unwrap().compatibility.insert("vmm_version", "1.0.0");
    let aged = store.commit_snapshot(&snapshot.manifest, &snapshot.record.unwrap()).unwrap();
    context.kiln(["snapshot", "rm", id]).ok();
    aged
}

#[test]
fn boot_a_snapshot_of_a_build_is_made_once_and_again_where_it_fits_no_more() {
    let context = context();
    let extra = "[snapshot]\nauto = true\ndrop_caches = true\n\
                 warm_up = [[\"mkdir\", \"/run/warm\"], [\"sh\", \"-c\", \"echo yes > /run/warm/up\"]]";
    let dir = recipe(&context, "web", extra);
    let build = |args: &[&str]| context.kiln([&["build"], args, &[dir.to_str().unwrap()]].concat());
    let built = build(&["--json"]).json();
    let first = built["snapshot"]["id"].as_str().unwrap().to_owned();
    assert!(built["snapshot"]["ready_after_ms"].is_u64(), "{built}");
    let again = build(&["--json"]).json();
    assert_eq!((&again["cached"], &again["snapshot"]["id"]), (&true.into(), &first.as_str().into()));
    assert_eq!(again["snapshot"]["there"], true);
    let told = build(&["--snapshot"]);
    assert!(told.stderr.contains("is there already"), "{told:?}");
    let shown = context.kiln(["show", "web"]).ok();
    assert!(shown.contains("warm-up      mkdir /run/warm\n"), "{shown}");
    let warm = |args: &[&str]| {
        let run = [&["run", "--rm"], args, &["web", "--", "cat", "/run/warm/up"]].concat();
        context.kiln(run)
    };
    assert_eq!(warm(&["--restore", "require"]).ok(), "yes\n");
    let fits = context.kiln(["rewarm", "--all"]).ok();
    assert_eq!(plain(&context, &fits), "web:latest: snapshot [ID] fits\n");
    let found = |context: &TestContext| {
        let found = context.kiln(["doctor", "--json"]);
        let found: serde_json::Value = serde_json::from_str(&found.stdout).unwrap();
        let all = found.as_array().unwrap().iter();
        all.clone().find(|finding| finding["check"] == "snapshots").unwrap().clone()
    };
    assert_eq!(found(&context)["health"], "ok");
    // Another version of the machine monitor; a machine continues the snapshot.
    context.kiln(["run", "-d", "--name", "w1", "--restore", "require", "web"]).ok();
    context.kiln(["stop", "-t", "0", "w1"]).ok();
    let record = context.home().join("machines").join(&context.machine_dirs()[0]).join("machine.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace(&first, &Digest::of(b"none").to_string())).unwrap();
    let aged = age(&context, &first);
    std::fs::write(&record, text.replace(&first, &aged.to_string())).unwrap();
    let stale = found(&context);
    assert_eq!((&stale["health"], &stale["fix"]), (&"warn".into(), &"kiln rewarm --all".into()));
    let reason = "vmm_version is 1.0.0 in the snapshot and ";
    assert!(stale["detail"].as_str().unwrap().contains(reason), "{stale}");
    assert!(context.kiln(["rewarm", "web", "-n"]).ok().contains(reason));
    let done = context.kiln(["rewarm", "--all", "--json"]).json();
    assert_eq!(done[0]["result"], "rewarmed", "{done}");
    assert_eq!(
        (&done[0]["removed"], &done[0]["in_use"][0]["machines"][0]),
        (&serde_json::json!([]), &"w1".into())
    );
    // The machine's own stays until it is gone; the new one is as warm.
    assert_eq!(context.kiln(["snapshot", "ls", "-q"]).ok().lines().count(), 2);
    assert_eq!(warm(&["--restore", "require"]).ok(), "yes\n");
    context.kiln(["rm", "-f", "w1"]).ok();
    let done = context.kiln(["rewarm", "--all", "--json"]).json();
    assert_eq!((&done[0]["result"], &done[0]["removed"][0]), (&"fits".into(), &aged.to_string().into()));
    let left = context.kiln(["snapshot", "ls", "-q"]).ok();
    assert_eq!(left.trim(), done[0]["snapshot"]);
    // Asked for by the user, it is warmed too.
    context.kiln(["snapshot", "create", "-q", "--name", "mine", "web", "--", "touch", "/run/warm/mine"]).ok();
    let mine = context.kiln(["run", "--rm", "--restore", "require", "web", "--", "ls", "/run/warm"]).ok();
    assert_eq!(mine, "mine\nup\n");
    context.eventually("no process is left", || context.processes().is_empty());
}

/// Runs kiln as somebody who may not write to an artifact: root without the right to pass over modes, or any other user.
fn modest(context: &TestContext, args: &[&str]) {
    let plain = context.command(args);
    let mut command = if kiln_sys::process::is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]);
        command.arg(context.program()).args(args).current_dir(context.work()).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    } else {
        plain
    };
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn boot_machines_of_who_may_not_write_to_an_artifact_share_one_copy_of_its_memory() {
    let context = context();
    context.kiln(["init", "--protect", "none"]).ok();
    let dir = recipe(&context, "web", "");
    let built = context.kiln(["build", "--snapshot", "--json", dir.to_str().unwrap()]).json();
    let id: Digest = built["snapshot"]["id"].as_str().unwrap().parse().unwrap();
    let store = Store::open(&context.home()).unwrap();
    let memory = store.snapshot(&id).unwrap().manifest.memory.unwrap();
    let copy = context.home().join("cache/v1/memory").join(memory.ram.unwrap().digest.hex());
    for name in ["a", "b"] {
        modest(&context, &["run", "-d", "--name", name, "--restore", "require", "web"]);
    }
    let inode = std::fs::metadata(&copy).unwrap().ino();
    let maps = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mapped = |(pid, _): &(u32, String)| {
        maps(*pid)
            .lines()
            .any(|line| line.ends_with(&*copy.to_string_lossy()) && line.contains(&format!(" {inode} ")))
    };
    assert_eq!(context.processes().iter().filter(|process| mapped(process)).count(), 2);
    for name in ["a", "b"] {
        let said =
            context.kiln(["exec", name, "--", "sh", "-c", "head -c 8000000 /dev/zero > /tmp/z; hostname"]);
        assert_eq!(said.ok(), format!("{name}\n"));
    }
    assert_eq!(std::fs::metadata(&copy).unwrap().ino(), inode);
    // Neither wrote to it.
    modest(&context, &["run", "--rm", "--restore", "require", "web", "--", "true"]);
    assert_eq!(std::fs::metadata(&copy).unwrap().ino(), inode);
    context.kiln(["rm", "-f", "a", "b"]).ok();
    context.kiln(["snapshot", "rm", &id.to_string()]).ok();
    assert!(!copy.exists() && !copy.with_extension("stamp").exists());
}
