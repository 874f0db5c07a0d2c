//! Long random lives of a store beside its twin: after every operation, error and death they agree.

use super::op::{CONTENTS, Fault, Op, Outcome};
use super::{Bench, Twin, WORKER};
use kiln_core::machine::CloneMethod;
use kiln_sys::fail::disarm;
use kiln_testing::{Served, Worker};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Lives in a run, and operations in each.
const LIVES: u32 = 100;
const OPERATIONS: usize = 100;
/// Every how many operations all files are checked, and not only what can be seen.
const CHECK_EVERY: usize = 25;

/// How an operation is disturbed.
#[derive(Debug, Clone, Copy)]
enum Luck {
    Undisturbed,
    Error(u32, i32),
    Death(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let (content, template, slot) = (|| 0..CONTENTS, || 0..2_u8, || 0..3_u8);
    let method = prop_oneof![
        Just(None),
        Just(Some(CloneMethod::Copy)),
        Just(Some(CloneMethod::Overlay)),
        Just(Some(CloneMethod::Reflink)),
    ];
    let grown = method.clone();
    prop_oneof![
        1 => Just(Op::Open),
        6 => (content(), template()).prop_map(|(content, template)| Op::Build { content, template }),
        5 => (content(), template()).prop_map(|(content, template)| Op::Tag { content, template }),
        2 => template().prop_map(|template| Op::Untag { template }),
        6 => content().prop_map(|content| Op::Remove { content }),
        4 => content().prop_map(|content| Op::Snapshot { content }),
        2 => content().prop_map(|content| Op::Forget { content }),
        5 => (slot(), content(), method)
            .prop_map(|(slot, content, method)| Op::Machine { slot, content, method }),
        2 => (slot(), content(), grown)
            .prop_map(|(slot, content, method)| Op::Grown { slot, content, method }),
        3 => slot().prop_map(|slot| Op::Status { slot }),
        4 => slot().prop_map(|slot| Op::Discard { slot }),
        1 => Just(Op::Sweep),
    ]
}

fn luck() -> impl Strategy<Value = Luck> {
    prop_oneof![
        80 => Just(Luck::Undisturbed),
        20 => (1..70_u32, prop_oneof![Just(5), Just(28)]).prop_map(|(nth, error)| Luck::Error(nth, error)),
        1 => (1..70_u32).prop_map(Luck::Death),
    ]
}

#[test]
fn a_store_and_its_twin_live_the_same_life() {
    let config =
        Config { cases: LIVES, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let life = proptest::collection::vec((op(), luck()), OPERATIONS);
    TestRunner::new(config)
        .run(&life, |life| {
            live(&life);
            Ok(())
        })
        .unwrap();
}

fn live(life: &[(Op, Luck)]) {
    let bench = Bench::new().with(&[Op::Open]);
    let mut twin = Twin::default();
    let mut worker = None;
    for (at, (op, luck)) in life.iter().enumerate() {
        let (steps, expected) = twin.steps(*op, &bench.sources);
        let ended = match luck {
            Luck::Undisturbed => Some(bench.run(*op)),
            Luck::Error(nth, error) => {
                Fault::Error(*error).arm(*nth);
                let outcome = bench.run(*op);
                let happened = !disarm();
                assert!(happened || outcome == expected, "{op:?}: {outcome:?}");
                // An error may also be one that only leaves something to sweep.
                (!happened || outcome == Outcome::Ok).then_some(outcome)
            }
            Luck::Death(nth) => {
                let worker_now = worker.get_or_insert_with(|| Worker::spawn(WORKER));
                worker_now.order(&bench.order(*op, Some((*nth, Fault::Kill))));
                match worker_now.served() {
                    Served::Answer(answer) => Some(serde_json::from_str(&answer).unwrap()),
                    Served::Died(signal) => {
                        assert_eq!(signal, 9);
                        worker = None;
                        None
                    }
                }
            }
        };
        let found = bench.twin();
        match ended {
            Some(outcome) => {
                assert_eq!(outcome, expected, "{at}: {op:?}");
                assert_eq!(&found, steps.last().unwrap(), "{at}: {op:?}");
            }
            None => assert!(steps.contains(&found), "{at}: {op:?} with {luck:?}: {found:#?}"),
        }
        twin = found;
        if at % CHECK_EVERY == 0 {
            bench.check(&(at, op, luck));
        }
    }
    bench.check(&"a life");
}
