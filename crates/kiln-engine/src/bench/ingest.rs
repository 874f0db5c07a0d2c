//! Taking a file in: hash, block table and copy, beside a program that cuts, compresses and stores.

use super::contest::{Arena, Sample, Target};
use super::material::PIECE_BYTES;
use super::report::{Level, Row};
use crate::{EngineError, EngineResult, Settings};
use kiln_core::Digest;
use kiln_store::{IngestFrom, Store};
use kiln_sys::{Cancel, IoResultExt as _, clock, copy, fs};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The verb by which kiln runs itself to take one file in, and does nothing else.
pub const INGEST_COMMAND: &str = "__ingest";
/// Wanted processor time of the peer over kiln's: first version, second version.
const TARGETS: [f64; 2] = [3.0, 8.0];
/// In the second version, one block of this many is another.
const CHANGED_OF: u64 = 100;
/// Bytes of a block.
const BLOCK_BYTES: usize = 4 << 10;

/// Takes a file into the store of `settings` and returns its digest: kiln's part of a comparison of programs.
pub fn ingest_file(settings: &Settings, path: &Path, cancel: &Cancel) -> EngineResult<Digest> {
    let store = Store::open(&settings.home)?;
    let staging = store.stage("a benchmark")?;
    Ok(store.ingest(path, IngestFrom::Outside, &staging, cancel)?.digest)
}

pub(super) fn rows(arena: &Arena<'_>, rows: &mut Vec<Row>) -> EngineResult<()> {
    let material = arena.material;
    let first = material.work.join("first");
    let file = fs::create_new(&first)?;
    super::material::write_random(&file, &first, material.mib << 20, 1, arena.cancel)?;
    let second = second_version(arena, &first)?;
    let base = material.work.join("base.castr");
    if arena.settings.toolbox.find("casync").is_ok() {
        make(arena, &base, &first)?;
    }
    for (path, name, target) in [
        (&first, "ingest, first version", TARGETS[0]),
        (&second, "ingest, second version with 1 % changed", TARGETS[1]),
    ] {
        let home = material.work.join("ingest-home");
        let chunks = material.work.join("chunks.castr");
        let contest = arena
            .contest(name, Level::Programs, "kiln ingest", || {
                let usage = arena
                    .kiln([INGEST_COMMAND.as_ref(), "--into".as_ref(), home.as_os_str(), path.as_os_str()])
                    .measure(arena.cancel)?;
                let allocated = Some(tree_bytes(&home.join("artifacts"))?);
                material.settle(&home)?;
                Ok(Sample { usage, allocated })
            })
            .tool("casync", "casync make", Some(Target::Cpu(target)), || {
                if path == &second {
                    // Chunks are never written to: links stand for a store that has the first version.
                    let args = ["-al".as_ref(), base.as_os_str(), chunks.as_os_str()];
                    arena.run("cp", args)?;
                }
                let before = tree_bytes(&chunks)?;
                let usage = make(arena, &chunks, path)?;
                let allocated = Some(tree_bytes(&chunks)?.saturating_sub(before));
                material.settle(&chunks)?;
                Ok(Sample { usage, allocated })
            })
            .floor("dd bs=1M conv=fsync", || {
                let copy = material.work.join("copy");
                let (from, to) = (format!("if={}", path.display()), format!("of={}", copy.display()));
                let usage = arena.run("dd", [&from, &to, "bs=1M", "conv=fsync", "status=none"])?;
                material.settle(&copy)?;
                Ok(usage.into())
            });
        rows.push(
            contest
                .note("kiln syncs what it stores and does not compress; casync compresses and does not sync")
                .hold()?,
        );
    }
    Ok(())
}

fn make(arena: &Arena<'_>, chunks: &Path, path: &Path) -> EngineResult<kiln_sys::measure::Usage> {
    let index = chunks.with_extension("caibx");
    let store = format!("--store={}", chunks.display());
    let args = ["make".as_ref(), store.as_ref(), index.as_os_str(), path.as_os_str()];
    let usage = arena.run("casync", args)?;
    fs::remove_file(&index)?;
    Ok(usage)
}

/// Copies a file and changes one block in a hundred, each somewhere else.
fn second_version(arena: &Arena<'_>, first: &Path) -> EngineResult<PathBuf> {
    let path = first.with_file_name("second");
    let (from, to) = (fs::open(first)?, fs::create_new(&path)?);
    copy::compacting_copy(&from, &to, &path, Some(arena.cancel))?;
    let span = CHANGED_OF * BLOCK_BYTES as u64;
    for at in (0..arena.material.mib * PIECE_BYTES).step_by(usize::try_from(span).unwrap_or(usize::MAX)) {
        to.write_all_at(&clock::random::<BLOCK_BYTES>(), at).at("write", &path)?;
    }
    rustix::fs::fsync(&to).at("sync", &path)?;
    Ok(path)
}

/// Returns what the files below a directory take up, each once.
fn tree_bytes(dir: &Path) -> Result<u64, EngineError> {
    let mut bytes = 0;
    for name in fs::list_dir(dir)? {
        let path = dir.join(name);
        let meta = fs::symlink_metadata(&path)?;
        bytes += if meta.is_dir() { tree_bytes(&path)? } else { copy::allocated_bytes(&path)? };
    }
    Ok(bytes)
}
