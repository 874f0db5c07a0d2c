//! The rootfs registry of microvm-runtime: in and out.

use crate::context;
use kiln_testing::{TestContext, fixtures};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// An image that passes for ext4, with this text in it, and its SHA-256.
fn image(context: &TestContext, name: &str, text: &str) -> PathBuf {
    let path = context.write(name, b"");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[0x53, 0xef], 1024 + 0x38).unwrap();
    file.write_all_at(text.as_bytes(), 8192).unwrap();
    path
}

fn sha256(path: &Path) -> String {
    kiln_core::Digest::of(&std::fs::read(path).unwrap()).hex()
}

fn import(context: &TestContext, more: &[&str]) -> kiln_testing::Output {
    let kernel = fixtures().join("vmlinuz");
    let kernel = kernel.to_str().unwrap();
    context.kiln([&["import", "rootfs-registry", "stacks", "--kernel", kernel], more].concat())
}

#[test]
fn stacks_become_templates_and_are_written_back_byte_for_byte() {
    let context = context();
    let python = image(&context, "stacks/python/rootfs.ext4", "python");
    image(&context, "elsewhere/rootfs.ext4", "linked");
    symlink("../elsewhere", context.work().join("stacks/linked")).unwrap();
    std::fs::create_dir(context.work().join("stacks/half-made")).unwrap();
    context.write("stacks/README", "not a stack");
    let shown = import(&context, &["--json"]).json();
    let names: Vec<&str> =
        shown["templates"].as_array().unwrap().iter().map(|t| t["template"].as_str().unwrap()).collect();
    assert_eq!(names, ["linked", "python"], "links are followed, what has no image is skipped");
    assert_eq!(shown["templates"][0]["moved"], true);
    assert_eq!(context.kiln(["ls", "-q"]).ok(), "linked:latest\npython:latest\n");
    let roles = context.kiln(["show", "python", "--json"]).json()["manifest"]["artifacts"].clone();
    let roles: Vec<&str> = roles.as_array().unwrap().iter().map(|a| a["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["initrd", "kernel", "rootfs"]);
    assert!(import(&context, &[]).ok().contains("python:latest was already sha256:"), "once is enough");
    assert_eq!(context.staged(), Vec::<String>::new());

    let told = context.kiln(["export", "rootfs-registry", "out", "python", "-q"]).ok();
    assert_eq!(told, "out/python/rootfs.ext4\n");
    let out = context.work().join("out/python/rootfs.ext4");
    assert_eq!(sha256(&out), sha256(&python));
    assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o644, "clones inherit it");
    let told = context.kiln(["export", "rootfs-registry", "out"]).fails(1);
    assert!(told.contains("python:latest: out/python/rootfs.ext4 exists already"), "{told}");
    assert!(!context.work().join("out/linked").exists(), "nothing was written");
}

#[test]
fn what_cannot_be_taken_over_is_told_whole_before_anything_is_written() {
    let context = context();
    image(&context, "stacks/good/rootfs.ext4", "good");
    image(&context, "stacks/Upper/rootfs.ext4", "upper");
    image(&context, "stacks/日本/rootfs.ext4", "japan");
    context.write("stacks/text/rootfs.ext4", "no file system");
    let shared = image(&context, "stacks/shared/rootfs.ext4", "shared");
    std::fs::hard_link(&shared, context.work().join("clone-of-shared")).unwrap();
    std::fs::create_dir(context.work().join("stacks/dangling")).unwrap();
    symlink("nowhere", context.work().join("stacks/dangling/rootfs.ext4")).unwrap();
    let told = import(&context, &[]).fails(1);
    assert!(told.contains("5 entries of stacks cannot be imported; nothing was written"), "{told}");
    for line in [
        "| Upper: `Upper` is not a valid template name",
        "| 日本: `日本` is not a valid template name",
        "| dangling: cannot open stacks/dangling/rootfs.ext4",
        "| shared: its image has 2 names",
        "| text: its image is no ext4 file system",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    assert_eq!(context.kiln(["ls", "-a", "-q"]).ok(), "");
    assert_eq!(std::fs::read_dir(context.home().join("artifacts")).unwrap().count(), 0);
}

#[test]
fn a_kernel_and_a_directory_have_to_be_named_or_known() {
    let context = context();
    let told = context.kiln(["import", "rootfs-registry", "stacks"]).fails(2);
    assert!(told.contains("--kernel FILE"), "{told}");
    assert!(import(&context, &[]).fails(1).contains("directory stacks is not there"));
    std::fs::create_dir(context.work().join("stacks")).unwrap();
    assert!(import(&context, &[]).fails(1).contains("stacks holds no STACK/rootfs.ext4"));
    image(&context, "by-variable/web/rootfs.ext4", "web");
    let kernel = context.write("kernel", "no kernel");
    let mut command = context.command(["import", "rootfs-registry", "--kernel", kernel.to_str().unwrap()]);
    command.env("MICROVM_ROOTFS_TEMPLATE_DIR", context.work().join("by-variable"));
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("neither an ELF kernel"), "{told}");
    assert_eq!(context.kiln(["ls", "-q"]).ok(), "");
}

/// Writes a clone with its stamp, and its length where it was grown.
fn clone(context: &TestContext, vm: &str, stamp: Option<&str>, len: Option<u64>) -> PathBuf {
    let path = image(context, &format!("clones/{vm}/rootfs.ext4"), &format!("written by {vm}"));
    if let Some(stamp) = stamp {
        context.write(&format!("clones/{vm}/rootfs.ext4.sha256"), stamp);
    }
    if let Some(len) = len {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        context.write(&format!("clones/{vm}/rootfs.ext4.size"), len.to_string());
    }
    path
}

#[test]
fn clones_become_disks_and_are_written_back_with_their_stamps() {
    let context = context();
    let web = sha256(&image(&context, "stacks/web/rootfs.ext4", "web"));
    image(&context, "stacks/other/rootfs.ext4", "other");
    let one = clone(&context, "vm-1", Some(&format!("{web}\n")), None);
    let grown = clone(&context, "grown", Some(&web), Some(3 << 20));
    std::fs::create_dir(context.work().join("clones/empty")).unwrap();
    let shown = import(&context, &["--clones", "clones", "--json"]).json();
    assert_eq!(shown["disks"], serde_json::json!(["grown", "vm-1"]));
    let disk = context.home().join("clones/vm-1/disk.raw");
    assert_eq!(sha256(&disk), sha256(&one), "with what the machine wrote");
    assert_eq!(std::fs::metadata(&disk).unwrap().permissions().mode() & 0o777, 0o600);
    let record = std::fs::read_to_string(context.home().join("clones/vm-1/clone.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let id = context.kiln(["show", "web", "--json"]).json()["revision"].clone();
    assert_eq!(record["revision"], id);
    let told = context.kiln(["rm", "--template", "web"]).fails(1);
    assert!(told.contains("is in use by the disk of grown, vm-1"), "{told}");
    assert!(told.contains("or kiln rm --disk grown vm-1"), "{told}");
    assert_eq!(context.kiln(["ls", "-q"]).ok(), "other:latest\nweb:latest\n", "the tag is still there");
    let shown = context.kiln(["show", "web", "--json"]).json();
    assert_eq!(shown["disks"], serde_json::json!(["grown", "vm-1"]));

    let args = ["export", "rootfs-registry", "out", "web", "--clones", "out-clones"];
    context.kiln(args).ok();
    let out = |file: &str| context.work().join("out-clones").join(file);
    assert_eq!(sha256(&out("vm-1/rootfs.ext4")), sha256(&one));
    assert_eq!(std::fs::read_to_string(out("vm-1/rootfs.ext4.sha256")).unwrap(), web, "no newline");
    assert!(!out("vm-1/rootfs.ext4.size").exists());
    assert_eq!(std::fs::read_to_string(out("grown/rootfs.ext4.size")).unwrap(), "3145728");
    assert_eq!(sha256(&out("grown/rootfs.ext4")), sha256(&grown));
    assert_eq!(sha256(&context.work().join("out/web/rootfs.ext4")), web);

    assert_eq!(context.kiln(["rm", "--disk", "vm-1", "grown"]).ok(), "vm-1\ngrown\n");
    assert!(context.kiln(["rm", "--disk", "vm-1"]).fails(1).contains("disk `vm-1` not found"));
    context.kiln(["rm", "--disk", "../vm-1"]).fails(2);
    context.kiln(["rm", "--template", "web"]).ok();
}

#[test]
fn ambiguous_half_made_and_strange_clones_are_refused() {
    let context = context();
    let web = sha256(&image(&context, "stacks/web/rootfs.ext4", "web"));
    clone(&context, "good", Some(&web), None);
    clone(&context, "a_b", Some(&web), None);
    clone(&context, "VM", Some(&web), None);
    clone(&context, "no-stamp", None, None);
    clone(&context, "bad-stamp", Some("zz"), None);
    clone(&context, "old", Some(&"0".repeat(64)), None);
    let short = clone(&context, "short", Some(&web), None);
    std::fs::File::options().write(true).open(short).unwrap().set_len(4096).unwrap();
    let linked = clone(&context, "linked", Some(&web), None);
    std::fs::rename(&linked, context.work().join("target")).unwrap();
    symlink("../../target", &linked).unwrap();
    let told = import(&context, &["--clones", "clones"]).fails(1);
    for line in [
        "7 entries of stacks",
        "| clone a_b: several ids",
        "| clone VM: `VM` is not a valid disk owner",
        "| clone no-stamp: it has no rootfs.ext4.sha256",
        "| clone bad-stamp: its rootfs.ext4.sha256 is `zz`",
        "| clone old: its template, SHA-256 0000",
        "| clone short: it has 4096 bytes, 1048576 are recorded",
        "| clone linked: clones/linked/rootfs.ext4 is a symbolic link",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    assert_eq!(context.kiln(["ls", "-q"]).ok(), "");
    for vm in ["a_b", "VM", "no-stamp", "bad-stamp", "old", "short", "linked"] {
        std::fs::remove_dir_all(context.work().join("clones").join(vm)).unwrap();
    }
    import(&context, &["--clones", "clones"]).ok();
    let told = import(&context, &["--clones", "clones"]).fails(1);
    assert!(told.contains("clone good: this owner has a disk in the store already"), "{told}");
}

#[test]
fn what_the_layout_cannot_hold_is_not_exported() {
    let context = context();
    image(&context, "stacks/web/rootfs.ext4", "web");
    import(&context, &[]).ok();
    context.kiln(["tag", "web", "web:v1"]).ok();
    let id = context.kiln(["show", "web", "--json"]).json()["revision"].as_str().unwrap().to_owned();
    let store = kiln_store::Store::open(&context.home()).unwrap();
    let cancel = kiln_sys::Cancel::new().unwrap();
    let disks = store.disks(&cancel);
    let copy = kiln_store::CloneChoice::Exactly(kiln_core::machine::CloneMethod::Copy);
    let overlay = kiln_store::CloneChoice::Exactly(kiln_core::machine::CloneMethod::Overlay);
    for (owner, choice) in [("a.b", copy), ("thin", overlay), ("busy", copy)] {
        disks.clone_for(&owner.parse().unwrap(), &"web".parse().unwrap(), choice).unwrap();
    }
    let busy = disks.get(&"busy".parse().unwrap()).unwrap().unwrap();
    let _lock = busy.lock("running").unwrap();
    let args = ["export", "rootfs-registry", "out", "web", "web:v1", &id, "none", "--clones", "out2"];
    let told = context.kiln(args).fails(1);
    for line in [
        "6 entries of out cannot be exported; nothing was written",
        "| web:v1: another reference is the stack `web` already",
        ": it names no template",
        "| none:latest: template `none` not found",
        "| disk of a.b: the layout would call it by another name",
        "| disk of thin: it is an overlay",
        "| disk of busy: the disk of `busy` is in use by process",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    assert!(!context.work().join("out").exists() && !context.work().join("out2").exists());
}

#[test]
fn large_images_are_never_held_in_memory() {
    let [small, large] = [1, 160].map(resident);
    for (small, large) in small.iter().zip(&large) {
        assert!(*large < small + (32 << 20), "{large} bytes for 160 MiB, {small} for 1 MiB");
    }
}

/// Takes an image of so many mebibytes in, verifies it, copies it and writes it back; returns the most memory that each
/// step had, in bytes.
fn resident(mib: u32) -> [u64; 4] {
    let context = context();
    let path = image(&context, "stacks/web/rootfs.ext4", "web");
    let mut file = std::fs::File::options().append(true).open(&path).unwrap();
    let mut bytes = vec![7; 1 << 20];
    for number in 1..mib {
        // No two blocks are alike.
        for (at, block) in bytes.chunks_mut(4096).enumerate() {
            block[..8].copy_from_slice(&(u64::from(number) << 32 | at as u64).to_le_bytes());
        }
        std::io::Write::write_all(&mut file, &bytes).unwrap();
    }
    let kernel = fixtures().join("vmlinuz");
    let steps: [&[&str]; 4] = [
        &["import", "rootfs-registry", "stacks", "--kernel", kernel.to_str().unwrap()],
        &["verify", "--all"],
        &["clone", "--clone", "copy", "web", "disk.raw"],
        &["export", "rootfs-registry", "out", "web"],
    ];
    steps.map(|step| {
        let env = vec![
            ("KILN_HOME".into(), context.home().into()),
            ("HOME".into(), context.work().into()),
            ("PATH".into(), std::env::var_os("PATH").unwrap_or_default()),
        ];
        let program = kiln_sys::tool::Tool::new("kiln", context.program().to_owned(), env);
        let work = program.args(step).current_dir(&context.work());
        let usage = work.measure(&kiln_sys::Cancel::new().unwrap()).unwrap();
        usage.resident_max.unwrap()
    })
}

#[test]
fn boot_a_template_that_went_out_and_came_in() {
    let context = context();
    let dir = kiln_testing::recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["export", "rootfs-registry", "stacks"]).ok();
    context.kiln(["rm", "web"]).ok();
    let modules = fixtures().join("modules");
    import(&context, &["--modules", modules.to_str().unwrap()]).ok();
    let output = context.kiln(["run", "--rm", "web", "--", "sh", "-c", "uname -s; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str()), (7, "Linux\n"), "{}", output.stderr);
}
