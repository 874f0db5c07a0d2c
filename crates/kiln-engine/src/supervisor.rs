//! The supervisor of one machine: a process of its own that owns the machine monitor, answers the control socket,
//! relays the agent, and writes how the machine does. It outlives the program that started it; the machine monitor
//! does not outlive it.
//!
//! Everything that happens arrives at one `Desk`, and one thread, the one the machine monitor is bound to, acts on
//! it by the rules of [`kiln_vmm::lifecycle`]: `life` is the whole of that.

mod agent;
mod backoff;
mod clients;
mod desk;
mod life;
#[cfg(test)]
pub(crate) use life::tests::record as record_for_tests;
mod probe;
mod save;
mod suspend;

use crate::control::{CONTROL_SOCKET, Report, SavedMachine, write_line};
use crate::create::disk_files;
use crate::restore::{NETWORK_FACT, facts, has_nic, network_name};
use crate::spec::{MEMORY_FILE, SpecFiles, bad};
use crate::suspend::{SavedRecord, discard, saved_since};
use crate::{Engine, EngineError, EngineResult, private};
use desk::{Desk, News};
use kiln_core::MachineId;
use kiln_core::machine::{CloneMethod, MachineRecord, MachineStatus, Phase};
use kiln_core::snapshot::Compatibility;
use kiln_core::text::chain;
use kiln_guest::config::WAIT_ARGUMENT;
use kiln_guest::message::{Configure, ShutdownMode};
use kiln_guest::private::Private;
use kiln_store::MachineEntry;
use kiln_sys::lock::FileLock;
use kiln_sys::process::poll_within;
use kiln_sys::{IoResultExt as _, clock, fs, socket};
use kiln_vmm::{
    AGENT_SOCKET, Boot, Capabilities, CaptureTarget, Captured, Machine, MachineSpec, MemoryBacking, QemuVmm,
    RestoreState, RuntimeDir, StateScope, Stop, Vmm, VmmExit, Waited, holds_open,
};
use life::capture::CaptureError;
use life::idle::Activity;
pub(crate) use life::last_lines;
use life::{Arrival, GRACE, Launched, Life, World};
pub(crate) use probe::{Tried, attempt};
use rustix::event::{PollFd, PollFlags};
pub(crate) use save::{copy_disk, whole_file};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The state of a captured machine's processors and devices, beside its memory and disks.
pub(crate) const STATE_FILE: &str = "state";
/// Why a machine is not ready whose agent would leave its environment and secrets out.
pub const OLD_AGENT: &str = "the guest's agent is too old to be given an environment or secrets";
/// Time a machine monitor has to write it.
const CAPTURE_WITHIN: Duration = Duration::from_secs(60);
/// Time that answers which are on their way at a supervisor's end have.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Held by a machine's supervisor for as long as it lives.
pub const SUPERVISOR_LOCK: &str = "supervisor.lock";

/// Supervises a machine from its start to its end. `owned` says that the machine ends when nobody reads this
/// process's standard output any more.
pub fn run(engine: &Engine, id: &MachineId, owned: bool) -> EngineResult<()> {
    let dir = engine.store.machine_dir(id);
    let lock = FileLock::try_take(&dir.join(SUPERVISOR_LOCK), "supervising a machine")?;
    let _lock = lock.map_err(|holder| EngineError::SupervisorRefused {
        name: id.to_string(),
        reason: format!("{} has it", holder.text),
    })?;
    let MachineEntry { record, status, dir } = engine.store.machine(id)?;
    let desk = Desk::new()?;
    // Whoever sees the lock held can reach the desk: the socket comes before any other work.
    clients::listen(&dir, &desk)?;
    report(&Report::Supervising);
    let runtime = RuntimeDir::new(&dir)?;
    if status.phase != Phase::Suspended {
        // What does not count must not begin to when the disks have moved on.
        discard(&dir)?;
    }
    let host = Host {
        engine,
        dir: runtime.clone(),
        record: record.clone(),
        desk: Arc::clone(&desk),
        is_new: status.phase == Phase::Created,
        is_saved: status.phase == Phase::Suspended,
        facts: None,
        private: Private::default(),
        unplugged_nic: false,
        agent: None,
    };
    let remove_on_exit = record.remove_on_exit;
    let mut life = Life::begin(host, record, &status, std::process::id(), Arc::clone(&desk))?;
    watch_signals(&desk)?;
    if owned {
        clients::watch_owner(&desk)?;
    }
    let (end, console) = life.live();
    life.bury(end.clone())?;
    runtime.clear()?;
    fs::remove_file(&dir.join(CONTROL_SOCKET))?;
    if remove_on_exit && !life.is_suspended() {
        engine.store.discard_dir(&dir)?;
    }
    report(&Report::Ended { cause: end, console });
    // Who does not take an answer that fits a socket's buffer is not waited for.
    desk.wait_answered(ANSWERED_WITHIN);
    Ok(())
}

/// Tells whoever started this process; nobody may be left to listen.
fn report(report: &Report) {
    let _ = write_line(&mut std::io::stdout().lock(), report);
}

/// The host's wish to end arrives as a signal; a closed terminal does not concern a supervisor.
fn watch_signals(desk: &Arc<Desk>) -> EngineResult<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).at("watch", "signals")?;
    let desk = Arc::clone(desk);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal != SIGHUP {
                desk.post(News::StopRequested { grace: GRACE });
            }
        }
    });
    Ok(())
}

/// The world as it is: QEMU, the store and the clock.
struct Host<'a> {
    engine: &'a Engine,
    dir: RuntimeDir,
    record: MachineRecord,
    desk: Arc<Desk>,
    /// Whether the machine was never started.
    is_new: bool,
    /// Whether it was suspended and has not been launched since.
    is_saved: bool,
    /// What the machine is that was launched last.
    facts: Option<Compatibility>,
    /// What the run in progress is told alone.
    private: Private,
    /// Whether the machine that was launched last has a network device although it is connected to nothing.
    unplugged_nic: bool,
    /// The agent's end of a machine that was restored, until it is attended to.
    agent: Option<UnixStream>,
}

/// What a launch begins with.
enum Begin {
    Boot,
    Snapshot,
    Saved(SavedRecord),
}

impl World for Host<'_> {
    fn launch(&mut self) -> EngineResult<Launched> {
        self.private = private::read(self.dir.path())?;
        if std::mem::take(&mut self.is_saved) {
            return self.launch_saved();
        }
        let mut launched = self.begin()?;
        if launched.arrival == Arrival::Booted && self.is_new && self.is_of_another() {
            launched.arrival = Arrival::Copied;
        }
        self.is_new = false;
        Ok(launched)
    }

    fn attend(&mut self, run: u32, begun: Instant, arrival: Arrival) -> EngineResult<()> {
        // Connected to here, where the socket is this run's for certain.
        let stream = self.agent.take().map_or_else(|| socket::connect(self.dir.path(), AGENT_SOCKET), Ok);
        agent::attend(&self.record, &self.private, stream, &self.desk, run, begun, arrival)
    }

    fn power_off(&mut self, grace: Duration) -> bool {
        let Some(session) = self.desk.session() else { return false };
        std::thread::spawn(move || {
            // The answer is the guest's end; one that cannot is ended when its time is up.
            let _ = session.shutdown(ShutdownMode::Poweroff, grace);
        });
        true
    }

    fn set_clock(&mut self) {
        let Some(session) = self.desk.session() else { return };
        std::thread::spawn(move || {
            let clock_unix_ns = Some(clock::now_unix_ms().saturating_mul(1_000_000));
            // A guest whose clock cannot be set goes on with the one it has.
            let _ = session.configure(Configure { clock_unix_ns, ..Configure::default() });
        });
    }

    fn capture(
        &mut self,
        machine: &mut dyn Machine,
        into: &Path,
    ) -> Result<(Captured, VmmExit), CaptureError> {
        let captured = self.write_state(machine, into).map_err(|error| {
            match machine.resume() {
                Ok(()) => CaptureError::GoesOn(error),
                // The first error says more than that the machine does not go on.
                Err(_) => CaptureError::Lost(error),
            }
        })?;
        // Its end has its disks written.
        let exit = machine.stop(Stop::Now).map_err(|error| CaptureError::Lost(error.into()))?;
        self.move_files(into).map_err(CaptureError::Lost)?;
        Ok((captured, exit))
    }

    fn save(
        &mut self,
        machine: &mut dyn Machine,
        into: &Path,
        memory: bool,
        runs: bool,
    ) -> Result<SavedMachine, CaptureError> {
        self.save_running(machine, into, memory, runs)
    }

    fn suspend(&mut self, machine: &mut dyn Machine, runs: bool) -> Result<VmmExit, CaptureError> {
        self.save_and_end(machine, runs)
    }

    fn saved_since(&mut self) -> Option<u64> {
        // A directory that cannot be looked at keeps nothing that could be loaded.
        saved_since(self.dir.path()).ok().flatten()
    }

    fn activity(&mut self, pid: u32) -> Option<Activity> {
        Host::activity(self, pid)
    }

    fn keep(&mut self, status: &MachineStatus) -> EngineResult<()> {
        Ok(self.engine.store.write_status(self.dir.path(), status)?)
    }

    fn report(&mut self, said: &Report) {
        report(said);
    }

    fn wait(
        &mut self,
        machine: Option<&mut dyn Machine>,
        timeout: Option<Duration>,
        wake: BorrowedFd<'_>,
    ) -> EngineResult<Waited> {
        if let Some(machine) = machine {
            return Ok(machine.wait(timeout, Some(wake))?);
        }
        let mut fds = [PollFd::new(&wake, PollFlags::IN)];
        let ready = poll_within(&mut fds, timeout).at("wait for", "news")?;
        Ok(if ready == 0 { Waited::TimedOut } else { Waited::Woken })
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn now_unix_ms(&self) -> u64 {
        clock::now_unix_ms()
    }
}

impl Host<'_> {
    /// Begins the machine as its snapshot, once, or by a boot.
    fn begin(&mut self) -> EngineResult<Launched> {
        // Its disk and its memory fit only until the machine has written to the disk.
        if !self.is_new || !self.has_memory() {
            return self.launch_as(&Begin::Boot);
        }
        match self.launch_as(&Begin::Snapshot) {
            Err(error) if !self.record.must_restore => {
                let mut launched = self.launch_as(&Begin::Boot)?;
                launched.reason = format!("it booted, since it could not be restored: {}", chain(&error));
                Ok(launched)
            }
            other => {
                // The monitor may have had its disk open.
                self.is_new &= other.is_ok();
                other
            }
        }
    }

    /// Returns whether its disk was another machine's.
    fn is_of_another(&self) -> bool {
        self.record.snapshot.is_some() && !self.record.put_back
    }

    /// Returns whether the machine begins as a snapshot with memory.
    fn has_memory(&self) -> bool {
        let Some(id) = self.record.snapshot.filter(|_| !self.record.boots) else { return false };
        // What cannot be read is told where it cannot be restored.
        self.engine.store.snapshot(&id).map_or(true, |snapshot| snapshot.manifest.memory.is_some())
    }

    /// Returns what QEMU is asked for.
    fn spec(&self, begin: &Begin) -> EngineResult<MachineSpec> {
        let store = &self.engine.store;
        let record = &self.record;
        let manifest = store.revision(&record.revision)?.manifest;
        let ensure = |digest, size| store.ensure_artifact(digest, size, &self.engine.cancel, &mut |_| {});
        let used: Vec<_> = record.boot.digests().chain([record.clone.artifact]).collect();
        for artifact in manifest.artifacts.iter().filter(|artifact| used.contains(&artifact.digest)) {
            ensure(&artifact.digest, artifact.size)?;
        }
        let snapshot = record.snapshot.map(|id| store.snapshot(&id)).transpose()?.map(|of| of.manifest);
        if let (Some(snapshot), CloneMethod::Overlay) = (&snapshot, record.clone.method) {
            ensure(&snapshot.disk.digest, snapshot.disk.size)?;
        }
        let mut files = SpecFiles::of_boot(self.engine, record, self.dir.path())?;
        if let Begin::Snapshot = begin {
            let memory = snapshot.as_ref().and_then(|snapshot| snapshot.memory.as_ref());
            let ram = memory.and_then(|memory| memory.ram);
            let (Some(memory), Some(ram)) = (memory, ram) else {
                return Err(bad(record, "its snapshot has no memory".to_owned()));
            };
            ensure(&ram.digest, ram.size)?;
            ensure(&memory.state.digest, memory.state.size)?;
            let mapped = self.engine.memory_to_map(record.arch, &ram, &crate::Silent)?;
            let state = store.artifact_path(&memory.state.digest);
            files = files.restored(mapped, state, has_nic(&memory.compatibility));
        } else if let MemoryBacking::Shared { file } = &files.memory {
            // What an earlier run left is nobody's.
            fs::remove_file(file)?;
            drop(fs::create_new(file)?);
        }
        if let Begin::Saved(saved) = begin {
            files.unplugged_nic = has_nic(&saved.compatibility);
            files.restore = Some(RestoreState { state_file: self.saved_state(), scope: StateScope::Machine });
        }
        let mut spec = self.engine.machine_spec(record, files)?;
        if let (Begin::Boot, Boot::Kernel(boot), false) = (begin, &mut spec.boot, self.private.is_empty()) {
            boot.args.push(WAIT_ARGUMENT.to_owned());
        }
        Ok(spec)
    }

    /// Refuses a directory that is not in the store's staging.
    fn only_staging(&self, into: &Path) -> EngineResult<()> {
        let staging = fs::canonicalize(&self.engine.store.root().join("staging"))?;
        if fs::canonicalize(into)?.starts_with(&staging) {
            return Ok(());
        }
        let reason = format!("{} is not in {}", into.display(), staging.display());
        Err(EngineError::NotCaptured { name: self.record.name.to_string(), reason })
    }

    /// Stops the guest and writes the state of its processors and devices.
    fn write_state(&self, machine: &mut dyn Machine, into: &Path) -> EngineResult<Captured> {
        self.only_staging(into)?;
        let state = fs::create_new(&into.join(STATE_FILE))?;
        Ok(machine.capture(CaptureTarget { state: &state, within: CAPTURE_WITHIN })?)
    }

    /// Moves what the captured machine consists of.
    fn move_files(&self, into: &Path) -> EngineResult<()> {
        let dir = self.dir.path();
        for file in disk_files(&self.record).into_iter().chain([MEMORY_FILE.into()]) {
            fs::rename(&dir.join(&file), &into.join(&file))?;
        }
        Ok(())
    }

    fn launch_as(&mut self, begin: &Begin) -> EngineResult<Launched> {
        self.dir.clear()?;
        let (vmm, caps) = self.engine.qemu(self.record.arch)?;
        let checked =
            vmm.check(&self.spec(begin)?, &caps).map_err(|error| bad(&self.record, chain(&error)))?;
        let mut here = facts(&vmm.fingerprint(&checked, &caps));
        here.insert(NETWORK_FACT, network_name(&self.record.network));
        if let Begin::Saved(saved) = begin {
            self.compare(saved, &here)?;
        }
        self.facts = Some(here);
        let accelerator = checked.accelerator().as_str().to_owned();
        let reason = checked.accelerator_reason().unwrap_or_default().to_owned();
        let root = checked.spec().disks.first().map(|disk| disk.path.clone());
        self.unplugged_nic = checked.spec().unplugged_nic;
        let mut machine = vmm.launch(checked, &self.dir)?;
        if !matches!(begin, Begin::Boot) {
            // QEMU does not find out that it was given another disk than the captured machine's.
            if let Some(root) = root
                && !holds_open(machine.pid(), &root)?
            {
                return Err(bad(&self.record, format!("{} is not the disk it opened", root.display())));
            }
            begin.forget(self.dir.path())?;
            // A guest that went on without a host at its port would be told that its host has left, and look for
            // another only now and then. One that cannot be reached is found out when it is greeted.
            self.agent = socket::connect(self.dir.path(), AGENT_SOCKET).ok();
            machine.resume()?;
        }
        Ok(Launched { machine, accelerator, reason, arrival: begin.arrival() })
    }
}

/// Counts what is asked of a machine monitor: what was learnt by fewer questions is asked for again.
const CAPABILITIES_ASKED: u32 = 2;

/// Returns the name of QEMU's program for an architecture.
pub(crate) fn program_of(arch: kiln_core::Arch) -> &'static str {
    match arch {
        kiln_core::Arch::Aarch64 => "qemu-system-aarch64",
        _ => "qemu-system-x86_64",
    }
}

impl Engine {
    /// Returns the machine monitor for an architecture with what it can do, remembered as long as it stays the same.
    pub(crate) fn qemu(&self, arch: kiln_core::Arch) -> EngineResult<(QemuVmm, Capabilities)> {
        let name = program_of(arch);
        let Ok(program) = self.settings.toolbox.find(name) else {
            return Err(kiln_vmm::VmmError::NotFound { name: name.to_owned() }.into());
        };
        let path = self.capability_path(program.program())?;
        let vmm = QemuVmm::new(self.settings.toolbox.clone(), self.kvm_verdict()?).with_program(name);
        let known =
            fs::read_optional(&path, 256 << 10)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(caps) = known {
            return Ok((vmm, caps));
        }
        let caps = vmm.probe()?;
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec(&caps).unwrap();
        crate::kvm_cache::remember(&path, &bytes)?;
        Ok((vmm, caps))
    }

    /// Names what was learnt of this very program file on this boot of the host.
    fn capability_path(&self, program: &Path) -> EngineResult<std::path::PathBuf> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = fs::metadata(program)?;
        let facts = (
            program.to_string_lossy().into_owned(),
            [meta.dev(), meta.ino(), meta.size()],
            [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()],
            crate::kvm_cache::host_key().hex(),
            (env!("CARGO_PKG_VERSION"), CAPABILITIES_ASKED),
        );
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let key = kiln_core::Digest::of(&serde_json::to_vec(&facts).unwrap());
        Ok(self.store.root().join("cache/v1").join(format!("vmm-{}.json", key.hex())))
    }
}
