//! The machine in which the steps of a template are done.

use super::log::StepLog;
use super::{StepContext, words};
use crate::control::ask_save;
use crate::create::{CreateRequest, DISK_STEM};
use crate::progress::{Progress, Reporter};
use crate::restore::RestoreChoice;
use crate::start::{Ownership, Started};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::machine::{CloneMethod, IdentityPolicy, Network};
use kiln_core::recipe::{BuildStep, Recipe};
use kiln_core::revision::{Artifact, ArtifactFormat};
use kiln_core::{ArtifactRole, Reference};
use kiln_guest::message::ExecRequest;
use kiln_guest::session::ExecEvent;
use kiln_guest::{GuestPath, Session};
use kiln_store::{IngestFrom, MachineEntry, Revision, Staging};
use kiln_sys::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Characters of the end of a command's output that an error repeats.
const SAID_CHARS_MAX: usize = 400;
/// Bytes that these characters are taken from.
const SAID_BYTES_MAX: usize = 4 * SAID_CHARS_MAX;
/// Time the cleaning may take.
const CLEAN_WITHIN: Duration = Duration::from_secs(300);

/// Removes what belongs to one machine or to the building of it: identity, keys, caches, logs.
const CLEAN: &str = "\
[ ! -e /etc/machine-id ] || : > /etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /var/lib/systemd/random-seed /root/.bash_history /root/.ash_history
rm -rf /var/cache/apt/archives/*.deb /var/cache/apt/*.bin /var/lib/apt/lists/* /var/cache/apk/* /var/cache/dnf/* /var/cache/yum/* /var/cache/debconf/*-old /var/lib/dpkg/*-old
rm -rf /tmp/* /tmp/.[!.]* /var/tmp/* /var/tmp/.[!.]*
for log in $(find /var/log -type f 2>/dev/null); do : > \"$log\"; done
exit 0
";

/// A machine that does steps. It ends with this, unless it is to be kept when a step fails.
pub(super) struct Workshop {
    entry: MachineEntry,
    started: Option<Started>,
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
        let started = self.start_created(created, ownership, reporter)?;
        Ok(Workshop { entry, started: Some(started), keep_failed })
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
                let told = run(engine, &session, request, within, log, reporter)?;
                told.map_err(|reason| EngineError::StepFailed {
                    number,
                    step: words(step),
                    reason,
                    log: log.path().to_owned(),
                    machine: None,
                })
            }
            BuildStep::Copy { from, to } => {
                engine.copy_in(&session, from, self.name(), to, &mut |_| {})?;
                Ok(())
            }
            BuildStep::Env(_) | BuildStep::User(_) | BuildStep::Workdir(_) => Ok(()),
        }
    }

    /// Removes from the guest what no template should have.
    pub(super) fn clean(&self, engine: &Engine, reporter: &dyn Reporter) -> EngineResult<()> {
        let session = engine.session(self.name())?;
        let shell = GuestPath::new("/bin/sh").is_ok_and(|path| session.stat(path).is_ok());
        if !shell {
            let text = "the guest has no /bin/sh: its machine id, keys, caches and logs stay".to_owned();
            reporter.progress(Progress::Note { text });
            return Ok(());
        }
        let stream = session.exec(ExecRequest::new(["/bin/sh", "-c", CLEAN]))?;
        let outcome = stream.collect(SAID_BYTES_MAX * 64, Instant::now() + CLEAN_WITHIN)?;
        if outcome.status.success() {
            return Ok(());
        }
        let said = kiln_core::text::tail(String::from_utf8_lossy(&outcome.stderr).trim(), SAID_CHARS_MAX);
        Err(EngineError::CleaningFailed { reason: said })
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

    /// Ends the machine, or leaves it as the failed step did.
    pub(super) fn failed(mut self, engine: &Engine, error: EngineError) -> EngineError {
        if self.keep_failed && !engine.cancel.is_cancelled() {
            self.started = None;
            let name = self.name().to_owned();
            return match error {
                EngineError::StepFailed { number, step, reason, log, .. } => {
                    EngineError::StepFailed { number, step, reason, log, machine: Some(name) }
                }
                other => other,
            };
        }
        self.close(engine);
        if engine.cancel.is_cancelled() { EngineError::Cancelled } else { error }
    }

    pub(super) fn close(mut self, engine: &Engine) {
        engine.tell_to_end(&self.entry);
        self.started = None;
        let _ = engine.wait_ended_always(&self.entry);
        if self.keep_failed {
            // Nothing else removes it.
            let _ = engine.remove_machine(self.entry.record.id.as_str(), true);
        }
    }
}

/// Runs a command to its end; the inner error says how it failed.
fn run(
    engine: &Engine,
    session: &Session,
    request: ExecRequest,
    within: Duration,
    log: &mut StepLog,
    reporter: &dyn Reporter,
) -> EngineResult<Result<(), String>> {
    let (mut stdin, control, mut output) = session.exec(request)?.split();
    stdin.close()?;
    let deadline = Instant::now() + within;
    let (mut line, mut said) = (Vec::new(), Vec::new());
    let status = loop {
        let soon = deadline.min(Instant::now() + Duration::from_millis(200));
        let event = match output.recv_deadline(soon)? {
            Some(event) => event,
            None if engine.cancel.is_cancelled() => {
                control.reset();
                return Err(EngineError::Cancelled);
            }
            None if Instant::now() >= deadline => {
                control.reset();
                return Ok(Err(format!("it did not end within {} s", within.as_secs())));
            }
            None => continue,
        };
        let bytes = match event {
            ExecEvent::Exit(status) => break status,
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => bytes,
        };
        log.write(&bytes)?;
        said.extend_from_slice(&bytes);
        said.drain(..said.len().saturating_sub(SAID_BYTES_MAX));
        for byte in bytes.iter() {
            if *byte == b'\n' || line.len() == SAID_BYTES_MAX {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                reporter.progress(Progress::Said { line: text });
                line.clear();
            } else {
                line.push(*byte);
            }
        }
    };
    if status.success() {
        return Ok(Ok(()));
    }
    let said = kiln_core::text::tail(String::from_utf8_lossy(&said).trim(), SAID_CHARS_MAX);
    let code = status.code.map_or("a signal".to_owned(), |code| format!("code {code}"));
    Ok(Err(if said.is_empty() {
        format!("it ended with {code}")
    } else {
        format!("it ended with {code}: {said}")
    }))
}

/// Replays the journal of an ext4 file system and copies what its files have.
fn trimmed(engine: &Engine, disk: &Path, into: &Path) -> EngineResult<PathBuf> {
    let toolbox = &engine.settings.toolbox;
    let path = into.join("trimmed.ext4");
    let whole = |name: &str| -> EngineResult<kiln_sys::Tool> { Ok(toolbox.find(name)?) };
    whole("e2fsck")?
        .args(["-y", "-E", "journal_only"])
        .arg(disk)
        .run(&engine.cancel, &mut |_| {})
        .map_err(kiln_build::BuildError::from)?;
    whole("e2image")?
        .args(["-r", "-a"])
        .arg(disk)
        .arg(&path)
        .run(&engine.cancel, &mut |_| {})
        .map_err(kiln_build::BuildError::from)?;
    Ok(path)
}
