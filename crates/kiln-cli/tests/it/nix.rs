//! The source `nix`, built by a real Nix.

use crate::context;
use kiln_testing::{TestContext, busybox_rootfs, fixtures};
use std::path::Path;
use std::process::Command;

/// A flake without inputs: the kernel, its modules and a disk of busybox, made of files beside it. The times of inodes are set, so
/// that the disk repeats.
const FLAKE: &str = r#"{
  outputs = { self }: {
    packages.x86_64-linux = let
      image = script: derivation {
        name = "image";
        system = "x86_64-linux";
        builder = "/bin/sh";
        PATH = "/usr/sbin:/usr/bin:/sbin:/bin";
        src = ./src;
        args = [ "-euc" script ];
      };
    in {
      default = image ''
        mkdir -p $out/lib
        cp $src/vmlinuz $out/bzImage
        cp -r $src/modules $out/lib/modules
        cp -r $src/rootfs root && chmod -R u+w root
        find root -exec touch -hd @1 {} +
        id=7f6f5a44-0000-4000-8000-000000000001
        disk=$out/rootfs.ext4
        E2FSPROGS_FAKE_TIME=1 mke2fs -q -t ext4 -U $id -E hash_seed=$id,root_owner=0:0 -O ^has_journal -m 0 -d root $disk 16M
        inodes=$(dumpe2fs -h $disk 2>/dev/null | sed -n 's/^Inode count: *//p')
        free=$(dumpe2fs -h $disk 2>/dev/null | sed -n 's/^Free inodes: *//p')
        i=11
        while [ $i -le $((inodes - free)) ]; do echo "sif <$i> ctime @1"; echo "sif <$i> ctime_extra 0"; i=$((i+1)); done > times
        E2FSPROGS_FAKE_TIME=1 debugfs -w -f times $disk >/dev/null
      '';
      fails = image "echo no luck today >&2; exit 3";
      rootless = image "mkdir $out; cp $src/vmlinuz $out/bzImage";
      two = image "mkdir $out; cp $src/vmlinuz $out/bzImage; echo other > $out/vmlinux; echo > $out/rootfs.ext4";
      impure = image "echo ${builtins.getEnv "HOME"}${toString builtins.currentTime} > $out";
    };
  };
}
"#;

/// Writes the flake with a recipe beside it, in the folder `image` of the working directory. Without modules its kernel
/// boots no machine.
fn image(context: &TestContext, rest: &str, modules: bool) -> String {
    let fixtures = fixtures();
    context.write("image/flake.nix", FLAKE);
    let src = context.work().join("image/src");
    std::fs::create_dir_all(src.join("modules")).unwrap();
    std::fs::copy(fixtures.join("vmlinuz"), src.join("vmlinuz")).unwrap();
    if modules {
        copy(&fixtures.join("modules").canonicalize().unwrap(), &src.join("modules"));
    }
    copy(&busybox_rootfs(context, "rootfs"), &src);
    recipe(context, rest);
    "image".to_owned()
}

fn recipe(context: &TestContext, rest: &str) {
    context.write(
        "image/kiln.toml",
        format!("name = \"image\"\n[source]\ntype = \"nix\"\nflake = \".\"\n{rest}\n"),
    );
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn boot_an_image_of_a_flake_runs_commands() {
    let context = context();
    let dir = image(&context, "[machine]\ndisk = \"64M\"", true);
    let built = context.kiln(["build", "--json", &dir]).json();
    assert_eq!(built["cached"], false);
    let again = context.kiln(["build", "--json", &dir]).json();
    assert_eq!(again["cached"], true);
    let elapsed = again["elapsed_ms"].as_u64().unwrap();
    assert!(elapsed < 500, "a build with nothing to do took {elapsed} ms");
    let output = context.kiln(["run", "--rm", "image", "--", "sh", "-c", "df -m / | tail -n1; exit 7"]);
    assert_eq!(output.code, 7, "{}", output.stderr);
    let size: u64 = output.stdout.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(size > 48, "the guest grew its root to the disk: {}", output.stdout);

    // As mvm has it: what was built of which flake.
    context.kiln(["export", "mvm", "out", "image"]).ok();
    let record = context.work().join("out/templates/image/current/revision.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let flake = context.work().join("image").canonicalize().unwrap();
    assert_eq!(record["flake_ref"], flake.to_str().unwrap());
    let facts = context.kiln(["show", "image", "--json"]).json()["build"]["facts"].clone();
    assert_eq!(record["flake_lock_hash"], facts["nix_revision_hash"]);

    // Another store, another store of Nix: the same revision.
    let other = TestContext::new(env!("CARGO_BIN_EXE_kiln"));
    image(&other, "[machine]\ndisk = \"64M\"", true);
    let same = other.kiln(["build", "--json", "image"]).json();
    assert_eq!(same["revision"], built["revision"]);
}

#[test]
fn a_flake_that_fails_leaves_the_tag_and_no_staging() {
    let context = context();
    let dir = image(&context, "", false);
    let before = context.kiln(["build", "-q", &dir]).ok();
    recipe(&context, "attribute = \"fails\"");
    let told = context.kiln(["build", &dir]).fails(1);
    assert!(told.contains("`packages.x86_64-linux.fails` of flake"), "{told}");
    assert!(told.contains("no luck today"), "{told}");
    let as_it_was = || {
        assert_eq!(context.staged(), Vec::<String>::new());
        let id = context.kiln(["show", "image", "--json"]).json()["revision"].clone();
        assert_eq!(before.trim(), id.as_str().unwrap());
    };
    as_it_was();
    for (attribute, want) in [
        ("rootless", "has no root file system"),
        ("two", "two files could be the kernel: "),
        ("impure", "`packages.x86_64-linux.impure` of flake"),
    ] {
        recipe(&context, &format!("attribute = \"{attribute}\""));
        let told = context.kiln(["build", &dir]).fails(1);
        assert!(told.contains(want), "{attribute}: {told}");
        as_it_was();
    }
    recipe(&context, "attribute = \"--impure\"");
    assert!(context.kiln(["build", &dir]).fails(2).contains("`--impure` begins with `-`"));
    for flake in [". --impure", "path:a'b", "path:$(touch MARK)", "--impure", ".#x"] {
        context.write(
            "image/kiln.toml",
            format!("name = \"image\"\n[source]\ntype = \"nix\"\nflake = \"{flake}\"\n"),
        );
        let told = context.kiln(["build", &dir]).fails(2);
        assert!(told.contains("source.flake"), "{flake}: {told}");
        assert!(!context.work().join("MARK").exists() && !context.work().join("image/MARK").exists());
    }
    as_it_was();
}

#[test]
fn a_host_without_nix_is_told_and_the_tag_stays() {
    let context = context();
    let dir = kiln_testing::recipe(&context, "image", "");
    let before = context.kiln(["build".as_ref(), "-q".as_ref(), dir.as_os_str()]).ok();
    context.write("image/flake.nix", FLAKE);
    recipe(&context, "");
    // In a namespace of its own, where something else lies over the program.
    let hide = "for dir in $(echo $PATH:/usr/local/bin:/usr/bin:/bin | tr : ' '); do [ ! -e $dir/nix ] || mount --bind /dev/null $dir/nix; done";
    let output = Command::new("unshare")
        .args(["--mount", "--user", "--map-root-user", "sh", "-c"])
        .arg(format!("{hide}; exec {} build image", context.program().display()))
        .current_dir(context.work())
        .env("KILN_HOME", context.home())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("program `nix` is not installed") && told.contains("try: kiln doctor"), "{told}");
    assert_eq!(context.staged(), Vec::<String>::new());
    let id = context.kiln(["show", "image", "--json"]).json()["revision"].clone();
    assert_eq!(before.trim(), id.as_str().unwrap());
}

/// A flake's own wishes run nothing: neither a script that lies beside it nor a hook in its settings, and it is read purely.
#[test]
fn nothing_of_a_flake_runs_but_its_build() {
    let context = context();
    let dir = image(&context, "", false);
    let mark = context.work().join("MARK");
    let script = format!("#!/bin/sh\necho ran >> {}\n", mark.display());
    for name in ["pre-build.sh", "hook.sh"] {
        let path = context.write(&format!("image/{name}"), &script);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let hook = context.work().join("image/hook.sh");
    let settings = format!("{{\n  nixConfig.post-build-hook = \"{}\";\n", hook.display());
    context.write("image/flake.nix", FLAKE.replacen("{\n", &settings, 1));
    context.kiln(["build", &dir]).ok();
    assert!(!mark.exists(), "{:?}", std::fs::read_to_string(&mark));
}
