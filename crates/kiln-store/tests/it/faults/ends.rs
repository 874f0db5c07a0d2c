//! Every operation, ended at every point: by death and by errors.

use super::op::{Fault, Op, Outcome};
use super::{Bench, WORKER};
use kiln_core::Digest;
use kiln_core::machine::CloneMethod;
use kiln_store::{CloneChoice, CloneRequest, ClonedDisk, Store, StoreResult};
use kiln_sys::fail::{disarm, trace};
use kiln_testing::{Served, Worker, fail_points};
use std::collections::BTreeSet;
use std::path::Path;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const SIGKILL: i32 = 9;

const BUILD: Op = Op::Build { content: 0, template: 0 };
const OTHER: Op = Op::Build { content: 1, template: 0 };
const MACHINE: Op = Op::Machine { slot: 0, content: 0, method: None };
const COPY: Op = Op::Machine { slot: 0, content: 0, method: Some(CloneMethod::Copy) };
const SNAPSHOT: Op = Op::Snapshot { content: 0 };
const TABLE: Op = Op::Build { content: super::op::TABLE, template: 0 };
const GROWN: Op = Op::Grown { slot: 0, content: super::op::TABLE, method: Some(CloneMethod::Copy) };
const GROWN_OVERLAY: Op =
    Op::Grown { slot: 0, content: super::op::TABLE, method: Some(CloneMethod::Overlay) };

/// Each operation, and what was done before it.
const SCENES: [(&[Op], Op); 18] = [
    (&[], Op::Open),
    (&[Op::Open], BUILD),
    (&[BUILD], OTHER),
    (&[BUILD], BUILD),
    (&[BUILD, OTHER], Op::Tag { content: 0, template: 0 }),
    (&[BUILD, Op::Tag { content: 0, template: 0 }], Op::Untag { template: 0 }),
    (&[BUILD, OTHER], Op::Remove { content: 1 }),
    (&[BUILD], SNAPSHOT),
    (&[BUILD, SNAPSHOT], SNAPSHOT),
    (&[BUILD, OTHER, SNAPSHOT], Op::Forget { content: 0 }),
    (&[BUILD, OTHER, Op::Snapshot { content: 1 }], Op::Remove { content: 1 }),
    (&[BUILD], MACHINE),
    (&[BUILD], COPY),
    (&[TABLE], GROWN),
    (&[TABLE], GROWN_OVERLAY),
    (&[BUILD, MACHINE], Op::Status { slot: 0 }),
    (&[BUILD, MACHINE], Op::Discard { slot: 0 }),
    (&[BUILD], Op::Sweep),
];

/// Makes the bench of a scene; a sweep finds something to do.
fn scene(before: &[Op], op: Op) -> Bench {
    let bench = Bench::new().with(before);
    if op == Op::Sweep {
        let staging = bench.home.join("staging");
        std::fs::write(bench.home.join("revisions/.aside-0123456789abcdef"), b"half").unwrap();
        for name in ["0123456789abcdef", "123456789abcdef0"] {
            std::fs::create_dir(staging.join(name)).unwrap();
            std::fs::write(staging.join(name).join("file"), b"half").unwrap();
            std::fs::write(staging.join(format!("{name}.lock")), b"").unwrap();
        }
    }
    bench
}

/// Returns the points an operation passes, and checks that it does what its twin does.
fn points(before: &[Op], op: Op) -> Vec<&'static str> {
    let bench = scene(before, op);
    let mut twin = if before.is_empty() { super::Twin::default() } else { bench.twin() };
    let (outcome, points) = trace(|| bench.run(op));
    assert_eq!(outcome, twin.run(op, &bench.sources), "{op:?}");
    assert_eq!(bench.twin(), twin, "{op:?}");
    points
}

/// Checks a store in which `op` was ended at a point, and does it again.
#[track_caller]
fn check_and_retry(bench: &Bench, steps: &[super::Twin], op: Op, what: &dyn std::fmt::Debug) {
    bench.check(what);
    let mut twin = bench.twin();
    assert!(steps.contains(&twin), "after {what:?} the store is in none of the states of {op:?}: {twin:#?}");
    let expected = twin.run(op, &bench.sources);
    assert_eq!(bench.run(op), expected, "again after {what:?}");
    assert_eq!(bench.twin(), twin, "again after {what:?}");
    bench.check(&("a second try", what));
}

fn steps(bench: &Bench, before: &[Op], op: Op) -> Vec<super::Twin> {
    let twin = if before.is_empty() { super::Twin::default() } else { bench.twin() };
    twin.steps(op, &bench.sources).0
}

#[test]
fn no_point_is_dead() {
    let mut passed: BTreeSet<String> = BTreeSet::new();
    for (before, op) in SCENES {
        passed.extend(points(before, op).into_iter().map(str::to_owned));
    }
    // Who loses the race to make a store meets the winner's file.
    let dir = Bench::new().with(&[Op::Open]);
    let keep = kiln_sys::commit::Existing::Keep;
    let meta = dir.home.join("meta.json");
    let (_, points) = trace(|| kiln_sys::commit::write_file(&meta, b"{}", 0o644, keep));
    passed.extend(points.into_iter().map(str::to_owned));
    // An older store is migrated by whatever opens it.
    let old = Bench::old();
    let (outcome, points) = trace(|| old.run(Op::Open));
    assert_eq!(outcome, Outcome::Ok);
    passed.extend(points.into_iter().map(str::to_owned));
    let bench = Bench::new().with(&[BUILD]);
    let (_, points) = trace(|| make_disk(&bench.store(), &bench.sources.id(0)));
    passed.extend(points.into_iter().map(str::to_owned));
    let fixture = crate::Fixture::new();
    let revision = fixture.revision(b"kernel", b"rootfs");
    let (_, points) = trace(|| crate::snapshots::publish_and_remove(&fixture, revision));
    passed.extend(points.into_iter().map(str::to_owned));
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut known = fail_points(&crates.join("kiln-store/src"));
    known.extend(fail_points(&crates.join("kiln-sys/src")));
    let dead: Vec<_> = known.difference(&passed).collect();
    assert!(dead.is_empty(), "no operation passes {dead:?}");
    assert!(known.len() > 40, "{known:?}");
}

#[test]
fn a_death_at_any_point_leaves_a_whole_store_and_the_work_can_be_done_again() {
    let mut deaths = 0;
    for (before, op) in SCENES {
        let mut worker = Worker::spawn(WORKER);
        for (point, nth) in points(before, op).into_iter().zip(1..) {
            let bench = scene(before, op);
            let steps = steps(&bench, before, op);
            worker.order(&bench.order(op, Some((nth, Fault::Kill))));
            assert_eq!(worker.served(), Served::Died(SIGKILL), "{op:?} at {point}, pass {nth}");
            worker = Worker::spawn(WORKER);
            check_and_retry(&bench, &steps, op, &(op, "killed at", point, nth));
            deaths += 1;
        }
    }
    assert!(deaths > 200, "{deaths}");
}

#[test]
fn an_error_at_any_point_is_typed_and_the_work_can_be_done_again() {
    for (before, op) in SCENES {
        for (point, nth) in points(before, op).into_iter().zip(1..) {
            for number in [ENOSPC, EIO] {
                let bench = scene(before, op);
                let steps = steps(&bench, before, op);
                Fault::Error(number).arm(nth);
                let outcome = bench.run(op);
                assert!(!disarm(), "{op:?} did not pass {point}");
                match outcome {
                    // What cannot be cleaned up is left to a sweep, which is no error.
                    Outcome::Ok => {
                        let harmless = point.starts_with("stage.") || point.starts_with("sweep.");
                        assert!(harmless || point == "lock.name", "{op:?} hides an error at {point}");
                    }
                    Outcome::NoSpace => assert_eq!(number, ENOSPC),
                    Outcome::Other(text) => assert!(number == EIO && text.contains("code: 5"), "{text}"),
                    other => panic!("{op:?} with error {number} at {point}: {other:?}"),
                }
                check_and_retry(&bench, &steps, op, &(op, "error", number, point, nth));
            }
        }
    }
}

#[test]
fn a_migration_that_is_killed_anywhere_is_finished_by_the_next_opening() {
    let (outcome, points) = {
        let old = Bench::old();
        trace(|| old.run(Op::Open))
    };
    assert_eq!(outcome, Outcome::Ok);
    for fault in [Fault::Kill, Fault::Error(ENOSPC)] {
        let mut worker = Worker::spawn(WORKER);
        for (point, nth) in points.iter().zip(1..) {
            let old = Bench::old();
            worker.order(&old.order(Op::Open, Some((nth, fault))));
            let served = worker.served();
            if fault == Fault::Kill {
                assert_eq!(served, Served::Died(SIGKILL), "{point}");
                worker = Worker::spawn(WORKER);
            }
            assert_eq!(old.run(Op::Open), Outcome::Ok, "after {fault:?} at {point}");
            crate::migration::check_migrated(&old.store());
            old.check(&(fault, "at", point));
        }
    }
}

#[test]
fn what_cannot_be_swept_keeps_nothing_else() {
    let bench = scene(&[BUILD], Op::Sweep);
    kiln_sys::fail::arm("sweep.tree", 1, kiln_sys::fail::Action::Error(EIO));
    assert!(matches!(bench.run(Op::Sweep), Outcome::Other(_)));
    let left = kiln_sys::fs::list_dir(&bench.home.join("staging")).unwrap();
    assert_eq!(left, ["0123456789abcdef", "0123456789abcdef.lock"], "the other is gone");
    bench.check(&"a second sweep");
}

#[test]
fn a_disk_that_fails_to_be_made_leaves_no_file() {
    let bench = Bench::new().with(&[BUILD]);
    let store = bench.store();
    let artifact = store.revision(&bench.sources.id(0)).unwrap().manifest.artifacts[1].clone();
    let cancel = kiln_sys::Cancel::new().unwrap();
    let exactly = |method| CloneChoice::Exactly(method);
    for choice in [CloneChoice::Auto, exactly(CloneMethod::Copy), exactly(CloneMethod::Overlay)] {
        let dir = bench.home.with_file_name("disks");
        std::fs::create_dir(&dir).unwrap();
        let request =
            CloneRequest { digest: artifact.digest, size: artifact.size, dir: &dir, stem: "disk", choice };
        let (made, points) = trace(|| store.clone_artifact(&request, &cancel));
        let name = format!("disk.{}", made.unwrap().method.extension());
        assert_eq!(kiln_sys::fs::list_dir(&dir).unwrap(), [name.as_str()], "{choice:?}");
        std::fs::remove_file(dir.join(name)).unwrap();
        for (point, nth) in points.iter().zip(1..) {
            Fault::Error(ENOSPC).arm(nth);
            store.clone_artifact(&request, &cancel).unwrap_err();
            assert!(kiln_sys::fs::list_dir(&dir).unwrap().is_empty(), "{choice:?} at {point}");
        }
        std::fs::remove_dir(&dir).unwrap();
    }
}

/// Makes the disk of the owner `vm`.
fn make_disk(store: &Store, revision: &Digest) -> StoreResult<ClonedDisk> {
    let (cancel, owner) = (kiln_sys::Cancel::new().unwrap(), "vm".parse().unwrap());
    let (reference, copy) = (revision.to_string().parse().unwrap(), CloneChoice::Exactly(CloneMethod::Copy));
    store.disks(&cancel).clone_for(&owner, &reference, copy)
}

#[test]
fn an_owner_has_a_whole_synced_disk_or_none() {
    let bench = Bench::new().with(&[BUILD]);
    let (store, cancel) = (bench.store(), kiln_sys::Cancel::new().unwrap());
    let (disks, owner) = (store.disks(&cancel), "vm".parse().unwrap());
    let make = || make_disk(&store, &bench.sources.id(0));
    let (made, points) = trace(make);
    let path = made.unwrap().disk.path();
    let (whole, at) = (std::fs::read(&path).unwrap(), |name| points.iter().position(|point| *point == name));
    let synced = [at("commit.staged-sync"), at("disk.sync"), at("commit.dir-sync")];
    assert!(synced.iter().all(|step| step.is_some() && *step < at("commit.dir-rename")), "{points:?}");
    assert!(at("commit.dir-rename") < at("commit.parent-sync"), "{points:?}");
    assert!(disks.release(&owner).unwrap());
    for (point, nth) in points.iter().zip(1..) {
        Fault::Error(ENOSPC).arm(nth);
        let made = make();
        kiln_sys::fail::disarm();
        match disks.get(&owner).unwrap() {
            // A lock without a name and a directory that is left to a sweep fail nothing.
            Some(disk) => assert_eq!(std::fs::read(disk.path()).unwrap(), whole, "{point}"),
            None => assert!(made.is_err(), "{point}"),
        }
        disks.release(&owner).unwrap();
        store.sweep_staging().unwrap();
    }
}

#[test]
fn a_removal_sweeps_what_dead_processes_wrote_aside() {
    let bench = Bench::new().with(&[BUILD, OTHER]);
    let beside = ["revisions", "indexes", "cache/v1/builds", "templates/web", "templates/web/tags", "."];
    for directory in beside {
        std::fs::create_dir_all(bench.home.join(directory)).unwrap();
        std::fs::write(bench.home.join(directory).join(".aside-0123456789abcdef"), b"half").unwrap();
    }
    assert_eq!(kiln_testing::check_swept(&bench.store()).len(), beside.len());
    assert_eq!(bench.run(Op::Remove { content: 1 }), Outcome::Ok);
    assert!(kiln_testing::check_swept(&bench.store()).is_empty());
}
