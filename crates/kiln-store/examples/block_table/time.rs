//! What the table costs an ingest, and what a comparison of two artifacts takes.

use crate::Failure;
use kiln_store::{IngestFrom, Store, hash_file, hash_file_with_blocks};
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, fs};
use std::path::Path;
use std::time::Instant;

/// Rounds of two of each, in turn A B B A.
const ROUNDS: usize = 5;

pub(crate) fn print(old: &Path, new: &Path) -> Result<(), Failure> {
    let cancel = Cancel::new()?;
    let file = fs::open(new)?;
    let (mut plain, mut both) = (Vec::new(), Vec::new());
    let data = hash_file(&file, new, &cancel)?.data_bytes();
    for at in 0..4 * ROUNDS {
        let begin = Instant::now();
        if matches!(at % 4, 0 | 3) {
            hash_file(&file, new, &cancel)?;
            plain.push(begin.elapsed().as_secs_f64() * 1e3);
        } else {
            hash_file_with_blocks(&file, new, &cancel)?;
            both.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    for times in [&mut plain, &mut both] {
        times.sort_by(f64::total_cmp);
    }
    println!(
        "\nhash {data} bytes of data: index {:.1} ms, index and table {:.1} ms (fastest {:.1} and {:.1})",
        plain[ROUNDS], both[ROUNDS], plain[0], both[0]
    );
    let dir = ScratchDir::new(&std::env::temp_dir())?;
    let store = Store::open(&dir.path().join("store"))?;
    let staging = store.stage("a measurement")?;
    let take = |path| store.ingest(path, IngestFrom::Outside, &staging, &cancel);
    let (a, b) = (take(old)?.digest, take(new)?.digest);
    let begin = Instant::now();
    let shared = store.shared_blocks(&a, &b, &cancel)?;
    let long = shared.runs.iter().filter(|run| run.count >= 16);
    let long_blocks = long.clone().map(|run| run.count).sum::<u64>();
    println!(
        "shared, confirmed: {} of {} blocks in {} runs, {} false matches, {:.0} ms; {} runs of at least 64 KiB have {} of them",
        shared.blocks,
        shared.data_blocks,
        shared.runs.len(),
        shared.false_matches,
        begin.elapsed().as_secs_f64() * 1e3,
        long.count(),
        long_blocks,
    );
    Ok(())
}
