//! Beginning machines as snapshots: which one fits, and why none does.

use crate::create::{CreateRequest, boot_artifacts};
use crate::progress::{Progress, Reporter, waiting};
use crate::spec::SpecFiles;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::{CloneMethod, CloneRecord, IdentityPolicy, MachineRecord, Network, RECORD_VERSION};
use kiln_core::snapshot::{Compatibility, SnapshotFile, SnapshotManifest, SnapshotMemory};
use kiln_core::text::chain;
use kiln_core::{Arch, ByteSize, Digest, MachineId, RestartPolicy};
use kiln_guest::limits::PROTOCOL_VERSION;
use kiln_store::{CloneChoice, CloneRequest, Snapshot, StoreError};
use kiln_sys::{clock, fs};
use kiln_vmm::{MachineFingerprint, Vmm as _};
use std::path::{Path, PathBuf};

/// Whether a new machine begins as a snapshot of its revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RestoreChoice {
    /// As the best one that fits, else by a boot.
    #[default]
    Auto,
    /// By a boot.
    Never,
    /// As one that fits, or not at all.
    Require,
    /// As this one, or not at all.
    Exactly(Digest),
    /// By a boot from the disk of this one.
    DiskOf(Digest),
}

/// Two rates of one clock differ by less than a part in this many.
const TSC_PARTS: u64 = 1000;
/// The fact that names the network of a machine that was captured with one: its state has a part that needs the same.
pub(crate) const NETWORK_FACT: &str = "network";
/// What the user-mode network is called there.
const USER_NETWORK: &str = "user";
/// What the names of the facts about devices begin with.
const DEVICE_FACT: &str = "device.";
/// What the text of a network device begins with.
const NIC: &str = "virtio-net";
/// The fact that holds the clock's rate.
const TSC_FACT: &str = "tsc_khz";

impl Engine {
    /// Returns the snapshot that a machine begins as, if it begins as one. `disk` is the length of its root disk, where one was
    /// asked for.
    pub(crate) fn choose_snapshot(
        &self,
        request: &CreateRequest,
        record: &MachineRecord,
        reporter: &dyn Reporter,
    ) -> EngineResult<Option<Snapshot>> {
        let mut first_reason = None;
        // What cannot be read may be of any revision: it is told only where nothing else is in the way.
        let mut unreadable = None;
        let candidates = match &request.restore {
            RestoreChoice::Never => return Ok(None),
            RestoreChoice::DiskOf(id) => return Ok(Some(self.store.snapshot(id)?)),
            RestoreChoice::Exactly(id) => vec![self.store.snapshot(id)?],
            RestoreChoice::Auto | RestoreChoice::Require => {
                let mut found = Vec::new();
                for (id, snapshot) in self.store.snapshots()?.into_iter().rev() {
                    match snapshot {
                        Ok(snapshot)
                            if snapshot.manifest.subject == record.revision && is_of_template(&snapshot) =>
                        {
                            found.push(snapshot);
                        }
                        Ok(_) => {}
                        Err(error) => {
                            let reason = || format!("snapshot {}: {}", id.short(), chain(&error));
                            unreadable.get_or_insert_with(reason);
                        }
                    }
                }
                found
            }
        };
        for snapshot in candidates.into_iter().filter(|snapshot| snapshot.manifest.memory.is_some()) {
            match self.fits(record, &snapshot, request.disk, reporter) {
                Ok(()) => return Ok(Some(snapshot)),
                Err(reason) => {
                    first_reason.get_or_insert_with(|| format!("snapshot {}: {reason}", snapshot.label()));
                }
            }
        }
        let first_reason = first_reason.or(unreadable);
        if request.restore == RestoreChoice::Auto {
            if let Some(reason) = first_reason {
                reporter.progress(Progress::Boots { reason });
            }
            return Ok(None);
        }
        let reason = first_reason.unwrap_or_else(|| "there is no snapshot with memory".to_owned());
        Err(EngineError::NotRestorable { reference: record.reference.clone(), reason })
    }

    /// Finds out whether a machine can begin as a snapshot; the error says why not.
    fn fits(
        &self,
        record: &MachineRecord,
        snapshot: &Snapshot,
        disk: Option<ByteSize>,
        reporter: &dyn Reporter,
    ) -> Result<(), String> {
        let manifest = &snapshot.manifest;
        let Some(memory) = &manifest.memory else { return Err("it has no memory".to_owned()) };
        let differs = |name: &str, there: String, here: String| {
            (there != here).then(|| format!("{name} is {there} in the snapshot and {here} here"))
        };
        // What tells the most comes first.
        let different = differs("revision", manifest.subject.short(), record.revision.short())
            .or_else(|| differs("boot_args", manifest.boot_args.join(" "), record.boot_args.join(" ")))
            .or_else(|| {
                let disk = disk.unwrap_or(manifest.disk.size);
                differs("disk", manifest.disk.size.to_string(), disk.to_string())
            });
        if let Some(reason) = different {
            return Err(reason);
        }
        if (record.shape.vcpus, record.shape.memory) != (manifest.machine.vcpus, manifest.machine.memory)
            || (record.shape.board, record.shape.data_disk)
                != (manifest.machine.board, manifest.machine.data_disk)
        {
            let there = &manifest.machine;
            let data = |disk: Option<ByteSize>| disk.map_or("none".to_owned(), |disk| disk.to_string());
            let reason = differs("vcpus", there.vcpus.to_string(), record.shape.vcpus.to_string())
                .or_else(|| differs("memory", there.memory.to_string(), record.shape.memory.to_string()))
                .or_else(|| {
                    differs("board", there.board.as_str().to_owned(), record.shape.board.as_str().to_owned())
                })
                .or_else(|| differs("data_disk", data(there.data_disk), data(record.shape.data_disk)));
            return Err(reason.unwrap_or_default());
        }
        self.fits_host(record, manifest, memory, reporter)?;
        // Last, since it may copy.
        match memory.ram {
            Some(ram) => {
                self.memory_to_map(record.arch, &ram, reporter).map(|_| ()).map_err(|error| chain(&error))
            }
            None => Ok(()),
        }
    }

    /// Finds out whether a snapshot's files are whole and its facts are those of this host, for a machine like the captured
    /// one; the error says what is not so.
    fn fits_host(
        &self,
        record: &MachineRecord,
        manifest: &SnapshotManifest,
        memory: &SnapshotMemory,
        reporter: &dyn Reporter,
    ) -> Result<(), String> {
        let Some(ram) = memory.ram else { return Err("its memory is a part of its state".to_owned()) };
        for file in manifest.files() {
            let mut reading = |why: &StoreError| reporter.progress(Progress::Note { text: why.to_string() });
            self.store
                .ensure_artifact(&file.digest, file.size, &self.cancel, &mut reading)
                .map_err(|error| chain(&error))?;
        }
        let path = |file: &SnapshotFile| self.store.artifact_path(&file.digest);
        let mut files =
            SpecFiles::of_raw(record, path(&manifest.disk), manifest.data_disk.as_ref().map(path))
                .map_err(|error| chain(&error))?
                .restored(path(&ram), path(&memory.state), has_nic(&memory.compatibility));
        // These are what its disks are made from: nobody may write to them, and whether one can is no part of the machine.
        files.disks.iter_mut().for_each(|disk| disk.read_only = true);
        let mut here = self.compatibility(record, files).map_err(|error| chain(&error))?;
        same_clock(&memory.compatibility, &mut here);
        same_network(memory, &record.network, &mut here);
        memory.compatibility.first_difference(&here).map_or(Ok(()), |difference| Err(difference.to_string()))
    }

    /// Returns why no machine like the captured one could begin as a snapshot on this host; none when one could. Reads what
    /// was touched since it was last known to be whole, and changes nothing.
    ///
    /// # Errors
    /// When its revision cannot be read.
    pub fn unfit(&self, snapshot: &Snapshot, reporter: &dyn Reporter) -> EngineResult<Option<String>> {
        let Some(memory) = &snapshot.manifest.memory else { return Ok(Some("it has no memory".to_owned())) };
        let record = self.captured_record(snapshot)?;
        Ok(self.fits_host(&record, &snapshot.manifest, memory, reporter).err())
    }

    /// Returns the record of a machine like the captured one. Nothing is made.
    pub(crate) fn captured_record(&self, snapshot: &Snapshot) -> EngineResult<MachineRecord> {
        let SnapshotManifest { subject, arch, variant, machine, boot_args, disk, .. } = &snapshot.manifest;
        let revision = self.store.revision(subject)?;
        Ok(MachineRecord {
            version: RECORD_VERSION,
            base: revision.manifest.base().map(|artifact| artifact.digest),
            seed: revision.manifest.seed.is_some(),
            ssh_keys: Vec::new(),
            id: MachineId::from_random(clock::random()),
            name: "captured".parse().map_err(StoreError::from)?,
            reference: subject.to_string(),
            revision: *subject,
            variant: variant.clone(),
            arch: *arch,
            shape: machine.clone(),
            boot: boot_artifacts(&revision)?,
            boot_args: boot_args.clone(),
            ready: None,
            network: network_of(snapshot.manifest.memory.as_ref()),
            accelerator: "auto".to_owned(),
            clone: CloneRecord { artifact: disk.digest, size: disk.size, method: CloneMethod::Copy },
            snapshot: Some(snapshot.id),
            must_restore: true,
            boots: false,
            put_back: false,
            identity: IdentityPolicy::default(),
            capturable: false,
            remove_on_exit: true,
            ttl_ms: None,
            restart: RestartPolicy::default(),
            idle_suspend_ms: None,
            created_unix_ms: clock::now_unix_ms(),
        })
    }

    /// Returns the file that a restored machine maps as its memory: the artifact, or a copy of it for a machine monitor that
    /// opens the file for writing where that is not allowed.
    pub(crate) fn memory_to_map(
        &self,
        arch: Arch,
        ram: &SnapshotFile,
        reporter: &dyn Reporter,
    ) -> EngineResult<PathBuf> {
        let artifact = self.store.artifact_path(&ram.digest);
        let (_, caps) = self.qemu(arch)?;
        if caps.capture.is_some_and(|capture| capture.reads_memory_only) || opens_for_writing(&artifact)? {
            return Ok(artifact);
        }
        Ok(self.store.mapping_copy(&ram.digest, ram.size, &self.cancel, &mut waiting(reporter))?)
    }

    /// Returns what must be the same wherever a machine with these files is restored.
    pub(crate) fn compatibility(
        &self,
        record: &MachineRecord,
        files: SpecFiles,
    ) -> EngineResult<Compatibility> {
        let (vmm, caps) = self.qemu(record.arch)?;
        let checked = vmm
            .check(&self.machine_spec(record, files)?, &caps)
            .map_err(|error| crate::spec::bad(record, chain(&error)))?;
        Ok(facts(&vmm.fingerprint(&checked, &caps)))
    }

    /// Makes the disks of a machine that begins as a snapshot.
    pub(crate) fn clone_snapshot(
        &self,
        manifest: &SnapshotManifest,
        dir: &Path,
        choice: CloneChoice,
    ) -> EngineResult<kiln_core::machine::CloneRecord> {
        use crate::create::{DATA_DISK_FILE, DISK_STEM};
        if let Some(data) = &manifest.data_disk {
            let dest = dir.join(DATA_DISK_FILE);
            let copy = kiln_store::CopyOut {
                digest: data.digest,
                size: data.size,
                dest: &dest,
                mode: 0o600,
                choice: CloneChoice::Auto,
            };
            self.store.copy_out(&copy, &self.cancel)?;
        }
        let SnapshotFile { digest, size } = manifest.disk;
        let clone = CloneRequest { digest, size, dir, stem: DISK_STEM, choice };
        Ok(self.store.clone_artifact(&clone, &self.cancel)?)
    }
}

/// Returns whether a snapshot is of a machine that was booted for it. One of somebody's machine holds what was done there:
/// nobody begins as it who does not ask for it.
fn is_of_template(snapshot: &Snapshot) -> bool {
    snapshot.record.as_ref().is_some_and(|record| record.machine.is_none())
}

/// Returns whether a file could be opened for writing here, though nobody writes to it.
fn opens_for_writing(file: &Path) -> EngineResult<bool> {
    Ok(!kiln_sys::protect::look(file)?.protection.verity && fs::may_write(file)?)
}

/// Returns whether the captured machine had a network device.
pub(crate) fn has_nic(facts: &Compatibility) -> bool {
    facts.facts().iter().any(|fact| fact.name.starts_with(DEVICE_FACT) && fact.value.starts_with(NIC))
}

/// A machine that was connected when it was captured needs the same kind of network; one that was not takes any.
fn same_network(memory: &SnapshotMemory, network: &Network, here: &mut Compatibility) {
    if memory.compatibility.get(NETWORK_FACT).is_some() {
        here.insert(NETWORK_FACT, network_name(network));
    }
}

/// Returns a network that a machine of a snapshot can have.
fn network_of(memory: Option<&SnapshotMemory>) -> Network {
    match memory.and_then(|memory| memory.compatibility.get(NETWORK_FACT)) {
        Some(USER_NETWORK) => Network::User { forwards: Vec::new(), outbound: false },
        _ => Network::None,
    }
}

/// Returns the kind of a machine's network, as its snapshots name it.
pub(crate) fn network_name(network: &Network) -> &'static str {
    match network {
        Network::User { .. } => USER_NETWORK,
        _ => "none",
    }
}

/// Takes two measurements of one clock for the same.
pub(crate) fn same_clock(captured: &Compatibility, here: &mut Compatibility) {
    let rate = |facts: &Compatibility| facts.get(TSC_FACT)?.parse::<u64>().ok();
    if let (Some(there), Some(now)) = (rate(captured), rate(here))
        && there.abs_diff(now) <= there / TSC_PARTS
    {
        here.insert(TSC_FACT, there);
    }
}

/// Returns a machine's description as facts, in the order in which differences are told.
pub(crate) fn facts(machine: &MachineFingerprint) -> Compatibility {
    // Taken apart, so that a new field cannot be forgotten.
    let MachineFingerprint {
        vmm,
        vmm_version,
        board,
        machine_type,
        cpu,
        host_cpu,
        accelerator,
        vcpus,
        memory_bytes,
        devices,
        tsc_khz,
        unknown,
    } = machine;
    let mut facts = Compatibility::default();
    facts.insert("vmm", vmm);
    facts.insert("vmm_version", vmm_version);
    facts.insert("accelerator", accelerator);
    facts.insert("board", board.as_str());
    facts.insert("machine_type", machine_type);
    facts.insert("cpu", cpu);
    if let Some(host_cpu) = host_cpu {
        facts.insert("host_cpu", host_cpu);
    }
    facts.insert("vcpus", vcpus);
    facts.insert("memory_bytes", memory_bytes);
    for (at, device) in devices.iter().enumerate() {
        facts.insert(&format!("device.{at}"), device);
    }
    // A clock of an unknown rate may run at any.
    facts.insert(TSC_FACT, tsc_khz.map_or_else(|| "unknown".to_owned(), |khz| khz.to_string()));
    for (name, value) in unknown {
        facts.insert(name, value);
    }
    facts.insert("agent_protocol", PROTOCOL_VERSION);
    facts
}
