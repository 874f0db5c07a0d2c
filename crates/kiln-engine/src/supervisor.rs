//! The supervisor of one machine: a process of its own that owns the machine monitor, answers the control socket,
//! relays the agent, and writes how the machine does. It outlives the program that started it; the machine monitor
//! does not outlive it.
//!
//! Everything that happens arrives at one `Desk`, and one thread, the one the machine monitor is bound to, acts on
//! it by the rules of [`kiln_vmm::lifecycle`].

mod agent;
mod clients;
mod desk;

use crate::control::{CONTROL_SOCKET, Report, write_line};
use crate::create::{DATA_DISK_FILE, DISK_STEM};
use crate::{Engine, EngineError, EngineResult};
use desk::{Desk, News};
use kiln_core::MachineId;
use kiln_core::machine::{CloneMethod, CloneRecord, EndCause, MachineStatus, Phase};
use kiln_core::text::chain;
use kiln_guest::message::ShutdownMode;
use kiln_guest::{Session, transport};
use kiln_store::MachineEntry;
use kiln_sys::lock::FileLock;
use kiln_sys::{clock, fs};
use kiln_vmm::lifecycle::{self, Event};
use kiln_vmm::{
    AcceleratorChoice, Capabilities, ChannelName, CheckedSpec, Disk, DiskFormat, InvalidSerial, Mac, Machine,
    MachineSpec, MemoryBacking, QemuVmm, RuntimeDir, Stop, Vmm, VmmExit, Waited,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Held by a machine's supervisor for as long as it lives.
pub const SUPERVISOR_LOCK: &str = "supervisor.lock";
/// Lines of the console that a report of an end carries.
const CONSOLE_LINES: usize = 15;
/// Time a guest has to power off when the host asks the supervisor to end.
const HOST_GRACE: Duration = Duration::from_secs(10);

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
    let mut supervisor = Supervisor {
        engine,
        dir: RuntimeDir::new(&dir)?,
        record,
        status: MachineStatus { phase: status.phase, ..MachineStatus::created() },
        desk,
        begun: Instant::now(),
        verdict: None,
    };
    supervisor.status.started_unix_ms = Some(clock::now_unix_ms());
    supervisor.status.supervisor_pid = Some(std::process::id());
    supervisor.take(&Event::StartRequested)?;
    watch_signals(&supervisor.desk)?;
    if owned {
        clients::watch_owner(&supervisor.desk)?;
    }
    let (end, console) = supervisor.live();
    supervisor.bury(end.clone())?;
    report(&Report::Ended { cause: end, console });
    Ok(())
}

/// Tells whoever started this process; nobody may be left to listen.
fn report(report: &Report) {
    let _ = write_line(&mut std::io::stdout().lock(), report);
}

/// The host's wish to end arrives as a signal; a closed terminal does not concern a supervisor.
fn watch_signals(desk: &Arc<Desk>) -> EngineResult<()> {
    use kiln_sys::IoResultExt as _;
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).at("watch", "signals")?;
    let desk = Arc::clone(desk);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal != SIGHUP {
                desk.post(News::StopRequested { grace: HOST_GRACE });
            }
        }
    });
    Ok(())
}

struct Supervisor<'a> {
    engine: &'a Engine,
    dir: RuntimeDir,
    record: kiln_core::machine::MachineRecord,
    status: MachineStatus,
    desk: Arc<Desk>,
    begun: Instant,
    /// Why the machine ends, where that is decided here and not by the machine monitor's exit.
    verdict: Option<EndCause>,
}

impl Supervisor<'_> {
    /// Takes an event into the record.
    fn take(&mut self, event: &Event) -> EngineResult<()> {
        let transition = lifecycle::next(self.status.phase, event).map_err(|refused| {
            EngineError::SupervisorRefused { name: self.record.name.to_string(), reason: refused.to_string() }
        })?;
        self.status.phase = transition.to;
        if transition.end.is_some() {
            self.status.end = transition.end;
        }
        Ok(self.engine.store.write_status(self.dir.path(), &self.status)?)
    }

    /// Lives the machine's life; returns why it ended and the console's last lines.
    fn live(&mut self) -> (EndCause, Vec<String>) {
        let failed = |error: &dyn std::error::Error| EndCause::StartFailed { message: chain(error) };
        let mut machine = match self.launch() {
            Ok(machine) => machine,
            Err(error) => return (failed(&error), self.console(None)),
        };
        match self.watch(machine.as_mut()) {
            Ok(exit) => {
                let requested = self.status.phase == Phase::Stopping;
                let cause = self.verdict.take().unwrap_or_else(|| exit.cause(requested));
                let console = self.console(Some(&exit));
                (cause, console)
            }
            Err(error) => {
                drop(machine);
                let cause = EndCause::VmmExited { code: -1, message: chain(&error) };
                (cause, self.console(None))
            }
        }
    }

    fn launch(&mut self) -> EngineResult<Box<dyn Machine>> {
        self.dir.clear()?;
        let (vmm, caps) = self.engine.qemu(self.record.arch)?;
        let checked = vmm.check(&self.spec()?, &caps).map_err(|error| EngineError::SupervisorRefused {
            name: self.record.name.to_string(),
            reason: chain(&error),
        })?;
        let (accelerator, reason) = accelerator(&checked);
        let machine = vmm.launch(checked, &self.dir)?;
        self.status.vmm_pid = Some(machine.pid());
        self.status.accelerator = Some(accelerator.clone());
        self.take(&Event::VmmStarted)?;
        report(&Report::Started { accelerator, reason });
        agent::attend(&self.record, self.dir.path(), &self.desk, self.begun)?;
        Ok(machine)
    }

    fn spec(&self) -> EngineResult<MachineSpec> {
        let store = &self.engine.store;
        let record = &self.record;
        let manifest = store.revision(&record.revision)?.manifest;
        let mut used = vec![Some(record.kernel), record.initrd];
        if record.clone.method == CloneMethod::Overlay {
            used.push(Some(record.clone.artifact));
        }
        for artifact in manifest.artifacts.iter().filter(|artifact| used.contains(&Some(artifact.digest))) {
            store.ensure_artifact(&artifact.digest, artifact.size, &self.engine.cancel, &mut |_| {})?;
        }
        let bad = |reason: String| EngineError::SupervisorRefused { name: record.name.to_string(), reason };
        let disks = self.disks().map_err(|error| bad(chain(&error)))?;
        let accelerator: AcceleratorChoice =
            record.accelerator.parse().map_err(|error| bad(chain(&error)))?;
        let channel: ChannelName = transport::AGENT_PORT_NAME.parse().map_err(|error| bad(chain(&error)))?;
        let mut mac = [0; 3];
        mac.copy_from_slice(&kiln_core::Digest::of(record.id.as_str().as_bytes()).as_bytes()[..3]);
        Ok(MachineSpec {
            shape: record.shape.clone(),
            arch: record.arch,
            kernel: store.artifact_path(&record.kernel),
            kernel_format: record.kernel_format,
            initrd: record.initrd.map(|digest| store.artifact_path(&digest)),
            boot_args: record.boot_args.clone(),
            disks,
            network: record.network.clone(),
            mac: Mac::local(mac),
            accelerator,
            channel,
            memory: MemoryBacking::Anonymous,
            restore: None,
        })
    }

    fn disks(&self) -> Result<Vec<Disk>, InvalidSerial> {
        let CloneRecord { artifact, method, .. } = &self.record.clone;
        let root = Disk {
            path: self.dir.path().join(DISK_STEM).with_extension(method.extension()),
            format: match method {
                CloneMethod::Overlay => {
                    DiskFormat::Qcow2Over { backing: self.engine.store.artifact_path(artifact) }
                }
                _ => DiskFormat::Raw,
            },
            read_only: false,
            serial: "root".parse()?,
        };
        let data = self.record.shape.data_disk.map(|_| {
            Ok(Disk {
                path: self.dir.path().join(DATA_DISK_FILE),
                format: DiskFormat::Raw,
                read_only: false,
                serial: "data".parse()?,
            })
        });
        std::iter::once(Ok(root)).chain(data).collect()
    }

    /// Acts on what happens until the machine monitor has ended.
    fn watch(&mut self, machine: &mut dyn Machine) -> EngineResult<VmmExit> {
        let mut give_up: Option<Instant> = None;
        let desk = Arc::clone(&self.desk);
        loop {
            let left = give_up.map(|at| at.saturating_duration_since(Instant::now()));
            match machine.wait(left, Some(desk.fd()))? {
                Waited::Ended(exit) => {
                    // The last news may have arrived together with the end.
                    for news in desk.take() {
                        self.note(&news);
                    }
                    return Ok(exit);
                }
                Waited::TimedOut => return Ok(machine.stop(Stop::Now)?),
                Waited::Woken => {}
            }
            for news in desk.take() {
                self.note(&news);
                match news {
                    News::Ready => {
                        let after_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                        self.status.ready_after_ms = Some(after_ms);
                        self.take(&Event::GuestReady)?;
                        report(&Report::Ready { after_ms });
                    }
                    News::StopRequested { grace } => {
                        self.take(&Event::StopRequested)?;
                        match desk.session() {
                            Some(session) if !grace.is_zero() => {
                                power_off(session, grace);
                                let at = Instant::now() + grace;
                                give_up = Some(give_up.map_or(at, |earlier| earlier.min(at)));
                            }
                            _ => return Ok(machine.stop(Stop::Now)?),
                        }
                    }
                    News::OwnerLost => {
                        self.verdict = Some(EndCause::ClientLost);
                        return Ok(machine.stop(Stop::Now)?);
                    }
                    News::NeverReady { reason } => {
                        self.verdict = Some(EndCause::NeverReady { reason });
                        return Ok(machine.stop(Stop::Kill)?);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Remembers news that explain an end.
    fn note(&mut self, news: &News) {
        if let News::EntrypointExited { code } = news {
            self.verdict = Some(EndCause::EntrypointExited { code: *code });
        }
    }

    /// Returns the console's last lines.
    fn console(&self, exit: Option<&VmmExit>) -> Vec<String> {
        let text = match exit {
            Some(exit) => exit.console_tail.clone(),
            None => return Vec::new(),
        };
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].to_vec()
    }

    /// Writes the last word, and removes what the machine leaves.
    fn bury(&mut self, end: EndCause) -> EngineResult<()> {
        self.status.supervisor_pid = None;
        self.status.vmm_pid = None;
        self.status.ended_unix_ms = Some(clock::now_unix_ms());
        let event = match end {
            EndCause::StartFailed { message } => Event::StartFailed { message },
            cause => Event::VmmExited(cause),
        };
        self.take(&event)?;
        self.dir.clear()?;
        fs::remove_file(&self.dir.path().join(CONTROL_SOCKET))?;
        if self.record.remove_on_exit {
            self.engine.store.discard_dir(self.dir.path())?;
        }
        Ok(())
    }
}

/// Asks the guest to power off; the answer is its end.
fn power_off(session: Session, grace: Duration) {
    std::thread::spawn(move || {
        // A guest that cannot is ended when its time is up.
        let _ = session.shutdown(ShutdownMode::Poweroff, grace);
    });
}

fn accelerator(checked: &CheckedSpec) -> (String, String) {
    (checked.accelerator().as_str().to_owned(), checked.accelerator_reason().unwrap_or_default().to_owned())
}

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
            env!("CARGO_PKG_VERSION"),
        );
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let key = kiln_core::Digest::of(&serde_json::to_vec(&facts).unwrap());
        Ok(self.store.root().join("cache/v1").join(format!("vmm-{}.json", key.hex())))
    }
}
