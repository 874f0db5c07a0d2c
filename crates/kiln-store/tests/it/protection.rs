//! Artifacts protected by the kernel: what is set, what is seen when it has gone, and that everything that renames or
//! removes an artifact still does.

use crate::{Fixture, on_xfs, record};
use kiln_core::ArtifactRole;
use kiln_core::revision::Artifact;
use kiln_store::{CloneChoice, CloneRequest, CollectPolicy, IngestFrom, Protect, Store, StoreError, Verdict};
use kiln_sys::lock::{Holder, Share};
use kiln_sys::protect::{ProtectError, clear_immutable, look};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A store whose artifacts are protected; dropping it takes the flags off, however the test ended.
struct Protected {
    fixture: Fixture,
}

impl Protected {
    /// Makes one, or says why that cannot be done here.
    fn new(protect: Protect) -> Option<Self> {
        Self::of(Fixture::new(), protect)
    }

    fn of(mut fixture: Fixture, protect: Protect) -> Option<Self> {
        match fixture.store.set_protect(protect, &fixture.cancel, &mut |_| ()) {
            Err(StoreError::Protect(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let told = format_args!("skipped: {error}: {cause}\n");
                std::io::stderr().write_fmt(told).unwrap();
                None
            }
            other => other.map(|()| Some(Self { fixture })).unwrap(),
        }
    }

    fn path(&self, artifact: &Artifact) -> PathBuf {
        self.fixture.store.artifact_path(&artifact.digest)
    }

    fn word(&self, artifact: &Artifact) -> &'static str {
        self.fixture.store.protection(&artifact.digest).unwrap().as_str()
    }

    fn check(&self, artifact: &Artifact) -> Result<(), StoreError> {
        self.fixture.store.check_artifact(&artifact.digest, artifact.size)
    }

    fn verify(&self, artifact: &Artifact) -> Verdict {
        self.fixture.store.verify_artifact(&artifact.digest, &self.fixture.cancel).unwrap()
    }

    fn set(&mut self, protect: Protect) {
        self.fixture.store.set_protect(protect, &self.fixture.cancel, &mut |_| ()).unwrap();
    }
}

impl Drop for Protected {
    fn drop(&mut self) {
        clear_all(self.fixture.store.root());
    }
}

fn clear_all(dir: &Path) {
    for name in kiln_sys::fs::list_dir(dir).unwrap_or_default() {
        let path = dir.join(name);
        if path.is_dir() {
            clear_all(&path);
        } else {
            let _ = clear_immutable(&path);
        }
    }
}

fn silent(_: &Holder) {}

#[test]
fn what_cannot_be_done_is_refused_when_it_is_asked_for_and_leaves_nothing() {
    let memory = Path::new("/dev/shm");
    if !kiln_sys::fs::file_system_name(memory).is_ok_and(|name| name == "tmpfs") {
        return;
    }
    let dir = kiln_sys::tool::ScratchDir::new(memory).unwrap();
    let home = dir.path().join("home");
    let mut fixture = Fixture::at(&home);
    let before = std::fs::read(home.join("meta.json")).unwrap();
    let error = fixture.store.set_protect(Protect::Verity, &fixture.cancel, &mut silent).unwrap_err();
    assert!(matches!(&error, StoreError::Protect(ProtectError::Unsupported { .. })), "{error}");
    assert!(error.to_string().contains("fs-verity"), "{error}");
    assert_eq!(fixture.store.protect(), Protect::Auto);
    assert_eq!(std::fs::read(home.join("meta.json")).unwrap(), before);
    assert_eq!(std::fs::read_dir(home.join("staging")).unwrap().count(), 0);
    // By itself it takes what there is.
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    assert_eq!(fixture.store.protection(&artifact.digest).unwrap().as_str(), "none");
    fixture.store.check_artifact(&artifact.digest, artifact.size).unwrap();
}

#[test]
fn the_setting_is_kept_and_older_readers_may_ignore_it() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.store.protect(), Protect::Auto);
    fixture.store.set_protect(Protect::None, &fixture.cancel, &mut silent).unwrap();
    let path = fixture.store.root().join("meta.json");
    let meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(meta["features"]["compatible"], serde_json::json!({"protect": "none"}));
    assert_eq!(Store::open(fixture.store.root()).unwrap().protect(), Protect::None);
    // A word of a newer kiln is as good as none.
    let newer = meta.to_string().replace("\"none\"", "\"notarized\"");
    std::fs::write(&path, newer).unwrap();
    assert_eq!(Store::open(fixture.store.root()).unwrap().protect(), Protect::Auto);
}

#[test]
fn an_immutable_artifact_cannot_be_touched_and_is_missed_when_its_flag_has_gone() {
    let Some(protected) = Protected::new(Protect::Immutable) else { return };
    let artifact = protected.fixture.artifact(ArtifactRole::rootfs(), b"content");
    let path = protected.path(&artifact);
    assert_eq!(protected.word(&artifact), "immutable");
    protected.check(&artifact).unwrap();
    assert!(std::fs::File::options().write(true).open(&path).is_err());
    assert!(std::fs::remove_file(&path).is_err());
    assert!(clear_immutable(&path).unwrap());
    let error = protected.check(&artifact).unwrap_err();
    assert!(
        matches!(error, StoreError::Unsealed { reason: "what protected it was taken off", .. }),
        "{error}"
    );
    // Reading it protects it again.
    let store = &protected.fixture.store;
    store.ensure_artifact(&artifact.digest, artifact.size, &protected.fixture.cancel, &mut |_| ()).unwrap();
    assert_eq!(protected.word(&artifact), "immutable");
    protected.check(&artifact).unwrap();
    // Content that was changed meanwhile is found.
    clear_immutable(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"CONTENT", 0).unwrap();
    assert!(matches!(protected.verify(&artifact), Verdict::Damaged(_)));
}

#[test]
fn a_seal_that_tells_of_a_flag_needs_it() {
    let fixture = Fixture::new();
    let artifact = fixture.artifact(ArtifactRole::rootfs(), b"content");
    let seal = fixture.store.root().join("indexes").join(format!("{}.seal", artifact.digest.hex()));
    let text = std::fs::read_to_string(&seal).unwrap();
    std::fs::write(&seal, text.replacen('{', "{\"immutable\":true,", 1)).unwrap();
    let error = fixture.store.check_artifact(&artifact.digest, artifact.size).unwrap_err();
    assert!(
        matches!(error, StoreError::Unsealed { reason: "what protected it was taken off", .. }),
        "{error}"
    );
    // A seal from before there was protection is as good as ever.
    std::fs::write(&seal, text).unwrap();
    fixture.store.check_artifact(&artifact.digest, artifact.size).unwrap();
}

#[test]
fn clones_of_an_immutable_artifact_are_writable() {
    let work = |protected: &Protected| {
        let artifact = protected.fixture.artifact(ArtifactRole::rootfs(), &[7; 8192]);
        let store = &protected.fixture.store;
        let dir = protected.fixture.store.root().join("staging/clones");
        std::fs::create_dir(&dir).unwrap();
        for method in ["auto", "copy", "overlay"] {
            let choice = match method {
                "copy" => CloneChoice::Exactly(kiln_core::machine::CloneMethod::Copy),
                "overlay" => CloneChoice::Exactly(kiln_core::machine::CloneMethod::Overlay),
                _ => CloneChoice::Auto,
            };
            let (digest, size) = (artifact.digest, artifact.size);
            let request = CloneRequest { digest, size, dir: &dir, stem: method, choice };
            let made = store.clone_artifact(&request, &protected.fixture.cancel).unwrap();
            let path = dir.join(method).with_extension(made.method.extension());
            assert_eq!(look(&path).unwrap().protection.as_str(), "none", "{method}");
            std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"mine", 0).unwrap();
            std::fs::remove_file(&path).unwrap();
        }
    };
    if let Some(protected) = Protected::new(Protect::Immutable) {
        work(&protected);
    }
    on_xfs(|mount| {
        if let Some(protected) = Protected::of(Fixture::at(&mount.join("home")), Protect::Immutable) {
            work(&protected);
        }
    });
}

#[test]
fn immutable_artifacts_are_removed_collected_and_set_aside() {
    let Some(protected) = Protected::new(Protect::Immutable) else { return };
    let store = &protected.fixture.store;
    let alone = || store.lock(Share::Exclusive, "a test", &protected.fixture.cancel, &mut |_| ()).unwrap();
    // rm
    let id = protected.fixture.revision(b"kernel", b"rootfs");
    assert_eq!(store.remove_revision(&id, &alone()).unwrap().artifacts.len(), 2);
    // gc, and what is in the trash
    protected.fixture.revision(b"kernel", b"rootfs");
    let policy = CollectPolicy::default();
    let plan = store.plan_collection(&policy).unwrap();
    assert_eq!(plan.artifacts.len(), 2);
    store.collect(&plan, &alone()).unwrap();
    assert!(store.artifact_ids().unwrap().is_empty());
    store.empty_trash(Duration::ZERO).unwrap();
    assert_eq!(std::fs::read_dir(store.root().join("trash")).unwrap().count(), 0);
    // quarantine
    let artifact = protected.fixture.artifact(ArtifactRole::rootfs(), b"content");
    let path = protected.path(&artifact);
    clear_immutable(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"CONTENT", 0).unwrap();
    let Verdict::Damaged(damage) = protected.verify(&artifact) else { panic!("it was not found") };
    assert_eq!(look(&damage.quarantined).unwrap().protection.as_str(), "none");
    // What takes the place of a damaged one that has the flag.
    let artifact = protected.fixture.artifact(ArtifactRole::rootfs(), b"content");
    std::fs::remove_file(store.root().join("indexes").join(format!("{}.seal", artifact.digest.hex())))
        .unwrap();
    std::fs::remove_file(store.root().join("indexes").join(artifact.digest.hex())).unwrap();
    protected.fixture.artifact(ArtifactRole::rootfs(), b"content");
    protected.check(&artifact).unwrap();
    assert_eq!(protected.word(&artifact), "immutable");
}

#[test]
fn verification_brings_artifacts_to_the_setting() {
    let Some(mut protected) = Protected::new(Protect::Immutable) else { return };
    let artifact = protected.fixture.artifact(ArtifactRole::rootfs(), b"content");
    protected.set(Protect::None);
    assert_eq!(protected.word(&artifact), "immutable", "not before the next verification");
    assert!(matches!(protected.verify(&artifact), Verdict::Intact { .. }));
    assert_eq!(protected.word(&artifact), "none");
    protected.check(&artifact).unwrap();
    protected.set(Protect::Immutable);
    assert!(matches!(protected.verify(&artifact), Verdict::Intact { .. }));
    assert_eq!(protected.word(&artifact), "immutable");
    protected.check(&artifact).unwrap();
}

#[test]
fn an_ingest_that_fails_anywhere_leaves_a_store_that_can_be_used() {
    use kiln_sys::fail::{ANY, Action, arm, disarm, trace};
    let Some(protected) = Protected::new(Protect::Immutable) else { return };
    let store = &protected.fixture.store;
    let path = protected.fixture.dir.path().join("source");
    std::fs::write(&path, b"content").unwrap();
    let ingest = || {
        let staging = store.stage("a test")?;
        store.ingest(&path, IngestFrom::Outside, &staging, &protected.fixture.cancel)
    };
    let (done, points) = trace(ingest);
    let done = done.unwrap();
    for (point, nth) in points.iter().zip(1..) {
        clear_immutable(&store.artifact_path(&done.digest)).unwrap();
        std::fs::remove_file(store.artifact_path(&done.digest)).unwrap();
        arm(ANY, nth, Action::Error(5));
        let ended = ingest();
        assert!(!disarm(), "{point}");
        store.sweep_staging().unwrap();
        assert_eq!(std::fs::read_dir(store.root().join("staging")).unwrap().count(), 0, "{point}");
        if ended.is_err() && store.has_artifact(&done.digest).unwrap() {
            // Without a seal, so it is read before use.
            let cancel = &protected.fixture.cancel;
            store.ensure_artifact(&done.digest, done.size, cancel, &mut |_| ()).unwrap();
        }
        ingest().unwrap();
        store.check_artifact(&done.digest, done.size).unwrap();
        assert_eq!(store.protection(&done.digest).unwrap().as_str(), "immutable", "{point}");
    }
}

#[test]
fn a_staged_file_with_the_flag_is_swept() {
    let Some(protected) = Protected::new(Protect::Immutable) else { return };
    let staging = protected.fixture.store.root().join("staging");
    let dead = staging.join("0123456789abcdef");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(staging.join("0123456789abcdef.lock"), b"").unwrap();
    let probe = dead.join("probe");
    std::fs::write(&probe, b"probe").unwrap();
    kiln_sys::protect::set_immutable(&std::fs::File::open(&probe).unwrap(), &probe).unwrap();
    assert_eq!(protected.fixture.store.sweep_staging().unwrap(), 1);
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 0);
}

#[test]
fn verity_protects_artifacts_where_the_kernel_has_it() {
    let Some(protected) = Protected::new(Protect::Verity) else { return };
    let artifact = protected.fixture.artifact(ArtifactRole::rootfs(), &[7; 100_000]);
    assert_eq!(protected.word(&artifact), "verity");
    protected.check(&artifact).unwrap();
    let path = protected.path(&artifact);
    assert!(std::fs::File::options().write(true).open(&path).is_err());
    assert!(matches!(protected.verify(&artifact), Verdict::Intact { .. }));
    // Replaced by the same bytes without it, it is read and protected again.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    protected.check(&artifact).unwrap_err();
    assert!(matches!(protected.verify(&artifact), Verdict::Intact { .. }));
    assert_eq!(protected.word(&artifact), "verity");
    let id = protected.fixture.revision(b"kernel", b"rootfs");
    assert_eq!(protected.fixture.store.build_record(&id).unwrap().unwrap(), record());
    let alone =
        protected.fixture.store.lock(Share::Exclusive, "a test", &protected.fixture.cancel, &mut silent);
    protected.fixture.store.remove_revision(&id, &alone.unwrap()).unwrap();
}
