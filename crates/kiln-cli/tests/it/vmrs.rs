//! Images of vm-rs: in and out.

mod layout;
mod publisher;

use crate::context;
use kiln_testing::{TestContext, fixtures, recipe};
use layout::{Disk, files, home, kernel, lay};
use publisher::{Publisher, sum};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

fn show(context: &TestContext, reference: &str) -> Value {
    context.kiln(["show", reference, "--json"]).json()
}

fn facts(context: &TestContext, reference: &str) -> Value {
    show(context, reference)["build"]["facts"].clone()
}

fn artifact(context: &TestContext, reference: &str, role: &str) -> Value {
    let artifacts = show(context, reference)["manifest"]["artifacts"].clone();
    let found = artifacts.as_array().unwrap().iter().find(|artifact| artifact["role"] == role);
    found.unwrap()["digest"].clone()
}

#[test]
fn an_image_that_is_what_is_published_is_as_if_it_had_been_pulled() {
    let context = context();
    let publisher = Publisher::new(&context);
    let disk = Disk { word: "a", kernel: Some("6.1.0-in"), ..Disk::default() }.qcow2(&context, "a");
    lay(&context, "Demo/ONE", &disk, Some(&kernel("6.1.0-out")));
    publisher.demo(10, &[("1", &disk)]);
    let before = files(&context.work().join("data"));
    let output = context.kiln(["import", "vmrs", "data", "--json"]);
    let told = output.stderr.clone();
    let shown = output.json();
    let image = &shown["images"][0];
    assert_eq!((&image["image"], &image["directory"]), (&json!("demo:1"), &json!("Demo/ONE")), "{shown}");
    assert_eq!((&image["verified"], &image["kernel"]), (&json!("signature"), &json!("inside")));
    assert_eq!(image["digest"], format!("sha256:{}", sum("sha256sum", &disk)));
    assert_eq!((&image["serial"], &image["moved"]), (&json!("20240111T000000Z"), &json!(true)));
    assert_eq!(shown["failed"], json!([]));
    assert!(told.contains("vmlinuz is not the kernel inside the disk image"), "{told}");
    assert_eq!(files(&context.work().join("data")), before, "nothing that was read is changed");
    let known = facts(&context, "demo:1");
    assert_eq!((&known["image"], &known["image_user"]), (&json!("demo:1"), &json!("demo")));
    assert_eq!((&known["imported"], &known["kernel"]), (&json!("vm-rs"), &json!("6.1.0-in")));
    assert_eq!((&known["image_serial"], &known["image_signer"]), (&image["serial"], &image["signer"]));
    assert_eq!(context.staged(), Vec::<String>::new());

    // The disk was never fetched, and is not now.
    let listed = context.kiln(["catalog", "ls", "--json"]).ok();
    assert!(listed.contains("demo"), "{listed}");
    assert_eq!(context.kiln(["catalog", "outdated", "-q"]).ok(), "");
    let revision = image["revision"].clone();
    let updated = context.kiln(["catalog", "update", "demo:1", "--json"]).json();
    assert_eq!((&updated[0]["revision"], &updated[0]["there"]), (&revision, &json!(true)), "{updated}");
    let asked = publisher.asked();
    assert!(asked.iter().all(|path| path.starts_with("SHA256SUMS")), "{asked:?}");
    let again = context.kiln(["import", "vmrs", "data/images", "-q"]).ok();
    assert_eq!(again, "demo:1\n");

    // The same under another name, of which nobody knows anything, takes nothing away.
    lay(&context, "own/copy", &disk, None);
    let told = context.kiln(["import", "vmrs", "data", "--verify", "none"]).fails(1);
    assert!(told.contains("`demo:1` is offered without a signature"), "its kernel is another: {told}");
    assert_eq!(show(&context, "own:copy")["revision"], revision);
    assert_eq!(facts(&context, "demo:1")["image_signer"], image["signer"]);
    std::fs::remove_dir_all(context.work().join("data/images/own")).unwrap();

    // Another is published.
    let next = Disk { word: "b", kernel: Some("6.1.0-in"), ..Disk::default() }.qcow2(&context, "b");
    publisher.demo(20, &[("1", &next)]);
    let told = context.kiln(["import", "vmrs", "data"]).fails(1);
    for line in [
        "image `Demo/ONE` was not imported",
        "what is published of `demo:1` at present (of 20240121T000000Z) is sha256:",
        "try: an older build, or a damaged file: kiln catalog pull demo:1 brings what is published",
        "try: --verify none takes it as it is",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    lay(&context, "Demo/ONE", &next, None);
    context.kiln(["import", "vmrs", "data"]).ok();
    // An older one, and one that nobody signed, move nothing back.
    publisher.demo(15, &[("1", &disk)]);
    lay(&context, "Demo/ONE", &disk, None);
    let told = context.kiln(["import", "vmrs", "data"]).fails(1);
    assert!(told.contains("older than that of 20240121T000000Z which is here"), "{told}");
    let told = context.kiln(["import", "vmrs", "data", "--verify", "none"]).fails(1);
    assert!(told.contains("without a signature") && told.contains("kiln untag demo:1"), "{told}");
    assert_ne!(show(&context, "demo:1")["revision"], revision);
}

#[test]
fn a_kernel_counts_as_far_as_somebody_tells_of_it() {
    let context = context();
    let publisher = Publisher::new(&context);
    let disk = Disk { word: "a", ..Disk::default() }.qcow2(&context, "a");
    let vmlinuz = context.write("kernel", kernel("6.1.0-out"));
    lay(&context, "plain/1", &disk, Some(&kernel("6.1.0-out")));
    publisher.plain(&disk, &vmlinuz);
    let told = context.kiln(["import", "vmrs", "data", "--verify", "signature"]).fails(1);
    assert!(told.contains("nobody signs it"), "{told}");
    let shown = context.kiln(["import", "vmrs", "data", "--json"]).json();
    let image = &shown["images"][0];
    assert_eq!((&image["verified"], &image["kernel"]), (&json!("checksum"), &json!("vmlinuz")), "{shown}");
    let known = facts(&context, "plain:1");
    assert_eq!(known["image_kernel_digest"], format!("sha512:{}", sum("sha512sum", &vmlinuz)));
    assert_eq!(known["kernel"], "6.1.0-out");
    lay(&context, "plain/1", &disk, Some(&kernel("6.1.0-other")));
    let told = context.kiln(["import", "vmrs", "data"]).fails(1);
    assert!(told.contains("vmlinuz has sha512:"), "{told}");
    let told = context.kiln(["import", "vmrs", "data", "--kernel-inside"]).fails(1);
    assert!(told.contains("has no kernel that can be found"), "{told}");
    // The checksums say nothing of this kernel, and there is no other.
    publisher.demo(10, &[("1", &disk)]);
    std::fs::rename(context.work().join("data/images/plain"), context.work().join("data/images/demo"))
        .unwrap();
    let told = context.kiln(["import", "vmrs", "data"]).fails(1);
    assert!(
        told.contains("nothing that is published tells of") && told.contains("try: --verify none"),
        "{told}"
    );
    let shown = context.kiln(["import", "vmrs", "data", "--verify", "none", "--offline", "--json"]).json();
    assert_eq!(
        (&shown["images"][0]["verified"], &shown["images"][0]["kernel"]),
        (&json!("nothing"), &json!("vmlinuz"))
    );
    assert_eq!(facts(&context, "demo:1")["image_verified"], "nothing");
}

#[test]
fn images_that_no_catalog_has_come_as_they_are() {
    let context = context();
    let disk = Disk { word: "a", ..Disk::default() };
    let qcow2 = disk.qcow2(&context, "a");
    let raw = disk.raw(&context, "b");
    lay(&context, "Own/V1", &qcow2, Some(&kernel("6.1.0-out")));
    let only_raw = lay(&context, "own/v2", &raw, Some(&kernel("6.1.0-out")));
    std::fs::rename(only_raw.join("disk.img"), only_raw.join("disk.raw")).unwrap();
    let told = context.kiln(["import", "vmrs", "data", "--offline"]).fails(2);
    assert!(told.contains("--verify none"), "{told}");
    let told = context.kiln(["import", "vmrs", "data"]).fails(1);
    assert!(told.contains("no distribution `own`") && told.contains("2 of 2 failed"), "{told}");
    let mut command = context.command(["import", "vmrs", "--verify", "none", "--offline", "-q"]);
    command.env("VMRS_DATA_DIR", context.work().join("data"));
    assert_eq!(String::from_utf8(command.output().unwrap().stdout).unwrap(), "own:v1\nown:v2\n");
    let known = facts(&context, "own:v1");
    assert_eq!((&known["image_verified"], &known["image"]), (&json!("nothing"), &Value::Null));
    assert_eq!(known["image_digest"], format!("sha256:{}", sum("sha256sum", &qcow2)));
    // Of another file, and it moves on; what is something else stays.
    let before = show(&context, "own:v2")["revision"].clone();
    lay(
        &context,
        "own/v2",
        &Disk { word: "c", ..Disk::default() }.qcow2(&context, "c"),
        Some(&kernel("6.1.0-out")),
    );
    assert_eq!(context.kiln(["import", "vmrs", "data", "--verify", "none", "-q"]).ok(), "own:v1\nown:v2\n");
    assert_ne!(show(&context, "own:v2")["revision"], before);
    context.kiln(["build".as_ref(), recipe(&context, "web", "").as_os_str()]).ok();
    context.kiln(["tag", "web", "own:v3"]).ok();
    lay(&context, "own/v3", &qcow2, Some(&kernel("6.1.0-out")));
    let told = context.kiln(["import", "vmrs", "data", "--verify", "none"]).fails(1);
    assert!(told.contains("`own:v3` is revision") && told.contains("1 of 3 failed"), "{told}");
    assert_eq!(show(&context, "own:v3")["revision"], show(&context, "web")["revision"]);
}

#[test]
fn names_that_differ_in_case_alone_are_one_or_refused() {
    let context = context();
    let disk = Disk { word: "a", ..Disk::default() }.qcow2(&context, "a");
    for place in ["Own/V1", "own/V1", "own/v1"] {
        lay(&context, place, &disk, Some(&kernel("6.1.0-out")));
    }
    let import = ["import", "vmrs", "data", "--verify", "none"];
    let output = context.kiln(import);
    assert!(output.stderr.contains("own/V1: left out, Own/V1 is the same"), "{}", output.stderr);
    assert_eq!(output.ok().lines().count(), 1);
    context.kiln(["untag", "own:v1"]).ok();
    lay(&context, "own/v1", &disk, Some(&kernel("6.1.0-other")));
    let told = context.kiln(import).fails(1);
    assert!(told.contains("own/v1: it is own:v1 as Own/V1 is, and differs from it"), "{told}");
    assert!(told.contains("nothing was written"), "{told}");
    assert_eq!(context.kiln(["ls", "-q"]).ok(), "");
}

#[test]
fn what_is_damaged_stops_no_other_and_leaves_nothing() {
    let context = context();
    let disk = Disk { word: "a", ..Disk::default() }.qcow2(&context, "a");
    lay(&context, "own/good", &disk, Some(&kernel("6.1.0-out")));
    let lay = |place: &str| lay(&context, place, &disk, Some(&kernel("6.1.0-out")));
    std::fs::rename(
        lay("own/partial").join("disk.img"),
        home(&context, "data/images", "own/partial").join("disk.tmp"),
    )
    .unwrap();
    std::fs::write(lay("own/empty").join("disk.img"), "").unwrap();
    std::fs::write(lay("own/text").join("disk.img"), "no disk").unwrap();
    std::fs::write(lay("own/no-kernel").join("vmlinuz"), "text").unwrap();
    std::fs::remove_file(lay("own/neither").join("vmlinuz")).unwrap();
    let linked = lay("own/linked").join("vmlinuz");
    std::fs::remove_file(&linked).unwrap();
    symlink("/etc/passwd", linked).unwrap();
    symlink("good", context.work().join("data/images/own/same")).unwrap();
    lay("own/a b");
    lay("ow n/1");
    let other = if cfg!(target_arch = "x86_64") { "aarch64" } else { "x86_64" };
    let foreign = context.work().join("data/images/own/foreign").join(other);
    std::fs::create_dir_all(foreign).unwrap();
    context.write("data/images/README", "no image");
    let bytes = std::fs::read(&disk).unwrap();
    std::fs::write(lay("own/cut").join("disk.img"), &bytes[..bytes.len() / 2]).unwrap();

    let output = context.kiln(["import", "vmrs", "data", "--verify", "none"]);
    assert!(output.stdout.starts_with("own:good is now sha256:"), "{}", output.stdout);
    let told = output.fails(1);
    for line in [
        "has neither disk.img nor disk.raw, but what is left of a download that did not end",
        "own/empty/",
        "image `own/text` was not imported",
        "is neither an ELF kernel, a bzImage",
        "has no kernel that can be found",
        "own/linked/",
        "images/own/same is a symbolic link",
        "`a b` is no name of a distribution or release",
        "`ow n` is no name of a distribution or release",
        "own/foreign: left out, it is not for",
        "image `own/cut` was not imported",
        "10 of 11 failed",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    assert_eq!(context.kiln(["ls", "-a", "-q"]).ok(), "own:good\n");
    assert_eq!(context.staged(), Vec::<String>::new());
    let none = context.kiln(["import", "vmrs", "data/images/own/foreign", "--verify", "none"]).fails(1);
    assert!(none.contains("holds no DISTRIBUTION/RELEASE/"), "{none}");
    context.kiln(["import", "vmrs", "nowhere"]).fails(1);
}

#[test]
fn a_kernel_of_another_build_gives_way_to_the_one_inside() {
    let context = context();
    let modules = &["6.1.0-in", "6.1.0-new"][..];
    let disk = Disk { word: "a", kernel: Some("6.1.0-in"), modules }.qcow2(&context, "a");
    lay(&context, "own/both", &disk, Some(&kernel("6.1.0-new")));
    lay(&context, "own/other", &disk, Some(&kernel("6.1.0-old")));
    let output = context.kiln(["import", "vmrs", "data", "--verify", "none", "--json"]);
    let told = output.stderr.clone();
    let shown = output.json();
    let taken = |at: usize| (shown["images"][at]["image"].clone(), shown["images"][at]["kernel"].clone());
    assert_eq!(taken(0), (json!("own:both"), json!("vmlinuz")));
    assert_eq!(taken(1), (json!("own:other"), json!("inside")));
    assert!(told.contains("own/other: its vmlinuz is 6.1.0-old and its disk has modules for"), "{told}");
    assert_eq!(facts(&context, "own:other")["kernel"], "6.1.0-in");
    context.kiln(["import", "vmrs", "data", "--verify", "none", "--kernel-inside"]).ok();
    assert_eq!(facts(&context, "own:both")["kernel"], "6.1.0-in");
    let without = Disk { word: "b", kernel: None, modules: &["6.1.0-new"] }.qcow2(&context, "b");
    std::fs::remove_dir_all(context.work().join("data")).unwrap();
    lay(&context, "own/none", &without, Some(&kernel("6.1.0-old")));
    let told = context.kiln(["import", "vmrs", "data", "--verify", "none"]).fails(1);
    assert!(told.contains("is 6.1.0-old, and its modules are for 6.1.0-new"), "{told}");
}

#[test]
fn what_is_exported_comes_back_with_the_same_root() {
    let context = context();
    let dir = recipe(&context, "web", "[boot]\nargs = [\"quiet\"]\n");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["tag", "web", "web:V1"]).ok();
    let told =
        context.kiln(["export", "vmrs", "out", "web:V1", "web", "web:latest", "web/big", "none"]).fails(1);
    for line in [
        "web:V1: the layout cannot hold the tag `V1`",
        "web:latest: another reference is web:latest already",
        "web/big:latest: the layout has no variants",
        "none:latest: template `none` not found",
        "4 entries of out cannot be exported; nothing was written",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    assert!(!context.work().join("out").exists());

    let output = context.kiln(["export", "vmrs", "out", "web", "--json"]);
    assert!(output.stderr.contains("does not hold its boot arguments: quiet"), "{}", output.stderr);
    let shown = output.json();
    assert_eq!(
        (&shown["images"][0]["image"], &shown["images"][0]["there"]),
        (&json!("web:latest"), &json!(false))
    );
    let home = home(&context, "out/images", "web/latest");
    let names: Vec<String> =
        files(&home).iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["disk.img", "initramfs", "vmlinuz"]);
    for name in &names {
        assert_eq!(
            std::fs::metadata(home.join(name)).unwrap().permissions().mode() & 0o7777,
            0o644,
            "{name}"
        );
    }
    assert_eq!(std::fs::metadata(&home).unwrap().permissions().mode() & 0o7777, 0o755);
    let disk = std::fs::read(home.join("disk.img")).unwrap();
    assert!(disk.starts_with(b"QFI\xfb"));

    // What is there with the same content stays, and nothing is overwritten.
    let inode = std::fs::metadata(home.join("disk.img")).unwrap().ino();
    let again = context.kiln(["export", "vmrs", "out/images", "web", "--json"]).json();
    assert_eq!(again["images"][0]["there"], true, "{again}");
    assert_eq!(std::fs::metadata(home.join("disk.img")).unwrap().ino(), inode);

    let other = TestContext::new(env!("CARGO_BIN_EXE_kiln"));
    let out = context.work().join("out");
    other
        .kiln(["import".as_ref(), "vmrs".as_ref(), out.as_os_str(), "--verify".as_ref(), "none".as_ref()])
        .ok();
    for role in ["rootfs", "kernel"] {
        assert_eq!(artifact(&other, "web:latest", role), artifact(&context, "web", role), "{role}");
    }
    for (name, bytes) in [("vmlinuz", &b"other"[..]), ("disk.img", &disk[..disk.len() - 4096])] {
        let before = std::fs::read(home.join(name)).unwrap();
        std::fs::write(home.join(name), bytes).unwrap();
        let told = context.kiln(["export", "vmrs", "out", "web"]).fails(1);
        assert!(told.contains("exists already"), "{told}");
        assert_eq!(std::fs::read(home.join(name)).unwrap(), bytes, "{name} stays");
        std::fs::write(home.join(name), before).unwrap();
    }
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn boot_an_image_that_was_imported() {
    let context = context();
    lay(&context, "Alpine/fixture", &fixtures().join("alpine.qcow2"), None);
    let told = context.kiln(["import", "vmrs", "data", "--verify", "none", "--offline", "-q"]).ok();
    assert_eq!(told, "alpine:fixture\n");
    let told = context.kiln([
        "run",
        "--rm",
        "alpine:fixture",
        "--",
        "sh",
        "-c",
        ". /etc/os-release; echo $ID; exit 3",
    ]);
    assert_eq!((told.code, told.stdout.trim()), (3, "alpine"), "{}", told.stderr);
}
