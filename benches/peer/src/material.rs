//! The template: the same bytes in a store of kiln's and in a directory of the crate's.

use crate::Outcome;
use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, ArtifactRole, Digest, Reference};
use kiln_store::{BuildRecord, IngestFrom, Store};
use kiln_sys::{Cancel, clock, copy};
use microvm_runtime::{RootfsConfig, RootfsRegistry};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Times its data that the template is long.
const FACTOR: u64 = 8;
/// Data lies in so many pieces, with holes between: sharing blocks costs by the piece.
const PIECES: u64 = 4;
/// Random bytes that are made at once.
const RANDOM_BYTES: usize = 64 << 10;
/// The template's name on both sides.
pub(crate) const NAME: &str = "base";

/// Both sides, filled.
pub(crate) struct Material {
    /// kiln's store.
    pub(crate) store: Store,
    pub(crate) cancel: Cancel,
    pub(crate) reference: Reference,
    /// The root file system in the store.
    pub(crate) rootfs: Artifact,
    /// The same as a file.
    pub(crate) artifact: PathBuf,
    /// The crate's templates and clones, with the template's hash in its cache.
    pub(crate) registry: RootfsRegistry,
    /// The crate's directory of templates, for registries in other processes.
    pub(crate) templates: PathBuf,
    /// The template's file in it.
    pub(crate) template: PathBuf,
    /// A directory for what contestants make.
    pub(crate) work: PathBuf,
}

impl Material {
    pub(crate) fn new(dir: &Path, mib: u64) -> Outcome<Self> {
        let cancel = Cancel::new()?;
        let (work, templates, clones) = (dir.join("work"), dir.join("templates"), dir.join("crate-clones"));
        for path in [&work, &templates.join(NAME), &clones] {
            std::fs::create_dir_all(path)?;
        }
        let store = Store::open(&dir.join("home"))?;
        let data = mib << 20;
        let (rootfs, reference) = fill(&store, data, &cancel)?;
        let artifact = store.artifact_path(&rootfs.digest);
        // Written out, not shared: neither side's file is the other's.
        let template = templates.join(NAME).join("rootfs.ext4");
        let (from, to) = (File::open(&artifact)?, File::create_new(&template)?);
        write_data(&to, data, |at, bytes| Ok(from.read_exact_at(bytes, at)?))?;
        let config =
            RootfsConfig { template_dir: templates.clone(), clones_dir: clones, ..RootfsConfig::default() };
        let registry = RootfsRegistry::new(config);
        registry.stacks()?;
        let size = rootfs.size.bytes();
        for (whose, path) in [("kiln", &artifact), ("the crate", &template)] {
            let extents = copy::layout(&File::open(path)?).map_or(0, |layout| layout.extents);
            let blocks = copy::allocated_bytes(path)? >> 20;
            println!(
                "template of {whose}: {} MiB long, {blocks} MiB of blocks, {extents} extents",
                size >> 20
            );
        }
        Ok(Self { store, cancel, reference, rootfs, artifact, registry, templates, template, work })
    }

    /// Has the file system write what is left to write, so that nobody pays for what somebody else did.
    pub(crate) fn settle(&self) -> Outcome<()> {
        let done = std::process::Command::new("sync").arg("-f").arg(&self.work).status()?;
        if done.success() { Ok(()) } else { Err("sync -f failed".into()) }
    }
}

/// Puts random data into the store, under a tag.
fn fill(store: &Store, data: u64, cancel: &Cancel) -> Outcome<(Artifact, Reference)> {
    let staging = store.stage("a benchmark")?;
    let path = staging.path().join("rootfs");
    write_data(&File::create_new(&path)?, data, |_, bytes| {
        for piece in bytes.chunks_mut(RANDOM_BYTES) {
            piece.copy_from_slice(&clock::random::<RANDOM_BYTES>()[..piece.len()]);
        }
        Ok(())
    })?;
    let rootfs = store.ingest(&path, IngestFrom::Staging, &staging, cancel)?;
    let path = staging.path().join("kernel");
    std::fs::write(&path, b"no kernel")?;
    let kernel = store.ingest(&path, IngestFrom::Staging, &staging, cancel)?;
    let artifact = |role, digest: Digest, size| Artifact { role, digest, size, format: ArtifactFormat::Ext4 };
    let rootfs = artifact(ArtifactRole::rootfs(), rootfs.digest, rootfs.size);
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        arch: Arch::host().unwrap_or(Arch::X86_64),
        artifacts: vec![artifact(ArtifactRole::kernel(), kernel.digest, kernel.size), rootfs.clone()],
        machine: MachineShape::default(),
        boot_args: Vec::new(),
        ready: None,
        variants: Vec::new(),
    };
    let record = BuildRecord {
        version: 1,
        template: NAME.parse()?,
        key: manifest.id(),
        built_unix_ms: clock::now_unix_ms(),
        elapsed_ms: 0,
        facts: BTreeMap::new(),
    };
    let revision = store.commit_revision(&manifest, &record)?;
    store.set_tag(&NAME.parse()?, &"latest".parse()?, &revision, "build")?;
    Ok((rootfs, NAME.parse()?))
}

/// Writes `data` bytes, in pieces with holes between, to an empty file that becomes [`FACTOR`] times as long.
fn write_data(
    file: &File,
    data: u64,
    mut bytes_at: impl FnMut(u64, &mut [u8]) -> Outcome<()>,
) -> Outcome<()> {
    file.set_len(data * FACTOR)?;
    let mut bytes = vec![0; usize::try_from(data / PIECES)?];
    for piece in 0..PIECES {
        let at = piece * (data / PIECES) * FACTOR;
        bytes_at(at, &mut bytes)?;
        file.write_all_at(&bytes, at)?;
    }
    Ok(file.sync_all()?)
}
