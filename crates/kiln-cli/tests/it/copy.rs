//! Copying into machines and out of them.

use crate::context;
use kiln_testing::{TestContext, recipe};
use std::os::unix::fs::{PermissionsExt, symlink};

fn machine(context: &TestContext) {
    let dir = recipe(context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["run", "-d", "--name", "w", "web"]).ok();
}

#[test]
fn boot_copy_64_mib_in_and_out_is_the_same() {
    let context = context();
    machine(&context);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = Vec::with_capacity(64 << 20);
    while random.len() < 64 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        random.extend_from_slice(&state.to_le_bytes());
    }
    let file = context.write("random", &random);
    context.kiln(["cp", "random", "w:/root/copy"]).ok();
    context.kiln(["cp", "w:/root/copy", "back"]).ok();
    assert!(std::fs::read(context.work().join("back")).unwrap() == random);
    let inside = context.kiln(["exec", "w", "--", "sha256sum", "/root/copy"]).ok();
    let outside = std::process::Command::new("sha256sum").arg(file).output().unwrap();
    assert_eq!(inside.split(' ').next(), String::from_utf8_lossy(&outside.stdout).split(' ').next());
}

#[test]
fn boot_copy_trees_names_and_refusals() {
    let context = context();
    machine(&context);
    context.write("site/index.html", "page");
    context.write("site/run", "#!/bin/sh\n");
    std::fs::set_permissions(context.work().join("site/run"), std::fs::Permissions::from_mode(0o755))
        .unwrap();
    symlink("index.html", context.work().join("site/link")).unwrap();
    context.kiln(["cp", "site", "w:/var"]).ok();
    let listed = context.kiln([
        "exec",
        "w",
        "--",
        "sh",
        "-c",
        "cat /var/site/link && test -x /var/site/run && echo x",
    ]);
    assert_eq!(listed.ok(), "pagex\n");
    context.kiln(["cp", "site", "w:/var/other"]).ok();
    assert_eq!(context.kiln(["exec", "w", "--", "cat", "/var/other/index.html"]).ok(), "page");
    context.kiln(["cp", "w:/var/site", "back"]).ok();
    assert_eq!(std::fs::read_to_string(context.work().join("back/link")).unwrap(), "page");
    assert!(std::fs::symlink_metadata(context.work().join("back/link")).unwrap().is_symlink());
    context.kiln(["cp", "w:/var/site/index.html", "."]).ok();
    assert_eq!(std::fs::read_to_string(context.work().join("index.html")).unwrap(), "page");
    assert!(context.kiln(["cp", "w:/nowhere", "."]).fails(1).contains("/nowhere"));
    assert!(context.kiln(["cp", "site", "w:/no/where"]).fails(1).contains("/no"));
    assert!(context.kiln(["cp", "missing", "w:/tmp"]).fails(1).contains("missing"));
    assert!(context.kiln(["cp", "w:/var/site", "back"]).code == 0, "into the directory that exists");
    assert!(context.work().join("back/site/run").exists());
    context.kiln(["cp", "a", "b"]).fails(2);
    assert!(context.kiln(["cp", "w:/var/site", "back"]).fails(1).contains("exists already"));
}
