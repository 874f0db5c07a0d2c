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

/// Returns the length of the ext4 file system on a disk, and checks it.
fn ext4_bytes(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::FileExt as _;
    let checked = std::process::Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let mut superblock = [0; 1024];
    std::fs::File::open(path).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
    u64::from(u32_at(4)) * (1024 << u32_at(0x18))
}

#[test]
fn a_longer_clone_has_its_file_system_grown_or_says_how() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let made = context.kiln(["clone", "web", "made.raw", "--json"]).json();
    assert_eq!(
        (made["file_system"].as_str(), &made["file_system_note"]),
        (Some("as_made"), &serde_json::Value::Null)
    );
    let template = made["size_bytes"].as_u64().unwrap();
    let size = format!("{}M", (template >> 20) + 100);
    let bytes = ((template >> 20) + 100) << 20;

    let grown = context.kiln(["clone", "web", "grown.raw", "--disk", &size, "--json"]).json();
    assert_eq!((grown["file_system"].as_str(), grown["size_bytes"].as_u64()), (Some("grown"), Some(bytes)));
    let path = context.work().join("grown.raw");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);
    assert!(bytes - ext4_bytes(&path) < 1 << 20, "it fills the disk");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);

    let overlay = context.kiln(["clone", "web", "o.qcow2", "--clone", "overlay", "--disk", &size]);
    assert!(
        overlay.stderr.contains("note: the file system is not grown yet: on an overlay"),
        "{}",
        overlay.stderr
    );
    overlay.ok();

    let told = context.kiln(["clone", "web", "small.raw", "--disk", "1M"]).fails(1);
    assert!(told.contains("a disk of 1.0 MiB is too small: its template's has"), "{told}");
    let told = context.kiln(["clone", "web", "odd.raw", "--disk", "8E"]).fails(2);
    assert!(told.contains("is not a size"), "{told}");
    let mut left: Vec<_> =
        std::fs::read_dir(context.work()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.retain(|name| name.to_str().unwrap().contains(".raw") || name.to_str().unwrap().starts_with('.'));
    left.sort();
    assert_eq!(left, ["grown.raw", "made.raw"], "nothing half-made");
}

#[test]
fn a_table_that_is_not_grown_is_told_with_what_to_try() {
    use std::os::unix::fs::FileExt as _;
    let context = context();
    let path = context.write("stacks/web/rootfs.ext4", b"");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[0x53, 0xef], 1024 + 0x38).unwrap();
    // One partition of Linux, from sector 8 on.
    file.write_all_at(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 0, 4, 0, 0], 446).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    let kernel = kiln_testing::fixtures().join("vmlinuz");
    context.kiln(["import", "rootfs-registry", "stacks", "--kernel", kernel.to_str().unwrap()]).ok();
    let told = context.kiln(["clone", "web", "disk.raw", "--disk", "2M"]).fails(1);
    let told = told.lines().map(|line| line.split(" of artifact").next().unwrap()).collect::<Vec<_>>();
    insta::assert_snapshot!(told.join("\n"), @r"
    error: no disk of 2.0 MiB can be made
      because: it has an MBR partition table; only GUID partition tables are grown
    try: leave --disk away, or give the template's disk a GUID partition table alone: sgdisk -g converts one
    ");
    assert!(!context.work().join("disk.raw").exists());
    context.kiln(["clone", "web", "disk.raw"]).ok();
}
