//! Disks for people who bring their own machine monitor.

use crate::context;
use kiln_testing::recipe;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

#[test]
fn a_clone_is_a_private_file_and_the_store_stays_as_it_is() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let id = context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let id = id.trim();
    let entries = || {
        let list = |name: &str| std::fs::read_dir(context.home().join(name)).unwrap().count();
        ["artifacts", "clones", "machines", "staging", "revisions"].map(list)
    };
    let before = entries();
    let shown = context.kiln(["clone", "web", "disk.raw", "--json"]).json();
    let path = context.work().join("disk.raw");
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((shown["revision"].as_str(), shown["format"].as_str()), (Some(id), Some("raw")));
    assert_eq!(shown["schema_version"], 1);
    assert!(["copy", "reflink"].contains(&shown["method"].as_str().unwrap()));
    assert_eq!(shown["size_bytes"], meta.len());
    assert_eq!(shown["allocated_bytes"], meta.blocks() * 512);
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    let name = shown["artifact"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let artifact = context.home().join("artifacts").join(name);
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&artifact).unwrap());
    let first = std::fs::metadata(&artifact).unwrap();
    std::fs::write(&path, b"HACKED!!").unwrap();
    let after = std::fs::metadata(&artifact).unwrap();
    assert_eq!((first.mtime(), first.nlink()), (after.mtime(), after.nlink()));

    let refused = context.kiln(["clone", "web", "disk.raw"]).fails(1);
    assert!(
        refused.contains("disk.raw exists already") && refused.contains("try: name another"),
        "{refused}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"HACKED!!");

    std::fs::create_dir(context.work().join("disks")).unwrap();
    assert_eq!(context.kiln(["clone", "-q", "web", "disks"]).ok(), "disks/web.raw\n");
    let overlay = context.kiln(["clone", "--clone", "overlay", "web", "disks/"]);
    assert!(overlay.stderr.contains("note: it needs revision"), "{}", overlay.stderr);
    let line = overlay.ok();
    assert!(line.starts_with("disks/web.qcow2: ") && line.contains("by overlay"), "{line}");
    assert_eq!(line.lines().count(), 1);
    assert_eq!(entries(), before);
    let left: Vec<_> = std::fs::read_dir(context.work().join("disks")).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing else is left: {left:?}");
}

#[test]
fn a_bad_destination_is_named_with_what_to_try() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    for (dest, dir) in [("none/disk.raw", "none"), ("new/", "new/")] {
        let told = context.kiln(["clone", "web", dest]).fails(1);
        assert!(told.contains(&format!("directory {dir} is not there")), "{told}");
        assert!(told.contains(&format!("try: mkdir -p {dir}")), "{told}");
    }
    let inside = context.home().join("artifacts/x");
    let told = context.kiln(["clone".as_ref(), "web".as_ref(), inside.as_os_str()]).fails(1);
    assert!(told.contains("lies in the store") && !inside.exists(), "{told}");
    let told = context.kiln(["clone", "wev", "disk.raw"]).fails(1);
    assert!(told.contains("did you mean `web`"), "{told}");
    assert!(!context.work().join("disk.raw").exists());
    context.kiln(["clone", "../web", "disk.raw"]).fails(2);
    context.kiln(["clone", "web"]).fails(2);
}
