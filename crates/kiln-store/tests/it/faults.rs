//! Faults: whatever a process dies of, and wherever it does, the store is whole and the work can be done again.
//!
//! [`twin::Twin`] is the store in a few maps. It says which states each operation passes and how it ends; after a death,
//! an error, a race or a full disk the files must be in one of these states.

mod eio;
mod ends;
mod model;
mod op;
mod power;
mod races;
mod space;
mod twin;

use kiln_store::Store;
use kiln_sys::Cancel;
use kiln_sys::lock::Share;
use kiln_sys::tool::ScratchDir;
use kiln_testing::{check_store, check_swept, fast_dir};
use op::{Op, Order, Outcome, Sources};
use std::path::PathBuf;
use twin::Twin;

/// The test that worker processes run.
const WORKER: &str = "faults::worker";

/// A store for faults, and what can be put into it.
struct Bench {
    _dir: ScratchDir,
    home: PathBuf,
    sources: Sources,
}

impl Bench {
    fn new() -> Self {
        Self::below(&fast_dir())
    }

    /// Makes a bench on the file system of `parent`.
    fn below(parent: &std::path::Path) -> Self {
        let dir = ScratchDir::new(parent).unwrap();
        let sources = Sources::make(&dir.path().join("sources"));
        let home = dir.path().join("home");
        Self { _dir: dir, home, sources }
    }

    /// Makes a bench whose store is of version 0.
    fn old() -> Self {
        let bench = Self::new();
        crate::migration::unpack(&bench.home);
        bench
    }

    /// Does operations that must succeed.
    #[track_caller]
    fn with(self, ops: &[Op]) -> Self {
        for op in ops {
            self.run_ok(*op);
        }
        self
    }

    /// Does an operation that must succeed.
    #[track_caller]
    fn run_ok(&self, op: Op) -> &Self {
        assert_eq!(self.run(op), Outcome::Ok, "{op:?}");
        self
    }

    /// Does an operation in this process.
    fn run(&self, op: Op) -> Outcome {
        op::outcome(&op::run(&self.home, &self.sources, op, &|| ()))
    }

    /// Returns the line that orders an operation.
    fn order(&self, op: Op, fault: Option<(u32, op::Fault)>) -> String {
        serde_json::to_string(&Order { home: self.home.clone(), op, fault }).unwrap()
    }

    fn store(&self) -> Store {
        Store::open(&self.home).unwrap()
    }

    fn twin(&self) -> Twin {
        Twin::of(&self.store(), &self.sources)
    }

    /// Checks every invariant, sweeps, and checks that nothing is left that nobody sees.
    #[track_caller]
    fn check(&self, what: &dyn std::fmt::Debug) {
        let store = self.store();
        let wrong = check_store(&store);
        assert!(wrong.is_empty(), "after {what:?}: {wrong:#?}");
        store.sweep_staging().unwrap();
        let alone = store.lock(Share::Exclusive, "a test", &Cancel::new().unwrap(), &mut |_| ()).unwrap();
        store.sweep_asides(&alone).unwrap();
        let left = check_swept(&store);
        assert!(left.is_empty(), "after {what:?}: {left:#?}");
    }
}

#[test]
#[ignore = "a worker of the others: it serves orders from standard input"]
fn worker() {
    kiln_testing::serve(|line| {
        let order: Order = serde_json::from_str(line).unwrap();
        let sources = Sources::at(&order.home.with_file_name("sources"));
        if let Some((nth, fault)) = order.fault {
            fault.arm(nth);
        }
        let outcome = op::outcome(&op::run(&order.home, &sources, order.op, &|| ()));
        kiln_sys::fail::disarm();
        serde_json::to_string(&outcome).unwrap()
    });
}
