//! A store of an older version is migrated by whoever opens it, and holds what it held.

use kiln_core::{Digest, Reference};
use kiln_store::{STORE_VERSION, Store, StoreError, Verdict};
use kiln_sys::Cancel;
use kiln_sys::lock::{FileLock, Share};
use kiln_sys::tool::ScratchDir;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A store as the first kiln wrote it, with two revisions that share a kernel; its `meta.json` says version 0.
const STORE_0: &[u8] = include_bytes!("../fixtures/store-0.tar.zst");
/// What the tags of the fixture meant to the kiln that wrote it.
const TAGS: [(&str, &str); 2] = [
    ("web:latest", "sha256:b25048ec44f3960c70ee5a3b745c3f1eac5527ab50f5047ed4ff775b5b8620ad"),
    ("web:v1", "sha256:c2c8544757eda13514b59b1341f3a592b3ae6c06b3c00e1b7bc8d7745697e5ca"),
];
/// The artifacts that were in it.
const ARTIFACTS: [&str; 3] = [
    "sha256:68246a145f5acbb08ecd87fd8a23c424e62aa57f1ffbf2f05eade06ce4503b92",
    "sha256:e3c929c1abb5ebf08751319b003aa7ebf3597a967eabf5e561149e6865852bfa",
    "sha256:ed40e966c04b06993229e6e2e104de17866aaacd934103be68c31e268ab96978",
];

/// Makes a copy of the fixture at a path.
pub(crate) fn unpack(home: &Path) {
    let tar = zstd::decode_all(STORE_0).unwrap();
    let mut archive = tar::Archive::new(tar.as_slice());
    archive.set_preserve_permissions(true);
    archive.unpack(home).unwrap();
}

/// Checks that a store is of today's version and holds what the fixture holds.
#[track_caller]
pub(crate) fn check_migrated(store: &Store) {
    let meta = std::fs::read(store.root().join("meta.json")).unwrap();
    let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
    assert_eq!(meta["version"], STORE_VERSION);
    assert!(meta["features"]["incompatible"].is_object(), "{meta}");
    assert!(store.root().join("clones").is_dir());
    let digests = ARTIFACTS.map(|digest| digest.parse::<Digest>().unwrap());
    assert_eq!(store.artifact_ids().unwrap(), digests);
    for (reference, id) in TAGS {
        let revision = store.resolve(&reference.parse::<Reference>().unwrap()).unwrap();
        assert_eq!(revision.id.to_string(), id, "{reference}");
        assert_eq!(revision.manifest.id(), revision.id);
        assert_eq!(store.build_record(&revision.id).unwrap().unwrap().template.as_str(), "web");
    }
    assert_eq!(store.revision_ids().unwrap().len(), 2);
    assert_eq!(store.recipe_text(&"web".parse().unwrap()).unwrap().as_deref(), Some("name = \"web\"\n"));
    let cancel = Cancel::new().unwrap();
    for digest in digests {
        let verdict = store.verify_artifact(&digest, &cancel).unwrap();
        assert!(matches!(verdict, Verdict::Intact { index_rebuilt: false, .. }), "{digest}: {verdict:?}");
    }
}

fn set_meta(home: &Path, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let path = home.join("meta.json");
    let mut meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(meta.as_object_mut().unwrap());
    std::fs::write(&path, serde_json::to_vec(&meta).unwrap()).unwrap();
}

#[test]
fn a_store_of_version_0_is_migrated_and_holds_what_it_held() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let home = dir.path().join("home");
    unpack(&home);
    assert!(!home.join("clones").exists());
    let store = Store::open(&home).unwrap();
    check_migrated(&store);
    let mode = std::fs::metadata(home.join("meta.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
    let before = std::fs::metadata(home.join("meta.json")).unwrap().modified().unwrap();
    check_migrated(&Store::open(&home).unwrap());
    assert_eq!(std::fs::metadata(home.join("meta.json")).unwrap().modified().unwrap(), before, "once");
    let wrong = kiln_testing::check_store(&store);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn features_may_be_absent_in_version_0_only() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let home = dir.path().join("home");
    unpack(&home);
    set_meta(&home, |meta| _ = meta.remove("features"));
    check_migrated(&Store::open(&home).unwrap());
    set_meta(&home, |meta| _ = meta.remove("features"));
    let error = Store::open(&home).unwrap_err();
    assert!(matches!(&error, StoreError::NotAStore { reason, .. } if reason.contains("features")), "{error}");
}

#[test]
fn what_is_newer_in_any_way_is_refused_before_it_is_migrated() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let home = dir.path().join("home");
    unpack(&home);
    set_meta(&home, |meta| meta["features"]["incompatible"]["frobnicated"] = serde_json::json!(true));
    let error = Store::open(&home).unwrap_err();
    assert!(matches!(error, StoreError::UnknownFeature { .. }), "{error}");
    assert!(!home.join("clones").exists(), "nothing was changed");
    set_meta(&home, |meta| meta["version"] = (STORE_VERSION + 1).into());
    let error = Store::open(&home).unwrap_err();
    assert!(matches!(error, StoreError::NewerStore { found, .. } if found == STORE_VERSION + 1), "{error}");
}

#[test]
fn a_migration_waits_for_who_works_in_the_store_and_names_it() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let home = dir.path().join("home");
    unpack(&home);
    let held = FileLock::take_as(
        Share::Shared,
        &home.join("store.lock"),
        "baking",
        &Cancel::new().unwrap(),
        &mut |_| (),
    )
    .unwrap();
    let cancel = Cancel::new().unwrap();
    let mut told = String::new();
    let error = Store::open_with(&home, &cancel, &mut |holder| {
        told = holder.text.clone();
        cancel.cancel();
    });
    assert!(matches!(error, Err(StoreError::Cancelled | StoreError::Lock(_))), "{error:?}");
    assert!(told.contains("baking"), "{told}");
    let mut held = Some(held);
    let store = Store::open_with(&home, &Cancel::new().unwrap(), &mut |_| drop(held.take())).unwrap();
    check_migrated(&store);
}
