use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::machine::Kernel;
use super::super::program::{Output, Program};
use super::super::quiesce;
use super::super::runtime;
use super::*;
use crate::flow::lock;
use crate::hook::HookCause;
use crate::identity::IdentityNetwork;
use crate::limits::HOOKS_MAX;
use crate::message::NetworkConfig;
use crate::quiesce::Quiesce;
use crate::secret::{Entropy, SecretValue};
use crate::token::{Epoch, Hostname, MachineId, SecretName, VariableName};

const EPOCH: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

/// Refuses one thing and writes down the rest.
#[derive(Clone, Default)]
struct TestKernel {
    said: Arc<Mutex<Vec<String>>>,
    refuses: &'static str,
}

impl TestKernel {
    fn say(&self, what: &str) -> Result<(), RemoteError> {
        lock(&self.said).push(what.to_owned());
        if self.refuses == what {
            return Err(RemoteError::new(ErrorKind::Permission, format!("no {what}\u{1b}[31m")));
        }
        Ok(())
    }
}

impl Kernel for TestKernel {
    fn add_entropy(&self, _: &Entropy) -> Result<(), RemoteError> {
        self.say("entropy")
    }

    fn set_clock(&self, unix_ns: u64) -> Result<i64, RemoteError> {
        self.say("clock")?;
        Ok(i64::try_from(unix_ns).unwrap() - 5)
    }

    fn set_hostname(&self, _: &Hostname) -> Result<(), RemoteError> {
        self.say("hostname")
    }

    fn set_network(
        &self,
        _: &IdentityNetwork,
        notes: &mut Vec<String>,
    ) -> Result<Option<String>, RemoteError> {
        notes.push("x".repeat(10_000));
        self.say("network")?;
        Ok(Some("eth7".to_owned()))
    }

    fn mount_memory(&self, _: &Path) -> Result<(), RemoteError> {
        self.say("memory")
    }

    fn sync(&self) {
        let _ = self.say("sync");
    }

    fn drop_caches(&self) -> Result<(), RemoteError> {
        self.say("caches")
    }
}

/// Writes down what it would run; programs whose name has `bad` in it fail.
#[derive(Default)]
struct TestRunner {
    ran: RefCell<Vec<Program>>,
    key: Option<std::path::PathBuf>,
    abandoned: bool,
}

impl Runner for TestRunner {
    fn run(&self, program: Program, take: &mut dyn FnMut(Output, &[u8])) -> Result<(), HookCause> {
        let path = program.argv.first().unwrap().clone();
        self.ran.borrow_mut().push(program);
        take(Output::Stdout, b"{\"event\":\"seen\"}\n");
        take(Output::Stderr, b"some words\x1b[31m");
        if let Some(key) = self.key.as_ref().filter(|_| path.ends_with("ssh-keygen")) {
            fs::write(key, "new").unwrap();
        }
        if path.contains("bad") { Err(HookCause::Exited { code: 3 }) } else { Ok(()) }
    }

    fn abandoned(&self) -> bool {
        self.abandoned
    }
}

struct Guest {
    machine: Machine,
    kernel: TestKernel,
    dir: tempfile::TempDir,
}

impl Guest {
    fn new(refuses: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = TestKernel { refuses, ..TestKernel::default() };
        for path in ["etc/ssh", "run", "etc/kiln/hooks/pre-snapshot.d", "etc/kiln/hooks/post-restore.d"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        Self { machine: Machine::new(dir.path().to_owned(), Box::new(kernel.clone())), kernel, dir }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.path(path)).unwrap().permissions().mode() & 0o7777
    }

    fn hook(&self, stage: &str, name: &str, mode: u32) {
        let path = self.path(&format!("etc/kiln/hooks/{stage}.d/{name}"));
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn said(&self) -> Vec<String> {
        lock(&self.kernel.said).clone()
    }
}

fn full() -> Identity {
    let mut identity = Identity::new(Epoch::new(EPOCH).unwrap(), Entropy::new(vec![1; 32]).unwrap());
    identity.clock_unix_ns = Some(105);
    identity.hostname = Some(Hostname::new("clone-1").unwrap());
    identity.machine_id = Some(MachineId::new(MACHINE_ID).unwrap());
    let config =
        NetworkConfig { mac: None, address: "10.0.0.2/24".to_owned(), gateway: None, dns: Vec::new() };
    identity.network = Some(IdentityNetwork { interface: None, config });
    identity.ssh_host_keys = true;
    let variable = |name: &str| VariableName::new(name).unwrap();
    identity.environment =
        Some(BTreeMap::from([(variable("B"), "two\nlines".to_owned()), (variable("A"), String::new())]));
    identity.secrets = Some(secrets(&[("db", b"p\0w")]));
    identity
}

fn secrets(all: &[(&str, &[u8])]) -> BTreeMap<SecretName, SecretValue> {
    all.iter()
        .map(|(name, value)| (SecretName::new(*name).unwrap(), SecretValue::new(value.to_vec()).unwrap()))
        .collect()
}

fn done(report: &IdentityReport) -> Vec<Part> {
    report.parts.iter().filter(|part| part.result == PartResult::Done).map(|part| part.part).collect()
}

#[test]
fn every_part_is_done_in_its_order() {
    let guest = Guest::new("");
    guest.hook("post-restore", "20-b", 0o755);
    guest.hook("post-restore", "10-a", 0o755);
    fs::create_dir_all(guest.path("var/lib/dbus")).unwrap();
    fs::write(guest.path("var/lib/dbus/machine-id"), "old\n").unwrap();
    let runner = TestRunner::default();
    let report = apply(&guest.machine, &runner, &full()).unwrap();
    let parts: Vec<_> = report.parts.iter().map(|part| part.part).collect();
    assert_eq!(parts, Part::ALL);
    assert_eq!(report.failed(), None);
    assert_eq!(report.result(Part::SshHostKeys), Some(&PartResult::NotApplicable));
    assert_eq!(guest.said(), ["entropy", "clock", "hostname", "network", "memory"]);
    assert_eq!(report.clock_offset_ns, Some(100));
    assert_eq!(report.interface.as_deref(), Some("eth7"));
    assert_eq!(report.notes.first().unwrap().len(), NOTE_BYTES_MAX);
    for path in ["etc/machine-id", "var/lib/dbus/machine-id"] {
        assert_eq!(guest.text(path), format!("{MACHINE_ID}\n"));
    }
    assert_eq!(guest.text("run/kiln/epoch"), format!("{EPOCH}\n"));
    assert_eq!(guest.text("run/kiln/env"), "A=\0B=two\nlines\0");
    assert_eq!(guest.text("run/kiln/secrets/db"), "p\0w");
    for (path, mode) in [
        ("run/kiln", 0o755),
        ("run/kiln/env", 0o600),
        ("run/kiln/secrets", 0o700),
        ("run/kiln/secrets/db", 0o400),
    ] {
        assert_eq!(guest.mode(path), mode, "{path}");
    }
    assert_eq!(guest.machine.epoch().unwrap().as_str(), EPOCH);
    let ran = runner.ran.borrow();
    let names: Vec<_> =
        ran.iter().map(|program| program.argv.first().unwrap().rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["10-a", "20-b"]);
    let env =
        [("KILN_EPOCH", EPOCH), ("KILN_HOOK", "post-restore")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(ran.first().unwrap().env, BTreeMap::from(env));
    assert_eq!(report.hooks.facts.len(), 2);
}

#[test]
fn what_is_not_asked_for_is_left_alone() {
    let guest = Guest::new("");
    let request = Identity::new(Epoch::new(EPOCH).unwrap(), Entropy::new(vec![1; 32]).unwrap());
    let report = apply(&guest.machine, &TestRunner::default(), &request).unwrap();
    assert_eq!(done(&report), [Part::Entropy, Part::Epoch]);
    assert_eq!(report.failed(), None);
    assert!(!guest.path("etc/machine-id").exists() && !guest.path("run/kiln/env").exists());
}

#[test]
fn without_entropy_nothing_else_is_done() {
    let guest = Guest::new("entropy");
    guest.hook("post-restore", "10-a", 0o755);
    let runner = TestRunner::default();
    let report = apply(&guest.machine, &runner, &full()).unwrap();
    assert_eq!(done(&report), []);
    assert_eq!(report.result(Part::Hooks), Some(&PartResult::Skipped { after: Part::Entropy }));
    assert_eq!(guest.said(), ["entropy"]);
    assert_eq!(guest.machine.epoch(), None);
    let Some(PartResult::Failed { error }) = report.result(Part::Entropy) else { panic!("{report:?}") };
    assert!(!error.message.contains('\u{1b}'), "{error}");
}

#[test]
fn a_failed_part_keeps_hooks_from_running_but_nothing_else() {
    let guest = Guest::new("network");
    guest.hook("post-restore", "10-a", 0o755);
    let report = apply(&guest.machine, &TestRunner::default(), &full()).unwrap();
    assert_eq!(report.failed().unwrap().part, Part::Network);
    assert_eq!(report.result(Part::Secrets), Some(&PartResult::Done));
    assert_eq!(report.result(Part::Hooks), Some(&PartResult::Skipped { after: Part::Network }));
}

#[test]
fn a_machine_id_that_cannot_be_written_is_told() {
    let guest = Guest::new("");
    fs::create_dir_all(guest.path("etc/machine-id/x")).unwrap();
    let report = apply(&guest.machine, &TestRunner::default(), &full()).unwrap();
    let Some(PartResult::Failed { error }) = report.result(Part::MachineId) else { panic!("{report:?}") };
    assert!(error.message.contains("machine-id") && error.errno.is_some(), "{error:?}");
    let left = fs::read_dir(guest.path("etc")).unwrap().count();
    assert_eq!(left, 3, "the temporary file is gone");
}

#[test]
fn secrets_and_environment_replace_those_of_a_former_life() {
    let guest = Guest::new("");
    apply(&guest.machine, &TestRunner::default(), &full()).unwrap();
    fs::write(guest.path("run/kiln/secrets/.stray"), "x").unwrap();
    let mut next = full();
    next.secrets = Some(secrets(&[("api", b"new")]));
    next.environment = Some(BTreeMap::new());
    assert_eq!(apply(&guest.machine, &TestRunner::default(), &next).unwrap().failed(), None);
    let names: Vec<_> = fs::read_dir(guest.path("run/kiln/secrets"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["api"]);
    assert_eq!(guest.text("run/kiln/env"), "");
}

#[test]
fn a_link_in_the_place_of_the_secrets_is_refused() {
    let guest = Guest::new("");
    fs::create_dir_all(guest.path("run/kiln")).unwrap();
    fs::create_dir_all(guest.path("elsewhere")).unwrap();
    symlink(guest.path("elsewhere"), guest.path("run/kiln/secrets")).unwrap();
    let report = apply(&guest.machine, &TestRunner::default(), &full()).unwrap();
    assert_eq!(report.failed().unwrap().part, Part::Secrets);
    assert_eq!(fs::read_dir(guest.path("elsewhere")).unwrap().count(), 0);
}

#[test]
fn ssh_host_keys_are_made_again_by_the_image() {
    let guest = Guest::new("");
    let key = guest.path("etc/ssh/ssh_host_rsa_key");
    let old = || {
        fs::write(&key, "old").unwrap();
        fs::write(guest.path("etc/ssh/ssh_host_rsa_key.pub"), "old").unwrap();
    };
    fs::write(guest.path("etc/ssh/sshd_config"), "kept").unwrap();
    old();
    let report = apply(&guest.machine, &TestRunner::default(), &full()).unwrap();
    assert_eq!(report.result(Part::SshHostKeys), Some(&PartResult::Done));
    assert!(report.notes.iter().any(|note| note.contains("no ssh-keygen")), "{:?}", report.notes);
    assert_eq!(fs::read_dir(guest.path("etc/ssh")).unwrap().count(), 1);
    old();
    fs::create_dir_all(guest.path("usr/bin")).unwrap();
    fs::write(guest.path("usr/bin/ssh-keygen"), "").unwrap();
    let runner = TestRunner { key: Some(key.clone()), ..TestRunner::default() };
    let report = apply(&guest.machine, &runner, &full()).unwrap();
    assert_eq!(report.result(Part::SshHostKeys), Some(&PartResult::Done));
    assert_eq!(fs::read_to_string(&key).unwrap(), "new");
    // A program that makes nothing is no success, and the old keys are gone all the same.
    let report = apply(&guest.machine, &TestRunner::default(), &full()).unwrap();
    assert_eq!(report.failed().unwrap().part, Part::SshHostKeys);
    assert!(!key.exists());
}

#[test]
fn capture_needs_every_hook() {
    let guest = Guest::new("");
    for (name, mode) in
        [("10-a", 0o755), ("20-bad", 0o755), ("30-c", 0o755), ("00-data", 0o644), (".x", 0o755)]
    {
        guest.hook("pre-snapshot", name, mode);
    }
    guest.hook("pre-snapshot", "a b", 0o755);
    let request = Quiesce { drop_caches: true, ..Quiesce::default() };
    let runner = TestRunner::default();
    let done = quiesce::apply(&guest.machine, &runner, &request).unwrap();
    let failure = done.hooks.failure.unwrap();
    assert_eq!((failure.hook.as_str(), &failure.cause), ("20-bad", &HookCause::Exited { code: 3 }));
    assert_eq!(failure.stderr_tail, "some words\u{fffd}[31m");
    assert_eq!((done.sync_ms, runner.ran.borrow().len(), done.notes.len()), (None, 2, 1));
    assert_eq!(guest.said(), Vec::<String>::new());
    fs::remove_file(guest.path("etc/kiln/hooks/pre-snapshot.d/20-bad")).unwrap();
    let done = quiesce::apply(&guest.machine, &TestRunner::default(), &request).unwrap();
    assert!(done.sync_ms.is_some() && done.drop_caches_ms.is_some());
    assert_eq!(guest.said(), ["sync", "caches"]);
}

#[test]
fn hooks_that_others_can_write_or_are_too_many_do_not_run() {
    let guest = Guest::new("");
    guest.hook("pre-snapshot", "10-open", 0o775);
    let quiesced = || {
        let runner = TestRunner::default();
        let done = quiesce::apply(&guest.machine, &runner, &Quiesce::default()).unwrap();
        assert_eq!(runner.ran.borrow().len(), 0);
        done.hooks.failure.unwrap().to_string()
    };
    assert!(quiesced().contains("others than root can write it"));
    for number in 0..HOOKS_MAX {
        guest.hook("pre-snapshot", &format!("00-{number}"), 0o755);
    }
    assert!(quiesced().contains("there are more than 64"));
}

#[test]
fn a_host_that_gives_up_and_one_that_comes_twice() {
    let guest = Guest::new("");
    let runner = TestRunner { abandoned: true, ..TestRunner::default() };
    assert!(apply(&guest.machine, &runner, &full()).is_err());
    assert_eq!(guest.said(), Vec::<String>::new());
    let turn = guest.machine.turn().unwrap();
    let error = apply(&guest.machine, &TestRunner::default(), &full()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    drop(turn);
}

#[test]
fn a_machine_id_is_made_before_a_capture_and_overwritten_where_it_lies() {
    use std::os::unix::fs::MetadataExt as _;
    let guest = Guest::new("");
    let path = guest.path("etc/machine-id");
    for before in [None, Some(""), Some("uninitialized\n")] {
        let _ = fs::remove_file(&path);
        if let Some(text) = before {
            fs::write(&path, text).unwrap();
        }
        runtime::prepare_machine_id(&guest.machine).unwrap();
        assert_eq!(guest.text("etc/machine-id").len(), 33);
    }
    let write = |id: &str| runtime::write_machine_id(&guest.machine, &MachineId::new(id).unwrap()).unwrap();
    let (ino, id) = (fs::metadata(&path).unwrap().ino(), "0123456789abcdef0123456789abcdef");
    runtime::prepare_machine_id(&guest.machine).unwrap();
    write(id);
    assert_eq!(guest.text("etc/machine-id"), format!("{id}\n"));
    assert_eq!(fs::metadata(&path).unwrap().ino(), ino);
    // What is not only this file is not written through.
    fs::hard_link(&path, guest.path("etc/other")).unwrap();
    let next = "f123456789abcdef0123456789abcdef";
    write(next);
    assert_eq!(guest.text("etc/machine-id"), format!("{next}\n"));
    assert_eq!(guest.text("etc/other"), format!("{id}\n"));
}
