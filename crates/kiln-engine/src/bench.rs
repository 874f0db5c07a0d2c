//! Benchmarks: kiln beside what else does the same work, in one run, on real bytes.
//!
//! What is compared is done by both in turn (A B, B A, …), so that a host that drifts drifts for both. A call in this
//! process is compared with calls only, a program with programs only. What is measured of the store happens in a
//! directory of its own that is gone afterwards. Machines are those of a template of the user's store; they and
//! their snapshots are removed afterwards.

mod clone;
mod contest;
mod disk;
mod download;
mod fork;
mod host;
mod ingest;
mod material;
mod memory;
mod report;
mod verify;

pub use disk::{DISK_COMMAND, bench_disk, raw_of_image};
pub use download::{DOWNLOAD_COMMAND, DOWNLOAD_MIB, bench_download, fetch_file};
pub use fork::{FORKS, ForkBenchRequest, bench_fork};
pub use host::Host;
pub use ingest::{INGEST_COMMAND, ingest_file};
pub use report::{Level, Measured, Peer, Row, Verdict};

use crate::progress::Reporter;
use crate::{EngineResult, Settings};
use contest::Arena;
use kiln_core::ByteSize;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, fs};
use material::Material;
use std::path::Path;

/// The benchmarks there are: name, and what it measures.
pub const BENCHMARKS: [(&str, &str); 4] = [
    ("disk", "disk images of other formats made raw, beside qemu-img"),
    ("download", "a file fetched and checked, beside curl and sha256sum"),
    ("fork", "machines that begin as a snapshot, beside machines that boot and the monitor's own way"),
    ("store", "verification, seal check, private disks, ingest and memory, beside other tools"),
];
/// Data in MiB where nothing else is asked for.
pub const SIZE_MIB: u32 = 256;
/// The most data, in MiB.
pub const SIZE_MIB_MAX: u32 = 8192;
/// The most rounds.
pub const ROUNDS_MAX: u32 = 1000;
/// From this load average on, times say little.
pub const LOAD_NOISY: f64 = 3.0;
/// Times its data that a benchmark needs as space.
const SPACE_FACTOR: u64 = 10;

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub struct BenchRequest<'a> {
    /// Where the store of the benchmark is made; its file system is what is measured.
    pub dir: &'a Path,
    /// The data of the largest files, in MiB, at least 1.
    pub size_mib: u32,
    /// Rounds; as many as the rules want where none are given.
    pub rounds: Option<u32>,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct BenchReport {
    /// The host.
    pub host: Host,
    /// The load average of a minute at the end.
    pub load_after: f64,
    /// The data of the largest files.
    pub size: ByteSize,
    /// The comparisons.
    pub rows: Vec<Row>,
}

impl BenchReport {
    /// Whether other work ran on the host: then only processor times are good for anything.
    pub fn is_noisy(&self) -> bool {
        self.host.load > LOAD_NOISY || self.load_after > LOAD_NOISY
    }
}

/// Measures the store beside other tools. Of `settings`, the home is not used.
///
/// # Errors
/// When the directory has too little space, when a program that is there fails, when what is compared is not the same.
pub fn bench_store(
    settings: &Settings,
    request: &BenchRequest<'_>,
    cancel: &Cancel,
    reporter: &dyn Reporter,
) -> EngineResult<BenchReport> {
    let parent = fs::canonicalize(request.dir)?;
    let scratch = ScratchDir::new(&parent)?;
    let host = Host::gather(&settings.toolbox, scratch.path(), cancel)?;
    let mib = u64::from(request.size_mib.clamp(1, SIZE_MIB_MAX));
    let material = Material::new(scratch.path(), mib, cancel)?;
    material.store.need_space((mib << 20) * SPACE_FACTOR)?;
    let arena = Arena { settings, cancel, reporter, material: &material, rounds: request.rounds };
    let mut rows = Vec::new();
    // First, while this process is small: a program's memory is counted from its fork.
    memory::rows(&arena, &mut rows)?;
    verify::rows(&arena, &mut rows)?;
    clone::rows(&arena, &mut rows)?;
    ingest::rows(&arena, &mut rows)?;
    Ok(BenchReport { load_after: host::load()?, host, size: ByteSize::from_bytes(mib << 20), rows })
}
