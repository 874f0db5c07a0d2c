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
    assert_eq!(context.staged(), Vec::<String>::new());
    let id = context.kiln(["show", "image", "--json"]).json()["revision"].clone();
    assert_eq!(before.trim(), id.as_str().unwrap());
    recipe(&context, "attribute = \"--impure\"");
    assert!(context.kiln(["build", &dir]).fails(2).contains("`--impure` begins with `-`"));
}
