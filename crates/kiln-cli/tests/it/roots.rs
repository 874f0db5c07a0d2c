//! Root file systems that are only read, with a scratch disk over them.

use crate::context;
use kiln_testing::{TestContext, recipe};
use std::os::unix::fs::PermissionsExt as _;

fn bake(context: &TestContext, root: &str, options: &[&str]) -> String {
    let dir = recipe(context, "web", &format!("[machine]\nroot = \"{root}\"\n"));
    let file = context.work().join("rootfs/etc/motd");
    std::fs::write(&file, "baked\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let args: Vec<&str> = [&["build", dir.to_str().unwrap()], options].concat();
    context.kiln(args).ok().lines().last().unwrap().to_owned()
}

/// Writes in one machine, and looks for it in others.
fn machines(context: &TestContext) {
    let sh = |machine: &str, script: &str| context.kiln(["exec", machine, "--", "sh", "-c", script]).ok();
    context.kiln(["run", "-d", "--name", "a", "web"]).ok();
    let change = "cat /etc/motd; stat -c %a:%u /etc/motd; echo mine > /etc/motd; rm /bin/true; mkdir /new; chmod 711 /; sync";
    assert_eq!(sh("a", change), "baked\n640:0\n");
    context.kiln(["run", "-d", "--name", "b", "web"]).ok();
    assert_eq!(sh("b", "cat /etc/motd; ls -d /new /bin/true 2>/dev/null; true"), "baked\n/bin/true\n");
    // What it wrote stays over an end, and so does what it removed.
    context.kiln(["stop", "-t", "0", "a"]).ok();
    context.kiln(["start", "a"]).ok();
    assert_eq!(sh("a", "cat /etc/motd; ls -d /new /bin/true 2>/dev/null; stat -c %a /"), "mine\n/new\n711\n");
    context.kiln(["rm", "-f", "a", "b"]).ok();
}

#[test]
fn boot_machines_share_an_erofs_root_and_write_to_a_disk_of_their_own() {
    let context = context();
    let first = bake(&context, "erofs", &["--snapshot"]);
    let (dir, home) = (context.work().join("web"), context.work().join("other"));
    let again = context.kiln(["--home".as_ref(), home.as_os_str(), "build".as_ref(), dir.as_os_str()]).ok();
    assert_eq!(again.lines().last(), Some(first.as_str()), "the same in another store");
    let shown = context.kiln(["show", "web", "--json"]).json();
    let roles: Vec<&str> = shown["manifest"]["artifacts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|artifact| artifact["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["initrd", "kernel", "rootfs", "scratch"]);
    machines(&context);
    // Forks of a running machine have what it wrote, and a suspended one keeps it.
    context.kiln(["run", "-d", "--name", "a", "web"]).ok();
    context.kiln(["exec", "a", "--", "sh", "-c", "echo forked > /etc/motd"]).ok();
    let fork = context.kiln(["fork", "-q", "a"]).ok().trim().to_owned();
    assert_eq!(context.kiln(["exec", &fork, "--", "cat", "/etc/motd"]).ok(), "forked\n");
    context.kiln(["suspend", "a"]).ok();
    context.kiln(["resume", "a"]).ok();
    assert_eq!(context.kiln(["exec", "a", "--", "cat", "/etc/motd"]).ok(), "forked\n");
    // The scratch disk grows where a machine's disk is to be larger.
    context.kiln(["run", "-d", "--name", "g", "--disk", "3G", "web"]).ok();
    let size = context.kiln(["exec", "g", "--", "sh", "-c", "df -m / | tail -n 1"]).ok();
    let size: u64 = size.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((2500..3100).contains(&size), "{size}");
    context.kiln(["gc", "--grace", "0"]).ok();
    assert_eq!(context.kiln(["exec", &fork, "--", "cat", "/etc/motd"]).ok(), "forked\n");
}

#[test]
fn boot_machines_share_a_squashfs_root() {
    let context = context();
    bake(&context, "squashfs", &[]);
    machines(&context);
}

#[test]
fn a_root_that_comes_as_it_is_cannot_be_another() {
    let context = context();
    context.write(
        "web/kiln.toml",
        "name = \"web\"\n[source]\ntype = \"nix\"\nflake = \".\"\n[machine]\nroot = \"erofs\"\n",
    );
    context.write("web/flake.nix", "{}");
    let error = context.kiln(["build", "web"]).fails(1);
    assert!(error.contains("a source of type `nix` has an ext4 root, and `erofs` is asked for"), "{error}");
}
