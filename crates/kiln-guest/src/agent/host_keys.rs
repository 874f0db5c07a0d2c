//! Replaces the host keys of an SSH server: clones of one template must not share them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::machine::Machine;
use super::program::{Output, Program, Runner};
use crate::error::{ErrorKind, RemoteError};
use crate::hook::HookTimeout;
use crate::limits::HOOK_TAIL_BYTES_MAX;
use crate::message::plain_tail;

const DIRECTORY: &str = "etc/ssh";
const KEYGENS: [&str; 3] = ["usr/bin/ssh-keygen", "bin/ssh-keygen", "usr/local/bin/ssh-keygen"];

/// Time the image's program has; an RSA key on an emulated processor takes long.
const LIMIT: Duration = Duration::from_secs(120);

/// Removes the keys and has the image's own program make new ones; `false` when there were none.
pub(super) fn replace(
    machine: &Machine,
    runner: &dyn Runner,
    notes: &mut Vec<String>,
) -> Result<bool, RemoteError> {
    let old = keys(machine)?;
    if old.is_empty() {
        return Ok(false);
    }
    for key in old {
        fs::remove_file(&key)
            .map_err(|error| RemoteError::from_io(format!("cannot remove {}", key.display()), &error))?;
    }
    let keygen = KEYGENS.into_iter().map(|path| machine.path(path)).find(|path| path.is_file());
    let Some(keygen) = keygen else {
        notes.push("ssh host keys were removed; the image has no ssh-keygen to make new ones".to_owned());
        return Ok(true);
    };
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let mut argv = vec![text(&keygen), "-A".to_owned()];
    if machine.root.as_path() != Path::new("/") {
        argv.extend(["-f".to_owned(), text(&machine.root)]);
    }
    let failed =
        |what: String| RemoteError::new(ErrorKind::Io, format!("ssh host keys were removed, but {what}"));
    let limit = HookTimeout::new(LIMIT)?;
    let mut said = Vec::new();
    let program = Program { argv, env: BTreeMap::new(), limit };
    let ran = runner.run(program, &mut |output, bytes| {
        if output == Output::Stderr {
            said.extend_from_slice(bytes);
            let excess = said.len().saturating_sub(HOOK_TAIL_BYTES_MAX);
            said.drain(..excess);
        }
    });
    ran.map_err(|cause| {
        let said = plain_tail(&said, HOOK_TAIL_BYTES_MAX / 4);
        failed(format!("{} {cause}: {}", keygen.display(), said.trim()))
    })?;
    if keys(machine)?.is_empty() {
        return Err(failed(format!("{} made none", keygen.display())));
    }
    Ok(true)
}

/// Returns whether there are keys.
pub(super) fn exist(machine: &Machine) -> Result<bool, RemoteError> {
    keys(machine).map(|keys| !keys.is_empty())
}

/// Lists the keys, both halves of each.
fn keys(machine: &Machine) -> Result<Vec<PathBuf>, RemoteError> {
    let directory = machine.path(DIRECTORY);
    let failed =
        |error: io::Error| RemoteError::from_io(format!("cannot list {}", directory.display()), &error);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let named = name.strip_suffix(".pub").unwrap_or(&name);
        let directory = entry.file_type().map_err(failed)?.is_dir();
        if named.starts_with("ssh_host_") && named.ends_with("_key") && !directory {
            keys.push(entry.path());
        }
    }
    Ok(keys)
}
