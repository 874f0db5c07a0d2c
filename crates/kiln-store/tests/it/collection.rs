//! What is kept, what goes, and in which order.

use crate::Fixture;
use kiln_core::{ByteSize, Digest, Tag, TemplateName};
use kiln_store::{CollectPolicy, Root, StoreError};
use kiln_sys::lock::Share;
use std::time::Duration;

fn web() -> TemplateName {
    "web".parse().unwrap()
}

fn tag(fixture: &Fixture, name: &str, revision: &Digest) {
    fixture.store.set_tag(&web(), &name.parse::<Tag>().unwrap(), revision, "tag").unwrap();
}

fn policy(keep_last: usize) -> CollectPolicy {
    CollectPolicy { keep_last, ..CollectPolicy::default() }
}

/// Collects, and returns the revisions that went.
fn collect(fixture: &Fixture, policy: &CollectPolicy) -> Vec<Digest> {
    let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
    let plan = fixture.store.plan_collection(policy).unwrap();
    fixture.store.collect(&plan, &alone).unwrap();
    plan.revisions.iter().map(|dead| dead.id).collect()
}

#[test]
fn what_no_root_keeps_goes_and_what_is_shared_stays() {
    let fixture = Fixture::new();
    let ids: Vec<Digest> =
        (0..4).map(|n| fixture.revision(b"one kernel", format!("rootfs {n}").as_bytes())).collect();
    for id in &ids[..3] {
        tag(&fixture, "latest", id);
    }
    assert_eq!(fixture.store.why(&ids[2], 2).unwrap(), [Root::Tag { template: web(), tag: Tag::latest() }]);
    let former = Root::Former { template: web(), tag: Tag::latest(), back: 1 };
    assert_eq!(fixture.store.why(&ids[1], 2).unwrap(), [former]);
    assert_eq!(fixture.store.why(&ids[0], 2).unwrap(), []);
    let mut gone = collect(&fixture, &policy(2));
    gone.sort();
    let mut want = vec![ids[0], ids[3]];
    want.sort();
    assert_eq!(gone, want);
    let left = fixture.store.revision(&ids[2]).unwrap().manifest;
    for artifact in &left.artifacts {
        fixture.store.check_artifact(&artifact.digest, artifact.size).unwrap();
    }
    assert_eq!(fixture.store.artifact_ids().unwrap().len(), 3, "a kernel and two root file systems");
    assert!(matches!(fixture.store.revision(&ids[0]), Err(StoreError::NotFound { .. })));
    // What a dead process left goes also where nothing else does.
    let half = fixture.store.root().join("indexes/.aside-0123456789abcdef");
    std::fs::write(&half, "half").unwrap();
    assert_eq!(collect(&fixture, &policy(2)), Vec::<Digest>::new(), "a second time finds nothing");
    assert!(!half.exists());
    // The same content comes back as the same revision.
    assert_eq!(fixture.revision(b"one kernel", b"rootfs 0"), ids[0]);
}

#[test]
fn the_trash_waits_for_the_grace() {
    let fixture = Fixture::new();
    fixture.revision(b"kernel", b"rootfs");
    collect(&fixture, &policy(1));
    let held = fixture.store.trash_bytes().unwrap();
    assert!(held > ByteSize::from_bytes(0));
    assert_eq!(fixture.store.empty_trash(Duration::from_secs(3600)).unwrap(), ByteSize::from_bytes(0));
    assert_eq!(fixture.store.trash_bytes().unwrap(), held);
    assert_eq!(fixture.store.empty_trash(Duration::ZERO).unwrap(), held);
    assert_eq!(fixture.store.trash_bytes().unwrap(), ByteSize::from_bytes(0));
    assert_eq!(std::fs::read_dir(fixture.store.root().join("trash")).unwrap().count(), 0);
}

#[test]
fn leases_keep_until_they_end() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"rootfs");
    let lease = fixture.store.take_lease(&id, "a test", Duration::from_secs(3600)).unwrap();
    assert_eq!(collect(&fixture, &policy(1)), []);
    let reason = Root::Lease { id: lease.id.clone(), reason: "a test".to_owned() };
    assert_eq!(fixture.store.why(&id, 1).unwrap(), [reason]);
    let remove = || {
        let alone = fixture.store.lock(Share::Exclusive, "a test", &fixture.cancel, &mut |_| ()).unwrap();
        fixture.store.remove_revision(&id, &alone)
    };
    let Err(StoreError::Leased { revision, leases }) = remove() else { panic!("a leased revision went") };
    assert_eq!((revision, leases), (id, vec![lease.id.clone()]));
    fixture.store.renew_lease(&lease.id, Duration::ZERO).unwrap();
    assert!(matches!(
        fixture.store.renew_lease(&lease.id, Duration::from_secs(9)),
        Err(StoreError::NotFound { kind: "lease", .. })
    ));
    assert_eq!(collect(&fixture, &policy(1)), [id]);
    fixture.store.release_lease(&lease.id).unwrap();
    fixture.store.release_lease(&lease.id).unwrap();
    fixture.store.release_lease("../meta").unwrap();
    assert_eq!(fixture.store.leases().unwrap(), []);
    assert!(matches!(
        fixture.store.take_lease(&id, "gone", Duration::from_secs(9)),
        Err(StoreError::NotFound { .. })
    ));
}

#[test]
fn what_cannot_be_read_keeps_everything() {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", b"rootfs");
    let leases = fixture.store.root().join("leases");
    std::fs::write(leases.join("0123456789abcdef.json"), "{").unwrap();
    assert!(matches!(fixture.store.plan_collection(&policy(1)), Err(StoreError::Damaged { .. })));
    std::fs::remove_file(leases.join("0123456789abcdef.json")).unwrap();
    let machine = fixture.store.root().join("machines/0123456789ab");
    std::fs::create_dir(&machine).unwrap();
    std::fs::write(machine.join("machine.json"), "{").unwrap();
    assert!(matches!(fixture.store.plan_collection(&policy(1)), Err(StoreError::Damaged { .. })));
    std::fs::remove_dir_all(machine).unwrap();
    // A revision that cannot be read may name any artifact.
    let other = Digest::of(b"x").hex();
    let path = fixture.store.root().join("revisions").join(format!("{other}.json"));
    std::fs::write(&path, "{}").unwrap();
    let plan = fixture.store.plan_collection(&policy(1)).unwrap();
    assert_eq!((plan.revisions.len(), plan.artifacts.len(), plan.unreadable.len()), (1, 0, 1));
    std::fs::remove_file(path).unwrap();
    assert_eq!(collect(&fixture, &policy(1)), [id]);
    assert_eq!(fixture.store.artifact_ids().unwrap(), []);
}

#[test]
fn age_and_budget_keep_the_young() {
    let fixture = Fixture::new();
    let ids: Vec<Digest> =
        (0..3).map(|n| fixture.revision(&[n; 4096], format!("rootfs {n}").as_bytes())).collect();
    for (id, built) in ids.iter().zip([1_000, 2_000, 3_000]) {
        let path = fixture.store.root().join("revisions").join(format!("{}.build.json", id.hex()));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record["built_unix_ms"] = built.into();
        std::fs::write(&path, record.to_string()).unwrap();
    }
    let dead = |policy: &CollectPolicy| -> Vec<Digest> {
        fixture.store.plan_collection(policy).unwrap().revisions.iter().map(|dead| dead.id).collect()
    };
    let all = CollectPolicy::default();
    assert_eq!(dead(&all), ids, "the oldest first");
    assert_eq!(dead(&CollectPolicy { older_than: Duration::from_secs(60), ..all }), ids);
    let ever = Duration::from_secs(1 << 40);
    assert_eq!(dead(&CollectPolicy { older_than: ever, ..all }), []);
    let total = fixture.store.plan_collection(&all).unwrap().freed();
    assert_eq!(dead(&CollectPolicy { budget: Some(total), ..all }), []);
    let less = ByteSize::from_bytes(total.bytes() - 1);
    assert_eq!(dead(&CollectPolicy { budget: Some(less), ..all }), [ids[0]]);
    assert_eq!(dead(&CollectPolicy { budget: Some(ByteSize::from_bytes(0)), ..all }), ids);
}

#[test]
fn a_removed_tag_keeps_its_log_and_comes_back() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.revision(b"kernel", b"one"), fixture.revision(b"kernel", b"two"));
    tag(&fixture, "v1", &one);
    tag(&fixture, "v1", &two);
    let name: Tag = "v1".parse().unwrap();
    fixture.store.remove_tag(&web(), &name).unwrap();
    fixture.store.remove_tag(&web(), &name).unwrap();
    assert!(fixture.store.template(&web()).unwrap().is_none());
    let removed = fixture.store.removed_tag(&web(), &name).unwrap().unwrap();
    assert_eq!(removed.revisions(), [two, one]);
    fixture.store.restore_tag(&web(), &name).unwrap();
    assert_eq!(fixture.store.template(&web()).unwrap().unwrap().tags[&name], removed);
    assert!(fixture.store.restore_tag(&web(), &name).is_err(), "it never replaces one");
}
