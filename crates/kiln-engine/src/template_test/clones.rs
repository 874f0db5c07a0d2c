//! The machines of a test, which are gone when it is over, however it ends.

use super::judge::{Judged, Seen, Wrong, each};
use super::look;
use crate::create::Created;
use crate::progress::Silent;
use crate::start::{Ownership, Started};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::Phase;
use kiln_core::template_test::{CheckStatus, TestedClone};
use kiln_core::text::chain;
use kiln_guest::Session;
use kiln_store::MachineEntry;
use kiln_sys::process::{ProcessIdentity, identity};
use kiln_sys::{fs, lock};
use std::time::{Duration, Instant};

/// Time the processes of a machine that has ended may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Time between two looks whether they are.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A machine that began as a snapshot.
#[derive(Debug)]
pub(super) struct TestMachine {
    entry: MachineEntry,
    started: Started,
    /// The line to its agent, or why there is none.
    pub(super) session: Result<Session, String>,
    /// The first random numbers that were read of it.
    pub(super) random: Seen,
    processes: Vec<ProcessIdentity>,
}

impl TestMachine {
    pub(super) fn name(&self) -> &str {
        self.entry.record.name.as_str()
    }

    pub(super) fn id(&self) -> &str {
        self.entry.record.id.as_str()
    }

    pub(super) fn is_restored(&self) -> bool {
        self.started.restored
    }

    /// Returns the path in any guest of a file that belongs to this clone.
    pub(super) fn path(&self, purpose: &str) -> String {
        format!("/.kiln-test-{}-{purpose}", self.id())
    }

    /// Looks at something through the agent.
    pub(super) fn see(&self, look: impl FnOnce(&Session) -> Seen) -> Seen {
        match &self.session {
            Ok(session) => look(session),
            Err(why) => Seen::Unknown(why.clone()),
        }
    }
}

/// The machines of a test. When this goes, they do.
#[derive(Debug)]
pub(super) struct Clones<'a> {
    engine: &'a Engine,
    clones: Vec<TestMachine>,
    /// Those that did not become ready, and should be gone.
    failed: Vec<MachineEntry>,
}

impl<'a> Clones<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        Self { engine, clones: Vec::new(), failed: Vec::new() }
    }

    pub(super) fn all(&self) -> &[TestMachine] {
        &self.clones
    }

    /// Starts a machine that was just made, and reads its first random numbers before anything else.
    pub(super) fn start(&mut self, created: Created) -> EngineResult<()> {
        let mut entry = created.entry.clone();
        let started = match self.engine.start_created(created, Ownership::Owned, &Silent) {
            Ok(started) => started,
            Err(error) => {
                self.failed.push(entry);
                return Err(error);
            }
        };
        let session = match self.engine.session(entry.record.id.as_str()) {
            Err(EngineError::Cancelled) => return Err(self.lose(started, &entry)),
            other => other.map_err(|error| chain(&error)),
        };
        let random = session.as_ref().map_or_else(|why| Seen::Unknown(why.clone()), look::random);
        if let Ok(now) = self.engine.find_machine(entry.record.id.as_str()) {
            entry = now;
        }
        let pids = [entry.status.supervisor_pid, entry.status.vmm_pid];
        let processes = pids.into_iter().flatten().filter_map(identity).collect();
        self.clones.push(TestMachine { entry, started, session, random, processes });
        Ok(())
    }

    fn lose(&self, started: Started, entry: &MachineEntry) -> EngineError {
        drop(started);
        // It ends with its handle; what it leaves must be gone when this returns.
        let _ = self.engine.wait_ended_always(entry);
        EngineError::Cancelled
    }

    /// Suspends the first clone and lets it go on.
    pub(super) fn suspend_first(&mut self) -> EngineResult<()> {
        let Some(clone) = self.clones.first_mut() else { return Ok(()) };
        let id = clone.entry.record.id.as_str().to_owned();
        self.engine.suspend(&id)?;
        clone.started = self.engine.start_as(&id, Ownership::Owned, &Silent)?;
        clone.session = Ok(self.engine.session(&id)?);
        let status = self.engine.find_machine(&id)?.status;
        let pids = [status.supervisor_pid, status.vmm_pid];
        clone.processes.extend(pids.into_iter().flatten().filter_map(identity));
        Ok(())
    }

    /// Judges something that each clone has to have by itself.
    pub(super) fn each(&self, look: impl Fn(&TestMachine, &Session) -> Result<String, Wrong>) -> Judged {
        let seen: Vec<(&str, Result<String, Wrong>)> = self
            .clones
            .iter()
            .map(|clone| {
                let seen = match &clone.session {
                    Ok(session) => look(clone, session),
                    Err(why) => Err(Wrong::Failed(why.clone())),
                };
                (clone.name(), seen)
            })
            .collect();
        each(&seen)
    }

    /// Returns the machines as a result names them.
    pub(super) fn tested(&self) -> Vec<TestedClone> {
        let tested = |clone: &TestMachine| TestedClone {
            name: clone.name().to_owned(),
            ready_after_ms: clone.started.ready_after_ms,
        };
        self.clones.iter().map(tested).collect()
    }

    /// Ends and removes the machines, and looks for what is left of them.
    pub(super) fn end(&mut self) -> EngineResult<Judged> {
        let ended = self.drain();
        let mut left = Vec::new();
        for (entry, processes) in &ended {
            let name = &entry.record.name;
            if fs::exists(&entry.dir)? {
                left.push(format!("the directory of {name}"));
            }
            if !self.wait_gone(processes)? {
                left.push(format!("a process of {name}"));
            }
        }
        Ok(match (left.is_empty(), ended.is_empty()) {
            (true, true) => (CheckStatus::NotChecked, "there was no clone".to_owned()),
            (true, false) => (CheckStatus::Passed, "no machine and no process".to_owned()),
            _ => (CheckStatus::Failed, left.join(", ")),
        })
    }

    fn wait_gone(&self, processes: &[ProcessIdentity]) -> EngineResult<bool> {
        let until = Instant::now() + GONE_WITHIN;
        while processes.iter().any(|process| identity(process.id).as_ref() == Some(process)) {
            if lock::wait_cancelled(&self.engine.cancel, LOOK_AGAIN) {
                return Err(EngineError::Cancelled);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn drain(&mut self) -> Vec<(MachineEntry, Vec<ProcessIdentity>)> {
        // All handles first, so that the machines end side by side: each ends with its own.
        let failed = self.failed.drain(..).map(|entry| (entry, Vec::new()));
        let ready = self.clones.drain(..).map(|clone| (clone.entry, clone.processes));
        let ending = ready.chain(failed).collect::<Vec<_>>();
        for (entry, _) in &ending {
            // What is still there afterwards is looked for.
            let ended = self.engine.wait_ended_always(entry);
            if ended.is_ok_and(|ended| ended.is_some_and(|of| of.status.phase == Phase::Suspended)) {
                // It did not go on, and would wait for somebody for ever.
                let _ = self.engine.remove_machine(entry.record.id.as_str(), false);
            }
        }
        ending
    }
}

impl Drop for Clones<'_> {
    fn drop(&mut self) {
        self.drain();
    }
}
