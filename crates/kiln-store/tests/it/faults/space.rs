//! File systems that are full, and every kind that a store may lie on. They are mounted for the test, which takes root;
//! elsewhere the tests say what they skip.

use super::op::{Op, Outcome};
use super::{Bench, Twin};
use kiln_core::machine::CloneMethod;
use kiln_testing::{FileSystem, Mounted};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

const BUILD: Op = Op::Build { content: 0, template: 0 };
const OTHER: Op = Op::Build { content: 1, template: 1 };
const TABLE: Op = Op::Build { content: super::op::TABLE, template: 1 };
const MIB: u64 = 1 << 20;

/// A file that takes up all space but a little.
struct Filler {
    path: PathBuf,
}

impl Filler {
    /// Fills the file system of `dir`, and frees `spare` bytes of it again.
    fn new(dir: &Path, spare: u64) -> Self {
        let path = dir.join("filler");
        let mut file = File::create(&path).unwrap();
        let mut chunk = vec![1; 1 << 20];
        while !chunk.is_empty() {
            while let Ok(1..) = file.write(&chunk) {}
            chunk.truncate(chunk.len() / 4);
            // What is written later must not find room that was only set aside.
            let _ = file.sync_all();
        }
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(spare)).unwrap();
        file.sync_all().unwrap();
        Self { path }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Does an operation with little space: it succeeds or says that there is none, and nothing half-done is seen.
#[track_caller]
fn squeeze(bench: &Bench, op: Op, spare: u64) -> bool {
    let (steps, expected) = bench.twin().steps(op, &bench.sources);
    let outcome = bench.run(op);
    let found = bench.twin();
    let what = (op, "with", spare, "bytes", &outcome);
    assert!(outcome == Outcome::NoSpace || outcome == expected, "{what:?}");
    assert!(steps.contains(&found), "{what:?}: {found:#?}");
    bench.check(&what);
    outcome == Outcome::NoSpace
}

/// Fills a file system to the brim and works there with ever more space.
fn fill(kind: FileSystem) {
    let Some(mounted) = Mounted::new(kind, 64) else { return };
    let ops = [
        OTHER,
        Op::Tag { content: 0, template: 0 },
        Op::Snapshot { content: 0 },
        Op::Machine { slot: 0, content: 0, method: None },
        Op::Machine { slot: 0, content: 0, method: Some(CloneMethod::Copy) },
        Op::Grown { slot: 0, content: super::op::TABLE, method: Some(CloneMethod::Copy) },
        Op::Grown { slot: 0, content: super::op::TABLE, method: Some(CloneMethod::Overlay) },
        Op::Status { slot: 1 },
    ];
    let mut refused = 0;
    for op in ops {
        let bench = Bench::below(mounted.path()).with(&[
            BUILD,
            TABLE,
            Op::Machine { slot: 1, content: 0, method: Some(CloneMethod::Copy) },
        ]);
        for spare in [0, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 15 * MIB] {
            let filler = Filler::new(mounted.path(), spare);
            refused += usize::from(squeeze(&bench, op, spare));
            drop(filler);
        }
        let mut twin = bench.twin();
        let expected = twin.run(op, &bench.sources);
        assert_eq!(bench.run(op), expected, "{op:?} once there is room again");
        assert_eq!(bench.twin(), twin);
        bench.check(&op);
    }
    assert!(refused > ops.len(), "{kind:?} was never full");
}

/// What frees space works where there is none.
fn remove(kind: FileSystem) {
    let Some(mounted) = Mounted::new(kind, 64) else { return };
    let bench = Bench::below(mounted.path()).with(&[
        BUILD,
        OTHER,
        Op::Machine { slot: 0, content: 0, method: Some(CloneMethod::Copy) },
    ]);
    let staging = bench.home.join("staging");
    std::fs::create_dir(staging.join("0123456789abcdef")).unwrap();
    std::fs::write(staging.join("0123456789abcdef/file"), [1; 8192]).unwrap();
    std::fs::write(staging.join("0123456789abcdef.lock"), b"").unwrap();
    let _filler = Filler::new(mounted.path(), 0);
    // Another process may have written its name into the lock, and given the space of that back.
    File::create(bench.home.join("store.lock")).unwrap();
    let mut scraps = Vec::new();
    for number in 0.. {
        let scrap = bench.home.with_file_name(format!("scrap-{number}"));
        match std::fs::write(&scrap, [1; 4096]) {
            Ok(()) => scraps.push(scrap),
            Err(_) => break,
        }
    }
    for op in [Op::Discard { slot: 0 }, Op::Remove { content: 0 }, Op::Sweep] {
        assert_eq!(bench.run(op), Outcome::Ok, "{op:?} on a full {kind:?}");
    }
    bench.check(&"removing");
    assert!(bench.twin().machines.is_empty() && !bench.twin().revisions.contains(&0));
}

#[test]
fn a_full_tmpfs_is_told_and_nothing_half_done_is_seen() {
    fill(FileSystem::Tmpfs);
}

#[test]
fn a_full_ext4_is_told_and_nothing_half_done_is_seen() {
    fill(FileSystem::Ext4);
}

#[test]
fn what_frees_space_works_on_a_full_tmpfs() {
    remove(FileSystem::Tmpfs);
}

#[test]
fn what_frees_space_works_on_a_full_ext4() {
    remove(FileSystem::Ext4);
}

/// Does every operation once on a file system, with every way to make a disk.
fn smoke(kind: FileSystem, size_mib: u32, reflinks: bool) {
    let Some(mounted) = Mounted::new(kind, size_mib) else { return };
    let bench = Bench::below(mounted.path());
    let mut twin = Twin::default();
    let machine = |slot, method| Op::Machine { slot, content: 0, method };
    let ops = [
        Op::Open,
        BUILD,
        BUILD,
        OTHER,
        Op::Tag { content: 1, template: 0 },
        machine(0, None),
        machine(1, Some(CloneMethod::Copy)),
        machine(2, Some(CloneMethod::Overlay)),
        machine(2, None),
        Op::Remove { content: 0 },
        Op::Remove { content: 1 },
        Op::Status { slot: 0 },
        Op::Discard { slot: 0 },
        Op::Discard { slot: 1 },
        Op::Discard { slot: 2 },
        Op::Untag { template: 0 },
        Op::Remove { content: 0 },
        Op::Sweep,
    ];
    for op in ops {
        let expected = twin.run(op, &bench.sources);
        assert_eq!(bench.run(op), expected, "{op:?} on {kind:?}");
        assert_eq!(bench.twin(), twin, "{op:?} on {kind:?}");
        bench.check(&(op, kind));
        if op == machine(0, None) {
            let entry = bench.store().machines().unwrap().remove(0).1.unwrap();
            assert_eq!(entry.record.clone.method == CloneMethod::Reflink, reflinks, "on {kind:?}");
        }
    }
}

#[test]
fn a_store_on_tmpfs() {
    smoke(FileSystem::Tmpfs, 64, false);
}

#[test]
fn a_store_on_ext4() {
    smoke(FileSystem::Ext4, 64, false);
}

#[test]
fn a_store_on_xfs() {
    smoke(FileSystem::Xfs, 320, true);
}

#[test]
fn a_store_on_btrfs() {
    smoke(FileSystem::Btrfs, 128, true);
}
