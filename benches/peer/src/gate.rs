//! The second use of a template in a new process: is it still what it was? And an edit that hides its time.

use crate::contest::{Contest, show};
use crate::material::{Material, NAME};
use crate::{Outcome, clones};
use kiln_store::{Store, StoreError};
use kiln_sys::Cancel;
use microvm_runtime::{RootfsConfig, RootfsRegistry};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Rounds: the crate reads the whole template in each.
const ROUNDS: usize = 7;
/// Wanted: the crate's look-up over kiln's.
const CRATE: f64 = 500.0;

/// Looks up a template in kiln's store and checks its seal; prints nanoseconds.
pub(crate) fn kiln_once(home: &Path, reference: &str) -> Outcome<bool> {
    let begun = Instant::now();
    let cancel = Cancel::new()?;
    let store = Store::open(home)?;
    let (_, rootfs) = store.disks(&cancel).template(&reference.parse()?)?;
    store.check_artifact(&rootfs.digest, rootfs.size)?;
    println!("{}", begun.elapsed().as_nanos());
    Ok(true)
}

/// Looks up a template by the crate; prints nanoseconds.
pub(crate) fn crate_once(templates: &Path, name: &str) -> Outcome<bool> {
    let begun = Instant::now();
    let template_dir = templates.to_owned();
    let registry = RootfsRegistry::new(RootfsConfig { template_dir, ..RootfsConfig::default() });
    registry.stack(name)?.ok_or("no such stack")?;
    println!("{}", begun.elapsed().as_nanos());
    Ok(true)
}

/// Compares, then edits both templates; returns whether kiln noticed.
pub(crate) fn run(material: &Material) -> Outcome<bool> {
    let own = std::env::current_exe()?;
    let gate = |verb: &str, dir: &Path| {
        let mut command = Command::new(&own);
        command.arg(verb).arg(dir).arg(NAME);
        command
    };
    let (home, templates) = (material.store.root(), material.templates.as_path());
    let results = Contest::new("B7: a template looked up and checked in a new process", ROUNDS)
        .with("kiln, the calls", || inside(gate("gate-kiln", home)))
        .with("crate, the call", || inside(gate("gate-crate", templates)))
        .with("kiln, the process", || clones::run(&mut gate("gate-kiln", home)))
        .with("crate, the process", || clones::run(&mut gate("gate-crate", templates)))
        .with("kiln verify_artifact, every byte read", || {
            let begun = Instant::now();
            material.store.verify_artifact(&material.rootfs.digest, &material.cancel)?;
            Ok(begun.elapsed())
        })
        .hold()?;
    results.ratio("crate, the call", "kiln, the calls", Some(CRATE));
    results.ratio("crate, the process", "kiln, the process", None);
    results.ratio("crate, the call", "kiln verify_artifact, every byte read", None);
    println!(
        "  kiln checks a seal (inode, size, mode, times of change) and hashes nothing; the crate hashes"
    );
    results.raw();
    edits(material)
}

/// The time that a call took inside another process.
fn inside(mut command: Command) -> Outcome<Duration> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{command:?} failed").into());
    }
    Ok(Duration::from_nanos(String::from_utf8(output.stdout)?.trim().parse()?))
}

/// Changes a byte of each side's template and sets the time of modification back.
fn edits(material: &Material) -> Outcome<bool> {
    println!("\nB7: a byte changed, the time of modification set back");
    let before = material.registry.stack(NAME)?.ok_or("no such stack")?.sha256;
    edit(&material.template)?;
    let known = material.registry.stack(NAME)?.ok_or("no such stack")?.sha256;
    let real = RootfsRegistry::hash_file(&material.template)?;
    let missed = known == before && real != before;
    let how = if missed { "NOT noticed: stack() gives the old hash" } else { "noticed" };
    println!("  crate, the process that hashed it before: {how}");

    edit(&material.artifact)?;
    let begun = Instant::now();
    let checked = material.store.check_artifact(&material.rootfs.digest, material.rootfs.size);
    let taken = begun.elapsed();
    let broken = matches!(checked, Err(StoreError::Unsealed { .. }));
    let (digest, size) = (&material.rootfs.digest, material.rootfs.size);
    let read = material.store.ensure_artifact(digest, size, &material.cancel, &mut |_| {});
    let refused = matches!(read, Err(StoreError::Damaged { .. }));
    let told = if broken && refused { "noticed by the seal, then refused" } else { "NOT noticed" };
    println!("  kiln, the same process or another: {told} (the check took {})", show(taken));
    Ok(broken && refused)
}

fn edit(path: &Path) -> Outcome<()> {
    let meta = fs::metadata(path)?;
    let mode = meta.permissions();
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0)?;
    file.write_all_at(&[!byte[0]], 0)?;
    file.set_modified(meta.modified()?)?;
    Ok(fs::set_permissions(path, mode)?)
}
