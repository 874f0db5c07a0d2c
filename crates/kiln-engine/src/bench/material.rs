//! The bytes that are worked on: random, in a store of the benchmark's own.

use crate::EngineResult;
use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, ArtifactRole, ByteSize, Digest};
use kiln_store::{BuildRecord, IngestFrom, Store};
use kiln_sys::{Cancel, IoResultExt as _, clock, fs};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Data lies in pieces of this many bytes.
pub(super) const PIECE_BYTES: u64 = 1 << 20;
/// Times its data that a sparse file is long.
pub(super) const SPARSE_FACTOR: u64 = 16;
/// Times its data that the file for clones is long.
pub(super) const HOLLOW_FACTOR: u64 = 8;
/// Times its data that the file for the memory's measurement is long.
pub(super) const VAST_FACTOR: u64 = 40;
/// Random bytes that are made at once.
const RANDOM_BYTES: usize = 64 << 10;

/// An artifact in the benchmark's store, and the revision that has it.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) digest: Digest,
    pub(super) size: ByteSize,
    pub(super) data: ByteSize,
    /// As kiln's command line takes it.
    pub(super) reference: String,
    pub(super) path: PathBuf,
}

/// A store and a directory to work in, on the file system that is measured.
pub(super) struct Material {
    pub(super) store: Store,
    /// A directory for what comparisons make.
    pub(super) work: PathBuf,
    /// The data of the largest files, in MiB.
    pub(super) mib: u64,
    cancel: Cancel,
}

impl Material {
    pub(super) fn new(dir: &Path, mib: u64, cancel: &Cancel) -> EngineResult<Self> {
        let work = dir.join("work");
        fs::create_dir(&work)?;
        Ok(Self { store: Store::open(&dir.join("home"))?, work, mib, cancel: cancel.clone() })
    }

    /// Makes an artifact with `data` bytes in a file `factor` times as long, in pieces with holes between.
    pub(super) fn subject(&self, data: u64, factor: u64) -> EngineResult<Subject> {
        let staging = self.store.stage("a benchmark")?;
        let path = staging.path().join("file");
        let file = fs::create_new(&path)?;
        write_random(&file, &path, data, factor, &self.cancel)?;
        self.take(&path, IngestFrom::Staging)
    }

    /// Takes a file into the store, under a revision of its own.
    pub(super) fn take(&self, path: &Path, from: IngestFrom) -> EngineResult<Subject> {
        let staging = self.store.stage("a benchmark")?;
        let taken = self.store.ingest(path, from, &staging, &self.cancel)?;
        let kernel = staging.path().join("kernel");
        fs::create_new(&kernel)?.write_all_at(b"no kernel", 0).at("write", &kernel)?;
        let kernel = self.store.ingest(&kernel, IngestFrom::Staging, &staging, &self.cancel)?;
        let artifact = |role, digest, size| Artifact { role, digest, size, format: ArtifactFormat::Ext4 };
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            arch: Arch::host().unwrap_or(Arch::X86_64),
            artifacts: vec![
                artifact(ArtifactRole::kernel(), kernel.digest, kernel.size),
                artifact(ArtifactRole::rootfs(), taken.digest, taken.size),
            ],
            machine: MachineShape::default(),
            boot_args: Vec::new(),
            ready: None,
            snapshot: None,
            seed: None,
            variants: Vec::new(),
        };
        #[expect(clippy::unwrap_used, reason = "a constant that is a name")]
        let template = "bench".parse().unwrap();
        let record = BuildRecord {
            version: 1,
            template,
            key: manifest.id(),
            built_unix_ms: clock::now_unix_ms(),
            elapsed_ms: 0,
            facts: BTreeMap::new(),
        };
        let revision = self.store.commit_revision(&manifest, &record)?;
        Ok(Subject {
            digest: taken.digest,
            size: taken.size,
            data: taken.data,
            reference: revision.to_string(),
            path: self.store.artifact_path(&taken.digest),
        })
    }

    /// Removes what a comparison made and has the file system write what is left to write, so that nobody pays for
    /// what somebody else did.
    pub(super) fn settle(&self, path: &Path) -> EngineResult<()> {
        fs::remove_tree(path)?;
        self.flush()
    }

    /// Has the file system write what is left to write.
    pub(super) fn flush(&self) -> EngineResult<()> {
        let dir = fs::open_dir(&self.work)?;
        rustix::fs::syncfs(&dir).at("sync", &self.work)?;
        Ok(())
    }
}

/// Writes `data` random bytes to an empty file that becomes `factor` times as long, in pieces with holes between.
pub(super) fn write_random(
    file: &File,
    path: &Path,
    data: u64,
    factor: u64,
    cancel: &Cancel,
) -> EngineResult<()> {
    file.set_len(data * factor).at("set the length of", path)?;
    for piece in 0..data.div_ceil(PIECE_BYTES) {
        cancel.check()?;
        let (start, end) = (piece * PIECE_BYTES, ((piece + 1) * PIECE_BYTES).min(data));
        for at in (start..end).step_by(RANDOM_BYTES) {
            let bytes = clock::random::<RANDOM_BYTES>();
            let count = usize::try_from(end - at).unwrap_or(RANDOM_BYTES).min(RANDOM_BYTES);
            file.write_all_at(&bytes[..count], start * factor + (at - start)).at("write", path)?;
        }
    }
    rustix::fs::fsync(file).at("sync", path)?;
    Ok(())
}
