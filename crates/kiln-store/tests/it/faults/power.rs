//! A loss of power: what an operation that succeeded has done is on the disk. It is tried on a file system that writes
//! nothing by itself for some time, which takes root; elsewhere the test says what it skips.

use super::op::Op;
use super::{Bench, Twin};
use kiln_core::machine::CloneMethod;
use kiln_store::{CloneChoice, Store};
use kiln_sys::Cancel;
use kiln_testing::{FileSystem, Mounted, check_store};
use std::process::Command;

#[test]
fn what_was_done_survives_a_loss_of_power() {
    let Some(mounted) = Mounted::new(FileSystem::Ext4, 64) else { return };
    // Nothing is sent to the disk for being replaced by a rename, or for being some seconds old.
    let options = "remount,commit=300,noauto_da_alloc";
    let remounted = Command::new("mount").args(["-o", options]).arg(mounted.path()).status().unwrap();
    assert!(remounted.success());
    let bench = Bench::below(mounted.path());
    std::fs::write(mounted.path().join("not-synced"), b"content").unwrap();
    let ops = [
        Op::Build { content: 0, template: 0 },
        Op::Build { content: 1, template: 0 },
        Op::Tag { content: 0, template: 1 },
        Op::Untag { template: 1 },
        Op::Remove { content: 1 },
    ];
    for op in ops {
        let bench = bench.run_ok(op);
        let left = mounted.after_power_loss();
        let home = left.path().join(bench.home.strip_prefix(mounted.path()).unwrap());
        let store = Store::open(&home).unwrap();
        let (mut found, expected) = (Twin::of(&store, &bench.sources), bench.twin());
        if matches!(op, Op::Remove { .. }) {
            // The names of revisions are gone for good; a file that comes back without one is collected.
            found.artifacts.retain(|artifact| expected.artifacts.contains(artifact));
        }
        assert_eq!(found, expected, "after {op:?}");
        let wrong = check_store(&store);
        assert!(wrong.is_empty(), "after {op:?}: {wrong:#?}");
        let file = std::fs::read(left.path().join("not-synced")).unwrap_or_default();
        assert!(file.is_empty(), "a file that nobody synced was on the disk: this shows nothing");
    }
    let (store, cancel) = (bench.store(), Cancel::new().unwrap());
    let copy = CloneChoice::Exactly(CloneMethod::Copy);
    let (owner, reference) = ("vm".parse().unwrap(), bench.sources.id(0).to_string().parse().unwrap());
    let made = store.disks(&cancel).clone_for(&owner, &reference, copy).unwrap().disk;
    let left = mounted.after_power_loss();
    let store = Store::open(&left.path().join(bench.home.strip_prefix(mounted.path()).unwrap())).unwrap();
    let disk = store.disks(&cancel).get(&owner).unwrap().unwrap();
    assert_eq!(disk.record(), made.record());
    assert!(std::fs::read(disk.path()).unwrap() == std::fs::read(made.path()).unwrap());
}
