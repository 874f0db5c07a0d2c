//! Forks: many machines that begin as one snapshot, at once.

use crate::capture::machine::{MachineSnapshotReport, MachineSnapshotRequest};
use crate::create::CreateRequest;
use crate::progress::{Reporter, Silent, waiting};
use crate::restore::RestoreChoice;
use crate::start::Ownership;
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::{MachineRecord, Network};
use kiln_core::snapshot::SnapshotKeep;
use kiln_core::{ByteSize, Digest, MachineId, MachineName, Reference, RevisionSelector};
use kiln_store::StoreError;
use kiln_sys::lock::Share;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The most machines of one fork.
pub const FORKS_MAX: u32 = 4096;
/// What a clone is expected to have of the host's memory alone: its monitor, and what a guest that works for a while writes.
pub const CLONE_PRIVATE: ByteSize = ByteSize::from_mib(96);
/// The longest beginning of the machines' names, in bytes: a number follows.
const PREFIX_BYTES_MAX: usize = 56;

/// What is to be forked.
#[derive(Debug, Clone)]
pub struct ForkRequest {
    /// Each machine; its name is the beginning of the machines' names. It begins as a snapshot or not at all.
    pub machine: CreateRequest,
    /// How many.
    pub count: u32,
    /// How many are made and started at a time; none means as many as the host has processors.
    pub jobs: Option<NonZeroUsize>,
    /// Whether a number follows the beginning of their names; a single machine needs none.
    pub numbered: bool,
}

/// A machine that was made and runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forked {
    /// Its name.
    pub name: String,
    /// Milliseconds from its supervisor's start to readiness.
    pub ready_after_ms: u64,
}

/// What became of a fork.
#[derive(Debug)]
pub struct ForkReport {
    /// The snapshot that all of them began as.
    pub snapshot: Digest,
    /// Each machine, in order of its number, or why there is none.
    pub machines: Vec<EngineResult<Forked>>,
}

impl Engine {
    /// Makes and starts machines that all begin as one snapshot, a few at a time. Those that fail leave nothing and stop no
    /// other; after a cancellation none is left.
    ///
    /// # Errors
    /// [`EngineError::NotRestorable`] when no snapshot fits, [`EngineError::Memory`] when so many would not fit into the host's
    /// memory: nothing was made then.
    pub fn fork(&self, request: &ForkRequest, reporter: &dyn Reporter) -> EngineResult<ForkReport> {
        let snapshot = self.snapshot_to_fork(&request.machine, reporter)?;
        let memory = self.store.snapshot(&snapshot)?.manifest.machine.memory;
        let boots = matches!(request.machine.restore, RestoreChoice::DiskOf(_));
        self.memory_preflight(request.count, memory, (!boots).then_some(CLONE_PRIVATE))?;
        let restore = if boots { request.machine.restore.clone() } else { RestoreChoice::Exactly(snapshot) };
        let machine = CreateRequest { restore, ..request.machine.clone() };
        let count = usize::try_from(request.count).unwrap_or(usize::MAX);
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let jobs = request.jobs.map_or(processors, NonZeroUsize::get).clamp(1, count.max(1));
        let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let forked = self.fork_one(&machine, request.numbered.then_some(number + 1));
                made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((number, forked));
            }
        };
        // A monitor dies with the thread of its supervisor, not with these.
        std::thread::scope(|scope| {
            for _ in 1..jobs {
                // Where the host has no thread to give, the others do the work.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let mut made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        made.sort_by_key(|(number, _)| *number);
        let machines: Vec<EngineResult<Forked>> = made.into_iter().map(|(_, forked)| forked).collect();
        if self.cancel.check().is_err() {
            for forked in machines.iter().flatten() {
                self.abandon(&forked.name);
            }
            return Err(EngineError::Cancelled);
        }
        Ok(ForkReport { snapshot, machines })
    }

    /// Captures a machine that runs, which goes on, and makes and starts machines that begin as it was at that instant: of
    /// its template, shape and network, whatever the request says of these. The snapshot stays as long as one of them
    /// continues it.
    ///
    /// # Errors
    /// As [`Engine::snapshot_machine`] and [`Engine::fork`].
    pub fn fork_machine(
        &self,
        machine: &str,
        request: &ForkRequest,
        reporter: &dyn Reporter,
    ) -> EngineResult<(ForkReport, MachineSnapshotReport)> {
        let record = self.find_machine(machine)?.record;
        self.memory_preflight(request.count, record.shape.memory, Some(CLONE_PRIVATE))?;
        // Nothing else keeps the snapshot until the first machine continues it.
        let mut waiting = waiting(reporter);
        let _store = self.store.lock(Share::Shared, "forking a machine", &self.cancel, &mut waiting)?;
        let captured = self.snapshot_machine(
            &MachineSnapshotRequest {
                machine: record.id.to_string(),
                keep: SnapshotKeep::Machines,
                name: None,
                memory: true,
                quiesce: true,
                drop_caches: false,
            },
            reporter,
        )?;
        let each = request.machine.clone();
        let machine = CreateRequest {
            name: each.name,
            clone: each.clone,
            identity: each.identity,
            private: each.private,
            remove_on_exit: each.remove_on_exit,
            ttl: each.ttl,
            restart: each.restart,
            idle_suspend: each.idle_suspend,
            ..self.like(&record, captured.id)
        };
        let report = self.fork(&ForkRequest { machine, ..request.clone() }, reporter)?;
        Ok((report, captured))
    }

    /// Returns what is asked for to have a machine like this one that begins as a snapshot. Ports of the host stay with the
    /// machine that has them.
    pub(crate) fn like(&self, record: &MachineRecord, snapshot: Digest) -> CreateRequest {
        let leads_there = |reference: &Reference| {
            self.store.resolve(reference).is_ok_and(|revision| revision.id == record.revision)
        };
        // A tag may have moved on since.
        let reference = record.reference.parse().ok().filter(leads_there).unwrap_or(Reference {
            revision: RevisionSelector::Digest(record.revision),
            variant: record.variant.clone(),
        });
        let network = match &record.network {
            Network::User { outbound, .. } => Network::User { forwards: Vec::new(), outbound: *outbound },
            other => other.clone(),
        };
        CreateRequest {
            vcpus: Some(record.shape.vcpus),
            memory: Some(record.shape.memory),
            network,
            accelerator: record.accelerator.clone(),
            board: Some(record.shape.board),
            restore: RestoreChoice::Exactly(snapshot),
            ssh_keys: record.ssh_keys.clone(),
            ..CreateRequest::new(reference)
        }
    }

    /// Returns the snapshot that a machine like this one begins as.
    fn snapshot_to_fork(&self, machine: &CreateRequest, reporter: &dyn Reporter) -> EngineResult<Digest> {
        if let RestoreChoice::Exactly(id) | RestoreChoice::DiskOf(id) = machine.restore {
            return Ok(id);
        }
        let wanted = CreateRequest { restore: RestoreChoice::Require, ..machine.clone() };
        let revision = self.store.resolve(&wanted.reference)?;
        let id = MachineId::from_random(kiln_sys::clock::random());
        let record = self.draft(&wanted, &revision, id, reporter)?;
        let chosen = self.choose_snapshot(&wanted, &record, reporter)?;
        chosen.map(|snapshot| snapshot.id).ok_or_else(|| EngineError::NotRestorable {
            reference: wanted.reference.to_string(),
            reason: "there is no snapshot with memory".to_owned(),
        })
    }

    fn fork_one(&self, machine: &CreateRequest, number: Option<usize>) -> EngineResult<Forked> {
        self.cancel.check()?;
        let mut request = machine.clone();
        if let (Some(prefix), Some(number)) = (&machine.name, number) {
            let stem: String = prefix.as_str().chars().take(PREFIX_BYTES_MAX).collect();
            let name: MachineName = format!("{stem}-{number}").parse().map_err(StoreError::from)?;
            request.name = Some(name);
        }
        let created = self.create(&request, &Silent)?;
        let name = created.entry.record.name.to_string();
        match self.start_created(created, Ownership::Detached, &Silent) {
            Ok(started) => Ok(Forked { name, ready_after_ms: started.ready_after_ms }),
            Err(error) => {
                self.abandon(&name);
                Err(error)
            }
        }
    }

    /// Ends and removes a machine that nobody gets.
    fn abandon(&self, name: &str) {
        // A copy that is not cancelled: what this call made is to go.
        let Ok(cancel) = kiln_sys::Cancel::new() else { return };
        let alone = Self { cancel, ..self.clone() };
        let _ = alone.stop(name, Duration::ZERO);
        let _ = alone.remove_machine(name, true);
    }
}
