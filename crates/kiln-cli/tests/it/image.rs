//! Disk images of others: one from a package registry, with its own kernel.

use crate::build::in_namespace;
use crate::context;
use kiln_testing::{TestContext, fixtures, recipe};
use std::process::Command;

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

#[test]
fn images_that_lie_are_refused_by_name_and_the_tag_stays() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let good = context.kiln(["build".as_ref(), "-q".as_ref(), dir.as_os_str()]).ok();
    context.write("web/kiln.toml", "name = \"web\"\n[source]\ntype = \"disk\"\npath = \"bad.qcow2\"\n");
    let bad = dir.join("bad.qcow2");
    let make = |args: &[&str]| {
        let _ = std::fs::remove_file(&bad);
        let output = Command::new("qemu-img").args(args).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let refused = |want: &str| {
        let told = context.kiln(["build", "web"]).fails(1);
        assert!(told.contains("/web/bad.qcow2 cannot be used") && told.contains(want), "{want}: {told}");
        assert!(told.contains("try: "), "{told}");
        assert_eq!(context.staged(), Vec::<String>::new());
        assert_eq!(context.kiln(["show", "web", "--json"]).json()["revision"], good.trim());
    };
    for (backing, format) in [("/etc/passwd", "raw"), ("json:{\"driver\":\"nbd\",\"host\":\"h\"}", "raw")] {
        make(&["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing, "bad.qcow2", "1M"]);
        refused("a backing file");
    }
    context.write("web/raw", vec![7; 1 << 20]);
    make(&["convert", "-f", "raw", "-O", "qcow2", "raw", "bad.qcow2"]);
    let whole = std::fs::read(&bad).unwrap();
    let patched = |at: usize, value: u64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        std::fs::write(&bad, bytes).unwrap();
    };
    patched(24, 1 << 50);
    refused("its virtual size is 1125899906842624, more than 70368744177664");
    let l1 = usize::try_from(u64::from_be_bytes(whole[40..48].try_into().unwrap())).unwrap();
    patched(l1, 1 << 50);
    refused("its second-level table at 1125899906842624");
    std::fs::write(&bad, &whole[..whole.len() - (64 << 10)]).unwrap();
    refused("the file is cut off or damaged");
}

#[test]
fn an_image_larger_than_the_free_space_is_told_and_leaves_nothing() {
    let context = context();
    context.write("web/raw", vec![7; 60 << 20]);
    context.write("web/kiln.toml", "name = \"web\"\n[source]\ntype = \"disk\"\npath = \"big.qcow2\"\n");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "raw", "big.qcow2"];
    assert!(
        Command::new("qemu-img")
            .args(convert)
            .current_dir(context.work().join("web"))
            .status()
            .unwrap()
            .success()
    );
    let script = "mkdir small && mount -t tmpfs -o size=100m tmpfs small && KILN_HOME=$PWD/small/home $KILN build web; \
                  code=$?; ls -A small/home/staging small/home/artifacts small/home/revisions; exit $code";
    let (code, said) = in_namespace(&context, script);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(" free, the build needs ") && said.contains("try: kiln rm"), "{said}");
    let left: Vec<&str> =
        said.lines().filter(|line| line.len() >= 16 && !line.contains([' ', '/'])).collect();
    assert!(left.is_empty(), "nothing is staged or published: {said}");
}
