//! Flakes, built by a real Nix.

use crate::host::{facts, kernel, output, planned_with, scratch, write};
use kiln_build::{
    BuildContext, BuildError, BuildEvent, BuildOutput, BuildPlan, NixError, Reporter, legacy_key, run,
};
use kiln_core::digest::Digest;
use kiln_core::lock::{PinKind, Pins};
use kiln_core::recipe::parse;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, ToolError, Toolbox, fs};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

/// A flake without inputs. Each package is a script on local files; the disk is made in a way that repeats.
const FLAKE: &str = r#"{
  outputs = { self }: let
    image = script: derivation {
      name = "image";
      system = "x86_64-linux";
      builder = "/bin/sh";
      PATH = "/usr/sbin:/usr/bin:/sbin:/bin";
      src = ./src;
      args = [ "-euc" script ];
    };
    disk = "truncate -s 3145728 $out/rootfs.ext4; E2FSPROGS_FAKE_TIME=1 mke2fs -q -t ext4 -U 7f6f5a44-0000-4000-8000-000000000001 -E hash_seed=7f6f5a44-0000-4000-8000-000000000001,root_owner=0:0 -O ^has_journal -m 0 $out/rootfs.ext4;";
    whole = "mkdir $out; cp $src/kernel $out/vmlinux; echo own > $out/initrd; echo '{}' > $out/spec.json; ${disk}";
  in {
    packages.x86_64-linux = {
      default = image "${whole} echo the disk is made >&2";
      tenant-web = image "${whole} echo web > $out/web";
      fails = image "echo no luck today >&2; exit 3";
      rootless = image "mkdir $out; cp $src/kernel $out/vmlinux";
      two = image "${whole} cat $src/kernel $src/kernel > $out/bzImage";
      squashed = image "${whole} rm $out/rootfs.ext4; printf 'hsqs....' > $out/rootfs.squashfs";
      text = image "${whole} echo text > $out/rootfs.ext4";
      escapes = image "${whole} rm $out/vmlinux; ln -s /etc/passwd $out/vmlinux";
      file = image "echo > $out";
    };
  };
}
"#;

fn flake(dir: &Path) {
    fs::create_dir_all(&dir.join("src")).unwrap();
    write(&dir.join("flake.nix"), FLAKE.as_bytes());
    write(&dir.join("src/kernel"), &kernel());
}

fn recipe(flake: &str, rest: &str) -> String {
    format!("name = 'demo'\n[source]\ntype = 'nix'\nflake = '{flake}'\n{rest}\n")
}

/// Keeps what programs said and what was noted.
#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Reporter for Lines {
    fn event(&self, event: BuildEvent) {
        match event {
            BuildEvent::StepOutput { line, .. } | BuildEvent::Note { text: line } => {
                self.0.lock().unwrap().push(line);
            }
            _ => {}
        }
    }
}

struct Bench {
    dir: ScratchDir,
    scratch: ScratchDir,
    lines: Lines,
    offline: bool,
    toolbox: Toolbox,
    pins: Pins,
}

impl Bench {
    fn new() -> Self {
        let dir = scratch();
        fs::create_dir(&dir.path().join("cache")).unwrap();
        fs::create_dir(&dir.path().join("recipe")).unwrap();
        flake(&dir.path().join("recipe"));
        let (scratch, toolbox, pins) = (scratch(), Toolbox::default(), Pins::default());
        Self { dir, scratch, lines: Lines::default(), offline: false, toolbox, pins }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("recipe")
    }

    fn plan(&self, text: &str) -> Result<BuildPlan, BuildError> {
        let cache = self.dir.path().join("cache");
        planned_with(&parse(text).unwrap(), &self.base(), &facts(), &self.toolbox, &self.pins, &cache)
    }

    fn build(&mut self, text: &str) -> Result<BuildOutput, BuildError> {
        let plan = self.plan(text)?;
        self.scratch = scratch();
        let (cancel, host) = (Cancel::new().unwrap(), facts());
        let cx = BuildContext {
            toolbox: &self.toolbox,
            scratch: self.scratch.path(),
            cache: &self.dir.path().join("cache"),
            offline: self.offline,
            reporter: &self.lines,
            cancel: &cancel,
            host: &host,
        };
        run(&plan, &cx)
    }

    fn refused(&mut self, attribute: &str) -> NixError {
        match self.build(&recipe(".", &format!("attribute = '{attribute}'"))).unwrap_err() {
            BuildError::Nix(error) => error,
            other => panic!("{other}"),
        }
    }

    fn said(&self, text: &str) -> bool {
        self.lines.0.lock().unwrap().iter().any(|line| line.contains(text))
    }
}

fn digests(output: &BuildOutput) -> Vec<(String, Digest)> {
    let digest = |path: &Path| Digest::of(&fs::read_limited(path, 1 << 30).unwrap());
    output.artifacts.iter().map(|file| (file.role.to_string(), digest(&file.path))).collect()
}

fn fact<'a>(output: &'a BuildOutput, name: &str) -> &'a str {
    &output.facts.iter().find(|(key, _)| key == name).unwrap_or_else(|| panic!("{name}")).1
}

#[test]
fn a_flake_becomes_kernel_initramfs_and_disk_and_is_remembered() {
    let mut bench = Bench::new();
    let built = bench.build(&recipe(".", "[machine]\ndisk = '8M'")).unwrap();
    let roles: Vec<&str> = built.artifacts.iter().map(|file| file.role.as_str()).collect();
    assert_eq!(roles, ["initrd", "kernel", "rootfs"]);
    let disk = &built.artifacts[2].path;
    assert_eq!(fs::metadata(disk).unwrap().len(), 8 << 20, "as long as the recipe wants it");
    assert!(kiln_sys::copy::allocated_bytes(disk).unwrap() < 1 << 20, "holes stay holes");
    fs::set_mode(disk, 0o600).unwrap();
    output("e2fsck", &["-fn", disk.to_str().unwrap()]);
    assert!(bench.said("the disk is made"), "what the build says is handed on");
    assert!(bench.said("/initrd is replaced by kiln's own initramfs"));
    assert_eq!(bench.said("this host has no /nix/store"), !Path::new("/nix/store").exists());

    let path = fact(&built, "nix_store_path");
    let hash = fact(&built, "nix_revision_hash");
    assert!(path.ends_with(&format!("/{hash}-image")) && hash.len() == 32, "{path} {hash}");
    assert_eq!(fact(&built, "flake"), ".");
    let at = fs::canonicalize(&bench.base()).unwrap();
    assert_eq!(fact(&built, "flake_path"), at.to_str().unwrap());
    assert_eq!(fact(&built, "flake_attribute"), "packages.x86_64-linux.default");
    assert_eq!(fact(&built, "nix_system"), "x86_64-linux");
    assert_eq!(fact(&built, "flake_lock_hash"), hash, "a flake without a lock");
    assert_eq!(fact(&built, "nix_key"), legacy_key(hash, "default", "default").hex());
    assert_eq!(fact(&built, "nix_spec_sha256"), Digest::of(b"{}\n").hex());
}

#[test]
fn two_hosts_build_the_same_of_one_flake() {
    let (mut one, mut other) = (Bench::new(), Bench::new());
    other.offline = true;
    let text = recipe("path:.", "");
    assert_eq!(digests(&one.build(&text).unwrap()), digests(&other.build(&text).unwrap()));
}

#[test]
fn a_profile_chooses_the_attribute_and_a_lock_is_remembered() {
    let mut bench = Bench::new();
    let lock = br#"{"nodes":{"root":{}},"root":"root","version":7}"#;
    write(&bench.base().join("flake.lock"), lock);
    let text =
        format!("profile = 'web'\n{}", recipe("./.", "[[variant]]\nname = 'big'\nrole = 'db'\nvcpus = 2"));
    let built = bench.build(&text).unwrap();
    assert_eq!(fact(&built, "flake_attribute"), "packages.x86_64-linux.tenant-web");
    let hash = Digest::of(lock).hex();
    assert_eq!(fact(&built, "flake_lock_hash"), hash);
    assert_eq!(fact(&built, "nix_key.big"), legacy_key(&hash, "web", "db").hex());
    let base = fs::read_limited(&bench.base().join("flake.lock"), 1 << 20).unwrap();
    assert_eq!(base, lock, "the flake's own lock is not written to");
}

#[test]
fn a_flake_whose_inputs_are_not_locked_is_refused() {
    let mut bench = Bench::new();
    let other = bench.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    write(&other.join("flake.nix"), b"{ outputs = { self }: { }; }");
    let head = format!("{{\n  inputs.other.url = \"path:{}\";\n", other.display());
    let text = FLAKE.replacen("{\n", &head, 1).replace("{ self }", "{ self, other }");
    fs::remove_file(&bench.base().join("flake.nix")).unwrap();
    write(&bench.base().join("flake.nix"), text.as_bytes());
    let NixError::Build { source, .. } = bench.refused("default") else { panic!() };
    assert!(source.to_string().contains("--no-update-lock-file"), "{source}");
    assert!(!fs::exists(&bench.base().join("flake.lock")).unwrap());
}

#[test]
fn what_a_flake_gives_that_is_no_image_is_refused_by_name() {
    let mut bench = Bench::new();
    let told = bench.refused("fails");
    let NixError::Build { source, attribute, .. } = &told else { panic!("{told}") };
    assert_eq!(attribute, "packages.x86_64-linux.fails");
    assert!(source.to_string().contains("no luck today"), "{source}");
    assert!(fs::list_dir(bench.scratch.path()).unwrap().is_empty());
    let NixError::Build { source, .. } = bench.refused("nothing") else { panic!() };
    assert!(source.to_string().contains("does not provide attribute"), "{source}");
    let told = bench.refused("rootless").to_string();
    assert!(told.contains("has no root file system") && told.ends_with("it holds vmlinux"), "{told}");
    let told = bench.refused("two").to_string();
    assert!(told.contains("could be the kernel") && told.contains("bzImage"), "{told}");
    assert!(matches!(bench.refused("squashed"), NixError::ReadOnlyRoot { format: "SquashFS", .. }));
    assert!(matches!(bench.refused("text"), NixError::NotExt4 { .. }));
    assert!(matches!(bench.refused("escapes"), NixError::Outside { .. }));
    assert!(matches!(bench.refused("file"), NixError::OutputKind { .. }));
}

#[test]
fn a_flake_that_is_not_there_and_a_host_without_nix_are_told() {
    let mut bench = Bench::new();
    assert!(matches!(bench.plan(&recipe("./gone", "")), Err(BuildError::InputMissing { .. })));
    assert!(matches!(bench.plan(&recipe("./src", "")), Err(BuildError::Nix(NixError::NoFlake { .. }))));
    bench.toolbox = Toolbox::new(Vec::new(), Vec::new());
    bench.plan(&recipe(".", "")).unwrap();
    let missing =
        |error: BuildError| matches!(&error, BuildError::Tool(ToolError::NotFound { name }) if name == "nix");
    assert!(missing(bench.build(&recipe(".", "")).unwrap_err()));
    assert!(missing(bench.plan(&recipe("github:a/b", "")).unwrap_err()));
}

#[test]
fn a_flakes_files_are_in_the_key_and_a_plan_is_quick() {
    let bench = Bench::new();
    let key = |rest: &str| bench.plan(&recipe(".", rest)).unwrap().key;
    let since = Instant::now();
    let first = key("");
    assert!(since.elapsed().as_millis() < 500, "{:?}", since.elapsed());
    let mut keys = vec![first, key("impure = true"), key("attribute = 'two'")];
    write(&bench.base().join("src/more"), b"");
    keys.push(key(""));
    write(&bench.base().join("flake.lock"), b"{}");
    keys.push(key(""));
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count);
    let before = key("");
    write(&bench.base().join("kiln.lock"), b"");
    assert_eq!(key(""), before, "kiln's own lock makes no build an old one");
}

#[test]
fn a_fetched_flake_is_pinned_and_built_at_its_pin() {
    let mut bench = Bench::new();
    let repository = bench.dir.path().join("repository");
    fs::create_dir(&repository).unwrap();
    flake(&repository);
    let git = |args: &[&str]| {
        let at = ["-C", repository.to_str().unwrap(), "-c", "user.name=a", "-c", "user.email=a@b"];
        output("git", &[&at, args].concat())
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "one"]);
    let revision = git(&["rev-parse", "HEAD"]);
    let name = format!("git+file://{}", repository.display());
    let text = recipe(&name, "");
    let plan = bench.plan(&text).unwrap();
    let pin = plan.pins.get(PinKind::Nix, &name).unwrap().to_owned();
    assert!(pin.contains(revision.trim()), "{pin}");
    let built = bench.build(&text).unwrap();
    let first = digests(&built);
    assert_eq!(fact(&built, "flake_locked"), pin);
    assert_eq!(fact(&built, "flake_lock_hash"), fact(&built, "nix_revision_hash"));

    write(&repository.join("src/more"), b"");
    git(&["add", "."]);
    let told = bench.plan(&text).unwrap_err().to_string();
    assert_eq!(told, format!("flake `{name}` is at no revision: it has changes that are not committed"));
    git(&["commit", "-qm", "two"]);
    assert_ne!(bench.plan(&text).unwrap().key, plan.key);
    bench.pins.set(PinKind::Nix, &name, &pin);
    assert_eq!(bench.plan(&text).unwrap().key, plan.key, "what is pinned is not looked up");
    bench.offline = true;
    assert_eq!(digests(&bench.build(&text).unwrap()), first);
    bench.pins.set(PinKind::Nix, &name, "--impure");
    assert!(matches!(bench.plan(&text), Err(BuildError::Nix(NixError::Reference { .. }))));
}
