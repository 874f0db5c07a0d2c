//! Private disks: calls beside calls, programs beside programs, synced beside synced and unsynced beside unsynced.

use crate::Outcome;
use crate::contest::Contest;
use crate::material::{Material, NAME};
use kiln_core::DiskOwner;
use kiln_core::machine::CloneMethod;
use kiln_store::{CloneChoice, CloneRequest};
use kiln_sys::copy;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Rounds of what writes a whole template.
const ROUNDS_LONG: usize = 7;
/// Wanted: the crate's call over kiln's, where blocks are shared.
const CRATE: f64 = 25.0;
/// Wanted: kiln's call over the bare system calls, at most.
const BARE: f64 = -1.3;
/// Wanted: cp over kiln, as programs.
const CP: f64 = 1.3;
/// Wanted: the standard library's copy over kiln's, in time and in blocks.
const FILLED: f64 = 7.0;

pub(crate) struct Clones<'a> {
    material: &'a Material,
    kiln: PathBuf,
    dest: PathBuf,
    owner: DiskOwner,
    rounds: usize,
}

impl<'a> Clones<'a> {
    pub(crate) fn new(material: &'a Material, kiln: PathBuf, rounds: usize) -> Self {
        #[expect(clippy::unwrap_used, reason = "a constant that is a name")]
        let owner = "vm-1".parse().unwrap();
        Self { material, kiln, dest: material.work.join("disk.raw"), owner, rounds }
    }

    /// Runs all comparisons that this file system allows; returns whether kiln's disks are private.
    pub(crate) fn run(&self) -> Outcome<bool> {
        let private = self.isolation()?;
        self.material.settle()?;
        if self.shares()? {
            self.reflink_calls()?;
            self.reflink_programs()?;
        } else {
            self.copy_calls()?;
            self.copy_programs()?;
        }
        Ok(private)
    }

    fn shares(&self) -> Outcome<bool> {
        let (from, to) = (File::open(&self.material.artifact)?, File::create_new(&self.dest)?);
        let shares = copy::reflink(&from, &to, &self.dest)?;
        fs::remove_file(&self.dest)?;
        Ok(shares)
    }

    /// Writes to a disk of each side and looks whether the template changed.
    fn isolation(&self) -> Outcome<bool> {
        println!("\nisolated? (a byte written to the disk, the template read again)");
        let theirs = self.material.registry.clone_for_vm("vm-1", NAME)?;
        let alias = fs::metadata(&theirs.path)?.ino() == fs::metadata(&self.material.template)?.ino();
        let changed = changes(&theirs.path, &self.material.template)?;
        self.material.registry.release("vm-1")?;
        let how = if alias { "a hard link to the template" } else { "a file of its own" };
        println!("  clone_for_vm of the crate, as it comes: {} ({how})", yes(!changed));
        let choice = CloneChoice::Exactly(self.method()?);
        let disks = self.material.store.disks(&self.material.cancel);
        let ours = disks.clone_for(&self.owner, &self.material.reference, choice)?.disk;
        let changed = changes(&ours.path(), &self.material.artifact)?;
        println!("  Disks::clone_for of kiln, by {}: {}", ours.record().method, yes(!changed));
        disks.release(&self.owner)?;
        Ok(!changed)
    }

    fn method(&self) -> Outcome<CloneMethod> {
        Ok(if self.shares()? { CloneMethod::Reflink } else { CloneMethod::Copy })
    }

    fn reflink_calls(&self) -> Outcome<()> {
        let by = CloneMethod::Reflink;
        let results = Contest::new("B1: private disk by shared blocks, calls", self.rounds)
            .with("kiln clone_for, synced", || self.kiln_call(by))
            .with("kiln clone_artifact, unsynced", || self.kiln_file(by))
            .with("kiln clone_artifact and a record, unsynced", || self.kiln_bare(by))
            .with("crate clone_for_vm, unsynced", || self.crate_call(false))
            .with("crate clone_for_vm, then fsync", || self.crate_call(true))
            .with("bare open, create, FICLONE", || self.floor(false))
            .with("bare open, create, FICLONE, fsync", || self.floor(true))
            .hold()?;
        results.ratio(
            "crate clone_for_vm, unsynced",
            "kiln clone_artifact and a record, unsynced",
            Some(CRATE),
        );
        results.ratio("crate clone_for_vm, then fsync", "kiln clone_for, synced", None);
        results.ratio("crate clone_for_vm, unsynced", "kiln clone_for, synced", None);
        results.ratio("crate clone_for_vm, unsynced", "kiln clone_artifact, unsynced", None);
        results.ratio("kiln clone_artifact, unsynced", "bare open, create, FICLONE", Some(BARE));
        results.ratio("kiln clone_for, synced", "bare open, create, FICLONE, fsync", None);
        results.raw();
        Ok(())
    }

    fn reflink_programs(&self) -> Outcome<()> {
        let results = Contest::new("B1: private disk by shared blocks, programs", self.rounds)
            .with("kiln clone, synced", || self.kiln_program("reflink", &[]))
            .with("cp --reflink=always, unsynced", || self.cp("--reflink=always", false))
            .with("cp --reflink=always, then sync", || self.cp("--reflink=always", true))
            .with("true", || run(&mut Command::new("true")))
            .hold()?;
        results.ratio("cp --reflink=always, then sync", "kiln clone, synced", Some(CP));
        results.ratio("cp --reflink=always, unsynced", "kiln clone, synced", None);
        results.raw();
        Ok(())
    }

    fn copy_calls(&self) -> Outcome<()> {
        let by = CloneMethod::Copy;
        let results = Contest::new("B2: private disk by copy, calls", self.rounds.min(ROUNDS_LONG))
            .with("kiln clone_artifact and a record, unsynced", || self.settled(|| self.kiln_bare(by)))
            .with("kiln clone_for, synced", || self.settled(|| self.kiln_call(by)))
            .with("std::fs::copy, unsynced", || self.settled(|| self.filled(false)))
            .with("std::fs::copy, then fsync", || self.settled(|| self.filled(true)))
            .hold()?;
        results.ratio("std::fs::copy, unsynced", "kiln clone_artifact and a record, unsynced", Some(FILLED));
        results.ratio("std::fs::copy, then fsync", "kiln clone_for, synced", Some(FILLED));
        self.kiln_copy_kept(by)?;
        let ours = copy::allocated_bytes(&self.machine().join("disk.raw"))?;
        fs::remove_dir_all(self.machine())?;
        fs::copy(&self.material.template, &self.dest)?;
        let theirs = copy::allocated_bytes(&self.dest)?;
        fs::remove_file(&self.dest)?;
        let ratio = theirs as f64 / ours as f64;
        println!("  blocks: std::fs::copy {} MiB, kiln {} MiB: {ratio:.2}", theirs >> 20, ours >> 20);
        println!(
            "  std::fs::copy is what the crate does where a disk has to be its own (its Independent path)"
        );
        results.raw();
        self.material.settle()
    }

    fn copy_programs(&self) -> Outcome<()> {
        let results = Contest::new("B2: private disk by copy, programs", self.rounds.min(ROUNDS_LONG))
            .with("kiln clone --clone copy, synced", || self.settled(|| self.kiln_program("copy", &[])))
            .with("cp, unsynced", || self.settled(|| self.cp("--reflink=auto", false)))
            .with("cp, then sync", || self.settled(|| self.cp("--reflink=auto", true)))
            .hold()?;
        results.ratio("cp, then sync", "kiln clone --clone copy, synced", Some(0.95));
        results.raw();
        Ok(())
    }

    /// Has what was written go to the disk after a sample, outside its time.
    fn settled(&self, work: impl FnOnce() -> Outcome<Duration>) -> Outcome<Duration> {
        let taken = work()?;
        self.material.settle()?;
        Ok(taken)
    }

    fn kiln_call(&self, by: CloneMethod) -> Outcome<Duration> {
        let disks = self.material.store.disks(&self.material.cancel);
        let begun = Instant::now();
        disks.clone_for(&self.owner, &self.material.reference, CloneChoice::Exactly(by))?;
        let taken = begun.elapsed();
        disks.release(&self.owner)?;
        Ok(taken)
    }

    /// What `kiln run` does for a machine: seal check, directory, file, mode, and a record beside it; nothing is synced.
    fn kiln_bare(&self, by: CloneMethod) -> Outcome<Duration> {
        let taken = self.kiln_copy_kept(by)?;
        fs::remove_dir_all(self.machine())?;
        Ok(taken)
    }

    /// The part of that which makes the file: seal check, file, mode.
    fn kiln_file(&self, by: CloneMethod) -> Outcome<Duration> {
        let Material { rootfs, work, .. } = self.material;
        let choice = CloneChoice::Exactly(by);
        let request =
            CloneRequest { digest: rootfs.digest, size: rootfs.size, dir: work, stem: "disk", choice };
        let begun = Instant::now();
        self.material.store.clone_artifact(&request, &self.material.cancel)?;
        let taken = begun.elapsed();
        fs::remove_file(&self.dest)?;
        Ok(taken)
    }

    fn machine(&self) -> PathBuf {
        self.material.work.join("machine")
    }

    fn kiln_copy_kept(&self, by: CloneMethod) -> Outcome<Duration> {
        let Material { rootfs, .. } = self.material;
        let (dir, choice) = (self.machine(), CloneChoice::Exactly(by));
        let request =
            CloneRequest { digest: rootfs.digest, size: rootfs.size, dir: &dir, stem: "disk", choice };
        let begun = Instant::now();
        fs::create_dir(&dir)?;
        let made = self.material.store.clone_artifact(&request, &self.material.cancel)?;
        let record = format!(
            "{{\"version\": 1, \"artifact\": \"{}\", \"size\": {}}}\n",
            made.artifact,
            made.size.bytes()
        );
        fs::write(dir.join("machine.json"), record)?;
        Ok(begun.elapsed())
    }

    fn crate_call(&self, sync: bool) -> Outcome<Duration> {
        let begun = Instant::now();
        let made = self.material.registry.clone_for_vm("vm-1", NAME)?;
        if sync {
            // The file, its stamp, their directory and the directory of that.
            let dir = made.path.parent().ok_or("no parent")?;
            let stamp = dir.join("rootfs.ext4.sha256");
            for path in [&made.path, &stamp, dir, dir.parent().ok_or("no parent")?] {
                File::open(path)?.sync_all()?;
            }
        }
        let taken = begun.elapsed();
        self.material.registry.release("vm-1")?;
        Ok(taken)
    }

    fn floor(&self, sync: bool) -> Outcome<Duration> {
        let begun = Instant::now();
        let (from, to) = (File::open(&self.material.artifact)?, File::create_new(&self.dest)?);
        copy::reflink(&from, &to, &self.dest)?;
        if sync {
            to.sync_all()?;
            File::open(&self.material.work)?.sync_all()?;
        }
        let taken = begun.elapsed();
        fs::remove_file(&self.dest)?;
        Ok(taken)
    }

    fn filled(&self, sync: bool) -> Outcome<Duration> {
        let begun = Instant::now();
        fs::copy(&self.material.template, &self.dest)?;
        if sync {
            File::open(&self.dest)?.sync_all()?;
            File::open(&self.material.work)?.sync_all()?;
        }
        let taken = begun.elapsed();
        fs::remove_file(&self.dest)?;
        Ok(taken)
    }

    fn kiln_program(&self, by: &str, more: &[&str]) -> Outcome<Duration> {
        let mut command = Command::new(&self.kiln);
        command.arg("--home").arg(self.material.store.root()).args(["clone", "-q", "--clone", by]);
        let taken = run(command.args(more).arg(NAME).arg(&self.dest))?;
        fs::remove_file(&self.dest)?;
        Ok(taken)
    }

    fn cp(&self, how: &str, sync: bool) -> Outcome<Duration> {
        let mut taken = run(Command::new("cp").arg(how).arg(&self.material.template).arg(&self.dest))?;
        if sync {
            taken += run(Command::new("sync").arg(&self.dest))?;
        }
        fs::remove_file(&self.dest)?;
        Ok(taken)
    }
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Outcome<Duration> {
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let taken = begun.elapsed();
    if status.success() { Ok(taken) } else { Err(format!("{command:?} failed").into()) }
}

/// Whether a byte written to one file changes another; it is set back.
fn changes(disk: &Path, template: &Path) -> Outcome<bool> {
    let (disk, template) = (File::options().read(true).write(true).open(disk)?, File::open(template)?);
    let (mut before, mut after) = ([0], [0]);
    template.read_exact_at(&mut before, 0)?;
    disk.write_all_at(&[!before[0]], 0)?;
    template.read_exact_at(&mut after, 0)?;
    disk.write_all_at(&before, 0)?;
    Ok(before != after)
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "NO" }
}
