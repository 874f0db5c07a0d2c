//! Snapshots of templates: a machine is booted from a revision, warmed until it is ready, captured, and gone. The revision's
//! own artifacts never change, and a capture that fails leaves nothing.

mod guest;
pub mod machine;
pub mod restore;

use crate::create::{CreateRequest, DATA_DISK_FILE, DISK_STEM};
use crate::progress::{Reporter, waiting};
use crate::restore::{NETWORK_FACT, RestoreChoice, network_name};
use crate::spec::{MEMORY_FILE, SpecFiles};
use crate::start::Ownership;
use crate::supervisor::STATE_FILE;
use crate::{Engine, EngineResult};
use kiln_core::machine::{CloneMethod, IdentityPolicy, MachineRecord, Network};
use kiln_core::snapshot::{
    SNAPSHOT_RECORD_VERSION, SNAPSHOT_VERSION, SnapshotFile, SnapshotKeep, SnapshotManifest, SnapshotMemory,
    SnapshotRecord,
};
use kiln_core::variant::Board;
use kiln_core::{ByteSize, Digest, Reference, VariantName};
use kiln_store::{CloneChoice, IngestFrom, Staging, StoreError};
use kiln_sys::lock::Share;
use kiln_sys::{clock, copy};
use std::path::Path;
use std::time::Instant;

/// Free memory file space that a machine to be captured needs beside its memory, in bytes.
const CAPTURE_SPACE: u64 = 64 << 20;

/// Space that the indexes, the manifest and the record of a snapshot take at most, in bytes, for the usual sizes of memory.
const PUBLISH_SPACE: u64 = 1 << 20;

/// What is to be captured.
#[derive(Debug, Clone)]
pub struct SnapshotRequest {
    /// The revision, by reference; a variant's shape counts.
    pub reference: Reference,
    /// For how long the snapshot stays.
    pub keep: SnapshotKeep,
    /// Its name.
    pub name: Option<VariantName>,
    /// Memory, where not as the template says.
    pub memory: Option<ByteSize>,
    /// Processors, where not as the template says.
    pub vcpus: Option<u32>,
    /// The board, where not as the template says.
    pub board: Option<Board>,
    /// The accelerator: `auto`, `kvm` or `tcg`.
    pub accelerator: String,
    /// Commands that are run in the ready guest, one after the other, after those of the recipe and before the capture.
    pub warm_up: Vec<Vec<String>>,
    /// Whether the guest drops clean caches before the capture although the recipe does not say so: a smaller snapshot, and
    /// slower first reads.
    pub drop_caches: bool,
}

impl SnapshotRequest {
    /// Asks for what a build makes: a snapshot of the template's own shape that stays as long as its revision.
    pub fn of_revision(revision: Digest) -> Self {
        Self {
            reference: Reference::of_digest(revision),
            keep: SnapshotKeep::Revision,
            name: None,
            memory: None,
            vcpus: None,
            board: None,
            accelerator: "auto".to_owned(),
            warm_up: Vec::new(),
            drop_caches: false,
        }
    }
}

// A command that a recipe may have is one that the guest takes.
const _: () =
    assert!(kiln_core::capture::WARM_UP_COMMAND_BYTES_MAX <= kiln_guest::limits::ARGV_ENV_BYTES_MAX);

/// A snapshot that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Its id.
    pub id: Digest,
    /// Milliseconds from the start of the machine until it was ready.
    pub ready_after_ms: u64,
    /// How long the guest stood still for the capture, in microseconds.
    pub paused_us: u64,
    /// How long writing the guest's file systems and its hooks took, in milliseconds.
    pub quiesce_ms: u64,
    /// How long it took from the capture until the snapshot was published, in milliseconds.
    pub publish_ms: u64,
    /// What its memory takes up on disk.
    pub memory: ByteSize,
    /// What the state of its devices takes up.
    pub state: ByteSize,
}

/// What the files of a captured machine are.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// Whether memory and state are among them.
    memory: bool,
    /// Whether it has a network device although it is connected to nothing.
    unplugged_nic: bool,
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Engine {
    /// Boots a machine from a revision, waits until it is ready, and captures it.
    ///
    /// # Errors
    /// As those of making and starting a machine, with the console's and the probe's last words; [`NotCaptured`](crate::EngineError::NotCaptured). The
    /// revision is as it was then, and the machine is gone.
    pub fn snapshot_template(
        &self,
        request: &SnapshotRequest,
        reporter: &dyn Reporter,
    ) -> EngineResult<SnapshotReport> {
        let create = CreateRequest {
            vcpus: request.vcpus,
            memory: request.memory,
            accelerator: request.accelerator.clone(),
            board: request.board,
            clone: self.raw_clone(&request.reference)?,
            restore: RestoreChoice::Never,
            identity: IdentityPolicy::Skip,
            capturable: true,
            remove_on_exit: true,
            ..CreateRequest::new(request.reference.clone())
        };
        let created = self.create(&create, reporter)?;
        let record = created.entry.record.clone();
        if let Err(error) = self.store.need_space(record.shape.memory.bytes().saturating_add(CAPTURE_SPACE)) {
            self.store.discard_dir(&created.entry.dir)?;
            return Err(error.into());
        }
        let plan = self.store.revision(&record.revision)?.manifest.snapshot.unwrap_or_default();
        let request = &SnapshotRequest {
            warm_up: plan.warm_up.into_iter().chain(request.warm_up.iter().cloned()).collect(),
            drop_caches: plan.drop_caches || request.drop_caches,
            ..request.clone()
        };
        let entry = created.entry.clone();
        let mut started = self.start_created(created, Ownership::Owned, reporter)?;
        let begun = Instant::now();
        let staging = self.store.stage("capturing a machine")?;
        let stood = match self.capture_guest(&entry, request, &staging, reporter) {
            Ok(stood) => stood,
            Err(error) => return Err(self.end_failed(&entry, started, error)),
        };
        let captured = Instant::now();
        started.wait_end(self)?;
        let made = SnapshotRecord {
            version: SNAPSHOT_RECORD_VERSION,
            created_unix_ms: clock::now_unix_ms(),
            keep: request.keep,
            name: request.name.clone(),
            machine: None,
            paused_us: stood.paused_us,
            elapsed_ms: millis(begun),
        };
        let taken = Taken { memory: true, unplugged_nic: true };
        let (id, manifest) = self.publish_captured(&record, &staging, taken, &made, reporter)?;
        let memory = manifest.memory.as_ref();
        Ok(SnapshotReport {
            id,
            ready_after_ms: started.ready_after_ms,
            paused_us: stood.paused_us,
            quiesce_ms: stood.quiesce_ms,
            publish_ms: millis(captured),
            memory: self.stored_bytes(memory.and_then(|memory| memory.ram))?,
            state: self.stored_bytes(memory.map(|memory| memory.state))?,
        })
    }

    /// Returns how the disk of a machine is made that is to become an artifact: raw, shared where the file system can.
    pub(crate) fn raw_clone(&self, reference: &Reference) -> EngineResult<CloneChoice> {
        let revision = self.store.resolve(reference)?;
        let staging = self.store.stage("looking at the file system")?;
        let rootfs = revision.manifest.artifact(&kiln_core::ArtifactRole::rootfs());
        let Some(rootfs) = rootfs else { return Ok(CloneChoice::Auto) };
        let request = kiln_store::CloneRequest {
            digest: rootfs.digest,
            size: rootfs.size,
            dir: staging.path(),
            stem: "probe",
            choice: CloneChoice::Exactly(CloneMethod::Reflink),
        };
        match self.store.clone_artifact(&request, &self.cancel) {
            Ok(_) => Ok(CloneChoice::Exactly(CloneMethod::Reflink)),
            Err(StoreError::CloneUnsupported { .. }) => Ok(CloneChoice::Exactly(CloneMethod::Copy)),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the files of a captured machine into the store and publishes them as a snapshot.
    fn publish_captured(
        &self,
        record: &MachineRecord,
        staging: &Staging,
        taken: Taken,
        made: &SnapshotRecord,
        reporter: &dyn Reporter,
    ) -> EngineResult<(Digest, SnapshotManifest)> {
        // Nothing could be published without it, and what is taken in is left to a collector then.
        self.store.need_space(PUBLISH_SPACE)?;
        let mut waiting = waiting(reporter);
        let _store = self.store.lock(Share::Shared, "taking in a snapshot", &self.cancel, &mut waiting)?;
        let manifest = self.take_in_captured(record, staging, taken)?;
        Ok((self.store.commit_snapshot(&manifest, made)?, manifest))
    }

    /// Returns what a file of a snapshot takes up in the store.
    fn stored_bytes(&self, file: Option<SnapshotFile>) -> EngineResult<ByteSize> {
        let bytes = file.map(|file| copy::allocated_bytes(&self.store.artifact_path(&file.digest)));
        Ok(ByteSize::from_bytes(bytes.transpose()?.unwrap_or(0)))
    }

    /// Takes the files of a captured machine into the store.
    fn take_in_captured(
        &self,
        record: &MachineRecord,
        staging: &Staging,
        taken: Taken,
    ) -> EngineResult<SnapshotManifest> {
        let file = |name: &str| staging.path().join(name);
        let disk = Path::new(DISK_STEM).with_extension(CloneMethod::Copy.extension());
        let disk = staging.path().join(disk);
        let data = record.shape.data_disk.map(|_| file(DATA_DISK_FILE));
        let compatibility = if taken.memory {
            let files = SpecFiles::of_raw(record, disk.clone(), data.clone())?;
            let files = files.restored(file(MEMORY_FILE), file(STATE_FILE), taken.unplugged_nic);
            let mut facts = self.compatibility(record, files)?;
            // Unconnected, it can be restored with any network; else its state has a part that needs the same.
            if record.network != Network::None {
                facts.insert(NETWORK_FACT, network_name(&record.network));
            }
            Some(facts)
        } else {
            None
        };
        let ingest = |path: &Path| -> EngineResult<SnapshotFile> {
            let taken = self.store.ingest(path, IngestFrom::Staging, staging, &self.cancel)?;
            Ok(SnapshotFile { digest: taken.digest, size: taken.size })
        };
        Ok(SnapshotManifest {
            version: SNAPSHOT_VERSION,
            subject: record.revision,
            arch: record.arch,
            variant: record.variant.clone(),
            machine: record.shape.clone(),
            boot_args: record.boot_args.clone(),
            disk: ingest(&disk)?,
            data_disk: data.as_deref().map(ingest).transpose()?,
            memory: match compatibility {
                Some(compatibility) => Some(SnapshotMemory {
                    ram: Some(ingest(&file(MEMORY_FILE))?),
                    state: ingest(&file(STATE_FILE))?,
                    compatibility,
                }),
                None => None,
            },
        })
    }
}
