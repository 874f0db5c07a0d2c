//! kiln's private disks beside those of the crate microvm-runtime, on the file system of a directory.
//!
//! ```text
//! kiln-peer compare DIR KILN [MIB] [ROUNDS]     everything; KILN is the program, MIB the data of the template
//! kiln-peer gate-kiln HOME REFERENCE            one look-up with its check in a new process: prints nanoseconds
//! kiln-peer gate-crate TEMPLATES NAME           the same by the crate
//! ```
//!
//! `compare` is what `benches/peer-clone` runs; it starts the other two. Rounds go through all contestants, each in the
//! reverse order of the one before. What makes a call durable stands in its name.
#![expect(clippy::disallowed_methods, reason = "a benchmark compares with what kiln itself may not use")]

mod clones;
mod contest;
mod gate;
mod material;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Whatever went wrong: this program only ever tells it.
type Failure = Box<dyn Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

/// Data of the template, in MiB, a multiple of four: below what the kernel begins to throttle.
const MIB: u64 = 128;
/// Rounds of what takes less than 10 ms.
const ROUNDS: usize = 200;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["gate-kiln", home, reference] => gate::kiln_once(Path::new(home), reference),
        ["gate-crate", templates, name] => gate::crate_once(Path::new(templates), name),
        ["compare", dir, kiln, rest @ ..] => compare(Path::new(dir), Path::new(kiln), rest),
        _ => Err("compare DIR KILN [MIB] [ROUNDS] is wanted".into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kiln-peer: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  caused by: {error}");
                cause = error.source();
            }
            ExitCode::from(2)
        }
    }
}

/// Runs everything in a directory of its own below `dir`; returns whether what must hold did.
fn compare(dir: &Path, kiln: &Path, rest: &[&str]) -> Outcome<bool> {
    let number = |at: usize| rest.get(at).map(|text| text.parse::<u64>()).transpose();
    let (mib, rounds) = (number(0)?.unwrap_or(MIB), number(1)?.unwrap_or(ROUNDS as u64));
    let work = dir.canonicalize()?.join(format!("kiln-peer-{}", std::process::id()));
    if mib == 0 || mib % 4 != 0 {
        return Err(format!("{mib} MiB: a multiple of four is wanted").into());
    }
    std::fs::create_dir(&work)?;
    let _clean = Clean(work.clone());
    let material = material::Material::new(&work, mib)?;
    let rounds = usize::try_from(rounds)?.max(1);
    let clones = clones::Clones::new(&material, kiln.canonicalize()?, rounds);
    let isolated = clones.run()?;
    let sound = gate::run(&material)?;
    Ok(isolated && sound)
}

/// Removes a directory, also when the work in it fails.
struct Clean(PathBuf);

impl Drop for Clean {
    fn drop(&mut self) {
        if let Err(error) = kiln_sys::fs::remove_tree(&self.0) {
            eprintln!("kiln-peer: {error}");
        }
    }
}
