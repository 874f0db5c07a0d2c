//! Snapshots of machines that are somebody's: saved at one instant, after which they go on.

use super::{CAPTURE_SPACE, Taken, millis};
use crate::control::ask_save;
use crate::create::{DATA_DISK_FILE, DISK_STEM, START_LOCK, disk_files};
use crate::progress::{Progress, Reporter};
use crate::seed::{SEED_FILE, seed_bytes};
use crate::spec::{MEMORY_FILE, SpecFiles};
use crate::supervisor::{STATE_FILE, SUPERVISOR_LOCK, copy_disk, whole_file};
use crate::{Engine, EngineError, EngineResult, private};
use kiln_core::machine::{CloneMethod, MachineRecord, Network, Phase};
use kiln_core::snapshot::{SNAPSHOT_RECORD_VERSION, SnapshotKeep, SnapshotRecord};
use kiln_core::text::chain;
use kiln_core::variant::Board;
use kiln_core::{ByteSize, Digest, VariantName};
use kiln_store::{MachineEntry, Staging};
use kiln_sys::lock::FileLock;
use kiln_sys::{IoResultExt as _, clock, copy, fs};
use kiln_vmm::{CaptureTarget, MemoryBacking, RuntimeDir, Stop, Vmm as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What makes an overlay a raw disk.
const FLATTENER: &str = "qemu-img";
/// Time the flattening of an overlay may take.
const FLATTEN_WITHIN: Duration = Duration::from_secs(3600);
/// Time a machine monitor has to write the state of a machine that it loaded.
const STATE_WITHIN: Duration = Duration::from_secs(60);

/// What is to be captured of a machine.
#[derive(Debug, Clone)]
pub struct MachineSnapshotRequest {
    /// The machine's name, its id, or the beginning of that.
    pub machine: String,
    /// For how long the snapshot stays.
    pub keep: SnapshotKeep,
    /// Its name.
    pub name: Option<VariantName>,
    /// Whether its memory is captured, or its disks alone.
    pub memory: bool,
    /// Whether the guest is asked to run its hooks and to write its file systems before.
    pub quiesce: bool,
    /// Whether it drops clean caches then.
    pub drop_caches: bool,
}

/// A snapshot that was made of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSnapshotReport {
    /// Its id.
    pub id: Digest,
    /// How long the guest stood still for it, in microseconds; 0 for one that did not run.
    pub paused_us: u64,
    /// How long writing the guest's file systems and its hooks took, in milliseconds.
    pub quiesce_ms: u64,
    /// How long it took from the save until the snapshot was published, in milliseconds.
    pub publish_ms: u64,
    /// What its disks take up in the store.
    pub disk: ByteSize,
    /// What its memory takes up; none for a snapshot of disks.
    pub memory: Option<ByteSize>,
}

impl Engine {
    /// Captures a machine, which goes on as it was: its disks and, where it runs, its memory. One that does not run keeps
    /// from being started meanwhile.
    ///
    /// # Errors
    /// [`EngineError::NotCaptured`] says why not; the machine is as it was then.
    pub fn snapshot_machine(
        &self,
        request: &MachineSnapshotRequest,
        reporter: &dyn Reporter,
    ) -> EngineResult<MachineSnapshotReport> {
        let entry = self.find_machine(&request.machine)?;
        let name = entry.record.name.as_str();
        let refused = |reason: String| EngineError::NotCaptured { name: name.to_owned(), reason };
        let phase = entry.status.phase;
        if request.memory && !matches!(phase, Phase::Running | Phase::Paused) {
            let (name, phase) = (name.to_owned(), phase.as_str());
            return Err(EngineError::Phase { name, phase, action: "captured with its memory" });
        }
        if request.memory && entry.record.shape.board == Board::Microvm {
            return Err(refused(
                "board microvm has no version, and only disks can be captured on it".to_owned(),
            ));
        }
        if request.memory && !private::read(&entry.dir)?.is_empty() {
            let what = "an environment or secrets of its own, which a snapshot of its memory would hold";
            return Err(refused(format!("it has {what}")));
        }
        if entry.record.clone.method == CloneMethod::Overlay {
            // Asked before the guest stands still for nothing.
            self.settings.toolbox.find(FLATTENER)?;
        }
        let used = self.disk_bytes(&entry)?;
        let memory = entry.record.shape.memory.bytes();
        // In one stream, and in a file of its own.
        let memory_space = if request.memory { memory.saturating_mul(2) } else { 0 };
        self.store.need_space(used.saturating_add(memory_space).saturating_add(CAPTURE_SPACE))?;
        let begun = Instant::now();
        let staging = self.store.stage("capturing a machine")?;
        let mut quiesce_ms = 0;
        if request.quiesce && phase == Phase::Running {
            quiesce_ms = self.quiesce(name, request.drop_caches)?;
        }
        self.cancel.check()?;
        let (paused_us, unplugged_nic) = if phase.is_live() {
            let saved = ask_save(&entry.dir, name, staging.path(), request.memory)?;
            (saved.paused_us, saved.unplugged_nic)
        } else {
            self.copy_of_stopped(&entry, staging.path())?;
            (0, false)
        };
        let saved = Instant::now();
        self.cancel.check()?;
        // What the machine used is what those that continue it need.
        let accelerator = entry.status.accelerator.clone();
        let record = MachineRecord {
            accelerator: accelerator.filter(|_| request.memory).unwrap_or(entry.record.accelerator.clone()),
            ..entry.record.clone()
        };
        self.flatten(&record, &staging)?;
        if request.memory {
            self.part(&record, &staging, unplugged_nic, reporter)?;
        }
        let made = SnapshotRecord {
            version: SNAPSHOT_RECORD_VERSION,
            created_unix_ms: clock::now_unix_ms(),
            keep: request.keep,
            name: request.name.clone(),
            machine: Some(name.to_owned()),
            paused_us,
            elapsed_ms: millis(begun),
        };
        let taken = Taken { memory: request.memory, unplugged_nic };
        let (id, manifest) = self.publish_captured(&record, &staging, taken, &made, reporter)?;
        let disks = [self.stored_bytes(Some(manifest.disk))?, self.stored_bytes(manifest.data_disk)?];
        Ok(MachineSnapshotReport {
            id,
            paused_us,
            quiesce_ms,
            publish_ms: millis(saved),
            disk: ByteSize::from_bytes(disks.into_iter().map(ByteSize::bytes).sum()),
            memory: manifest.memory.map(|memory| self.stored_bytes(memory.ram)).transpose()?,
        })
    }

    /// Returns what copies of a machine's disks take up at most.
    fn disk_bytes(&self, entry: &MachineEntry) -> EngineResult<u64> {
        let CloneMethod::Overlay = entry.record.clone.method else {
            return Ok(copy::allocated_tree(&entry.dir)?);
        };
        let backing = self.store.artifact_path(&entry.record.clone.artifact);
        Ok(copy::allocated_tree(&entry.dir)?
            .saturating_mul(2)
            .saturating_add(copy::allocated_bytes(&backing)?))
    }

    /// Copies the disks of a machine that does not run, and keeps it from being started meanwhile.
    fn copy_of_stopped(&self, entry: &MachineEntry, into: &Path) -> EngineResult<()> {
        let busy = |reason| EngineError::NotCaptured { name: entry.record.name.to_string(), reason };
        let mut held = Vec::new();
        for lock in [START_LOCK, SUPERVISOR_LOCK] {
            let taken = FileLock::try_take(&entry.dir.join(lock), "capturing a machine")?;
            held.push(taken.map_err(|holder| busy(format!("{} has it", holder.text)))?);
        }
        for file in disk_files(&entry.record) {
            copy_disk(&entry.dir.join(&file), &into.join(&file))?;
        }
        Ok(())
    }

    /// Makes the copy of an overlay a raw disk.
    fn flatten(&self, record: &MachineRecord, staging: &Staging) -> EngineResult<()> {
        if record.clone.method != CloneMethod::Overlay {
            return Ok(());
        }
        let overlay = staging.path().join(DISK_STEM).with_extension(record.clone.method.extension());
        let raw = staging.path().join(DISK_STEM).with_extension(CloneMethod::Copy.extension());
        let file = |path: &Path| serde_json::json!({"driver": "file", "filename": path.to_string_lossy(), "read-only": true});
        let source = serde_json::json!({
            "driver": "qcow2",
            "read-only": true,
            "file": file(&overlay),
            "backing": {"driver": "raw", "file": file(&self.store.artifact_path(&record.clone.artifact))},
        });
        let tool = self.settings.toolbox.find(FLATTENER)?.args(["convert", "-q", "-O", "raw"]);
        tool.arg(format!("json:{source}"))
            .arg(&raw)
            .deadline(FLATTEN_WITHIN)
            .run(&self.cancel, &mut |_| {})?;
        fs::remove_file(&overlay)?;
        Ok(())
    }

    /// Parts memory from state: a machine monitor loads the whole into a memory file, and is captured without having run the
    /// guest.
    fn part(
        &self,
        record: &MachineRecord,
        staging: &Staging,
        unplugged_nic: bool,
        reporter: &dyn Reporter,
    ) -> EngineResult<()> {
        let dir = staging.path().join("parting");
        fs::create_dir(&dir)?;
        let memory = staging.path().join(MEMORY_FILE);
        drop(fs::create_new(&memory)?);
        let memory = MemoryBacking::Shared { file: memory };
        // Disks of the same length: nothing is read from them, and nothing written.
        let blank = |file: PathBuf| -> EngineResult<PathBuf> {
            let len = fs::metadata(&staging.path().join(&file))?.len();
            blank_of(&dir.join(file), len)
        };
        let root = blank(Path::new(DISK_STEM).with_extension(CloneMethod::Copy.extension()))?;
        let data = record.shape.data_disk.map(|_| blank(DATA_DISK_FILE.into())).transpose()?;
        let whole = whole_file(staging.path());
        let seed = record
            .seed
            .then(|| blank_of(&dir.join(SEED_FILE), seed_bytes(&record.boot) as u64))
            .transpose()?;
        let files = SpecFiles { seed, ..SpecFiles::of_raw(record, root, data)? }.loaded(
            memory,
            whole.clone(),
            unplugged_nic,
        );
        // It has no guest to reach: ports of the host stay with the machine that has them.
        let network = match &record.network {
            Network::User { .. } => Network::User { forwards: Vec::new(), outbound: false },
            other => other.clone(),
        };
        let record = MachineRecord { network, ..record.clone() };
        let (vmm, caps) = self.qemu(record.arch)?;
        let checked = vmm
            .check(&self.machine_spec(&record, files)?, &caps)
            .map_err(|error| crate::spec::bad(&record, chain(&error)))?;
        if let Some(reason) = checked.accelerator_reason() {
            reporter.progress(Progress::Note { text: reason.to_owned() });
        }
        let mut machine = vmm.launch(checked, &RuntimeDir::new(&dir)?)?;
        let state = fs::create_new(&staging.path().join(STATE_FILE))?;
        machine.capture(CaptureTarget { state: &state, within: STATE_WITHIN })?;
        machine.stop(Stop::Now)?;
        fs::remove_file(&whole)?;
        fs::remove_tree(&dir)?;
        Ok(())
    }
}

/// Makes a file of zeros.
fn blank_of(path: &Path, len: u64) -> EngineResult<PathBuf> {
    fs::create_new(path)?.set_len(len).at("set the length of", path)?;
    Ok(path.to_owned())
}
