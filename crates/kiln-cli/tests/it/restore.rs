//! Templates that are captured, and machines that begin there: what holds, and what becomes of it when something fails.

mod capture;
mod crash;
mod cycles;
mod damage;
mod fit;
mod keep;
mod own;
mod running;

use crate::context;
use kiln_core::snapshot::{SnapshotFile, SnapshotKeep, SnapshotManifest};
use kiln_core::{Digest, MachineName};
use kiln_store::{Snapshot, Store};
use kiln_testing::{Output, TestContext, check_store, check_swept, recipe};
use rustix::process::{Pid, Signal};
use std::path::PathBuf;

/// The memory of the machines here, in MiB: a kernel with its initramfs and little more.
const MEMORY: &str = "[machine]\nmemory = \"128M\"\n";

/// A store with a template `web`, and what is asked of it.
struct Lab {
    context: TestContext,
    revision: Digest,
}

impl Lab {
    /// Builds the template.
    fn new(extra: &str) -> Self {
        Self::of(context(), extra)
    }

    /// Builds the template of a root file system that may lie in the context already.
    fn of(context: TestContext, extra: &str) -> Self {
        // Damage is done by writing, which fs-verity would not let happen.
        context.kiln(["init", "--protect", "none"]).ok();
        let dir = recipe(&context, "web", &format!("{MEMORY}{extra}"));
        let id = context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
        Self { context, revision: id.trim().parse().unwrap() }
    }

    /// Builds the template and captures it.
    fn captured(extra: &str) -> Self {
        let lab = Self::new(extra);
        lab.build().ok();
        lab
    }

    /// Captures the template once more.
    fn build(&self) -> Output {
        self.context.kiln(["build", "--snapshot", "web"])
    }

    fn store(&self) -> Store {
        Store::open(&self.context.home()).unwrap()
    }

    /// Returns the only snapshot.
    fn snapshot(&self) -> Snapshot {
        let mut all = self.store().snapshots_of(&self.revision).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    fn path(&self, file: &SnapshotFile) -> PathBuf {
        self.context.home().join("artifacts").join(file.digest.hex())
    }

    /// Puts a changed snapshot in the place of the only one.
    fn change(&self, change: impl FnOnce(&mut SnapshotManifest)) {
        let store = self.store();
        let Snapshot { id, mut manifest, record } = self.snapshot();
        change(&mut manifest);
        let mut record = record.unwrap();
        record.keep = SnapshotKeep::Always;
        store.commit_snapshot(&manifest, &record).unwrap();
        self.context.kiln(["snapshot", "rm", &id.to_string()]).ok();
    }

    /// Changes one recorded fact.
    fn change_fact(&self, name: &str, value: &str) {
        self.change(|manifest| {
            manifest.memory.as_mut().unwrap().compatibility.insert(name, value);
        });
    }

    fn run(&self, options: &[&str], script: &str) -> Output {
        let words = [&["run", "--rm"], options, &["web", "--", "sh", "-c", script]].concat();
        self.context.kiln(words)
    }

    /// Starts a machine that must begin as a snapshot.
    fn restore(&self, name: &str, options: &[&str]) {
        let words = [&["run", "-d", "--restore", "require", "--name", name], options, &["web"]].concat();
        self.context.kiln(words).ok();
        assert!(self.restored(name), "{name} is restored");
    }

    /// Returns whether a machine began its last run as a snapshot.
    fn restored(&self, name: &str) -> bool {
        let name: MachineName = name.parse().unwrap();
        let all = self.store().machines().unwrap();
        let mut entries = all.into_iter().filter_map(|(_, entry)| entry.ok());
        entries.find(|entry| entry.record.name == name).unwrap().status.restored
    }

    fn exec(&self, name: &str, script: &str) -> String {
        self.context.kiln(["exec", name, "--", "sh", "-c", script]).ok()
    }

    /// Asserts that a run boots and says why, and that one which must be restored is refused for the same reason.
    #[track_caller]
    fn boots_because(&self, options: &[&str], reason: &str) {
        let output = self.run(options, "echo up");
        assert!(output.stderr.contains("it boots, not restored: "), "{}", output.stderr);
        assert!(output.stderr.contains(reason), "{reason}: {}", output.stderr);
        assert_eq!(output.ok(), "up\n");
        let required = [options, &["--restore", "require"]].concat();
        let refused = self.run(&required, "echo up").fails(1);
        assert!(refused.contains(reason), "{reason}: {refused}");
        self.assert_nothing_left();
    }

    /// Asserts that no process and no machine is left, and nothing half-made.
    #[track_caller]
    fn assert_nothing_left(&self) {
        self.context.eventually("no process is left", || self.context.processes().is_empty());
        assert_eq!(self.context.kiln(["ps", "-aq"]).ok(), "");
        assert_eq!(self.context.machine_dirs(), Vec::<String>::new());
        assert_eq!(self.context.staged(), Vec::<String>::new());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let home = self.context.home();
        assert!(!mounts.contains(home.to_str().unwrap()), "{mounts}");
    }

    /// Asserts that nothing is left and everything in the store is whole.
    #[track_caller]
    fn assert_whole(&self) {
        self.assert_nothing_left();
        let store = self.store();
        assert_eq!(check_store(&store), Vec::<String>::new());
        assert_eq!(check_swept(&store), Vec::<String>::new());
        assert_eq!(self.context.kiln(["verify", "--all", "--json"]).json()["whole"], true);
    }

    /// Returns the names of all artifacts.
    fn artifacts(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.context.home().join("artifacts")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Returns the process of the only machine that has the given part in `ps`, once it is there.
    fn pid(&self, part: &str) -> Pid {
        let mut found = None;
        self.context.eventually(part, || {
            let listed = self.context.kiln(["ps", "-a", "--json"]).json();
            found = listed[0][part].as_i64();
            found.is_some()
        });
        Pid::from_raw(i32::try_from(found.unwrap()).unwrap()).unwrap()
    }
}

fn kill(pid: Pid) {
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

/// Returns whether a file of this name is staged.
fn is_staged(lab: &Lab, name: &str) -> bool {
    let staging = lab.context.home().join("staging");
    lab.context.staged().iter().any(|dir| staging.join(dir).join(name).exists())
}
