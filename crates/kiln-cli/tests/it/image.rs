//! Disk images of others: one from a package registry, with its own kernel.

use crate::context;
use kiln_testing::{TestContext, fixtures};

/// Writes a recipe of the image that `scripts/fixtures` fetches, and builds it.
fn build(context: &TestContext) -> String {
    let image = fixtures().join("alpine.qcow2");
    let text = format!("name = \"alpine\"\n[source]\ntype = \"disk\"\npath = \"{}\"\n", image.display());
    context.write("alpine/kiln.toml", text);
    let dir = context.work().join("alpine");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok()
}

#[test]
fn boot_a_distributions_disk_image_with_its_own_kernel() {
    let context = context();
    build(&context);
    let told = context.kiln([
        "run",
        "--rm",
        "alpine",
        "--",
        "sh",
        "-c",
        "uname -r; . /etc/os-release; echo $ID; exit 3",
    ]);
    assert_eq!(told.code, 3, "{}", told.stderr);
    let lines: Vec<&str> = told.stdout.lines().collect();
    assert!(lines[0].ends_with("-virt") && lines[1] == "alpine", "{}", told.stdout);
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
}

#[test]
fn one_image_in_two_stores_is_one_revision() {
    let (one, other) = (context(), context());
    let revision = build(&one);
    assert!(revision.starts_with("sha256:"), "{revision}");
    assert_eq!(revision, build(&other));
    // The same again is nothing to do.
    assert_eq!(revision, build(&one));
}

#[test]
fn what_is_wrong_with_an_image_is_told_with_what_to_try() {
    let context = context();
    context.write("packed.img.xz", b"\xfd7zXZ\0");
    context
        .write("bad/kiln.toml", "name = \"bad\"\n[source]\ntype = \"disk\"\npath = \"../packed.img.xz\"\n");
    let told = context.kiln(["build", "bad"]).fails(1);
    assert!(told.contains("compressed with xz") && told.contains("unpack"), "{told}");
    assert_eq!(context.staged(), Vec::<String>::new());
    context
        .write("bad/kiln.toml", "name = \"bad\"\n[source]\ntype = \"disk\"\npath = \"x\"\npartition = 0\n");
    let told = context.kiln(["build", "bad"]).fails(2);
    assert!(told.contains("partitions are counted from 1"), "{told}");
}
