//! Making machines: a revision, a private disk and a record, published in one step.

use crate::progress::{Progress, Reporter, waiting};
use crate::restore::RestoreChoice;
use crate::{Engine, EngineError, EngineResult, private, seed};
use kiln_core::machine::{
    BootArtifacts, CloneMethod, CloneRecord, IdentityPolicy, MachineRecord, MachineStatus, Network,
    RECORD_BYTES_MAX, RECORD_VERSION,
};
use kiln_core::revision::{Artifact, InvalidManifest};
use kiln_core::variant::MachineShape;
use kiln_core::{
    ArtifactRole, ByteSize, MachineId, MachineName, Reference, RestartPolicy, SshPublicKey, TemplateName,
};
use kiln_guest::private::Private;
use kiln_store::{CloneChoice, CloneRequest, MachineEntry, Revision, StoreError};
use kiln_sys::commit::{Existing, commit_dir, write_file};
use kiln_sys::lock::{FileLock, Share};
use kiln_sys::{IoResultExt as _, clock, fs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The machine's private root disk, in its directory, without the extension of its clone method.
pub const DISK_STEM: &str = "disk";
/// The machine's blank second disk, in its directory.
pub const DATA_DISK_FILE: &str = "data.raw";
/// Held by whoever starts the machine, until its supervisor is at work.
pub(crate) const START_LOCK: &str = "start.lock";

/// Returns the names of a machine's disk files in its directory, in the machine's order.
pub(crate) fn disk_files(record: &MachineRecord) -> Vec<PathBuf> {
    let root = Path::new(DISK_STEM).with_extension(record.clone.method.extension());
    let data = record.shape.data_disk.map(|_| PathBuf::from(DATA_DISK_FILE));
    std::iter::once(root).chain(data).collect()
}

/// What a new machine is to be.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// What it runs.
    pub reference: Reference,
    /// Its name; none means one made from the template's.
    pub name: Option<MachineName>,
    /// Processors, where not as the template says.
    pub vcpus: Option<u32>,
    /// Memory, where not as the template says.
    pub memory: Option<ByteSize>,
    /// How it is connected.
    pub network: Network,
    /// The accelerator: `auto`, `kvm` or `tcg`.
    pub accelerator: String,
    /// The board, where not as the template says.
    pub board: Option<kiln_core::variant::Board>,
    /// The length of its root disk, where not the template's; the guest's file system grows to it.
    pub disk: Option<ByteSize>,
    /// How its disk is made.
    pub clone: CloneChoice,
    /// Whether it begins as a snapshot.
    pub restore: RestoreChoice,
    /// What becomes of a restored guest that is not made a machine of its own.
    pub identity: IdentityPolicy,
    /// Whether it is to be captured: its memory is in a file, and it boots.
    pub capturable: bool,
    /// Whether it is removed when it ends.
    pub remove_on_exit: bool,
    /// How long it runs at most after each start; none means without end.
    pub ttl: Option<Duration>,
    /// When it is started again after an end.
    pub restart: RestartPolicy,
    /// Its own environment and secrets.
    pub private: Private,
    /// After how long without work it is suspended; none means never.
    pub idle_suspend: Option<Duration>,
    /// Who may log in by SSH, for the guest's cloud-init. Refused where the template has no seed.
    pub ssh_keys: Vec<SshPublicKey>,
}

impl CreateRequest {
    /// Asks for a machine as its template says: booted or restored, connected to nothing, with nothing of its own.
    pub fn new(reference: Reference) -> Self {
        Self {
            reference,
            name: None,
            vcpus: None,
            memory: None,
            network: Network::None,
            accelerator: "auto".to_owned(),
            board: None,
            disk: None,
            clone: CloneChoice::Auto,
            restore: RestoreChoice::Auto,
            identity: IdentityPolicy::default(),
            capturable: false,
            remove_on_exit: false,
            ttl: None,
            restart: RestartPolicy::default(),
            private: Private::default(),
            idle_suspend: None,
            ssh_keys: Vec::new(),
        }
    }
}

/// A machine that was made and is not started yet. Holding this keeps others from taking it for an orphan.
#[derive(Debug)]
pub struct Created {
    /// The machine.
    pub entry: MachineEntry,
    pub(crate) start_lock: FileLock,
}

fn required(revision: &Revision, role: ArtifactRole) -> Result<&Artifact, StoreError> {
    revision
        .manifest
        .artifact(&role)
        .ok_or(StoreError::BadManifest { id: revision.id, source: InvalidManifest::Missing(role) })
}

/// Returns what machines of a revision boot with.
pub(crate) fn boot_artifacts(revision: &Revision) -> Result<BootArtifacts, StoreError> {
    if revision.manifest.is_disk() {
        let firmware = required(revision, ArtifactRole::firmware())?.digest;
        return Ok(BootArtifacts::Firmware { firmware });
    }
    let Artifact { digest: kernel, format, .. } = required(revision, ArtifactRole::kernel())?;
    let initrd = revision.manifest.artifact(&ArtifactRole::initrd()).map(|artifact| artifact.digest);
    Ok(BootArtifacts::Kernel { kernel: *kernel, format: *format, initrd })
}

impl Engine {
    /// Makes a machine.
    pub fn create(&self, request: &CreateRequest, reporter: &dyn Reporter) -> EngineResult<Created> {
        self.sweep();
        let mut waiting = waiting(reporter);
        let _store = self.store.lock(Share::Shared, "making a machine", &self.cancel, &mut waiting)?;
        let revision = self.store.resolve(&request.reference)?;
        if let Some(name) = &request.name {
            self.refuse_taken(name)?;
        }
        let staging = self.store.stage("making a machine")?;
        let dir = staging.path().join("machine");
        fs::create_dir(&dir)?;
        let id = MachineId::from_random(clock::random());
        let mut record = self.record(request, &revision, id, &dir, reporter)?;
        let start_lock =
            FileLock::try_take(&dir.join(START_LOCK), "starting a machine")?.map_err(|holder| {
                EngineError::SupervisorRefused { name: record.name.to_string(), reason: holder.text }
            })?;
        write_json(&dir, "status.json", &MachineStatus::created())?;
        private::write(&dir, &request.private)?;
        let names = self.store.root().join("machines.lock");
        let _names = FileLock::take(&names, "naming a machine", &self.cancel, &mut waiting)
            .map_err(|error| EngineError::from(StoreError::from(error)))?;
        match &request.name {
            Some(name) => self.refuse_taken(name)?,
            None => record.name = self.free_name(request.reference.template())?,
        }
        if let Some(seed) = &revision.manifest.seed {
            seed::write(&dir, &record, seed)?;
        }
        write_json(&dir, "machine.json", &record)?;
        self.cancel.check()?;
        let home = self.store.machine_dir(&record.id);
        commit_dir(&dir, &home)?;
        Ok(Created {
            entry: MachineEntry { record, status: MachineStatus::created(), dir: home },
            start_lock,
        })
    }

    /// Makes the disks of a machine, and returns its record.
    pub(crate) fn record(
        &self,
        request: &CreateRequest,
        revision: &Revision,
        id: MachineId,
        dir: &Path,
        reporter: &dyn Reporter,
    ) -> EngineResult<MachineRecord> {
        let mut record = self.draft(request, revision, id, reporter)?;
        if let Some(snapshot) = self.choose_snapshot(request, &record, reporter)? {
            record.clone = self.clone_snapshot(&snapshot.manifest, dir, request.clone)?;
            record.snapshot = Some(snapshot.id);
            return Ok(record);
        }
        let CloneRecord { artifact: digest, size, .. } = record.clone;
        let clone = CloneRequest { digest, size, dir, stem: DISK_STEM, choice: request.clone };
        record.clone = self.store.clone_grown(&clone, request.disk.unwrap_or(size), &self.cancel)?;
        if let Some(size) = record.shape.data_disk {
            let path = dir.join(DATA_DISK_FILE);
            let disk = fs::create_new(&path)?;
            disk.set_len(size.bytes()).at("set the length of", &path)?;
            disk.sync_all().at("sync", &path)?;
        }
        Ok(record)
    }

    /// Returns what a machine would be that boots, before it has a disk.
    pub(crate) fn draft(
        &self,
        request: &CreateRequest,
        revision: &Revision,
        id: MachineId,
        reporter: &dyn Reporter,
    ) -> EngineResult<MachineRecord> {
        let manifest = &revision.manifest;
        if manifest.seed.is_none() && !request.ssh_keys.is_empty() {
            return Err(EngineError::NoSeed { reference: request.reference.to_string() });
        }
        kiln_core::ssh::check_keys(&request.ssh_keys)?;
        let required = |role| required(revision, role);
        let rootfs = required(ArtifactRole::rootfs())?;
        let boot = boot_artifacts(revision)?;
        // A root that is only read is shared; the private disk is a scratch disk over it.
        let shared = manifest.base();
        let disk = if shared.is_some() { required(ArtifactRole::scratch())? } else { rootfs };
        let booted =
            manifest.artifacts.iter().filter(|artifact| boot.digests().any(|used| used == artifact.digest));
        for artifact in booted.chain(shared).chain([disk]) {
            let mut reading = |why: &StoreError| {
                reporter.progress(Progress::Note { text: why.to_string() });
            };
            self.store.ensure_artifact(&artifact.digest, artifact.size, &self.cancel, &mut reading)?;
        }
        let variant = request.reference.variant.as_ref().and_then(|name| manifest.variant(name));
        let base =
            variant.map_or_else(|| manifest.machine.clone(), |variant| variant.shape(&manifest.machine));
        let shape = MachineShape {
            vcpus: request.vcpus.unwrap_or(base.vcpus),
            memory: request.memory.unwrap_or(base.memory),
            data_disk: base.data_disk,
            board: request.board.unwrap_or(base.board),
        }
        .checked()?;
        Ok(MachineRecord {
            version: RECORD_VERSION,
            name: request.name.clone().map_or_else(|| self.free_name(None), Ok)?,
            id,
            reference: request.reference.to_string(),
            revision: revision.id,
            variant: request.reference.variant.clone(),
            arch: manifest.arch,
            boot,
            boot_args: variant
                .and_then(|v| v.boot_args.clone())
                .unwrap_or_else(|| manifest.boot_args.clone()),
            ready: manifest.ready.clone(),
            network: request.network.clone(),
            accelerator: request.accelerator.clone(),
            clone: CloneRecord { artifact: disk.digest, size: disk.size, method: CloneMethod::Copy },
            base: shared.map(|artifact| artifact.digest),
            seed: manifest.seed.is_some(),
            ssh_keys: request.ssh_keys.clone(),
            snapshot: None,
            must_restore: matches!(request.restore, RestoreChoice::Require | RestoreChoice::Exactly(_)),
            put_back: false,
            boots: matches!(request.restore, RestoreChoice::DiskOf(_)),
            identity: request.identity,
            capturable: request.capturable,
            remove_on_exit: request.remove_on_exit,
            ttl_ms: request.ttl.map(millis),
            restart: request.restart,
            idle_suspend_ms: request.idle_suspend.map(millis),
            created_unix_ms: clock::now_unix_ms(),
            shape,
        })
    }

    /// Writes the record of a machine that was not started since it was made.
    pub(crate) fn write_machine(&self, dir: &Path, record: &MachineRecord) -> EngineResult<()> {
        write_json(dir, "status.json", &MachineStatus::created())?;
        self.write_seed(dir, record)?;
        write_json(dir, "machine.json", record)
    }

    fn refuse_taken(&self, name: &MachineName) -> EngineResult<()> {
        let taken = self
            .store
            .machines()?
            .iter()
            .any(|(_, entry)| entry.as_ref().is_ok_and(|entry| entry.record.name == *name));
        if taken { Err(EngineError::MachineExists { name: name.to_string() }) } else { Ok(()) }
    }

    /// Makes a name that no machine has: the template's and four random digits.
    fn free_name(&self, template: Option<&TemplateName>) -> EngineResult<MachineName> {
        let stem: String = template.map_or("vm", TemplateName::as_str).chars().take(50).collect();
        loop {
            let text = format!("{stem}-{}", clock::random_hex::<2>());
            let name = text.parse().map_err(StoreError::from)?;
            if self.refuse_taken(&name).is_ok() {
                return Ok(name);
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn write_json(dir: &Path, name: &str, value: &impl serde::Serialize) -> EngineResult<()> {
    #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
    let bytes = serde_json::to_vec_pretty(value).unwrap();
    let path = dir.join(name);
    // What nobody could read again is not made.
    if bytes.len() > RECORD_BYTES_MAX {
        let reason = format!("would have {} bytes, more than {RECORD_BYTES_MAX}", bytes.len());
        return Err(EngineError::HostPath { path, reason });
    }
    Ok(write_file(&path, &bytes, 0o600, Existing::Replace)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_could_not_be_read_again_is_not_written() {
        let scratch = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = scratch.path().join("machine.json");
        // A text of JSON has two quotes.
        let write = |bytes: usize| write_json(scratch.path(), "machine.json", &"x".repeat(bytes - 2));
        write(RECORD_BYTES_MAX).unwrap();
        assert_eq!(fs::read_limited(&path, RECORD_BYTES_MAX).unwrap().len(), RECORD_BYTES_MAX);
        let error = write(RECORD_BYTES_MAX + 1).unwrap_err().to_string();
        assert_eq!(error, format!("{} would have 262145 bytes, more than 262144", path.display()));
    }
}
