//! Verification and the check of seals, beside programs that hash.

use super::contest::{Arena, Sample, Target, call, calls};
use super::material::{HOLLOW_FACTOR, SPARSE_FACTOR, Subject, write_random};
use super::report::{Level, Row, Verdict};
use crate::{EngineError, EngineResult};
use kiln_store::hash_file;
use kiln_sys::copy::DataExtents;
use kiln_sys::{IoResult, IoResultExt as _, fs};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

/// Bytes read at once.
const STEP_BYTES: u64 = 1 << 20;
/// Wanted processor time of openssl over kiln's.
const OPENSSL: f64 = 2.5;
/// Wanted processor time of sha256sum over kiln's.
const SHA256SUM: f64 = 9.0;
/// What has to be left of the gain that holes promise.
const HOLES: f64 = 0.9;
/// Checks of a seal that are timed as one.
const CHECKS: u32 = 100;
/// The most that one check may take.
const CHECK_MAX: Duration = Duration::from_millis(1);
/// Wanted time of a hash over a check of the seal.
const SEAL: f64 = 500.0;
/// The most data of the comparison of holes and zeros, in MiB.
const HOLES_MIB_MAX: u64 = 16;

pub(super) fn rows(arena: &Arena<'_>, rows: &mut Vec<Row>) -> EngineResult<()> {
    let bytes = arena.material.mib << 20;
    let dense = arena.material.subject(bytes, 1)?;
    rows.push(hash_calls(arena, "verify dense", &dense)?);
    let told = programs(arena, "verify dense", &dense, &dense, OPENSSL, Some(SHA256SUM))?;
    let openssl = told.peers.first().map_or(OPENSSL, |peer| peer.cpu_ratio);
    rows.push(told);
    let sparse = arena.material.subject(bytes, SPARSE_FACTOR)?;
    same_with_zeros(arena)?;
    let mut row = hash_calls(arena, "verify sparse", &sparse)?;
    row.notes.push("checked: the digest is the same with the holes written as zeros".to_owned());
    rows.push(row);
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let wanted = HOLES * SPARSE_FACTOR as f64 * openssl;
    let mut row = programs(arena, "verify sparse", &sparse, &dense, wanted, None)?;
    row.notes.push(format!(
        "{} with {} of data; the target is {HOLES} of length over data, times the dense ratio",
        sparse.size.human(),
        sparse.data.human()
    ));
    rows.push(row);
    arena.material.settle(&sparse.path)?;
    rows.push(seal(arena, &dense)?);
    Ok(())
}

fn hash_calls(arena: &Arena<'_>, name: &'static str, subject: &Subject) -> EngineResult<Row> {
    let file = fs::open(&subject.path)?;
    arena
        .contest(name, Level::Calls, "hash_file", || {
            call(|| hash_file(&file, &subject.path, arena.cancel)).map(Sample::from)
        })
        .floor("reading the data, one thread", || call(|| read_data(&file, &subject.path)).map(Sample::from))
        .note("all cores for kiln, so wall and cpu differ")
        .hold()
}

fn programs(
    arena: &Arena<'_>,
    name: &'static str,
    subject: &Subject,
    dense: &Subject,
    openssl: f64,
    sha256sum: Option<f64>,
) -> EngineResult<Row> {
    let path = subject.path.as_os_str();
    let from = format!("if={}", dense.path.display());
    let contest = arena
        .contest(name, Level::Programs, "kiln verify", || {
            Ok(arena.kiln(["verify", "-q", &subject.reference]).measure(arena.cancel)?.into())
        })
        .tool("openssl", "openssl dgst -sha256", Some(Target::Cpu(openssl)), || {
            Ok(arena.run("openssl", ["dgst".as_ref(), "-sha256".as_ref(), path])?.into())
        })
        .floor("dd bs=1M to /dev/null, the data alone", || {
            Ok(arena.run("dd", [from.as_str(), "of=/dev/null", "bs=1M", "status=none"])?.into())
        });
    let contest = match sha256sum {
        Some(least) => contest.tool("sha256sum", "sha256sum", Some(Target::Cpu(least)), || {
            Ok(arena.run("sha256sum", [path])?.into())
        }),
        None => contest,
    };
    contest.note("kiln's digest is that of an index of BLAKE3, not the SHA-256 of the file").hold()
}

fn seal(arena: &Arena<'_>, dense: &Subject) -> EngineResult<Row> {
    let store = &arena.material.store;
    let file = fs::open(&dense.path)?;
    let row = arena.contest("seal check on second use", Level::Calls, "Store::check_artifact", || {
        calls(CHECKS, || store.check_artifact(&dense.digest, dense.size))
    });
    let row = row
        .peer("hashing the content again", Some(Target::WallMin(SEAL)), || {
            call(|| hash_file(&file, &dense.path, arena.cancel)).map(Sample::from)
        })
        .floor("one lstat", || calls(CHECKS, || fs::symlink_metadata(&dense.path)))
        .note("a check of the seal is not a hash: it tells that nobody wrote, not what is there");
    let mut row = row.hold()?;
    let met = row.ours.wall <= CHECK_MAX;
    row.verdict = Some(Verdict { target: "wall <= 1 ms".to_owned(), met });
    Ok(row)
}

/// Reads all data of a file.
fn read_data(file: &File, path: &Path) -> IoResult<()> {
    let mut buffer = vec![0; usize::try_from(STEP_BYTES).unwrap_or(1 << 20)];
    let length = file.metadata().at("inspect", path)?.len();
    for extent in DataExtents::new(file, length) {
        let (mut at, end) = extent.at("find the data of", path)?;
        while at < end {
            let want = usize::try_from((end - at).min(STEP_BYTES)).unwrap_or(buffer.len());
            let read = file.read_at(&mut buffer[..want], at).at("read", path)?;
            if read == 0 {
                return Ok(());
            }
            at += read as u64;
        }
    }
    Ok(())
}

/// Checks that a file has the same digest with its holes and with zeros in their place.
fn same_with_zeros(arena: &Arena<'_>) -> EngineResult<()> {
    let material = arena.material;
    let (path, filled) = (material.work.join("holes"), material.work.join("zeros"));
    let file = fs::create_new(&path)?;
    let data = material.mib.min(HOLES_MIB_MAX) << 20;
    write_random(&file, &path, data, HOLLOW_FACTOR, arena.cancel)?;
    let zeros = fs::create_new(&filled)?;
    let mut buffer = vec![0; usize::try_from(STEP_BYTES).unwrap_or(1 << 20)];
    for at in (0..data * HOLLOW_FACTOR).step_by(buffer.len()) {
        file.read_exact_at(&mut buffer, at).at("read", &path)?;
        zeros.write_all_at(&buffer, at).at("write", &filled)?;
    }
    let holes = hash_file(&file, &path, arena.cancel)?.digest();
    if hash_file(&zeros, &filled, arena.cancel)?.digest() != holes {
        let error = io::Error::new(io::ErrorKind::InvalidData, "another digest than with holes");
        return Err(error).at("hash", &filled).map_err(EngineError::from);
    }
    material.settle(&path)?;
    material.settle(&filled)
}
