//! Machines that are somebody's: forked, captured, made again and put back, while they go on.

use super::{Lab, is_staged};
use rustix::process::Signal;
use std::collections::BTreeSet;

/// Counts in memory, ten times a second.
const COUNT: &str = "(i=0; while true; do i=$((i+1)); echo $i > /run/n.new; mv /run/n.new /run/n; sleep 0.1; done) >/dev/null 2>&1 &";
/// What no two machines have in common, a line each.
const WHO: &str = "hostname; cat /etc/machine-id; cat /run/kiln/epoch; head -c 16 /dev/urandom | sha256sum";

impl Lab {
    /// Boots a machine that holds something on its disk and in its memory.
    fn working(&self, name: &str, options: &[&str]) {
        let words = [&["run", "-d", "--restore", "never", "--name", name], options, &["web"]].concat();
        self.context.kiln(words).ok();
        self.exec(name, &format!("echo disk of {name} > /work; echo memory of {name} > /run/work; {COUNT}"));
    }

    /// Asserts that a machine has what `origin` had, and goes on counting.
    #[track_caller]
    fn assert_works_as(&self, name: &str, origin: &str) {
        let said = self.exec(name, "cat /work /run/work");
        assert_eq!(said, format!("disk of {origin}\nmemory of {origin}\n"));
        self.exec(name, "n=$(cat /run/n); until test $(cat /run/n) -gt $n; do sleep 0.05; done");
    }

    fn fork(&self, options: &[&str]) -> serde_json::Value {
        self.context.kiln([&["fork", "--json"], options].concat()).json()
    }

    fn phase(&self, name: &str) -> String {
        let listed = self.context.kiln(["ps", "-a", "--json"]).json();
        let mut all = listed.as_array().unwrap().iter();
        all.find(|one| one["name"] == name).unwrap()["phase"].as_str().unwrap().to_owned()
    }
}

#[test]
fn boot_a_running_machine_is_forked_and_goes_on() {
    let lab = Lab::new("");
    let before = lab.artifacts();
    lab.working("m", &[]);
    let report = lab.fork(&["-n", "2", "--name", "f", "m"]);
    assert!(report["paused_us"].as_u64().unwrap() > 0, "{report}");
    for name in ["m", "f-1", "f-2"] {
        lab.assert_works_as(name, "m");
    }
    let mut seen = BTreeSet::new();
    for name in ["m", "f-1", "f-2"] {
        // Only what was restored has an epoch.
        lab.exec(name, "mkdir -p /run/kiln; test -e /run/kiln/epoch || echo none > /run/kiln/epoch");
        let said = lab.exec(name, WHO);
        assert_eq!(said.lines().next(), Some(name));
        assert!(said.lines().all(|line| seen.insert(line.to_owned())), "{said}");
        lab.exec(name, &format!("echo {name} > /own; sync"));
    }
    for name in ["m", "f-1", "f-2"] {
        assert_eq!(lab.exec(name, "cat /own"), format!("{name}\n"));
    }

    // A machine that was restored is forked as well, and one that stands.
    lab.fork(&["--name", "g", "f-1"]);
    assert_eq!(lab.exec("g-1", "cat /own; hostname"), "f-1\ng-1\n");
    lab.assert_works_as("g-1", "m");
    lab.context.kiln(["pause", "f-2"]).ok();
    let report = lab.fork(&["--name", "p", "-e", "COLOUR=blue", "f-2"]);
    assert_eq!(lab.exec("p-1", "echo $COLOUR"), "blue\n");
    assert_eq!(report["paused_us"], 0);
    assert_eq!(lab.phase("f-2"), "paused");
    assert_eq!(lab.exec("p-1", "cat /own"), "f-2\n");

    // Whoever runs the template does not get what somebody did in a machine.
    assert_eq!(lab.run(&["--restore", "auto"], "test -e /work || echo clean").ok(), "clean\n");
    let first = report["snapshot"].as_str().unwrap();
    let held = lab.context.kiln(["snapshot", "rm", first]).fails(1);
    assert!(held.contains("p-1"), "{held}");

    lab.context.kiln(["rm", "-f", "m", "f-1", "f-2", "g-1", "p-1"]).ok();
    lab.context.kiln(["gc", "--grace", "0s"]).ok();
    assert_eq!(lab.store().snapshot_ids().unwrap(), [], "nothing continues them");
    assert_eq!(lab.artifacts(), before);
    lab.assert_whole();
}

#[test]
fn boot_a_captured_machine_is_made_again_and_put_back() {
    let lab = Lab::new("");
    lab.working("m", &["--clone", "copy"]);
    let made = lab.context.kiln(["snapshot", "create", "--name", "then", "--json", "m"]).json();
    assert!(made["paused_us"].as_u64().unwrap() > 0 && made["memory_bytes"].as_u64().unwrap() > 0);
    let id = lab.exec("m", "cat /etc/machine-id");
    lab.exec("m", "echo later > /work; echo later > /run/work; sync");

    let name = lab.context.kiln(["snapshot", "restore", "--name", "again", "then"]).ok();
    assert_eq!(name, "again\n");
    assert!(lab.restored("again"));
    lab.assert_works_as("again", "m");
    // Booted from the disk, it has that alone, and a name of its own.
    lab.context.kiln(["snapshot", "restore", "--boot", "--name", "fresh", "then"]).ok();
    assert!(!lab.restored("fresh"));
    assert_eq!(lab.exec("fresh", "cat /work; test -e /run/work || hostname"), "disk of m\nfresh\n");
    assert_ne!(lab.exec("fresh", "cat /etc/machine-id"), lab.exec("again", "cat /etc/machine-id"));

    let running = lab.context.kiln(["snapshot", "restore", "--in-place", "m", "then"]).fails(1);
    assert!(running.contains("machine `m` is running: it cannot be put back\ntry: kiln stop m"), "{running}");
    lab.context.kiln(["stop", "m"]).ok();
    lab.context.kiln(["snapshot", "restore", "--in-place", "m", "then"]).ok();
    lab.context.kiln(["start", "m"]).ok();
    assert!(lab.restored("m"));
    lab.assert_works_as("m", "m");
    assert_eq!(lab.exec("m", "cat /etc/machine-id; hostname"), format!("{id}m\n"));
    // From then on its disk is what counts.
    lab.exec("m", "echo more > /more; sync");
    lab.context.kiln(["stop", "m"]).ok();
    let why = lab.context.kiln(["snapshot", "create", "m"]).fails(1);
    assert!(why.contains("machine `m` is stopped: it cannot be captured with its memory"), "{why}");
    let disk =
        lab.context.kiln(["snapshot", "create", "--disk-only", "--name", "disk", "--json", "m"]).json();
    assert_eq!((&disk["paused_us"], &disk["memory_bytes"]), (&0.into(), &serde_json::Value::Null));
    lab.context.kiln(["snapshot", "restore", "--name", "d", "disk"]).ok();
    assert_eq!(lab.exec("d", "cat /more; hostname"), "more\nd\n");
    let other = lab.context.kiln(["snapshot", "restore", "--in-place", "m", "nothing"]).fails(1);
    assert!(other.contains("nothing"), "{other}");
    lab.context.kiln(["start", "m"]).ok();
    assert_eq!(lab.exec("m", "cat /more"), "more\n");

    lab.context.kiln(["rm", "-f", "m", "again", "fresh", "d"]).ok();
    lab.context.kiln(["snapshot", "rm", "then", "disk"]).ok();
    lab.assert_whole();
}

#[test]
fn boot_a_connected_machine_s_forks_are_connected_and_its_ports_stay_with_it() {
    let lab = Lab::new("");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    lab.working("m", &["-p", &format!("{port}:80")]);
    lab.context.kiln(["snapshot", "create", "--name", "net", "m"]).ok();
    lab.fork(&["-n", "2", "--name", "f", "--rm", "m"]);
    let address = |name| lab.exec(name, "cat /sys/class/net/eth0/address /sys/class/net/eth0/carrier");
    let all: BTreeSet<String> = ["m", "f-1", "f-2"].into_iter().map(address).collect();
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(all.iter().all(|one| one.ends_with("\n1\n")), "{all:?}");
    lab.context.kiln(["rm", "-f", "m", "f-1", "f-2"]).ok();
    let refused = lab.context.kiln(["snapshot", "restore", "--net", "none", "net"]).fails(1);
    assert!(refused.contains("network is user in the snapshot and none here"), "{refused}");
    lab.context.kiln(["snapshot", "restore", "--rm", "--name", "n", "-p", &format!("{port}:80"), "net"]).ok();
    lab.assert_works_as("n", "m");
    lab.context.kiln(["rm", "-f", "n"]).ok();
    lab.context.kiln(["snapshot", "rm", "net"]).ok();
    lab.assert_whole();
}

#[test]
fn boot_a_fork_that_is_killed_leaves_the_machine_and_the_store_as_they_were() {
    let lab = Lab::new("");
    let artifacts = lab.artifacts();
    lab.working("m", &[]);
    for file in ["machine", "parting", "memory", "state"] {
        let running = lab.context.start(["fork", "-n", "2", "m"]);
        lab.context.eventually(file, || is_staged(&lab, file));
        running.signal(Signal::KILL);
        running.finish();
        // The supervisor has done what was begun, and nobody wants it.
        lab.assert_works_as("m", "m");
        lab.context.eventually("the other monitor is gone", || {
            let of_m = lab.context.processes();
            of_m.iter().filter(|(_, line)| line.contains("qemu-system")).count() == 1
        });
        lab.context.kiln(["gc", "--grace", "0s"]).ok();
        assert_eq!(lab.store().snapshot_ids().unwrap(), [], "{file}");
        assert_eq!(lab.artifacts(), artifacts, "{file}");
        assert_eq!(lab.context.staged(), Vec::<String>::new(), "{file}");
    }
    lab.fork(&["--name", "f", "m"]);
    lab.assert_works_as("f-1", "m");
    lab.context.kiln(["rm", "-f", "m", "f-1"]).ok();
    lab.context.kiln(["gc", "--grace", "0s"]).ok();
    lab.assert_whole();
}

#[test]
fn boot_a_machine_that_dies_while_it_is_saved_is_reported() {
    let lab = Lab::new("");
    lab.working("m", &[]);
    let running = lab.context.start(["snapshot", "create", "m"]);
    lab.context.eventually("it is saved", || is_staged(&lab, "machine"));
    super::kill(lab.pid("supervisor_pid"));
    let said = running.finish();
    // It may have been saved in time.
    if said.code != 0 {
        assert!(said.stderr.starts_with("error: "), "{}", said.stderr);
        assert_eq!(lab.store().snapshot_ids().unwrap(), []);
    }
    lab.context.eventually("the machine is gone", || lab.context.processes().is_empty());
    // A process that ends has no command line any more while it still holds its locks.
    lab.context.eventually("that is noticed", || lab.phase("m") == "failed");
    // Its disk is there.
    lab.context.kiln(["start", "m"]).ok();
    lab.exec("m", "true");
    lab.context.kiln(["rm", "-f", "m"]).ok();
}

#[test]
fn boot_a_machine_with_something_of_its_own_is_captured_without_its_memory_only() {
    let lab = Lab::new("");
    lab.context.write("key", "hunter2");
    for own in [["-e", "KIND=origin"], ["--secret", "key=key"]] {
        lab.context.kiln(["rm", "-f", "m"]);
        lab.working("m", &own);
        for words in [&["fork", "m"][..], &["snapshot", "create", "m"]] {
            let said = lab.context.kiln(words).fails(1);
            let why =
                "it has an environment or secrets of its own, which a snapshot of its memory would hold";
            assert!(said.contains(why), "{said}");
        }
    }
    lab.context.kiln(["snapshot", "create", "--disk-only", "--name", "disk", "m"]).ok();
    lab.context.kiln(["rm", "-f", "m"]).ok();
    lab.context.kiln(["snapshot", "restore", "--name", "d", "-e", "A=1", "disk"]).ok();
    assert_eq!(lab.exec("d", "cat /work; ls /run/kiln/secrets 2>/dev/null; echo $A"), "disk of m\n1\n");
    lab.context.kiln(["rm", "-f", "d"]).ok();
    lab.context.kiln(["snapshot", "rm", "disk"]).ok();
    lab.assert_whole();
}

#[test]
fn what_cannot_be_asked_together_is_refused() {
    let lab = Lab::new("");
    let said = lab.context.kiln(["snapshot", "create", "--disk-only", "web"]).fails(2);
    assert!(said.contains("--disk-only is for machines, and `web` is none"), "{said}");
    let said = lab.context.kiln(["snapshot", "restore", "-n", "2", "-p", "8080:80", "x"]).fails(2);
    assert!(said.contains("one port leads to one machine"), "{said}");
    let said = lab.context.kiln(["fork", "nobody"]).fails(1);
    assert!(said.contains("nobody"), "{said}");
    let said = lab.context.kiln(["snapshot", "restore", "nothing"]).fails(1);
    assert!(said.contains("nothing"), "{said}");
    lab.assert_nothing_left();
}
