//! Operations on a store as the engine does them, locks and order included, over a handful of contents and names.

use kiln_core::machine::{
    BootArtifacts, CloneMethod, MachineRecord, MachineStatus, Network, Phase, RECORD_VERSION,
};
use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::snapshot::{
    Compatibility, SNAPSHOT_RECORD_VERSION, SNAPSHOT_VERSION, SnapshotFile, SnapshotKeep, SnapshotManifest,
    SnapshotMemory, SnapshotRecord,
};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, ArtifactRole, ByteSize, Digest, MachineId, Tag, TemplateName};
use kiln_store::index::{Index, segment_digest};
use kiln_store::{BuildRecord, CloneChoice, CloneRequest, IngestFrom, Store, StoreError, StoreResult};
use kiln_sys::commit::{Existing, commit_dir, write_file};
use kiln_sys::fail::{ANY, Action, arm};
use kiln_sys::lock::{Holder, Share};
use kiln_sys::{Cancel, fs};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// How many contents there are; each two share a kernel.
pub(crate) const CONTENTS: u8 = 5;
/// The one whose root file system is a partition of a disk; the others' is the disk.
pub(crate) const TABLE: u8 = 4;
/// The hole before a root file system's data, in bytes: a whole segment.
const HOLE: usize = SEGMENT_BYTES;
const SEGMENT_BYTES: usize = 64 << 10;
/// What a grown disk has more than its artifact, in bytes.
const MORE: u64 = 1 << 20;

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Op {
    /// Opens the store, making it where there is none.
    Open,
    /// Takes in two files, publishes their revision, and tags it `latest`.
    Build { content: u8, template: u8 },
    /// Tags a revision `v1`.
    Tag { content: u8, template: u8 },
    /// Removes the tag `v1`.
    Untag { template: u8 },
    /// Removes a revision and its tags.
    Remove { content: u8 },
    /// Takes in two files and publishes a snapshot of a revision.
    Snapshot { content: u8 },
    /// Removes that snapshot.
    Forget { content: u8 },
    /// Makes a machine.
    Machine { slot: u8, content: u8, method: Option<CloneMethod> },
    /// Makes a machine whose disk is longer than its artifact.
    Grown { slot: u8, content: u8, method: Option<CloneMethod> },
    /// Says in a machine's status that it ended.
    Status { slot: u8 },
    /// Removes a machine.
    Discard { slot: u8 },
    /// Removes what ended processes left.
    Sweep,
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    Kill,
    Pause,
    Error(i32),
}

impl Fault {
    /// Arms the `nth` point that this thread passes.
    pub(crate) fn arm(self, nth: u32) {
        let action = match self {
            Self::Kill => Action::Kill,
            Self::Pause => Action::Call(kiln_testing::pause),
            Self::Error(number) => Action::Error(number),
        };
        arm(ANY, nth, action);
    }
}

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) home: PathBuf,
    pub(crate) op: Op,
    pub(crate) fault: Option<(u32, Fault)>,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Ok,
    NotFound,
    InUse,
    Exists,
    Unsupported,
    NoSpace,
    Other(String),
}

pub(crate) fn outcome(result: &StoreResult<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Ok,
        Err(StoreError::NotFound { .. } | StoreError::NoTag { .. }) => Outcome::NotFound,
        Err(StoreError::InUse { .. }) => Outcome::InUse,
        Err(StoreError::CloneUnsupported { .. }) => Outcome::Unsupported,
        Err(StoreError::NoSpace { .. }) => Outcome::NoSpace,
        Err(StoreError::Io(error)) if error.is_no_space() => Outcome::NoSpace,
        Err(StoreError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Outcome::NotFound,
        Err(StoreError::Io(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => Outcome::Exists,
        Err(error) => Outcome::Other(format!("{error:?}")),
    }
}

/// The files that builds take in, and the names their content will have.
#[derive(Debug)]
pub(crate) struct Sources {
    dir: PathBuf,
    revisions: Vec<(Digest, Manifest)>,
}

impl Sources {
    /// Writes the files into a new directory.
    pub(crate) fn make(dir: &Path) -> Self {
        std::fs::create_dir(dir).unwrap();
        for content in 0..CONTENTS {
            std::fs::write(dir.join(format!("kernel-{content}")), kernel(content)).unwrap();
            let file = std::fs::File::create(dir.join(format!("rootfs-{content}"))).unwrap();
            let rootfs = rootfs(content);
            file.set_len(rootfs.len() as u64).unwrap();
            for (segment, at) in rootfs.chunks(SEGMENT_BYTES).zip((0..).step_by(SEGMENT_BYTES)) {
                if segment_digest(segment).is_some() {
                    file.write_all_at(segment, at).unwrap();
                }
            }
        }
        Self::at(dir)
    }

    /// Knows the files in a directory that [`Sources::make`] filled.
    pub(crate) fn at(dir: &Path) -> Self {
        let revisions = (0..CONTENTS).map(manifest).map(|manifest| (manifest.id(), manifest)).collect();
        Self { dir: dir.to_owned(), revisions }
    }

    pub(crate) fn id(&self, content: u8) -> Digest {
        self.revisions[usize::from(content)].0
    }

    pub(crate) fn snapshot(&self, content: u8) -> Digest {
        snapshot(self.id(content), content).id()
    }

    /// Returns the files of a snapshot, in the order in which they are taken in.
    pub(crate) fn snapshot_files(&self, content: u8) -> [Digest; 2] {
        captured(content).map(|bytes| small(&bytes).digest)
    }

    pub(crate) fn artifacts(&self, content: u8) -> [Digest; 2] {
        [0, 1].map(|at| self.revisions[usize::from(content)].1.artifacts[at].digest)
    }

    pub(crate) fn content(&self, id: &Digest) -> Option<u8> {
        (0..CONTENTS).find(|content| self.id(*content) == *id)
    }
}

fn kernel(content: u8) -> Vec<u8> {
    format!("kernel {}", content / 2).into_bytes()
}

fn rootfs(content: u8) -> Vec<u8> {
    if content == TABLE {
        return crate::grow::disk(4 * SEGMENT_BYTES, &[(crate::grow::LINUX, 64, 400)]);
    }
    let mut bytes = vec![0; HOLE];
    bytes.extend([content + 1; 4096]);
    bytes
}

fn manifest(content: u8) -> Manifest {
    let kernel = kernel(content);
    let kernel_index = Index::from_segments(kernel.len() as u64, [segment_digest(&kernel)]);
    let rootfs = rootfs(content);
    let rootfs_index =
        Index::from_segments(rootfs.len() as u64, rootfs.chunks(SEGMENT_BYTES).map(segment_digest));
    let artifact = |role, index: &Index, format| Artifact {
        role,
        digest: index.digest(),
        size: ByteSize::from_bytes(index.length()),
        format,
    };
    Manifest {
        version: MANIFEST_VERSION,
        arch: Arch::X86_64,
        artifacts: vec![
            artifact(ArtifactRole::kernel(), &kernel_index, ArtifactFormat::Elf),
            artifact(ArtifactRole::rootfs(), &rootfs_index, ArtifactFormat::Ext4),
        ],
        machine: MachineShape::default(),
        boot_args: Vec::new(),
        ready: None,
        snapshot: None,
        seed: None,
        variants: Vec::new(),
    }
}

/// The disk and the state of a captured machine.
fn captured(content: u8) -> [String; 2] {
    ["disk", "state"].map(|name| format!("{name} of {content}"))
}

/// Names a file of one segment.
fn small(bytes: &str) -> SnapshotFile {
    let index = Index::from_segments(bytes.len() as u64, [segment_digest(bytes.as_bytes())]);
    SnapshotFile { digest: index.digest(), size: ByteSize::from_bytes(index.length()) }
}

fn snapshot(subject: Digest, content: u8) -> SnapshotManifest {
    let [disk, state] = captured(content).map(|bytes| small(&bytes));
    let compatibility = Compatibility::default();
    SnapshotManifest {
        version: SNAPSHOT_VERSION,
        subject,
        arch: Arch::X86_64,
        variant: None,
        machine: MachineShape::default(),
        boot_args: Vec::new(),
        disk,
        data_disk: None,
        memory: Some(SnapshotMemory { ram: None, state, compatibility }),
    }
}

pub(crate) fn template(number: u8) -> TemplateName {
    ["db", "web"][usize::from(number)].parse().unwrap()
}

pub(crate) fn v1() -> Tag {
    "v1".parse().unwrap()
}

pub(crate) fn key(content: u8) -> Digest {
    Digest::of(&[content])
}

pub(crate) fn machine_id(slot: u8) -> MachineId {
    MachineId::from_random([slot; 6])
}

/// Does an operation. `waiting` is told when it waits for somebody's lock.
pub(crate) fn run(home: &Path, sources: &Sources, op: Op, waiting: &dyn Fn()) -> StoreResult<()> {
    let store = Store::open(home)?;
    let cancel = Cancel::new().unwrap();
    let lock = |share| store.lock(share, "a test", &cancel, &mut |_: &Holder| waiting());
    let lock_template =
        |name: &TemplateName| store.lock_template(name, "a test", &cancel, &mut |_| waiting());
    match op {
        Op::Open => Ok(()),
        Op::Build { content, template: number } => {
            let _store = lock(Share::Shared)?;
            let name = template(number);
            let _template = lock_template(&name)?;
            build(&store, sources, content, &name, &cancel)
        }
        Op::Tag { content, template: number } => {
            let _store = lock(Share::Shared)?;
            let _template = lock_template(&template(number))?;
            store.set_tag(&template(number), &v1(), &sources.id(content), "tag").map(drop)
        }
        Op::Untag { template: number } => {
            let _store = lock(Share::Exclusive)?;
            let entry = store.template(&template(number))?;
            match entry.is_some_and(|entry| entry.tags.contains_key(&v1())) {
                true => store.remove_tag(&template(number), &v1()),
                false => Ok(()),
            }
        }
        Op::Remove { content } => {
            let alone = lock(Share::Exclusive)?;
            let id = sources.id(content);
            store.revision(&id)?;
            // A machine that goes meanwhile still counts: the tags would stay behind otherwise.
            let machines = store.machines_of(&id)?;
            if !machines.is_empty() {
                return Err(StoreError::InUse { revision: id, machines });
            }
            for (name, tag) in store.tags_of(&id)? {
                store.remove_tag(&name, &tag)?;
            }
            store.remove_revision(&id, &alone).map(|_| ())
        }
        Op::Snapshot { content } => {
            let _store = lock(Share::Shared)?;
            capture(&store, sources, content, &cancel)
        }
        Op::Forget { content } => {
            let alone = lock(Share::Exclusive)?;
            store.remove_snapshot(&sources.snapshot(content), &alone).map(drop)
        }
        Op::Machine { slot, content, method } => {
            let _store = lock(Share::Shared)?;
            machine(&store, sources, slot, (content, 0), method, &cancel)
        }
        Op::Grown { slot, content, method } => {
            let _store = lock(Share::Shared)?;
            machine(&store, sources, slot, (content, MORE), method, &cancel)
        }
        Op::Status { slot } => {
            let dir = store.machine(&machine_id(slot))?.dir;
            let status = MachineStatus { phase: Phase::Stopped, ..MachineStatus::created() };
            store.write_status(&dir, &status)
        }
        Op::Discard { slot } => store.discard_dir(&store.machine_dir(&machine_id(slot))),
        Op::Sweep => {
            store.sweep_staging()?;
            store.sweep_asides(&lock(Share::Exclusive)?).map(|_| ())
        }
    }
}

fn build(
    store: &Store,
    sources: &Sources,
    content: u8,
    name: &TemplateName,
    cancel: &Cancel,
) -> StoreResult<()> {
    let staging = store.stage("a test")?;
    let kernel = sources.dir.join(format!("kernel-{content}"));
    store.ingest(&kernel, IngestFrom::Outside, &staging, cancel)?;
    let own = staging.path().join("rootfs");
    let rootfs = fs::open(&sources.dir.join(format!("rootfs-{content}")))?;
    let target = fs::create_new(&own)?;
    kiln_sys::copy::copy_file(&rootfs, &target, &own, None)?;
    store.ingest(&own, IngestFrom::Staging, &staging, cancel)?;
    let record = BuildRecord { template: name.clone(), key: key(content), ..crate::record() };
    let id = store.commit_revision(&sources.revisions[usize::from(content)].1, &record)?;
    store.remember_build(&key(content), &id)?;
    store.keep_recipe(name, "# a recipe\n")?;
    store.set_tag(name, &Tag::latest(), &id, "build").map(drop)
}

fn capture(store: &Store, sources: &Sources, content: u8, cancel: &Cancel) -> StoreResult<()> {
    store.revision(&sources.id(content))?;
    let staging = store.stage("a test")?;
    for (name, bytes) in ["disk", "state"].into_iter().zip(captured(content)) {
        let own = staging.path().join(name);
        write_file(&own, bytes.as_bytes(), 0o600, Existing::Replace)?;
        store.ingest(&own, IngestFrom::Staging, &staging, cancel)?;
    }
    let record = SnapshotRecord {
        version: SNAPSHOT_RECORD_VERSION,
        created_unix_ms: 1,
        keep: SnapshotKeep::Revision,
        name: None,
        machine: None,
        paused_us: 2,
        elapsed_ms: 3,
    };
    store.commit_snapshot(&snapshot(sources.id(content), content), &record).map(drop)
}

fn machine(
    store: &Store,
    sources: &Sources,
    slot: u8,
    (content, more): (u8, u64),
    method: Option<CloneMethod>,
    cancel: &Cancel,
) -> StoreResult<()> {
    let revision = store.revision(&sources.id(content))?;
    let [kernel, rootfs] = [0, 1].map(|at| revision.manifest.artifacts[at].clone());
    let staging = store.stage("a test")?;
    let dir = staging.path().join("machine");
    fs::create_dir(&dir)?;
    let request = CloneRequest {
        digest: rootfs.digest,
        size: rootfs.size,
        dir: &dir,
        stem: "disk",
        choice: method.map_or(CloneChoice::Auto, CloneChoice::Exactly),
    };
    let grown = ByteSize::from_bytes(rootfs.size.bytes() + more);
    let record = MachineRecord {
        version: RECORD_VERSION,
        id: machine_id(slot),
        name: format!("machine-{slot}").parse().unwrap(),
        reference: "web".to_owned(),
        revision: revision.id,
        variant: None,
        arch: revision.manifest.arch,
        shape: MachineShape::default(),
        boot: BootArtifacts::Kernel { kernel: kernel.digest, format: kernel.format, initrd: None },
        boot_args: Vec::new(),
        ready: None,
        network: Network::None,
        accelerator: "auto".to_owned(),
        clone: store.clone_grown(&request, grown, cancel)?,
        base: None,
        seed: false,
        ssh_keys: Vec::new(),
        snapshot: None,
        must_restore: false,
        boots: false,
        put_back: false,
        identity: kiln_core::machine::IdentityPolicy::default(),
        capturable: false,
        remove_on_exit: false,
        ttl_ms: None,
        restart: kiln_core::RestartPolicy::No,
        idle_suspend_ms: None,
        created_unix_ms: 1,
    };
    store.write_status(&dir, &MachineStatus::created())?;
    let bytes = serde_json::to_vec(&record).unwrap();
    write_file(&dir.join("machine.json"), &bytes, 0o600, Existing::Replace)?;
    Ok(commit_dir(&dir, &store.machine_dir(&record.id))?)
}
