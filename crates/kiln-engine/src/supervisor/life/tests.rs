//! Lives on the fake machine monitor, in a time that is only counted: a wait jumps to what comes next.

use super::*;
use crate::supervisor::desk::Said;
use kiln_core::machine::{BootArtifacts, CloneMethod, CloneRecord, Network, RECORD_VERSION};
use kiln_core::revision::ArtifactFormat;
use kiln_core::variant::{Board, MachineShape};
use kiln_core::{Arch, ByteSize, Digest, MachineId, RestartPolicy};
use kiln_sys::tool::ScratchDir;
use kiln_vmm::fake::Behaviour;
use kiln_vmm::{AcceleratorChoice, FakeVmm, Mac, MachineSpec, MemoryBacking, RuntimeDir, Vmm};
use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

/// What happens at a time, in milliseconds since the beginning.
enum Act {
    Ready,
    Stop(u64),
    PowerOff,
    Kill(i32),
    Pause,
    Resume,
    Capture,
    Save,
    Suspend,
    /// Somebody asks for the agent.
    Ask,
    /// The machine monitor works: so many percent of a processor from now on.
    Work(u32),
}

struct Fake {
    dir: ScratchDir,
    vmm: FakeVmm,
    desk: Arc<Desk>,
    zero: Instant,
    now_ms: u64,
    script: VecDeque<(u64, Act)>,
    /// Whether each guest is ready as soon as it is attended to.
    ready_at_once: bool,
    /// Whether a guest obeys when it is asked to power off.
    obeys: bool,
    /// Whether the status can be kept.
    writable: bool,
    kept: Vec<MachineStatus>,
    launched_at_ms: Vec<u64>,
    clocks_set: u32,
    answers: Vec<Receiver<Said>>,
    /// Whether each who asked for the agent got it.
    asked: Vec<bool>,
    /// Why the next capture fails.
    refuses_capture: Option<String>,
    captures: Vec<Receiver<Result<Captured, String>>>,
    saves: Vec<Receiver<Result<SavedMachine, String>>>,
    /// Why the next save fails, and whether the machine is lost with it.
    refuses_save: Option<(String, bool)>,
    /// Since when the machine is saved.
    saved: Option<u64>,
    /// Why a saved machine cannot go on.
    refuses_resume: bool,
    /// The work of the machine monitor: until when it is counted, so many milliseconds then, and the share since.
    work: (u64, u64, u32),
}

impl Fake {
    fn act(&mut self, act: &Act) {
        let pid = self.vmm.last_pid().unwrap_or_default();
        match act {
            Act::Ready => self.desk.post(News::Ready),
            Act::Stop(ms) => self.desk.post(News::StopRequested { grace: Duration::from_millis(*ms) }),
            Act::PowerOff => self.vmm.power_off(pid),
            Act::Kill(signal) => self.vmm.kill(pid, *signal),
            Act::Capture => {
                let (reply, said) = std::sync::mpsc::channel();
                self.captures.push(said);
                self.desk.post(News::Capture { into: self.dir.path().to_owned(), reply });
            }
            Act::Save => {
                let (reply, said) = std::sync::mpsc::channel();
                self.saves.push(said);
                self.desk.post(News::Save { into: self.dir.path().to_owned(), memory: true, reply });
            }
            Act::Suspend => {
                let (reply, said) = super::super::desk::Reply::new();
                self.answers.push(said);
                self.desk.post(News::Suspend(reply));
            }
            Act::Ask => self.asked.push(self.desk.count_session()),
            Act::Work(percent) => self.work = (self.now_ms, self.worked_ms(), *percent),
            Act::Pause | Act::Resume => {
                let (reply, said) = super::super::desk::Reply::new();
                self.answers.push(said);
                let news = if matches!(act, Act::Pause) { News::Pause(reply) } else { News::Resume(reply) };
                self.desk.post(news);
            }
        }
    }

    fn worked_ms(&self) -> u64 {
        let (at, sum, percent) = self.work;
        sum + (self.now_ms - at) * u64::from(percent) / 100
    }

    /// Waits for nothing but what the script says.
    fn look(machine: Option<&mut dyn Machine>, wake: BorrowedFd<'_>) -> EngineResult<Waited> {
        use rustix::event::{PollFd, PollFlags};
        if let Some(machine) = machine {
            return Ok(machine.wait(Some(Duration::ZERO), Some(wake))?);
        }
        let mut fds = [PollFd::new(&wake, PollFlags::IN)];
        let ready = kiln_sys::process::poll_within(&mut fds, Some(Duration::ZERO)).unwrap();
        Ok(if ready == 0 { Waited::TimedOut } else { Waited::Woken })
    }
}

impl World for Fake {
    fn launch(&mut self) -> EngineResult<Launched> {
        let arrival = if self.saved.is_some() { Arrival::Resumed } else { Arrival::Booted };
        if self.refuses_resume {
            return Err(EngineError::Saved { reason: "vmm_version was 1 and is 2 here".to_owned() });
        }
        let spec = self.vmm.check(&spec(&self.dir), &self.vmm.probe()?).unwrap();
        let machine = self.vmm.launch(spec, &RuntimeDir::new(self.dir.path())?)?;
        self.launched_at_ms.push(self.now_ms);
        self.saved = None;
        Ok(Launched { machine, accelerator: "tcg".to_owned(), reason: String::new(), arrival })
    }

    fn capture(
        &mut self,
        machine: &mut dyn Machine,
        _into: &Path,
    ) -> Result<(Captured, VmmExit), CaptureError> {
        if let Some(reason) = self.refuses_capture.take() {
            return Err(CaptureError::GoesOn(EngineError::NotCaptured { name: "m".to_owned(), reason }));
        }
        let captured = Captured { paused: Duration::from_millis(7), state_bytes: 1 };
        let exit = machine.stop(Stop::Now).map_err(|error| CaptureError::Lost(error.into()))?;
        Ok((captured, exit))
    }

    fn save(
        &mut self,
        machine: &mut dyn Machine,
        _into: &Path,
        _memory: bool,
        runs: bool,
    ) -> Result<SavedMachine, CaptureError> {
        machine.pause().unwrap();
        if runs {
            machine.resume().unwrap();
        }
        if let Some(reason) = self.refuses_capture.take() {
            return Err(CaptureError::GoesOn(EngineError::NotCaptured { name: "m".to_owned(), reason }));
        }
        Ok(SavedMachine { paused_us: 7000, unplugged_nic: false })
    }

    fn attend(&mut self, run: u32, _begun: Instant, _arrival: Arrival) -> EngineResult<()> {
        if self.ready_at_once {
            self.desk.post_of(run, News::Ready);
        }
        Ok(())
    }

    fn power_off(&mut self, _grace: Duration) -> bool {
        let pid = self.vmm.last_pid().unwrap();
        if self.obeys && !self.vmm.is_paused(pid) {
            self.vmm.power_off(pid);
        }
        true
    }

    fn set_clock(&mut self) {
        self.clocks_set += 1;
    }

    fn suspend(&mut self, machine: &mut dyn Machine, _runs: bool) -> Result<VmmExit, CaptureError> {
        assert!(!self.desk.count_session(), "nobody is served while it is saved");
        match self.refuses_save.take() {
            Some((reason, false)) => {
                return Err(CaptureError::GoesOn(EngineError::Saved { reason }));
            }
            Some((reason, true)) => return Err(CaptureError::Lost(EngineError::Saved { reason })),
            None => {}
        }
        self.saved = Some(self.now_unix_ms());
        machine.stop(Stop::Now).map_err(|error| CaptureError::Lost(error.into()))
    }

    fn saved_since(&mut self) -> Option<u64> {
        self.saved
    }

    fn activity(&mut self, _pid: u32) -> Option<Activity> {
        Some(Activity {
            in_use: false,
            sessions: self.desk.sessions(),
            processor: Duration::from_millis(self.worked_ms()),
        })
    }

    fn keep(&mut self, status: &MachineStatus) -> EngineResult<()> {
        if !self.writable {
            return Err(EngineError::Cancelled);
        }
        self.kept.push(status.clone());
        Ok(())
    }

    fn report(&mut self, _report: &Report) {}

    fn wait(
        &mut self,
        mut machine: Option<&mut dyn Machine>,
        timeout: Option<Duration>,
        wake: BorrowedFd<'_>,
    ) -> EngineResult<Waited> {
        let until = timeout.map(|timeout| self.now_ms + u64::try_from(timeout.as_millis()).unwrap());
        loop {
            let seen = match &mut machine {
                Some(machine) => Self::look(Some(&mut **machine), wake)?,
                None => Self::look(None, wake)?,
            };
            if seen != Waited::TimedOut {
                return Ok(seen);
            }
            let next = self.script.front().map(|(at, _)| *at);
            match (next, until) {
                (Some(at), until) if until.is_none_or(|until| at < until) => {
                    self.now_ms = at;
                    let (_, act) = self.script.pop_front().unwrap();
                    self.act(&act);
                }
                (_, Some(until)) => {
                    self.now_ms = until;
                    return Ok(Waited::TimedOut);
                }
                (_, None) => panic!("it waits for ever"),
            }
        }
    }

    fn now(&self) -> Instant {
        self.zero + Duration::from_millis(self.now_ms)
    }

    fn now_unix_ms(&self) -> u64 {
        1_000_000 + self.now_ms
    }
}

fn spec(dir: &ScratchDir) -> MachineSpec {
    MachineSpec {
        shape: shape(),
        arch: Arch::X86_64,
        boot: kiln_vmm::Boot::elf(dir.path().join("kernel")),
        disks: Vec::new(),
        network: Network::None,
        mac: Mac::local([1, 2, 3]),
        memory: MemoryBacking::Anonymous,
        unplugged_nic: false,
        restore: None,
        accelerator: AcceleratorChoice::Tcg,
        channel: "kiln.agent.0".parse().unwrap(),
    }
}

fn shape() -> MachineShape {
    MachineShape { vcpus: 1, memory: ByteSize::from_mib(128), data_disk: None, board: Board::Pc }
}

pub(crate) fn record(ttl_ms: Option<u64>, restart: &str) -> MachineRecord {
    MachineRecord {
        version: RECORD_VERSION,
        id: MachineId::from_random([1; 6]),
        name: "m".parse().unwrap(),
        reference: "web".to_owned(),
        revision: Digest::of(b"revision"),
        variant: None,
        arch: Arch::X86_64,
        shape: shape(),
        boot: BootArtifacts::Kernel {
            kernel: Digest::of(b"kernel"),
            format: ArtifactFormat::Elf,
            initrd: None,
        },
        boot_args: Vec::new(),
        ready: None,
        network: Network::None,
        accelerator: "tcg".to_owned(),
        clone: CloneRecord {
            artifact: Digest::of(b"rootfs"),
            size: ByteSize::from_mib(1),
            method: CloneMethod::Copy,
        },
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
        ttl_ms,
        restart: restart.parse::<RestartPolicy>().unwrap(),
        idle_suspend_ms: None,
        created_unix_ms: 1,
    }
}

fn life(
    behaviour: Behaviour,
    ttl_ms: Option<u64>,
    restart: &str,
    script: impl IntoIterator<Item = (u64, Act)>,
) -> Life<Fake> {
    let desk = Desk::new().unwrap();
    let fake = Fake {
        dir: ScratchDir::new(&std::env::temp_dir()).unwrap(),
        vmm: FakeVmm::new(behaviour),
        desk: Arc::clone(&desk),
        zero: Instant::now(),
        now_ms: 0,
        script: script.into_iter().collect(),
        ready_at_once: true,
        obeys: true,
        writable: true,
        kept: Vec::new(),
        launched_at_ms: Vec::new(),
        clocks_set: 0,
        answers: Vec::new(),
        refuses_capture: None,
        captures: Vec::new(),
        saves: Vec::new(),
        asked: Vec::new(),
        refuses_save: None,
        saved: None,
        refuses_resume: false,
        work: (0, 0, 1),
    };
    kiln_sys::fs::create_new(&fake.dir.path().join("kernel")).unwrap();
    Life::begin(fake, record(ttl_ms, restart), &MachineStatus::created(), 7, desk).unwrap()
}

/// Begins another life of the machine, from what was kept last.
fn again(life: Life<Fake>, script: impl IntoIterator<Item = (u64, Act)>) -> Life<Fake> {
    let Life { mut world, record, status, desk, .. } = life;
    world.script = script.into_iter().collect();
    world.answers.clear();
    desk.end_run();
    desk.open_agent();
    Life::begin(world, record, &status, 8, desk).unwrap()
}

/// Lives to the end; returns why that was.
fn end(life: &mut Life<Fake>) -> EndCause {
    let (cause, _) = life.live();
    life.bury(cause.clone()).unwrap();
    assert!(life.world.script.is_empty(), "it ended before the script, at {} ms", life.world.now_ms);
    cause
}

fn answers(life: &Life<Fake>) -> Vec<Option<Said>> {
    life.world.answers.iter().map(|answer| answer.try_recv().ok()).collect()
}

#[test]
fn a_pause_is_kept_told_once_and_ended_by_a_resume() {
    use Act::{Pause, PowerOff, Resume};
    let script =
        [(10, Resume), (20, Pause), (30, Pause), (5_000, Resume), (5_010, Resume), (6_000, PowerOff)];
    let mut life = life(Behaviour::Boots, None, "no", script);
    assert_eq!(end(&mut life), EndCause::GuestShutdown);
    let said = [Ok(true), Ok(false), Ok(true), Ok(false), Ok(true)].map(Some);
    assert_eq!(answers(&life), said);
    let phases: Vec<_> = life.world.kept.iter().map(|s| (s.phase, s.paused_unix_ms)).collect();
    assert!(phases.contains(&(Phase::Paused, Some(1_000_020))), "{phases:?}");
    assert_eq!(phases.last(), Some(&(Phase::Stopped, None)));
    assert_eq!(life.world.clocks_set, 1);
}

#[test]
fn a_capture_that_fails_changes_nothing_and_one_that_succeeds_is_the_end_by_every_policy() {
    use Act::{Capture, Pause, Resume};
    let script = [(10, Pause), (20, Capture), (30, Resume), (40, Capture), (50, Capture)];
    let mut life = life(Behaviour::Boots, None, "always", script);
    life.world.refuses_capture = Some("no room".to_owned());
    assert_eq!(end(&mut life), EndCause::Requested);
    let said: Vec<_> = life.world.captures.iter().map(|said| said.recv().unwrap()).collect();
    assert_eq!(said[0], Err("it is paused".to_owned()));
    assert_eq!(said[1], Err("machine `m` could not be captured: no room".to_owned()));
    assert_eq!(said[2].as_ref().unwrap().paused, Duration::from_millis(7));
    assert_eq!((life.world.now_ms, life.world.launched_at_ms.len()), (50, 1));
}

#[test]
fn a_saved_machine_goes_on_as_it_was() {
    use Act::{Pause, Resume, Save, Stop};
    let script = [(10, Save), (20, Save), (30, Pause), (40, Save), (50, Resume), (60, Stop(0))];
    let mut life = life(Behaviour::Boots, None, "always", script);
    life.world.refuses_capture = Some("no room".to_owned());
    assert_eq!(end(&mut life), EndCause::Requested);
    let said: Vec<_> = life.world.saves.iter().map(Receiver::recv).collect();
    assert_eq!(said[0], Ok(Err("machine `m` could not be captured: no room".to_owned())));
    let saved = |said: &Result<Result<SavedMachine, String>, _>| said.clone().unwrap().unwrap().paused_us;
    assert_eq!((saved(&said[1]), saved(&said[2])), (7000, 7000));
    // One clock was set after the save of the running machine, one after the resume.
    assert_eq!((life.world.clocks_set, life.world.launched_at_ms.len()), (2, 1));
}

#[test]
fn a_machine_that_is_not_ready_cannot_be_paused() {
    let mut life = life(Behaviour::Boots, None, "no", [(1, Act::Pause), (2, Act::Stop(0))]);
    life.world.ready_at_once = false;
    assert_eq!(end(&mut life), EndCause::Requested);
    assert_eq!(answers(&life), [Some(Err("it is starting".to_owned()))]);
}

#[test]
fn a_pause_that_cannot_be_written_down_is_none() {
    let mut life = life(Behaviour::Boots, None, "no", []);
    let mut machine = life.launch().unwrap();
    life.status.phase = Phase::Running;
    life.world.writable = false;
    let pid = machine.pid();
    assert_eq!(life.pause(machine.as_mut()), Err("cancelled".to_owned()));
    assert!(!life.world.vmm.is_paused(pid));
    assert_eq!((life.status.phase, life.desk.phase()), (Phase::Running, Phase::Running));
}

#[test]
fn a_paused_machine_is_resumed_to_power_off_and_ended_when_it_does_not() {
    for (obeys, took_ms) in [(true, 0), (false, 700)] {
        let script = [(10, Act::Pause), (50, Act::Stop(700))];
        let mut life = life(Behaviour::Boots, None, "always", script);
        life.world.obeys = obeys;
        assert_eq!(end(&mut life), EndCause::Requested);
        assert_eq!(life.world.now_ms, 50 + took_ms);
        assert_eq!(life.world.launched_at_ms.len(), 1);
    }
}

#[test]
fn a_time_to_live_ends_a_machine_in_order_paused_or_not() {
    for script in [vec![], vec![(100, Act::Pause)]] {
        let mut life = life(Behaviour::Boots, Some(60_000), "always", script);
        assert_eq!(end(&mut life), EndCause::Expired);
        assert_eq!(life.world.now_ms, 60_000);
        let last = life.world.kept.last().unwrap();
        assert_eq!((last.phase, last.expires_unix_ms), (Phase::Stopped, Some(1_060_000)));
    }
}

#[test]
fn a_guest_that_does_not_hear_its_time_to_live_is_ended_after_the_grace() {
    let mut life = life(Behaviour::Boots, Some(5_000), "no", []);
    life.world.obeys = false;
    assert_eq!(end(&mut life), EndCause::Expired);
    assert_eq!(life.world.now_ms, 15_000);
}

#[test]
fn a_stop_before_the_time_to_live_is_a_stop_and_an_endless_one_is_none() {
    let mut life = life(Behaviour::Boots, Some(u64::MAX), "no", [(9, Act::Stop(1000))]);
    assert_eq!(end(&mut life), EndCause::Requested);
    assert_eq!(life.world.kept[0].expires_unix_ms, Some(u64::MAX));
}

#[test]
fn a_guest_that_powers_off_is_started_again_after_rests_that_double_until_its_time_to_live() {
    let mut life = life(Behaviour::PowersOff, Some(1_000), "always", []);
    // Its end and its readiness arrive together: the first run counts as one that was ready.
    life.was_ready = true;
    assert_eq!(end(&mut life), EndCause::Expired);
    assert_eq!(life.world.launched_at_ms, [0, 100, 300, 700]);
    let last = life.world.kept.last().unwrap();
    assert_eq!((last.restarts, last.phase, last.vmm_pid), (3, Phase::Stopped, None));
}

#[test]
fn a_stop_during_a_rest_is_heard_at_once() {
    let mut life = life(Behaviour::Boots, None, "always", [(5, Act::PowerOff), (30, Act::Stop(10_000))]);
    assert_eq!(end(&mut life), EndCause::Requested);
    assert_eq!((life.world.now_ms, life.world.launched_at_ms.len()), (30, 1));
    let resting = life.world.kept.iter().find(|s| s.end.is_some()).unwrap();
    assert_eq!((resting.phase, &resting.end), (Phase::Starting, &Some(EndCause::GuestShutdown)));
}

#[test]
fn a_pause_during_a_rest_is_refused() {
    let script = [(5, Act::PowerOff), (30, Act::Pause), (40, Act::Stop(0))];
    let mut life = life(Behaviour::Boots, None, "always", script);
    end(&mut life);
    assert_eq!(answers(&life), [Some(Err("it is starting".to_owned()))]);
}

#[test]
fn a_failure_is_followed_by_so_many_restarts_and_a_shutdown_by_none() {
    let script = [(10, Act::Kill(9)), (200, Act::Kill(9)), (900, Act::Kill(11))];
    let mut failing = life(Behaviour::Boots, None, "on-failure:2", script);
    assert_eq!(end(&mut failing), EndCause::VmmKilled { signal: 11 });
    assert_eq!(failing.world.launched_at_ms, [0, 110, 400]);
    let last = failing.world.kept.last().unwrap();
    assert_eq!((last.restarts, last.phase), (2, Phase::Failed));
    let script = [(10, Act::Kill(9)), (500, Act::PowerOff)];
    let mut leaving = life(Behaviour::Boots, None, "on-failure", script);
    assert_eq!(end(&mut leaving), EndCause::GuestShutdown);
    assert_eq!(leaving.world.launched_at_ms.len(), 2);
}

#[test]
fn a_guest_that_was_never_ready_is_not_started_again() {
    let mut dead = life(Behaviour::DiesAtOnce { code: 1, words: "no memory".to_owned() }, None, "always", []);
    assert!(matches!(end(&mut dead), EndCause::StartFailed { .. }));
    let mut killed = life(Behaviour::Boots, None, "always", [(10, Act::Kill(9))]);
    killed.world.ready_at_once = false;
    assert_eq!(end(&mut killed), EndCause::VmmKilled { signal: 9 });
    assert_eq!(killed.world.launched_at_ms.len(), 1);
}

#[test]
fn news_of_a_run_that_is_over_are_not_heard() {
    let desk = Desk::new().unwrap();
    let run = desk.run();
    desk.post_of(run, News::EntrypointExited { code: 1 });
    desk.post(News::StopRequested { grace: Duration::ZERO });
    desk.end_run();
    desk.post_of(run, News::Ready);
    assert!(matches!(desk.take().as_slice(), [News::StopRequested { .. }]));
    desk.post_of(desk.run(), News::Ready);
    assert!(matches!(desk.take().as_slice(), [News::Ready]));
}

#[test]
fn readiness_is_counted_from_the_start_of_the_run() {
    let script = [(70, Act::Ready), (80, Act::PowerOff), (250, Act::Ready), (300, Act::Stop(0))];
    let mut life = life(Behaviour::Boots, None, "always", script);
    life.world.ready_at_once = false;
    assert_eq!(end(&mut life), EndCause::Requested);
    let after: Vec<_> = life.world.kept.iter().filter_map(|status| status.ready_after_ms).collect();
    assert_eq!((after.first(), after.last()), (Some(&70), Some(&70)));
    let started = life.world.kept.last().unwrap().started_unix_ms;
    assert_eq!(started, Some(1_000_180));
}

mod suspend;
