//! kiln's way of capturing and restoring beside the monitor's own, which writes and reads memory and state in one stream: on
//! the same machine, in the same monitor, files synced.

use super::{alone, sample};
use crate::bench::contest::{Sample, Target, compared, measured};
use crate::bench::report::{Level, Row};
use crate::restore::has_nic;
use crate::spec::SpecFiles;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::Digest;
use kiln_core::machine::MachineRecord;
use kiln_core::text::chain;
use kiln_guest::Session;
use kiln_guest::message::ExecRequest;
use kiln_guest::session::ExecEvent;
use kiln_store::CloneChoice;
use kiln_sys::{IoResultExt as _, fs, socket};
use kiln_vmm::{AGENT_SOCKET, CaptureTarget, Machine, MemoryBacking, RuntimeDir, Stop, Vmm as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Wanted of the stream's time over that of state beside memory.
const CREATE: f64 = 10.0;
/// Wanted of the time to restore a stream over that of mapping.
const RESTORE: f64 = 1.8;
/// Time a monitor has for each step.
const WITHIN: Duration = Duration::from_secs(60);

/// Adds the two comparisons.
pub(super) fn rows(
    engine: &Engine,
    snapshot: &Digest,
    rounds: u32,
    dir: &Path,
    rows: &mut Vec<Row>,
) -> EngineResult<()> {
    let lab = Lab::new(engine, snapshot, dir)?;
    let (mut mapped, mut streamed) = (Vec::new(), Vec::new());
    let (mut beside, mut in_one) = (Vec::new(), Vec::new());
    let (mut beside_synced, mut in_one_synced) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let (written, synced) = lab.create(true)?;
                beside.push(written);
                beside_synced.push(synced);
                mapped.push(lab.restore(true)?);
            } else {
                let (written, synced) = lab.create(false)?;
                in_one.push(written);
                in_one_synced.push(synced);
                streamed.push(lab.restore(false)?);
            }
        }
    }
    let versus = |name: &'static str, ours: (&str, &[Sample]), peer: (&str, &[Sample]), least: f64| {
        let row = alone(name, Level::Calls, measured(ours.0.to_owned(), ours.1), ours.1);
        let peer = measured(peer.0.to_owned(), peer.1);
        let peers = vec![compared(peer, &row.ours, Some(Target::Wall(least)))];
        Row { peers, ..row }
    };
    let (ours, stream) = ("state beside memory that is a file", "memory and state in one stream");
    rows.push(versus("create, written", (ours, &beside), (stream, &in_one), CREATE));
    let mut synced = versus("create, synced", (ours, &beside_synced), (stream, &in_one_synced), CREATE);
    synced.notes.push("all of the memory was written a moment ago and is synced within the time".to_owned());
    rows.push(synced);
    let mapped = ("memory mapped, state loaded", mapped.as_slice());
    let streamed = ("stream loaded", streamed.as_slice());
    rows.push(versus("monitor's start to first exec, disk cloned", mapped, streamed, RESTORE));
    Ok(())
}

/// A captured machine in both forms.
struct Lab<'a> {
    engine: &'a Engine,
    record: MachineRecord,
    snapshot: Digest,
    dir: &'a Path,
    stream: PathBuf,
}

impl<'a> Lab<'a> {
    fn new(engine: &'a Engine, snapshot: &Digest, dir: &'a Path) -> EngineResult<Self> {
        let found = engine.store.snapshot(snapshot)?;
        let record = engine.captured_record(&found)?;
        let lab = Self { engine, record, snapshot: *snapshot, dir, stream: dir.join("stream") };
        let (mut machine, _) = lab.launch("first", Form::Mapped)?;
        let file = fs::create_new(&lab.stream)?;
        machine.save(CaptureTarget { state: &file, within: WITHIN })?;
        machine.stop(Stop::Now)?;
        Ok(lab)
    }
}

/// How a machine is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The memory file mapped, the state loaded.
    Mapped,
    /// The stream loaded into memory that is in no file.
    Streamed,
    /// The stream loaded into a memory file.
    Filed,
}

impl Lab<'_> {
    /// Starts a machine with a disk of its own that stands where it was captured.
    fn launch(&self, name: &str, form: Form) -> EngineResult<(Box<dyn Machine>, PathBuf)> {
        let dir = self.dir.join(name);
        fs::create_dir(&dir)?;
        let found = self.engine.store.snapshot(&self.snapshot)?;
        let Some(memory) = &found.manifest.memory else { return Err(self.failed("it has no memory")) };
        let Some(ram) = memory.ram else { return Err(self.failed("its memory is a part of its state")) };
        let clone = self.engine.clone_snapshot(&found.manifest, &dir, CloneChoice::Auto)?;
        let record = MachineRecord { clone, ..self.record.clone() };
        self.engine.write_seed(&dir, &record)?;
        let files = SpecFiles::of_boot(self.engine, &record, &dir)?;
        let nic = has_nic(&memory.compatibility);
        let files = match form {
            Form::Mapped => {
                let ram = self.engine.memory_to_map(record.arch, &ram, &crate::Silent)?;
                files.restored(ram, self.engine.store.artifact_path(&memory.state.digest), nic)
            }
            Form::Filed => {
                let file = dir.join("memory");
                drop(fs::create_new(&file)?);
                files.loaded(MemoryBacking::Shared { file }, self.stream.clone(), nic)
            }
            Form::Streamed => files.loaded(MemoryBacking::Anonymous, self.stream.clone(), nic),
        };
        let (vmm, caps) = self.engine.qemu(record.arch)?;
        let checked = vmm
            .check(&self.engine.machine_spec(&record, files)?, &caps)
            .map_err(|error| crate::spec::bad(&record, chain(&error)))?;
        Ok((vmm.launch(checked, &RuntimeDir::new(&dir)?)?, dir))
    }

    /// Writes a machine that stands into files; returns the time until they were written, and until they were synced.
    fn create(&self, beside: bool) -> EngineResult<(Sample, Sample)> {
        let (mut machine, dir) = self.launch("create", if beside { Form::Filed } else { Form::Streamed })?;
        let path = dir.join("state");
        let state = fs::create_new(&path)?;
        let target = CaptureTarget { state: &state, within: WITHIN };
        let begun = Instant::now();
        if beside {
            machine.capture(target)?;
        } else {
            machine.save(target)?;
        }
        let written = begun.elapsed();
        if beside {
            let memory = dir.join("memory");
            fs::open(&memory)?.sync_all().at("sync", &memory)?;
        }
        state.sync_all().at("sync", &path)?;
        let synced = begun.elapsed();
        machine.stop(Stop::Kill)?;
        fs::remove_tree(&dir)?;
        Ok((sample(written, Duration::ZERO), sample(synced, Duration::ZERO)))
    }

    /// Restores a machine, from its disk's making to the end of its first command.
    fn restore(&self, mapped: bool) -> EngineResult<Sample> {
        let begun = Instant::now();
        let (mut machine, dir) =
            self.launch("restore", if mapped { Form::Mapped } else { Form::Streamed })?;
        machine.resume()?;
        let stream = socket::connect(&dir, AGENT_SOCKET)?;
        let deadline = begun + WITHIN;
        let session = Session::connect(Box::new(stream), deadline)?;
        let (mut stdin, _control, mut output) = session.exec(ExecRequest::new(["true".to_owned()]))?.split();
        stdin.close()?;
        loop {
            match output.recv_deadline(deadline)? {
                Some(ExecEvent::Exit(_)) => break,
                Some(_) => {}
                None => return Err(self.failed("the guest does not answer")),
            }
        }
        let wall = begun.elapsed();
        let cpu = super::processor_time_of(machine.pid())?;
        machine.stop(Stop::Kill)?;
        fs::remove_tree(&dir)?;
        Ok(sample(wall, cpu))
    }

    fn failed(&self, reason: &str) -> EngineError {
        super::unlike(&format!("snapshot {}", self.snapshot.short()), reason.to_owned())
    }
}
