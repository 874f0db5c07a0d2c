//! Templates of mvm: in and out.

use crate::context;
use kiln_testing::{TestContext, fixtures, recipe};
use serde_json::{Value, json};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// An ELF file that passes for a kernel: one note segment with the PVH entry.
fn kernel() -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    for (at, value) in [(32, 64), (54, 56), (56, 1), (64, 4), (72, 120), (96, 20)] {
        bytes[at] = value;
    }
    bytes.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    bytes.extend(b"Xen\0\0\0\0\0");
    bytes
}

fn sha256(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// Writes a template with one revision at `place`, as its own program does.
fn template(context: &TestContext, id: &str, place: &str, revision: &str) -> PathBuf {
    let home = context.work().join("mvm/templates").join(id);
    let dir = home.join(place).join(revision);
    std::fs::create_dir_all(&dir).unwrap();
    let origin = json!({"flake_ref": "github:a/b", "profile": "minimal", "role": "worker"});
    let shape = json!({"vcpus": 2, "mem_mib": 512, "data_disk_mib": 0});
    let with = |more: Value| {
        let all = [&origin, &shape, &more].map(|part| part.as_object().unwrap().clone());
        serde_json::to_vec_pretty(&all.into_iter().flatten().collect::<serde_json::Map<_, _>>()).unwrap()
    };
    std::fs::write(home.join("template.json"), with(json!({"template_id": id, "schema_version": 1})))
        .unwrap();
    let paths = json!({"vmlinux": "vmlinux", "rootfs": "rootfs.ext4", "fc_base_config": "fc-base.json"});
    let record = json!({"revision_hash": revision, "flake_lock_hash": "abc", "artifact_paths": paths});
    std::fs::write(dir.join("revision.json"), with(record)).unwrap();
    let args = "console=ttyS0 reboot=k panic=1 net.ifnames=0";
    let config = json!({"boot-source": {"kernel_image_path": "vmlinux", "boot_args": args}, "drives": []});
    std::fs::write(dir.join("fc-base.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("vmlinux"), kernel()).unwrap();
    let rootfs = std::fs::File::create(dir.join("rootfs.ext4")).unwrap();
    rootfs.set_len(1 << 20).unwrap();
    rootfs.write_all_at(&[0x53, 0xef], 1024 + 0x38).unwrap();
    rootfs.write_all_at(id.as_bytes(), 8192).unwrap();
    dir
}

fn current(context: &TestContext, id: &str, text: &str) {
    symlink(text, context.work().join("mvm/templates").join(id).join("current")).unwrap();
}

/// Writes checksums of a revision, its template's record among them, with one changed.
fn sums(dir: &Path, id: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let home = dir.ancestors().find(|dir| dir.join("template.json").exists()).unwrap();
    let mut files = serde_json::Map::new();
    for name in ["revision.json", "vmlinux", "rootfs.ext4", "fc-base.json"] {
        files.insert(name.to_owned(), sha256(&dir.join(name)).into());
    }
    files.insert("template.json".to_owned(), sha256(&home.join("template.json")).into());
    change(&mut files);
    let revision = dir.file_name().unwrap().to_str().unwrap();
    let record = json!({"template_id": id, "revision_hash": revision, "files": files});
    std::fs::write(dir.join("checksums.json"), record.to_string()).unwrap();
}

#[test]
fn templates_come_from_every_place_and_spelling() {
    let context = context();
    let dir = template(&context, "usual", "artifacts", "r1");
    sums(&dir, "usual", |_| ());
    current(&context, "usual", "revisions/r1");
    symlink("artifacts", context.work().join("mvm/templates/usual/revisions")).unwrap();
    template(&context, "newer", "artifacts/revisions", "r1");
    template(&context, "newer", "artifacts/revisions", "r2");
    current(&context, "newer", "artifacts/revisions/r2");
    template(&context, "bare", "artifacts", "r1");
    current(&context, "bare", "r1");
    template(&context, "none", "revisions", "r1");
    context.write("mvm/templates/README", "no template");
    let shown = context.kiln(["import", "mvm", "mvm", "--json"]).json();
    assert_eq!(shown["failed"], json!([]));
    let tags = "bare:latest\nbare:r1\nnewer:latest\nnewer:r1\nnewer:r2\nnone:r1\nusual:latest\nusual:r1\n";
    assert_eq!(context.kiln(["ls", "-a", "-q"]).ok(), tags);
    let of = |reference: &str| context.kiln(["show", reference, "--json"]).json();
    assert_eq!(of("newer")["revision"], of("newer:r2")["revision"]);
    let manifest = of("usual")["manifest"].clone();
    assert_eq!(manifest["machine"]["vcpus"], 2);
    assert_eq!(manifest["boot_args"], json!(["net.ifnames=0"]));
    let facts = of("usual")["build"]["facts"].clone();
    assert_eq!(facts["flake"], "github:a/b");
    assert_eq!(facts["nix_key"], kiln_core::Digest::of(b"abc:minimal:worker").hex());
    assert_eq!(context.staged(), Vec::<String>::new());

    let again = context.kiln(["import", "mvm", "mvm/templates/usual", "-q"]).ok();
    assert_eq!(again, "usual:r1\n", "one template alone");
    let mut command = context.command(["import", "mvm", "-q"]);
    command.env("MVM_DATA_DIR", context.work().join("mvm"));
    assert_eq!(String::from_utf8(command.output().unwrap().stdout).unwrap().lines().count(), 5);
}

#[test]
fn two_imports_at_once_come_to_the_same() {
    let context = context();
    for revision in ["r1", "r2"] {
        template(&context, "web", "artifacts", revision);
    }
    current(&context, "web", "r2");
    let both = [(); 2].map(|()| context.start(["import", "mvm", "mvm", "--json"]));
    let [one, two] = both.map(|import| import.finish().json()["templates"].clone());
    assert_eq!(one, two);
    assert_eq!(context.kiln(["ls", "-a", "-q"]).ok(), "web:latest\nweb:r1\nweb:r2\n");
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn a_damaged_template_stops_no_other_and_leaves_nothing() {
    let context = context();
    template(&context, "good", "artifacts", "r1");
    current(&context, "good", "r1");
    let new = |id: &str| {
        current_dir(&context, id);
        template(&context, id, "artifacts", "r1")
    };
    std::fs::remove_file(new("no-kernel").join("vmlinux")).unwrap();
    std::fs::remove_file(new("no-record").join("revision.json")).unwrap();
    let out = new("leads-out");
    std::fs::remove_file(out.join("vmlinux")).unwrap();
    symlink("/etc/passwd", out.join("vmlinux")).unwrap();
    let unsafe_name = new("unsafe");
    let record = std::fs::read_to_string(unsafe_name.join("revision.json")).unwrap();
    std::fs::write(unsafe_name.join("revision.json"), record.replace("\"rootfs.ext4\"", "\"../../x\""))
        .unwrap();
    let other = new("other-hash");
    sums(&other, "other-hash", |files| {
        files["vmlinux"] = "0".repeat(64).into();
    });
    sums(&new("unlisted"), "unlisted", |files| {
        files.remove("rootfs.ext4");
    });
    sums(&new("foreign"), "someone-else", |_| ());
    std::fs::write(new("text").join("rootfs.ext4"), "no file system").unwrap();
    std::fs::create_dir_all(context.work().join("mvm/templates/Upper")).unwrap();
    let record = context.work().join("mvm/templates/renamed/template.json");
    new("renamed");
    std::fs::write(&record, std::fs::read_to_string(&record).unwrap().replace("renamed", "good")).unwrap();
    let newer = new("newer");
    let record = std::fs::read_to_string(newer.join("revision.json")).unwrap();
    let text = record.replacen('{', "{\"schema_version\": 2,", 1);
    std::fs::write(newer.join("revision.json"), text).unwrap();

    let output = context.kiln(["import", "mvm", "mvm", "--progress", "none"]);
    assert!(output.stdout.starts_with("good:r1 is sha256:"), "{}", output.stdout);
    let told = output.fails(1);
    for line in [
        "no-kernel: revision r1: vmlinux is missing",
        "no-record: revision r1: revision.json is missing",
        "artifacts/r1/vmlinux leads out of the template's directory",
        "unsafe: revision r1: `../../x` is no plain name of a file",
        "other-hash: revision r1: vmlinux has SHA-256 ",
        "unlisted: revision r1: its checksums.json does not list rootfs.ext4",
        "foreign: revision r1: its checksums.json is of template `someone-else`",
        "text: revision r1: its image is no ext4 file system",
        "Upper: the layout has no such name",
        "renamed: its template.json is of template `good`",
        "newer: revision r1: its revision.json has version 2",
        "11 of 12 failed",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    assert_eq!(context.kiln(["ls", "-a", "-q"]).ok(), "good:latest\ngood:r1\n");
    assert_eq!(context.staged(), Vec::<String>::new());
}

fn current_dir(context: &TestContext, id: &str) {
    std::fs::create_dir_all(context.work().join("mvm/templates").join(id)).unwrap();
    current(context, id, "revisions/r1");
}

#[test]
fn what_is_exported_comes_back_as_the_same_revision() {
    let context = context();
    let dir = recipe(
        &context,
        "web",
        "[machine]\nmemory = \"128M\"\n[boot]\nargs = [\"quiet\"]\n[[variant]]\nname = \"big\"\nmemory = \"1G\"",
    );
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let id = context.kiln(["show", "web", "--json"]).json()["revision"].as_str().unwrap().to_owned();
    let shown = context.kiln(["export", "mvm", "out", "web", "web/big", "--json"]).json();
    assert_eq!(shown["templates"][0]["revision"], id.as_str());
    let name = shown["templates"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(name, id["sha256:".len()..][..32]);
    let home = context.work().join("out/templates/web");
    assert_eq!(std::fs::read_link(home.join("current")).unwrap(), Path::new(&format!("revisions/{name}")));
    let revision = home.join("current");
    let mut files: Vec<String> = std::fs::read_dir(&revision)
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let want =
        ["checksums.json", "fc-base.json", "initrd", "kiln.json", "revision.json", "rootfs.ext4", "vmlinux"];
    assert_eq!(files, want, "the link resolves");
    for file in &files {
        let mode = std::fs::metadata(revision.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644, "{file}");
    }
    let rootfs = std::fs::metadata(revision.join("rootfs.ext4")).unwrap();
    assert!(rootfs.blocks() * 512 < rootfs.len(), "holes stay holes");
    let json = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let sums = json(revision.join("checksums.json"))["files"].clone();
    let listed: Vec<&String> = sums.as_object().unwrap().keys().collect();
    let want = ["fc-base.json", "initrd", "revision.json", "rootfs.ext4", "template.json", "vmlinux"];
    assert_eq!(listed, want, "every file is listed, the initrd too");
    for (file, sum) in sums.as_object().unwrap() {
        let dir = if file == "template.json" { &home } else { &revision };
        // The disk's is compared by the import below.
        if file != "rootfs.ext4" {
            assert_eq!(sha256(&dir.join(file)), sum.as_str().unwrap(), "{file}");
        }
    }
    let config = json(revision.join("fc-base.json"));
    let args = "console=ttyS0 reboot=k panic=1 net.ifnames=0 quiet";
    assert_eq!(config["boot-source"]["boot_args"], args);
    assert_eq!(config["boot-source"]["initrd_path"], "initrd");
    assert_eq!(config["drives"][0]["is_read_only"], false);
    assert_eq!(config["machine-config"], json!({"vcpu_count": 1, "mem_size_mib": 128}));
    let template = json(home.join("template.json"));
    assert_eq!((&template["template_id"], &template["mem_mib"]), (&json!("web"), &json!(128)));
    let record = json(revision.join("revision.json"));
    assert_eq!(record["artifact_paths"]["initrd"], "initrd");
    let big = json(context.work().join("out/templates/web-big/template.json"));
    assert_eq!(big["mem_mib"], 1024);

    let other = TestContext::new(env!("CARGO_BIN_EXE_kiln"));
    other.kiln(["import".as_ref(), "mvm".as_ref(), home.as_os_str()]).ok();
    assert_eq!(other.kiln(["show", "web", "--json"]).json()["revision"], id.as_str());
    other.kiln(["export", "mvm", "back", "web"]).ok();
    for file in ["vmlinux", "initrd", "fc-base.json", "kiln.json"] {
        let back = other.work().join("back/templates/web/current").join(file);
        assert_eq!(sha256(&back), sha256(&revision.join(file)), "{file}");
    }
    let told = context.kiln(["export", "mvm", "out", "web"]).fails(1);
    assert!(told.contains("out/templates/web exists already"), "{told}");
}

#[test]
fn a_name_the_layout_cannot_hold_is_refused_before_anything_is_written() {
    let context = context();
    template(&context, "web", "artifacts", "r1");
    current(&context, "web", "r1");
    context.kiln(["import", "mvm", "mvm"]).ok();
    context.kiln(["tag", "web", "we.b:latest"]).ok();
    let told = context.kiln(["export", "mvm", "out", "web", "we.b", "web:r1"]).fails(1);
    assert!(told.contains("we.b:latest: the layout cannot hold the name `we.b`"), "{told}");
    assert!(told.contains("web:r1: another reference is the template `web` already"), "{told}");
    assert!(!context.work().join("out").exists());
    assert!(context.kiln(["import", "mvm", "gone"]).fails(1).contains("directory gone is not there"));
    std::fs::create_dir(context.work().join("empty")).unwrap();
    assert!(
        context.kiln(["import", "mvm", "empty"]).fails(1).contains("empty holds no TEMPLATE/template.json")
    );
}

#[test]
fn a_template_file_becomes_recipes() {
    let context = context();
    let text = "template_id = \"web\"\nflake_ref = \".\"\n[[variants]]\nrole = \"worker\"\nvcpus = 2\nmem_mib = 512\n";
    context.write("web.toml", text);
    let told = context.kiln(["import", "mvm", "web.toml"]).ok();
    assert_eq!(told, "kiln.toml: template web with 1 variant\n");
    insta::assert_snapshot!(std::fs::read_to_string(context.work().join("kiln.toml")).unwrap(), @r#"
    name = "web"
    profile = "minimal"

    [source]
    type = "nix"
    flake = "."

    [[variant]]
    name = "web-worker"
    role = "worker"
    vcpus = 2
    memory = "512M"
    "#);
    let told = context.kiln(["import", "mvm", "web.toml"]).fails(1);
    assert!(told.contains("kiln.toml"), "{told}");
    context.write("two/web.toml", format!("{text}[[variants]]\nrole = \"gate\"\nprofile = \"gate\"\n"));
    let told = context.kiln(["import", "mvm", "two/web.toml", "-q"]).ok();
    assert_eq!(told, "two/gate.kiln.toml\ntwo/minimal.kiln.toml\n");
}

#[test]
fn boot_a_template_of_mvm() {
    let context = context();
    let dir = recipe(&context, "web", "");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["export", "mvm", "out"]).ok();
    let other = TestContext::new(env!("CARGO_BIN_EXE_kiln"));
    let home = context.work().join("out/templates/web");
    // As if another program had written it.
    std::fs::remove_file(home.join("current/kiln.json")).unwrap();
    let modules = fixtures().join("modules");
    let args =
        ["import".as_ref(), "mvm".as_ref(), home.as_os_str(), "--modules".as_ref(), modules.as_os_str()];
    other.kiln(args).ok();
    let output = other.kiln(["run", "--rm", "web", "--", "sh", "-c", "uname -s; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str()), (7, "Linux\n"), "{}", output.stderr);
}
