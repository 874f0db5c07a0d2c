use crate::{Fixture, record};
use kiln_core::revision::Manifest;
use kiln_core::{ArtifactRole, Digest, Reference, Tag};
use kiln_store::{Store, StoreError};
use kiln_sys::lock::Share;

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[test]
fn equal_content_is_one_revision_and_its_build_is_beside_it() {
    let fixture = Fixture::new();
    let one = fixture.revision(b"kernel", b"root");
    let two = fixture.revision(b"kernel", b"root");
    assert_eq!(one, two);
    assert_eq!(fixture.store.revision_ids().unwrap(), [one]);
    assert_eq!(fixture.store.build_record(&one).unwrap(), Some(record()));
}

#[test]
fn a_revision_without_its_files_is_not_committed() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    let mut manifest: Manifest = fixture.store.revision(&id).unwrap().manifest;
    manifest.artifacts[1].digest = Digest::of(b"not there");
    let error = fixture.store.commit_revision(&manifest, &record()).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { kind: "artifact", .. }));
    assert_eq!(fixture.store.revision_ids().unwrap(), [id]);
}

#[test]
fn tags_keep_a_log_and_pins_are_compared() {
    let fixture = Fixture::new();
    let name = "web".parse().unwrap();
    let (one, two) = (fixture.revision(b"kernel", b"one"), fixture.revision(b"kernel", b"two"));
    let store = &fixture.store;
    store.set_tag(&name, &Tag::latest(), &one, "build").unwrap();
    store.set_tag(&name, &Tag::latest(), &one, "build").unwrap();
    store.set_tag(&name, &Tag::latest(), &two, "build").unwrap();
    let entry = store.template(&name).unwrap().unwrap();
    let log: Vec<_> = entry.tags[&Tag::latest()].log.iter().map(|step| (step.from, step.to)).collect();
    assert_eq!(log, [(None, one), (Some(one), two)]);
    assert_eq!(store.resolve(&reference("web")).unwrap().id, two);
    assert_eq!(store.resolve(&reference(&format!("web@{one}"))).unwrap().id, one);
    let stranger = fixture.revision(b"kernel", b"three");
    let error = store.resolve(&reference(&format!("web@{stranger}"))).unwrap_err();
    assert!(matches!(error, StoreError::NotOfTemplate { .. }), "somebody else's revision under this name");
    assert_eq!(store.resolve(&reference(&one.to_string()[..20])).unwrap().id, one);
    assert!(matches!(store.resolve(&reference("web:v1")), Err(StoreError::NoTag { .. })));
    let Err(StoreError::NotFound { similar, .. }) = store.resolve(&reference("wev")) else { panic!() };
    assert_eq!(similar, ["web"]);
}

#[test]
fn a_tag_that_cannot_be_read_is_one_line_and_hides_no_other() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    let store = &fixture.store;
    for name in ["db", "web"] {
        store.set_tag(&name.parse().unwrap(), &Tag::latest(), &id, "build").unwrap();
    }
    std::fs::write(store.root().join("templates/db/tags/latest.json"), "{").unwrap();
    let tags = store.tags().unwrap();
    let names: Vec<&str> = tags.iter().map(|entry| entry.template.as_str()).collect();
    assert_eq!(names, ["db", "web"]);
    assert!(matches!(tags[0].record, Err(StoreError::Damaged { .. })));
    assert_eq!(tags[1].record.as_ref().unwrap().revision, id);
    let disks = store.disks(&fixture.cancel);
    let templates = disks.templates().unwrap();
    assert_eq!((templates[0].revision, templates[1].revision), (None, Some(id)));
    assert!(templates[0].rootfs.is_err() && templates[1].rootfs.is_ok());
    // Others are found, and what is not there is not found.
    assert_eq!(store.resolve(&reference("web")).unwrap().id, id);
    let missing = store.resolve(&reference("wev")).unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { kind: "template", similar, .. } if similar == ["web"]));
    // It may point to anything.
    assert!(matches!(store.templates(), Err(StoreError::Damaged { .. })));
    assert!(matches!(store.roots(1), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_template_that_is_a_link_is_one_wherever_it_is_looked_for() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    fixture.store.set_tag(&"web".parse().unwrap(), &Tag::latest(), &id, "build").unwrap();
    std::os::unix::fs::symlink("web", fixture.store.root().join("templates/www")).unwrap();
    let found = fixture.store.template(&"www".parse().unwrap()).unwrap();
    let listed = fixture.store.templates().unwrap();
    assert_eq!(found.as_ref(), listed.iter().find(|entry| entry.name.as_str() == "www"));
    assert!(found.is_some(), "its revision is kept as its tag says");
}

#[test]
fn names_that_are_none_of_the_stores_are_left_alone() {
    use std::os::unix::ffi::OsStrExt as _;
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    let store = &fixture.store;
    for tag in ["v1", "v1.json"] {
        store.set_tag(&"web".parse().unwrap(), &tag.parse().unwrap(), &id, "tag").unwrap();
    }
    let look = || {
        let tags: Vec<String> = store.tags().unwrap().iter().map(|entry| entry.tag.to_string()).collect();
        let (revisions, artifacts) = (store.revision_ids().unwrap(), store.artifact_ids().unwrap());
        let (leases, owners) = (store.leases().unwrap(), store.disk_owners().unwrap());
        (tags, revisions, artifacts, leases.len(), owners.len(), store.machines().unwrap().len())
    };
    let before = look();
    assert_eq!(before.0, ["v1", "v1.json"], "a name that ends so is another name");
    let strays: [&[u8]; 6] = [b"README", b"with space", b"UPPER", b"\xff\xfe", b".hidden.json", b"a\nb"];
    let mut left = Vec::new();
    for dir in
        ["artifacts", "indexes", "revisions", "templates/web/tags", "leases", "clones", "machines", "staging"]
    {
        for stray in strays {
            let path = store.root().join(dir).join(std::ffi::OsStr::from_bytes(stray));
            std::fs::write(&path, "?").unwrap();
            left.push(path);
        }
    }
    assert_eq!(look(), before);
    store.sweep_staging().unwrap();
    let alone = store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    let plan = store.plan_collection(&kiln_store::CollectPolicy::default()).unwrap();
    assert_eq!((plan.revisions.len(), plan.artifacts.len()), (0, 0));
    store.remove_tag(&"web".parse().unwrap(), &"v1".parse().unwrap()).unwrap();
    store.remove_tag(&"web".parse().unwrap(), &"v1.json".parse().unwrap()).unwrap();
    let plan = store.plan_collection(&kiln_store::CollectPolicy::default()).unwrap();
    store.collect(&plan, &alone).unwrap();
    assert_eq!(store.artifact_ids().unwrap(), []);
    assert!(left.iter().all(|path| path.exists()), "nothing of others went");
}

#[test]
fn a_tag_to_nothing_is_refused() {
    let fixture = Fixture::new();
    let name = "web".parse().unwrap();
    let error = fixture.store.set_tag(&name, &Tag::latest(), &Digest::of(b"x"), "tag").unwrap_err();
    assert!(matches!(error, StoreError::NotFound { kind: "revision", .. }));
    assert!(fixture.store.template(&name).unwrap().is_none());
}

#[test]
fn a_manifest_that_was_changed_is_damaged() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"root");
    let path = fixture.store.root().join("revisions").join(format!("{}.json", id.hex()));
    // A manifest that is whole, and not the one it is called by.
    let other = fixture.revision(b"kernel", b"another root");
    let other = path.with_file_name(format!("{}.json", other.hex()));
    for bytes in [b"{}".to_vec(), std::fs::read(other).unwrap()] {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(fixture.store.revision(&id), Err(StoreError::Damaged { .. })));
    }
}

#[test]
fn removing_a_revision_keeps_what_others_share() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.revision(b"kernel", b"one"), fixture.revision(b"kernel", b"two"));
    let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    let removed = fixture.store.remove_revision(&one, &alone).unwrap();
    assert_eq!(removed.artifacts.len(), 1);
    let left = fixture.store.revision(&two).unwrap().manifest;
    for artifact in &left.artifacts {
        fixture.store.check_artifact(&artifact.digest, artifact.size).unwrap();
    }
    assert_eq!(left.artifact(&ArtifactRole::kernel()).unwrap().size.bytes(), 6);
}

#[test]
fn a_cached_build_counts_only_while_it_is_whole() {
    let fixture = Fixture::new();
    let (store, key) = (&fixture.store, Digest::of(b"key"));
    assert!(store.cached_build(&key, &fixture.cancel).unwrap().is_none());
    let id = fixture.revision(b"kernel", b"root");
    store.remember_build(&key, &id).unwrap();
    assert_eq!(store.cached_build(&key, &fixture.cancel).unwrap().unwrap().id, id);
    let rootfs = store.revision(&id).unwrap().manifest.artifacts[1].digest;
    std::fs::remove_file(store.artifact_path(&rootfs)).unwrap();
    assert!(store.cached_build(&key, &fixture.cancel).unwrap().is_none(), "an artifact is gone");
    std::fs::write(store.root().join("cache/v1/builds").join(key.hex()), "garbage").unwrap();
    assert!(store.cached_build(&key, &fixture.cancel).unwrap().is_none());
}

#[test]
fn builds_of_revisions_that_are_gone_are_forgotten() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let (one, two) = (fixture.revision(b"kernel", b"one"), fixture.revision(b"kernel", b"two"));
    let keys = [b"a", b"b", b"c", b"d"].map(|key| Digest::of(key));
    for (key, id) in keys.iter().zip([&one, &one, &two]) {
        store.remember_build(key, id).unwrap();
    }
    let builds = store.root().join("cache/v1/builds");
    std::fs::write(builds.join(keys[3].hex()), "garbage").unwrap();
    std::fs::write(builds.join("not-a-key"), "").unwrap();
    let alone = store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    store.remove_revision(&one, &alone).unwrap();
    assert_eq!(store.forget_builds().unwrap(), 3, "two of the revision, and what names none");
    assert_eq!(store.forget_builds().unwrap(), 0);
    assert_eq!(store.cached_build(&keys[2], &fixture.cancel).unwrap().unwrap().id, two);
    assert_eq!(std::fs::read_dir(builds).unwrap().count(), 2, "what is no entry of the cache is left alone");
}

#[test]
fn an_interrupted_creation_is_finished() {
    let fixture = Fixture::new();
    let home = fixture.dir.path().join("other");
    std::fs::create_dir_all(home.join("artifacts")).unwrap();
    std::fs::write(home.join(".aside-0123"), b"half").unwrap();
    Store::open(&home).unwrap();
    assert!(home.join("meta.json").exists() && home.join("machines").exists());
}
