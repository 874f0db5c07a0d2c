//! Machines as they really are: records reconciled with the living.

use crate::control::{Ask, ask};
use crate::start::is_being_started;
use crate::supervisor::SUPERVISOR_LOCK;
use crate::suspend::{discard, saved_since};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::MachineId;
use kiln_core::machine::{EndCause, MachineStatus, Phase};
use kiln_store::{MachineEntry, StoreError};
use kiln_sys::lock::FileLock;
use kiln_sys::memory::Process;
use kiln_sys::process::kill_if;
use kiln_sys::{IoResultExt as _, clock, fs};
use std::path::PathBuf;
use std::time::Duration;

/// Longest pause between two looks at a machine whose supervisor is not ours to wait for.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long a machine that was told to end at once may take.
const END_WITHIN: Duration = Duration::from_secs(20);

impl Engine {
    /// Lists the machines, each reconciled with the living. A damaged record is an entry of its own.
    pub fn machines(&self) -> EngineResult<Vec<(MachineId, EngineResult<MachineEntry>)>> {
        let mut machines = Vec::new();
        for (id, entry) in self.store.machines()? {
            match entry {
                Ok(entry) => match self.reconcile(entry) {
                    Ok(Some(entry)) => machines.push((id, Ok(entry))),
                    Ok(None) => {}
                    Err(error) => machines.push((id, Err(error))),
                },
                Err(error) => machines.push((id, Err(error.into()))),
            }
        }
        Ok(machines)
    }

    /// Finds a machine by name, id or the beginning of its id.
    pub fn find_machine(&self, name: &str) -> EngineResult<MachineEntry> {
        let mut names = Vec::new();
        let mut by_prefix = Vec::new();
        for (id, entry) in self.store.machines()? {
            let known = entry.as_ref().ok().map(|entry| entry.record.name.as_str().to_owned());
            if known.as_deref() == Some(name) || id.as_str() == name {
                return self.reconcile(entry?)?.ok_or_else(|| no_machine(name, &[]));
            }
            if name.len() >= 4 && id.as_str().starts_with(name) {
                by_prefix.push(entry?);
            } else {
                names.extend(known);
            }
        }
        match by_prefix.pop() {
            Some(entry) if by_prefix.is_empty() => {
                self.reconcile(entry)?.ok_or_else(|| no_machine(name, &names))
            }
            _ => Err(no_machine(name, &names)),
        }
    }

    /// Corrects the record of a machine whose supervisor is gone; none when that leaves no machine.
    fn reconcile(&self, entry: MachineEntry) -> EngineResult<Option<MachineEntry>> {
        let live = entry.status.phase.is_live();
        let orphan = entry.status.phase == Phase::Created && entry.record.remove_on_exit;
        let suspended = entry.status.phase == Phase::Suspended;
        let expired = |status: &MachineStatus| {
            status.phase == Phase::Suspended
                && status.expires_unix_ms.is_some_and(|at| at <= clock::now_unix_ms())
        };
        let stays = suspended || entry.status.phase == Phase::Created;
        let ended = !live && !stays && entry.record.remove_on_exit;
        if !(live || orphan || ended || expired(&entry.status)) || is_being_started(&entry)? {
            return Ok(Some(entry));
        }
        let lock_path = entry.dir.join(SUPERVISOR_LOCK);
        if !fs::exists(&entry.dir)? {
            return Ok(None);
        }
        if FileLock::is_held(&lock_path)? {
            return Ok(Some(entry));
        }
        let Ok(_lock) = FileLock::try_take(&lock_path, "reconciling a machine")? else {
            return Ok(Some(entry));
        };
        // The supervisor may have written its last word, or the machine gone, before the lock was free.
        let mut entry = match self.store.machine(&entry.record.id) {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        if entry.status.phase.is_live() {
            self.bury(&mut entry)?;
        }
        if expired(&entry.status) {
            self.end_suspended(&entry.dir, &entry.status, EndCause::Expired)?;
            entry = self.store.machine(&entry.record.id)?;
        }
        if entry.record.remove_on_exit && entry.status.phase != Phase::Suspended {
            self.store.discard_dir(&entry.dir)?;
            return Ok(None);
        }
        Ok(Some(entry))
    }

    /// Ends what a killed supervisor left and says so in the record.
    fn bury(&self, entry: &mut MachineEntry) -> EngineResult<()> {
        if let Some(pid) = entry.status.vmm_pid {
            let dir = entry.dir.clone();
            // The kernel kills a machine monitor with its supervisor; this is for the moment in between.
            let is_its = || Process::open(pid).and_then(|process| process.works_in(&dir)).unwrap_or(false);
            let _ = kill_if(pid, is_its);
        }
        kiln_vmm::RuntimeDir::new(&entry.dir)?.clear()?;
        fs::remove_file(&entry.dir.join(crate::control::CONTROL_SOCKET))?;
        // A guest whose state counts has not run since it was saved.
        let saved = saved_since(&entry.dir)?;
        let end = if saved.is_some() { EndCause::Suspended } else { EndCause::SupervisorLost };
        entry.status.phase = kiln_vmm::lifecycle::phase_after(&end);
        entry.status.suspended_unix_ms = saved;
        entry.status.supervisor_pid = None;
        entry.status.vmm_pid = None;
        entry.status.ended_unix_ms = Some(saved.unwrap_or_else(clock::now_unix_ms));
        entry.status.end = Some(end);
        if saved.is_none() {
            discard(&entry.dir)?;
        }
        // What it was saving is nobody's now.
        self.sweep();
        Ok(self.store.write_status(&entry.dir, &entry.status)?)
    }

    /// Ends a machine: the guest has `grace` to power off by itself. Returns once it has ended.
    ///
    /// # Errors
    /// [`EngineError::Phase`] for a suspended one: nothing of it runs, and what was saved is not lost by the way.
    pub fn stop(&self, name: &str, grace: Duration) -> EngineResult<()> {
        let entry = self.find_machine(name)?;
        let refuse = |entry: &MachineEntry| match entry.status.phase {
            phase @ Phase::Suspended => {
                let name = entry.record.name.to_string();
                Err(EngineError::Phase { name, phase: phase.as_str(), action: "stopped" })
            }
            _ => Ok(()),
        };
        refuse(&entry)?;
        if !entry.status.phase.is_live() {
            return Ok(());
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        loop {
            match ask(&entry.dir, name, &Ask::Stop { grace_ms }) {
                Ok(_) => break,
                // Its supervisor is just beginning or just ending: it is asked again until it hears or is gone.
                Err(EngineError::Io(_)) if self.has_supervisor(&entry)? => {
                    if kiln_sys::lock::wait_cancelled(&self.cancel, LOOK_AGAIN) {
                        return Err(EngineError::Cancelled);
                    }
                }
                Err(EngineError::Io(_)) => break,
                Err(error) => return Err(error),
            }
        }
        // It may have been on its way to be saved.
        self.wait_ended(&entry)?.as_ref().map_or(Ok(()), refuse)
    }

    /// Asks a machine to end at once, without waiting: also after a cancellation.
    pub(crate) fn tell_to_end(&self, entry: &MachineEntry) {
        // A supervisor that cannot be reached has ended or will find its starter gone.
        let _ = ask(&entry.dir, entry.record.name.as_str(), &Ask::Stop { grace_ms: 0 });
    }

    pub(crate) fn has_supervisor(&self, entry: &MachineEntry) -> EngineResult<bool> {
        let held = |name: &str| FileLock::is_held(&entry.dir.join(name));
        Ok(held(SUPERVISOR_LOCK)? || held(crate::create::START_LOCK)?)
    }

    /// Waits until a machine has ended; returns its last state, none when it was removed.
    pub fn wait_ended(&self, entry: &MachineEntry) -> EngineResult<Option<MachineEntry>> {
        self.wait_ended_unless(entry, &self.cancel)
    }

    /// Like [`Engine::wait_ended`], also after a cancellation: for machines that end because of it. At most
    /// 20 seconds.
    pub fn wait_ended_always(&self, entry: &MachineEntry) -> EngineResult<Option<MachineEntry>> {
        let patience = kiln_sys::Cancel::new().at("make", "an event")?;
        let timer = patience.clone();
        let (done, expired) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if expired
                .recv_timeout(END_WITHIN)
                .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                timer.cancel();
            }
        });
        let result = self.wait_ended_unless(entry, &patience);
        drop(done);
        // The thread holds nothing and cannot panic.
        let _ = watch.join();
        result
    }

    fn wait_ended_unless(
        &self,
        entry: &MachineEntry,
        cancel: &kiln_sys::Cancel,
    ) -> EngineResult<Option<MachineEntry>> {
        while self.has_supervisor(entry)? {
            if kiln_sys::lock::wait_cancelled(cancel, LOOK_AGAIN) {
                return Err(EngineError::Cancelled);
            }
        }
        match self.store.machine(&entry.record.id) {
            Err(StoreError::NotFound { .. }) => Ok(None),
            entry => self.reconcile(entry?),
        }
    }

    /// Removes a machine and its disk. A live one is refused unless `force` ends it first.
    pub fn remove_machine(&self, name: &str, force: bool) -> EngineResult<()> {
        let entry = match self.find_machine(name) {
            Err(EngineError::Store(StoreError::Damaged { .. })) if force => return self.remove_damaged(name),
            other => other?,
        };
        if entry.status.phase.is_live() || is_being_started(&entry)? {
            if !force {
                let phase = entry.status.phase.as_str();
                return Err(EngineError::Phase {
                    name: entry.record.name.to_string(),
                    phase,
                    action: "removed",
                });
            }
            match self.stop(entry.record.id.as_str(), Duration::ZERO) {
                // It was saved instead, which is an end too.
                Ok(()) | Err(EngineError::Phase { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if !fs::exists(&entry.dir)? {
            return Ok(());
        }
        let _lock = FileLock::try_take(&entry.dir.join(SUPERVISOR_LOCK), "removing a machine")?.map_err(
            |holder| EngineError::SupervisorRefused {
                name: entry.record.name.to_string(),
                reason: holder.text,
            },
        )?;
        Ok(self.store.discard_dir(&entry.dir)?)
    }

    /// Removes a machine whose record cannot be read, when nobody supervises it.
    fn remove_damaged(&self, name: &str) -> EngineResult<()> {
        let id: MachineId = name.parse().map_err(StoreError::from)?;
        let dir = self.store.machine_dir(&id);
        let _lock = FileLock::try_take(&dir.join(SUPERVISOR_LOCK), "removing a machine")?
            .map_err(|holder| EngineError::SupervisorRefused { name: id.to_string(), reason: holder.text })?;
        Ok(self.store.discard_dir(&dir)?)
    }
}

/// Returns the files a console is kept in, oldest first, there or not.
fn console_files(dir: &std::path::Path) -> Vec<PathBuf> {
    let newest = kiln_vmm::CONSOLE_LOG;
    vec![dir.join(format!("{newest}.1")), dir.join(newest)]
}

fn no_machine(name: &str, known: &[String]) -> EngineError {
    let similar = kiln_core::text::nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
    EngineError::NoMachine { name: kiln_core::text::clip(name), similar }
}

/// The most bytes read of a console at a time.
const CONSOLE_READ_MAX: usize = 16 << 20;

/// Reads a machine's console from its beginning, over the rotation of its file.
#[derive(Debug)]
pub struct ConsoleReader {
    dir: PathBuf,
    current: Option<(std::fs::File, u64)>,
}

impl ConsoleReader {
    /// Begins at the oldest line that is kept.
    pub fn open(entry: &MachineEntry) -> Self {
        Self { dir: entry.dir.clone(), current: None }
    }

    /// Returns what was said since the last call.
    pub fn read_new(&mut self) -> EngineResult<Vec<u8>> {
        use std::os::unix::fs::{FileExt as _, MetadataExt as _};
        let mut said = Vec::new();
        let files = console_files(&self.dir);
        if self.current.is_none() {
            for older in files.iter().take(files.len().saturating_sub(1)) {
                said.extend(fs::read_optional(older, CONSOLE_READ_MAX)?.unwrap_or_default());
            }
        }
        let Some(path) = files.last() else { return Ok(said) };
        let read_rest = |file: &std::fs::File, from: u64| -> EngineResult<Vec<u8>> {
            let len = file.metadata().at("inspect", path)?.len();
            let want = usize::try_from(len.saturating_sub(from)).unwrap_or(0).min(CONSOLE_READ_MAX);
            let mut bytes = vec![0; want];
            let read = file.read_at(&mut bytes, from).at("read", path)?;
            bytes.truncate(read);
            Ok(bytes)
        };
        if let Some((file, position)) = &mut self.current {
            let bytes = read_rest(file, *position)?;
            *position += bytes.len() as u64;
            said.extend(bytes);
        }
        let newest = fs::optional(fs::open(path))?;
        let rotated = match (&self.current, &newest) {
            (Some((old, _)), Some(new)) => {
                old.metadata().at("inspect", path)?.ino() != new.metadata().at("inspect", path)?.ino()
            }
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if let (true, Some(file)) = (rotated, newest) {
            let bytes = read_rest(&file, 0)?;
            let position = bytes.len() as u64;
            said.extend(bytes);
            self.current = Some((file, position));
        }
        Ok(said)
    }
}
