//! Damage is found, named, set aside and repaired.

use crate::context;
use kiln_testing::{TestContext, plain, recipe};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

fn artifact(context: &TestContext, role: &str) -> PathBuf {
    let shown = context.kiln(["show", "web", "--json"]).json();
    let list = shown["manifest"]["artifacts"].as_array().unwrap();
    let found = list.iter().find(|artifact| artifact["role"] == role).unwrap();
    let hex = found["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    context.home().join("artifacts").join(hex)
}

/// Writes into an artifact as root can, and sets the time of the write back.
fn damage(path: &Path, offset: u64) {
    let before = std::fs::metadata(path).unwrap().modified().unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(b"damage", offset).unwrap();
    file.set_modified(before).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn damage_is_found_set_aside_and_repaired() {
    let context = context();
    // Damage is done by writing, which fs-verity would not let happen.
    context.kiln(["init", "--protect", "none"]).ok();
    let dir = recipe(&context, "web", "");
    let id = context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let ok = context.kiln(["verify", "web", "--json"]).json();
    assert_eq!((ok["whole"].as_bool(), ok["artifacts"].as_array().unwrap().len()), (Some(true), 3));
    assert_eq!(ok["artifacts"][0]["protection"], "none");
    assert_eq!(
        context.kiln(["show", "web", "--json"]).json()["protection"],
        serde_json::json!({"initrd": "none", "kernel": "none", "rootfs": "none"})
    );
    let shown = context.kiln(["show", "web"]).ok();
    assert!(shown.lines().any(|line| line.split_whitespace().eq(["protection", "none"])), "{shown}");
    let rootfs = artifact(&context, "rootfs");
    damage(&rootfs, 70_000);
    let refused = context.kiln(["run", "--rm", "web", "--", "true"]).fails(1);
    assert!(refused.contains("its content has another digest"), "{refused}");
    assert_eq!(context.machine_dirs(), Vec::<String>::new());
    let found = context.kiln(["verify", "--all", "--quiet"]);
    assert_eq!(found.code, 1);
    assert!(
        found
            .stdout
            .contains("damaged (web:latest rootfs): 1 segment differs (bytes 65536-131072); moved to ")
    );
    insta::assert_snapshot!(plain(&context, &found.stderr), @r"
    error: 1 artifact is not whole
    try: kiln verify --all --repair builds them again
    ");
    assert!(!rootfs.exists());
    assert_eq!(std::fs::read_dir(context.home().join("quarantine")).unwrap().count(), 1);
    let missing = context.kiln(["run", "--rm", "web", "--", "true"]).fails(1);
    assert!(missing.contains("not found"), "{missing}");
    let repaired = context.kiln(["verify", "web", "--repair", "--json"]).json();
    assert_eq!(repaired["whole"], true);
    let lines = repaired["artifacts"].as_array().unwrap();
    let line = lines.iter().find(|line| line["found"] == "missing").unwrap();
    assert!(line["repair"].as_str().unwrap().starts_with("built again from "), "{line}");
    assert!(rootfs.exists());
    assert_eq!(context.kiln(["show", "web", "--json"]).json()["revision"], id.trim());
    // A recipe that makes something else repairs nothing and moves no tag.
    std::fs::write(context.work().join("rootfs/etc/new"), "new").unwrap();
    damage(&rootfs, 70_000);
    let failed = context.kiln(["verify", "--all", "--repair"]);
    assert_eq!(failed.code, 1);
    assert!(failed.stdout.contains("now makes another revision"), "{}", failed.stdout);
    assert_eq!(context.kiln(["show", "web", "--json"]).json()["revision"], id.trim());
}

#[test]
fn a_file_that_was_only_touched_is_read_and_used() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let rootfs = artifact(&context, "rootfs");
    std::fs::set_permissions(&rootfs, std::fs::Permissions::from_mode(0o644)).unwrap();
    let hit = context.kiln(["build".as_ref(), dir.as_os_str(), "--json".as_ref()]).json();
    assert_eq!(hit["cached"], true);
    assert_eq!(std::fs::metadata(&rootfs).unwrap().permissions().mode() & 0o7777, 0o444);
    assert!(context.kiln(["verify", "nosuch"]).fails(1).contains("template `nosuch` not found"));
    assert_eq!(context.kiln(["verify"]).code, 2);
}
