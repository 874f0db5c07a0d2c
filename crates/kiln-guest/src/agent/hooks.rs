//! Runs the hooks of an image; the contract is in `docs/hooks.md`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::geteuid;

use super::facts::{Facts, Lines};
use super::machine::Machine;
use super::program::{Output, Program, Runner};
use crate::error::RemoteError;
use crate::hook::{HookCause, HookFailure, HookReport, HookRun, HookStage, HookTimeout};
use crate::limits::{HOOK_TAIL_BYTES_MAX, HOOKS_MAX, NOTE_BYTES_MAX, NOTES_MAX};
use crate::message::{plain, plain_tail};
use crate::token::{Epoch, HookName};

/// Directory of every stage's directory.
const HOOKS: &str = "etc/kiln/hooks";

const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Runs the hooks of a stage in the order of their names, until one fails.
pub(super) fn run(
    machine: &Machine,
    runner: &dyn Runner,
    stage: HookStage,
    epoch: Option<&Epoch>,
    limit: HookTimeout,
    notes: &mut Vec<String>,
) -> Result<HookReport, RemoteError> {
    let mut report = HookReport::default();
    let mut facts = Facts::default();
    let hooks = find(&directory(machine, stage), notes)?;
    let crowded = hooks.len() > HOOKS_MAX;
    for (hook, path) in hooks {
        let (mut lines, mut stdout, mut stderr) = (Lines::default(), Vec::new(), Vec::new());
        let begun = Instant::now();
        let ended = if crowded {
            Err(not_started(format!("there are more than {HOOKS_MAX}")))
        } else {
            start(&path, stage, epoch, limit).and_then(|program| {
                runner.run(program, &mut |output, bytes| match output {
                    Output::Stdout => {
                        lines.take(bytes, &mut |line| facts.take(&hook, line, &mut report));
                        keep_tail(&mut stdout, bytes);
                    }
                    Output::Stderr => keep_tail(&mut stderr, bytes),
                })
            })
        };
        lines.end(&mut |line| facts.take(&hook, line, &mut report));
        if let Err(cause) = ended {
            let (stdout_tail, stderr_tail) =
                (plain_tail(&stdout, HOOK_TAIL_BYTES_MAX), plain_tail(&stderr, HOOK_TAIL_BYTES_MAX));
            report.failure = Some(HookFailure { stage, hook, cause, stdout_tail, stderr_tail });
            return Ok(report);
        }
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.ran.push(HookRun { hook, elapsed_ms });
    }
    Ok(report)
}

/// Returns whether there are hooks of a stage.
pub(super) fn exist(machine: &Machine, stage: HookStage) -> Result<bool, RemoteError> {
    find(&directory(machine, stage), &mut Vec::new()).map(|hooks| !hooks.is_empty())
}

fn directory(machine: &Machine, stage: HookStage) -> PathBuf {
    machine.path(HOOKS).join(format!("{stage}.d"))
}

/// Lists what is to run, by name. Files that are not executable are none of it; of too many one more than allowed is
/// enough.
fn find(directory: &Path, notes: &mut Vec<String>) -> Result<BTreeMap<HookName, PathBuf>, RemoteError> {
    let failed =
        |error: io::Error| RemoteError::from_io(format!("cannot list {}", directory.display()), &error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut hooks = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let runnable = path.is_file() && accessat(CWD, &path, Access::EXEC_OK, AtFlags::EACCESS).is_ok();
        if !runnable || name.starts_with('.') {
            continue;
        }
        match HookName::new(name) {
            Ok(hook) => {
                hooks.insert(hook, path);
            }
            Err(error) if notes.len() < NOTES_MAX => notes.push(format!("{error}: it did not run")),
            Err(_) => {}
        }
        if hooks.len() > HOOKS_MAX {
            break;
        }
    }
    Ok(hooks)
}

fn start(
    path: &Path,
    stage: HookStage,
    epoch: Option<&Epoch>,
    limit: HookTimeout,
) -> Result<Program, HookCause> {
    let found = fs::metadata(path).map_err(|error| not_started(error.to_string()))?;
    // It runs as root: whoever can write it is root.
    if found.mode() & WRITABLE_BY_OTHERS != 0 || ![0, geteuid().as_raw()].contains(&found.uid()) {
        return Err(not_started("others than root can write it"));
    }
    let path = path.to_str().ok_or_else(|| not_started("its path is not UTF-8"))?;
    let env = BTreeMap::from([
        ("KILN_HOOK".to_owned(), stage.to_string()),
        ("KILN_EPOCH".to_owned(), epoch.map(ToString::to_string).unwrap_or_default()),
    ]);
    Ok(Program { argv: vec![path.to_owned()], env, limit })
}

fn not_started(reason: impl Into<String>) -> HookCause {
    HookCause::NotStarted { reason: plain(&reason.into(), NOTE_BYTES_MAX) }
}

/// Adds output and keeps its end.
fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    let excess = tail.len().saturating_sub(HOOK_TAIL_BYTES_MAX);
    tail.drain(..excess);
}
