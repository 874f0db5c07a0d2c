//! Restored machines are machines of their own.

use super::Lab;
use crate::context;
use kiln_testing::busybox_rootfs;
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// What must differ between machines, a line each.
const WHO: &str = "cat /etc/machine-id; head -c 16 /dev/urandom | sha256sum; hostname; cat /run/kiln/epoch; \
                   cat /sys/class/net/eth0/address; cat /etc/ssh/ssh_host_ed25519_key";

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn boot_a_restored_machine_is_its_own() {
    let context = context();
    let root = busybox_rootfs(&context, "rootfs");
    let file = |path: &str, text: &str, mode: u32| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    file("etc/machine-id", "00000000000000000000000000000001\n", 0o444);
    file("etc/ssh/ssh_host_ed25519_key", "the template's\n", 0o600);
    let keygen = "#!/bin/sh\nhead -c 16 /dev/urandom | sha256sum > /etc/ssh/ssh_host_ed25519_key";
    file("usr/bin/ssh-keygen", keygen, 0o755);
    let lab = Lab::of(context, "");
    let built = lab.build();
    assert!(built.stderr.contains("captured as snapshot"), "{}", built.stderr);
    built.ok();
    lab.assert_whole();
    let artifacts = lab.artifacts();

    let both = ["one", "two"];
    for name in both {
        lab.restore(name, &[]);
    }
    let said = both.map(|name| lab.exec(name, WHO));
    let [one, two] = said.each_ref().map(|said| said.lines().collect::<Vec<_>>());
    assert_eq!((one.len(), two.len()), (6, 6), "{said:?}");
    for (at, (one, two)) in one.iter().zip(&two).enumerate() {
        assert_ne!(one, two, "line {at} of {said:?}");
    }
    assert_eq!((one[2], two[2]), ("one", "two"));
    assert!(
        !said.iter().any(|said| said.contains("0000000001\n") || said.contains("template's")),
        "{said:?}"
    );
    for name in both {
        let before = unix_seconds();
        let there: u64 = lab.exec(name, "date +%s").trim().parse().unwrap();
        let after = unix_seconds();
        assert!(there + 1 >= before && there <= after + 1, "{before} {there} {after}");
        lab.exec(name, &format!("echo {name} > /kept; sync"));
    }
    for name in both {
        assert_eq!(lab.exec(name, "cat /kept"), format!("{name}\n"));
    }

    // Its memory does not fit its disk any more: it boots, and has what it wrote.
    lab.context.kiln(["stop", "one"]).ok();
    lab.context.kiln(["start", "one"]).ok();
    assert!(!lab.restored("one"));
    assert_eq!(lab.exec("one", "cat /kept; hostname"), "one\none\n");
    assert_eq!(lab.exec("two", "cat /kept"), "two\n");
    lab.context.kiln(["rm", "-f", "one", "two"]).ok();
    assert_eq!(lab.artifacts(), artifacts);
    lab.assert_whole();
}

#[test]
fn boot_a_restored_machine_publishes_a_port() {
    let lab = Lab::captured("");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    lab.restore("w", &["-p", &format!("{port}:80")]);
    lab.exec("w", "mkdir -p /www && echo page > /www/index.html && httpd -h /www");
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("page\n"), "{answer}");
    lab.context.kiln(["rm", "-f", "w"]).ok();
    lab.assert_nothing_left();
}

#[test]
fn boot_without_an_identity_clones_are_the_same() {
    // The test of the test above: what is different there is so because it was made so.
    let lab = Lab::captured("");
    let options = ["--restore", "require", "--identity", "skip"];
    let said: BTreeSet<String> = (0..2)
        .map(|_| lab.run(&options, "hostname; cat /sys/class/net/eth0/address; cat /run/kiln/epoch").stdout)
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    lab.assert_nothing_left();
}
