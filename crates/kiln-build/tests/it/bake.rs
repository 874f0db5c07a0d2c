//! Builds from real packages, from the archive that this host's apt uses.

use crate::host::{facts, output, planned, planned_with, scratch};
use kiln_build::{
    BuildContext, BuildError, BuildEvent, BuildOutput, HostFacts, Quiet, Reporter, Step, resolve, run,
};
use kiln_core::digest::Digest;
use kiln_core::lock::{PinKind, Pins};
use kiln_core::recipe::{Recipe, Source, parse};
use kiln_core::revision::ArtifactFormat;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox, fs};
use std::path::Path;
use std::sync::Mutex;

fn recipe(packages: &str) -> Recipe {
    let source =
        format!("type = 'debian'\nsuite = 'bookworm'\nvariant = 'essential'\npackages = [{packages}]\n");
    parse(&format!("name = 'demo'\n[source]\n{source}")).unwrap()
}

fn build(
    recipe: &Recipe,
    host: &HostFacts,
    reporter: &dyn Reporter,
) -> Result<(ScratchDir, BuildOutput), BuildError> {
    build_pinned(recipe, host, &Pins::default(), reporter)
}

fn build_pinned(
    recipe: &Recipe,
    host: &HostFacts,
    pins: &Pins,
    reporter: &dyn Reporter,
) -> Result<(ScratchDir, BuildOutput), BuildError> {
    let dir = scratch();
    let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
    let plan = planned_with(recipe, Path::new("/"), host, &toolbox, pins, dir.path())?;
    let cx = BuildContext {
        toolbox: &toolbox,
        scratch: dir.path(),
        cache: dir.path(),
        offline: false,
        reporter,
        cancel: &cancel,
        host,
    };
    let output = run(&plan, &cx)?;
    Ok((dir, output))
}

fn digests(output: &BuildOutput) -> Vec<(String, Digest)> {
    let digest = |path: &Path| Digest::of(&fs::read_limited(path, 1 << 30).unwrap());
    output.artifacts.iter().map(|file| (file.role.to_string(), digest(&file.path))).collect()
}

/// Keeps the events of finished steps.
#[derive(Default)]
struct Steps(Mutex<Vec<(Step, u64, String)>>);

impl Reporter for Steps {
    fn event(&self, event: BuildEvent) {
        if let BuildEvent::StepDone { step, elapsed_ms, detail } = event {
            self.0.lock().unwrap().push((step, elapsed_ms, detail));
        }
    }
}

#[test]
fn two_builds_of_one_recipe_are_the_same() {
    let host = facts();
    let steps = Steps::default();
    let recipe = parse(include_str!("../../../../examples/demo/kiln.toml")).unwrap();
    let (first_dir, first) = build(&recipe, &host, &steps).unwrap();
    println!("{:#?}\n{:#?}", steps.0.lock().unwrap(), first.facts);
    let roles: Vec<&str> = first.artifacts.iter().map(|file| file.role.as_str()).collect();
    assert_eq!(roles, ["initrd", "kernel", "rootfs"]);
    assert_eq!(first.artifacts[1].format, ArtifactFormat::Elf);
    let disk = first.artifacts[2].path.to_str().unwrap().to_owned();
    output("e2fsck", &["-fn", &disk]);
    let stat = |path: &str| output("debugfs", &["-R", &format!("stat {path}"), &disk]);
    assert!(stat("/usr/bin/ps").contains("Mode:  0755"));
    assert!(stat("/usr/bin/su").contains("Mode:  04755"));
    assert!(stat("/dev/null").contains("character special"));
    assert!(stat("/etc/machine-id").contains("Size: 0"));
    for absent in [
        "/etc/resolv.conf",
        "/etc/hostname",
        "/etc/apt/apt.conf.d/99mmdebstrap",
        "/usr/share/man/man1/ps.1.gz",
        "/usr/share/doc/procps/changelog.Debian.gz",
    ] {
        assert_eq!(stat(absent).trim(), "", "{absent}");
    }
    assert!(stat("/usr/share/doc/procps/copyright").contains("regular"));
    let fact = |name: &str| first.facts.iter().find(|(fact, _)| fact == name).unwrap().1.clone();
    assert!(fact("kernel").ends_with("-cloud-amd64"), "{}", fact("kernel"));
    assert!(fact("packages").parse::<u32>().unwrap() > 50);
    // What the archives say now is what was installed, and a build that keeps to it gives the same.
    let dir = scratch();
    let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
    let (scratch, reporter) = (dir.path(), &Quiet);
    let cx = BuildContext {
        toolbox: &toolbox,
        scratch,
        cache: scratch,
        offline: false,
        reporter,
        cancel: &cancel,
        host: &host,
    };
    let pins = resolve(&planned(&recipe, Path::new("/"), &host).unwrap(), &cx).unwrap();
    assert_eq!(pins.of(PinKind::Package).count().to_string(), fact("packages"));
    assert_eq!(pins.get(PinKind::Kernel, "linux-image-cloud-amd64"), Some(fact("kernel_package").as_str()));
    assert!(pins.of(PinKind::Archive).count() > 0);
    let (second_dir, second) = build_pinned(&recipe, &host, &pins, &Quiet).unwrap();
    assert_eq!(digests(&first), digests(&second));
    drop((first_dir, second_dir));
}

#[test]
fn an_unknown_package_is_named() {
    // Of this set nothing is installed before the packages are looked for.
    let mut recipe = recipe("'no-such-package-here'");
    let Source::Debian(source) = &mut recipe.source else { panic!("not a Debian recipe") };
    source.variant = "custom".to_owned();
    let error = build(&recipe, &facts(), &Quiet).unwrap_err();
    assert_eq!(error.to_string(), "package `no-such-package-here` is not in the archive of suite `bookworm`");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("Unable to locate package no-such-package-here"), "{source}");
}

/// Cancels at the first line that the package tool says of installing.
struct CancelLater(Cancel);

impl Reporter for CancelLater {
    fn event(&self, event: BuildEvent) {
        if matches!(&event, BuildEvent::StepOutput { step: Step::Packages, line } if line.contains("extracting archives"))
        {
            self.0.cancel();
        }
    }
}

#[test]
fn a_cancelled_build_leaves_no_process_and_no_mount() {
    let host = facts();
    let dir = scratch();
    let plan = planned(&recipe(""), Path::new("/"), &host).unwrap();
    let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
    let reporter = CancelLater(cancel.clone());
    let cx = BuildContext {
        toolbox: &toolbox,
        scratch: dir.path(),
        cache: dir.path(),
        offline: false,
        reporter: &reporter,
        cancel: &cancel,
        host: &host,
    };
    assert!(matches!(run(&plan, &cx), Err(BuildError::Cancelled)));
    assert_nothing_works_in(dir.path());
    fs::remove_tree(dir.path()).unwrap();
}

/// Checks that no process has the directory among its arguments, and that nothing is mounted in it.
fn assert_nothing_works_in(dir: &Path) {
    assert_eq!(processes_in(dir), Vec::<u32>::new());
    let mounts = fs::read_text_limited(Path::new("/proc/self/mounts"), 1 << 20).unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");
}

fn processes_in(dir: &Path) -> Vec<u32> {
    let place = dir.to_str().unwrap();
    let names = fs::list_dir(Path::new("/proc")).unwrap();
    let ids = names.iter().filter_map(|name| name.to_str()?.parse().ok());
    let works = |id: &u32| {
        let words = kiln_sys::process::command_line(*id).unwrap_or_default();
        words.iter().any(|word| word.to_string_lossy().contains(place))
            && kiln_sys::process::identity(*id).is_some()
    };
    ids.filter(works).collect()
}

/// The variable that tells the process that is killed where to work.
const KILLED_IN: &str = "KILN_BUILD_KILLED_IN";

#[test]
fn a_killed_build_leaves_no_process_and_no_mount() {
    let dir = scratch();
    let own = std::env::current_exe().unwrap();
    let tool = Toolbox::default().find("env").unwrap().arg(format!("{KILLED_IN}={}", dir.path().display()));
    let tool = tool.arg(own).args(["--exact", "bake::killed_in_the_middle", "--ignored", "--nocapture"]);
    let error = tool.run(&Cancel::new().unwrap(), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("killed by signal 9"), "{error}");
    // The kernel ends the rest one after another.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !processes_in(dir.path()).is_empty() && std::time::Instant::now() < until {
        std::thread::yield_now();
    }
    assert_nothing_works_in(dir.path());
    assert!(!fs::list_dir(dir.path()).unwrap().is_empty());
}

/// Kills its own process at the first line about installing.
struct KillSelf;

impl Reporter for KillSelf {
    fn event(&self, event: BuildEvent) {
        if matches!(&event, BuildEvent::StepOutput { step: Step::Packages, line } if line.contains("extracting archives"))
        {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }
}

#[test]
#[ignore = "the test above runs it as a process to be killed"]
fn killed_in_the_middle() {
    #[expect(clippy::disallowed_methods, reason = "the only way to this process")]
    let dir = std::env::var_os(KILLED_IN).unwrap();
    let host = facts();
    let plan = planned(&recipe(""), Path::new("/"), &host).unwrap();
    let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
    let scratch = Path::new(&dir);
    let _ = run(
        &plan,
        &BuildContext {
            toolbox: &toolbox,
            scratch,
            cache: scratch,
            offline: false,
            reporter: &KillSelf,
            cancel: &cancel,
            host: &host,
        },
    );
}
