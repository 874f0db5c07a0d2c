//! Two processes at once. However they meet, the end is that of one after the other.

use super::op::{Fault, Op, Outcome, outcome, run};
use super::{Bench, Twin, WORKER};
use kiln_store::{Store, StoreError};
use kiln_sys::fail::trace;
use kiln_testing::{Served, Worker};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};

const BUILD: Op = Op::Build { content: 0, template: 0 };
const MACHINE: Op = Op::Machine { slot: 0, content: 0, method: None };

/// What is there when two meet.
const BEFORE: [Op; 3] =
    [BUILD, Op::Build { content: 1, template: 1 }, Op::Machine { slot: 1, content: 0, method: None }];

/// What they do, each against each and against itself.
const RACERS: [Op; 11] = [
    BUILD,
    Op::Build { content: 2, template: 0 },
    Op::Build { content: 2, template: 1 },
    Op::Tag { content: 0, template: 0 },
    Op::Tag { content: 1, template: 0 },
    Op::Untag { template: 0 },
    Op::Remove { content: 0 },
    Op::Remove { content: 1 },
    MACHINE,
    Op::Discard { slot: 1 },
    Op::Sweep,
];

fn pairs() -> impl Iterator<Item = (Op, Op)> {
    RACERS.into_iter().flat_map(|one| RACERS.into_iter().map(move |two| (one, two)))
}

fn bench() -> Bench {
    let bench = Bench::new().with(&BEFORE);
    let staging = bench.home.join("staging");
    std::fs::create_dir(staging.join("0123456789abcdef")).unwrap();
    std::fs::write(staging.join("0123456789abcdef.lock"), b"").unwrap();
    bench
}

/// Checks that the store and both outcomes are those of one order or the other.
#[track_caller]
fn check(
    bench: &Bench,
    before: &Twin,
    ops: (Op, Op),
    outcomes: (Outcome, Outcome),
    what: &dyn std::fmt::Debug,
) {
    bench.check(what);
    let found = bench.twin();
    let (mut first, mut second) = (before.clone(), before.clone());
    let forth = (first.run(ops.0, &bench.sources), first.run(ops.1, &bench.sources));
    let back = (second.run(ops.1, &bench.sources), second.run(ops.0, &bench.sources));
    let serial = found == first && outcomes == forth || found == second && (outcomes.1, outcomes.0) == back;
    let outcomes = (forth, back);
    assert!(serial, "{what:?}: in one order {outcomes:?}; found {found:#?}");
}

fn answer(served: &Served) -> Outcome {
    match served {
        Served::Answer(text) => serde_json::from_str(text).unwrap(),
        Served::Died(signal) => panic!("a worker died of {signal}"),
    }
}

#[test]
fn two_that_start_at_once_end_as_one_after_the_other() {
    let (mut left, mut right) = (Worker::spawn(WORKER), Worker::spawn(WORKER));
    for round in 0..3 {
        for ops in pairs() {
            let bench = bench();
            let before = bench.twin();
            left.order(&bench.order(ops.0, None));
            right.order(&bench.order(ops.1, None));
            let outcomes = (answer(&left.served()), answer(&right.served()));
            check(&bench, &before, ops, outcomes.clone(), &(ops, outcomes, round));
        }
    }
}

#[test]
fn a_store_made_by_many_at_once_is_one() {
    let mut workers: Vec<_> = (0..4).map(|_| Worker::spawn(WORKER)).collect();
    for _ in 0..50 {
        let bench = Bench::new();
        for worker in &mut workers {
            worker.order(&bench.order(Op::Open, None));
        }
        for worker in &mut workers {
            assert_eq!(answer(&worker.served()), Outcome::Ok);
        }
        bench.check(&"opening");
    }
}

/// One stops at a point, the other does all its work there, or waits for the first one's lock.
#[test]
fn whatever_is_done_while_another_stands_at_any_point_is_done_before_or_after_it() {
    let mut worker = Worker::spawn(WORKER);
    for ops in pairs() {
        let points = {
            let bench = bench();
            trace(|| bench.run(ops.0)).1
        };
        let mut nth = 1;
        while let Some(point) = points.get(nth - 1) {
            let bench = bench();
            let before = bench.twin();
            worker.order(&bench.order(ops.0, Some((u32::try_from(nth).unwrap(), Fault::Pause))));
            assert!(worker.paused(), "{ops:?} at {point}");
            let waited = Cell::new(false);
            let shared = RefCell::new(&mut worker);
            let second = outcome(&run(&bench.home, &bench.sources, ops.1, &|| {
                if !waited.replace(true) {
                    shared.borrow_mut().go_on();
                }
            }));
            if !waited.get() {
                worker.go_on();
            }
            let outcomes = (answer(&worker.served()), second);
            check(&bench, &before, ops, outcomes.clone(), &(ops, outcomes, "at", point, nth));
            // Where one lock has kept the other out, it does so at the next points too.
            nth += if waited.get() { 25 } else { 1 };
        }
    }
}

/// As above, for those that find no store and make it.
#[test]
fn a_store_is_made_while_another_stands_at_any_point_of_making_it() {
    let mut worker = Worker::spawn(WORKER);
    let points = {
        let bench = Bench::new();
        trace(|| bench.run(Op::Open)).1
    };
    for (point, nth) in points.into_iter().zip(1..) {
        let bench = Bench::new();
        worker.order(&bench.order(Op::Open, Some((nth, Fault::Pause))));
        assert!(worker.paused(), "at {point}");
        assert_eq!(bench.run(BUILD), Outcome::Ok, "while another stands at {point}");
        let store = bench.store();
        let alone = store
            .lock(kiln_sys::lock::Share::Exclusive, "a test", &kiln_sys::Cancel::new().unwrap(), &mut |_| ())
            .unwrap();
        store.sweep_asides(&alone).unwrap();
        drop(alone);
        worker.go_on();
        assert_eq!(answer(&worker.served()), Outcome::Ok, "at {point}");
        bench.check(&point);
        assert!(bench.twin().revisions.contains(&0));
    }
}

/// Readers take no lock: whatever they see is whole, or gone.
#[test]
fn who_reads_while_others_work_sees_whole_things_only() {
    let bench = bench();
    let mut worker = Worker::spawn(WORKER);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (store, mut looks) = (bench.store(), 0_u32);
            while !done.load(Ordering::Relaxed) || looks == 0 {
                read_all(&store);
                looks += 1;
            }
            looks
        });
        let cycle = [
            Op::Build { content: 4, template: 0 },
            Op::Build { content: 2, template: 0 },
            Op::Tag { content: 4, template: 1 },
            Op::Machine { slot: 0, content: 4, method: None },
            Op::Status { slot: 0 },
            Op::Discard { slot: 0 },
            Op::Untag { template: 1 },
            Op::Remove { content: 2 },
            Op::Remove { content: 4 },
        ];
        // A failure of the worker must not leave the reader at work.
        let outcomes: Vec<_> = (0..20)
            .flat_map(|_| cycle)
            .map(|op| {
                worker.order(&bench.order(op, None));
                worker.served()
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 10);
        assert!(outcomes.iter().all(|served| answer(served) == Outcome::Ok), "{outcomes:?}");
    });
    bench.check(&"readers");
}

fn read_all(store: &Store) {
    let gone = |error: &StoreError| matches!(error, StoreError::NotFound { .. } | StoreError::NoTag { .. });
    for id in store.revision_ids().unwrap() {
        match store.revision(&id) {
            Ok(revision) => assert_eq!(revision.manifest.id(), id),
            Err(error) => assert!(gone(&error), "{error:?}"),
        }
    }
    for entry in store.templates().unwrap() {
        assert!(entry.tags.values().all(|record| !record.log.is_empty()));
    }
    for (id, entry) in store.machines().unwrap() {
        assert!(entry.as_ref().is_ok_and(|entry| entry.record.id == id), "{entry:?}");
    }
    for content in 0..super::op::CONTENTS {
        store.cached_build(&super::op::key(content), &kiln_sys::Cancel::new().unwrap()).unwrap();
    }
}
