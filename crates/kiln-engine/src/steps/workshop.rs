//! The machine in which the steps of a template are done.

use super::log::StepLog;
use super::{StepContext, words};
use crate::command;
use crate::control::ask_save;
use crate::create::{CreateRequest, DISK_STEM};
use crate::progress::{Progress, Reporter};
use crate::restore::RestoreChoice;
use crate::start::{Ownership, Started};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::{CloneMethod, IdentityPolicy, Network};
use kiln_core::recipe::{BuildStep, Recipe};
use kiln_core::revision::{Artifact, ArtifactFormat};
use kiln_core::text::chain;
use kiln_core::{ArtifactRole, Reference};
use kiln_guest::message::ExecRequest;
use kiln_guest::{GuestPath, Session};
use kiln_store::{IngestFrom, MachineEntry, Revision, Staging};
use kiln_sys::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most bytes of what a command says that are told as one line.
const LINE_BYTES_MAX: usize = 4096;
/// Time that cleaning may take, or ending what is left of a step.
const CLEAN_WITHIN: Duration = Duration::from_secs(300);

/// Removes what belongs to one machine or to the building of it: identity, keys, caches, logs.
const CLEAN: &str = "\
set -e
[ ! -e /etc/machine-id ] || : > /etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /var/lib/systemd/random-seed /root/.bash_history /root/.ash_history
rm -rf /var/cache/apt/archives/*.deb /var/cache/apt/*.bin /var/lib/apt/lists/* /var/cache/apk/* /var/cache/dnf/* /var/cache/yum/* /var/cache/debconf/*-old /var/lib/dpkg/*-old
rm -rf /tmp/* /tmp/.[!.]* /var/tmp/* /var/tmp/.[!.]*
[ ! -d /var/log ] || find /var/log -type f | while IFS= read -r log; do : > \"$log\"; done
";

/// Ends every process but the agent, which is process 1, and this one.
const END_REST: &str = "kill -9 -1; :";

/// A machine that does steps. It ends with this, unless it is to be kept when a step fails.
pub(super) struct Workshop {
    pub(super) entry: MachineEntry,
    started: Started,
    keep_failed: bool,
}

impl Engine {
    pub(super) fn open_workshop(
        &self,
        recipe: &Recipe,
        begin: &Revision,
        network: bool,
        keep_failed: bool,
        reporter: &dyn Reporter,
    ) -> EngineResult<Workshop> {
        let reference = Reference::of_digest(begin.id);
        let rootfs = begin.manifest.artifact(&ArtifactRole::rootfs()).map(|artifact| artifact.size);
        let create = CreateRequest {
            vcpus: Some(recipe.machine.vcpus),
            memory: Some(recipe.machine.memory),
            network: match network {
                true => Network::User { forwards: Vec::new(), outbound: true },
                false => Network::None,
            },
            disk: recipe.disk_size_min.filter(|disk| rootfs.is_some_and(|size| *disk > size)),
            clone: self.raw_clone(&reference)?,
            restore: RestoreChoice::Never,
            identity: IdentityPolicy::Skip,
            remove_on_exit: !keep_failed,
            ..CreateRequest::new(reference)
        };
        let created = self.create(&create, reporter)?;
        let entry = created.entry.clone();
        let ownership = if keep_failed { Ownership::Detached } else { Ownership::Owned };
        match self.start_created(created, ownership, reporter) {
            Ok(started) => Ok(Workshop { entry, started, keep_failed }),
            Err(error) => {
                if keep_failed {
                    // No step failed: there is nothing to look at.
                    let _ = self.remove_machine(entry.record.id.as_str(), true);
                }
                Err(error)
            }
        }
    }
}

impl Workshop {
    fn name(&self) -> &str {
        self.entry.record.name.as_str()
    }

    /// Does a step.
    pub(super) fn act(
        &self,
        engine: &Engine,
        number: usize,
        step: &BuildStep,
        context: &StepContext,
        log: &mut StepLog,
        reporter: &dyn Reporter,
    ) -> EngineResult<()> {
        let session = engine.session(self.name())?;
        let failed = |reason: String, log: &StepLog| EngineError::StepFailed {
            number,
            step: words(step),
            reason,
            log: log.path().to_owned(),
            machine: None,
        };
        match step {
            BuildStep::Run { command, timeout_ms } => {
                log.write(format!("# step {number}: {}\n", words(step)).as_bytes())?;
                let request = ExecRequest {
                    env: context.env.clone(),
                    cwd: context.cwd.clone(),
                    user: context.user.clone(),
                    ..ExecRequest::new(command.iter().cloned())
                };
                let within = Duration::from_millis(*timeout_ms);
                let mut listener = Listener { log, line: Vec::new(), reporter };
                let ended = command::run(&session, request, within, &mut |bytes| listener.hear(bytes))?;
                match ended.failure() {
                    Some(how) => Err(failed(format!("it {how}"), log)),
                    None => end_rest(&session),
                }
            }
            BuildStep::Copy { from, to } => {
                // What `to` lies in is made, as with a Dockerfile's `COPY`.
                let holder = to.rsplit_once('/').map_or("", |(holder, _)| holder);
                let copied = engine
                    .make_directories(&session, self.name(), holder)
                    .and_then(|()| engine.copy_in(&session, from, self.name(), to, &mut |_| {}));
                match copied {
                    Ok(_) => Ok(()),
                    Err(error @ EngineError::Cancelled) => Err(error),
                    Err(EngineError::Guest(error)) if error.is_lost() => Err(error.into()),
                    Err(error) => Err(failed(chain(&error), log)),
                }
            }
            BuildStep::Env(_) | BuildStep::User(_) | BuildStep::Workdir(_) => Ok(()),
        }
    }

    /// Removes from the guest what no template should have.
    pub(super) fn clean(&self, engine: &Engine, reporter: &dyn Reporter) -> EngineResult<()> {
        let session = engine.session(self.name())?;
        if !has_shell(&session) {
            let text = "the guest has no /bin/sh: its machine id, keys, caches and logs stay".to_owned();
            reporter.progress(Progress::Note { text });
            return Ok(());
        }
        let request = ExecRequest::new(["/bin/sh", "-c", CLEAN]);
        let ended = command::run(&session, request, CLEAN_WITHIN, &mut |_| Ok(()))?;
        ended.failure().map_or(Ok(()), |how| Err(EngineError::CleaningFailed { reason: format!("it {how}") }))
    }

    /// Takes the disk into the store as it is now. The last one is made whole: its journal is replayed, and blocks that no
    /// file has are holes.
    pub(super) fn disk(&self, engine: &Engine, staging: &Staging, last: bool) -> EngineResult<Artifact> {
        engine.quiesce(self.name(), false)?;
        let into = staging.path().join("layer");
        fs::create_dir(&into)?;
        ask_save(&self.entry.dir, self.name(), &into, false)?;
        let saved = into.join(Path::new(DISK_STEM).with_extension(CloneMethod::Copy.extension()));
        let path = if last { trimmed(engine, &saved, &into)? } else { saved };
        let taken = engine.store.ingest(&path, IngestFrom::Staging, staging, &engine.cancel)?;
        fs::remove_tree(&into)?;
        let (digest, size) = (taken.digest, taken.size);
        Ok(Artifact { role: ArtifactRole::rootfs(), digest, size, format: ArtifactFormat::Ext4 })
    }

    /// Ends the machine, or leaves it as the failed step did. Returns why it failed.
    pub(super) fn failed(self, engine: &Engine, error: EngineError) -> EngineError {
        match error {
            EngineError::StepFailed { number, step, reason, log, .. }
                if self.keep_failed && !engine.cancel.is_cancelled() =>
            {
                let machine = Some(self.name().to_owned());
                EngineError::StepFailed { number, step, reason, log, machine }
            }
            error => {
                let error = engine.end_failed(&self.entry, self.started, error);
                if self.keep_failed {
                    // Why the build failed is worth more than that; the machine is listed until somebody removes it.
                    let _ = engine.remove_machine(self.entry.record.id.as_str(), true);
                }
                error
            }
        }
    }

    /// Ends the machine, which has done its work.
    pub(super) fn close(self, engine: &Engine) -> EngineResult<()> {
        engine.tell_to_end(&self.entry);
        drop(self.started);
        engine.wait_ended_always(&self.entry)?;
        if self.keep_failed { engine.remove_machine(self.entry.record.id.as_str(), true) } else { Ok(()) }
    }
}

fn has_shell(session: &Session) -> bool {
    GuestPath::new("/bin/sh").is_ok_and(|path| session.stat(path).is_ok())
}

/// Ends what a step left running. A build that begins with the step's layer has none of it, and must not come to another
/// result than one that did the step.
fn end_rest(session: &Session) -> EngineResult<()> {
    if has_shell(session) {
        command::run(session, ExecRequest::new(["/bin/sh", "-c", END_REST]), CLEAN_WITHIN, &mut |_| Ok(()))?;
    }
    Ok(())
}

/// Hands what a command says on to the log and, a line at a time, to whoever looks.
struct Listener<'a> {
    log: &'a mut StepLog,
    line: Vec<u8>,
    reporter: &'a dyn Reporter,
}

impl Listener<'_> {
    fn hear(&mut self, bytes: &[u8]) -> EngineResult<()> {
        self.log.write(bytes)?;
        for byte in bytes {
            if *byte == b'\n' || self.line.len() == LINE_BYTES_MAX {
                let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
                self.reporter.progress(Progress::Said { line });
                self.line.clear();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
        Ok(())
    }
}

/// Replays the journal of an ext4 file system and copies what its files have.
fn trimmed(engine: &Engine, disk: &Path, into: &Path) -> EngineResult<PathBuf> {
    let toolbox = &engine.settings.toolbox;
    let path = into.join("trimmed.ext4");
    let e2fsck = toolbox.find("e2fsck")?.args(["-y", "-E", "journal_only"]).arg(disk);
    e2fsck.run(&engine.cancel, &mut |_| {})?;
    toolbox.find("e2image")?.args(["-r", "-a"]).arg(disk).arg(&path).run(&engine.cancel, &mut |_| {})?;
    Ok(path)
}
