//! `/run/kiln`: what a guest is told about itself, as files.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::machine::Machine;
use super::{files, hooks, host_keys};
use crate::error::RemoteError;
use crate::hook::HookStage;
use crate::private::{Environment, Secrets};
use crate::token::{Epoch, MachineId, SecretName};

const DIRECTORY: &str = "run/kiln";
const SECRETS: &str = "run/kiln/secrets";
const EPOCH: &str = "run/kiln/epoch";
const ENVIRONMENT: &str = "run/kiln/env";
const MACHINE_ID: &str = "etc/machine-id";
/// A machine id and the end of its line.
const MACHINE_ID_BYTES: u64 = 33;
const MODE_MASK: u32 = 0o7777;
const NOFOLLOW: i32 = OFlags::NOFOLLOW.bits().cast_signed();
const DBUS_MACHINE_ID: &str = "var/lib/dbus/machine-id";

/// Writes `/etc/machine-id`, and D-Bus's copy where that is a file of its own.
pub(super) fn write_machine_id(machine: &Machine, id: &MachineId) -> Result<(), RemoteError> {
    let text = format!("{id}\n");
    let path = machine.path(MACHINE_ID);
    // A new file and its rename take a restored guest under emulation a tenth of a second.
    if !overwrite(&path, text.as_bytes()) {
        write(&path, text.as_bytes(), 0o444)?;
    }
    let copy = machine.path(DBUS_MACHINE_ID);
    if fs::symlink_metadata(&copy).is_ok_and(|found| found.is_file()) {
        write(&copy, text.as_bytes(), 0o444)?;
    }
    Ok(())
}

/// Sees to it that there is a machine id before a capture: a restored guest only overwrites it then. What is none is
/// replaced by a random one; one that is there stays.
pub(super) fn prepare_machine_id(machine: &Machine) -> Result<(), RemoteError> {
    let path = machine.path(MACHINE_ID);
    let found =
        fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == MACHINE_ID_BYTES);
    if found {
        return Ok(());
    }
    let id = files::random_hex::<16>()
        .map_err(|error| RemoteError::from_io("cannot make a machine id", &error))?;
    write(&path, format!("{id}\n").as_bytes(), 0o444)
}

/// Looks at what a restored guest looks at first, so that it finds it in its memory and reads no disk. What is wrong
/// with it is told then.
pub(super) fn look_ahead(machine: &Machine) {
    let _ = make_directory(&machine.path(DIRECTORY), 0o755);
    let _ = fs::read(machine.path(MACHINE_ID));
    for path in [DBUS_MACHINE_ID, ENVIRONMENT, SECRETS, EPOCH] {
        let _ = fs::symlink_metadata(machine.path(path));
    }
    let _ = host_keys::exist(machine);
    let _ = hooks::exist(machine, HookStage::PostRestore);
}

/// Replaces the bytes of a file of this very length where it lies; tells whether it did. What a reader sees is the old bytes
/// or the new: they are fewer than a sector.
fn overwrite(path: &Path, bytes: &[u8]) -> bool {
    let found = fs::symlink_metadata(path);
    let fits =
        found.is_ok_and(|meta| meta.is_file() && meta.nlink() == 1 && meta.len() == bytes.len() as u64);
    let open = || OpenOptions::new().write(true).custom_flags(NOFOLLOW).open(path);
    fits && open().and_then(|file| file.write_all_at(bytes, 0)).is_ok()
}

/// Writes the name of this restore.
pub(super) fn write_epoch(machine: &Machine, epoch: &Epoch) -> Result<(), RemoteError> {
    make_directory(&machine.path(DIRECTORY), 0o755)?;
    write(&machine.path(EPOCH), format!("{epoch}\n").as_bytes(), 0o444)
}

/// Writes the environment, as `NAME=value` with a zero byte behind each, and has programs get it.
pub(super) fn write_environment(machine: &Machine, environment: &Environment) -> Result<(), RemoteError> {
    machine.set_environment(environment);
    if environment.is_empty() && is_absent(&machine.path(ENVIRONMENT)) {
        return Ok(());
    }
    let text: String = environment.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
    make_directory(&machine.path(DIRECTORY), 0o755)?;
    write(&machine.path(ENVIRONMENT), text.as_bytes(), 0o600)
}

/// Writes the secrets, in memory, and removes those of a former life.
pub(super) fn write_secrets(machine: &Machine, secrets: &Secrets) -> Result<(), RemoteError> {
    let parent = machine.path(DIRECTORY);
    let directory = machine.path(SECRETS);
    // A mount takes a restored guest under emulation longer than all else here.
    if secrets.is_empty() && is_absent(&directory) {
        return Ok(());
    }
    make_directory(&parent, 0o755)?;
    make_directory(&directory, 0o700)?;
    let device = |path: &Path| {
        fs::symlink_metadata(path)
            .map(|found| found.dev())
            .map_err(|error| RemoteError::from_io(format!("cannot stat {}", path.display()), &error))
    };
    // `/run` may be a disk, and a disk is captured.
    if device(&directory)? == device(&parent)? {
        machine.kernel.mount_memory(&directory)?;
    }
    // Those of a former life go first: when this fails half-way, none of them is left.
    for former in list(&directory)? {
        let known = former.file_name().and_then(|name| name.to_str()?.parse::<SecretName>().ok());
        if !known.is_some_and(|name| secrets.contains_key(&name)) {
            fs::remove_file(&former).map_err(|error| {
                RemoteError::from_io(format!("cannot remove {}", former.display()), &error)
            })?;
        }
    }
    for (name, value) in secrets {
        write(&directory.join(name.as_str()), value.bytes(), 0o400)?;
    }
    Ok(())
}

fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, RemoteError> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|error| RemoteError::from_io(format!("cannot list {}", directory.display()), &error))
}

fn make_directory(path: &Path, mode: u32) -> Result<(), RemoteError> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.mode() & MODE_MASK == mode) {
        return Ok(());
    }
    let made = DirBuilder::new().mode(mode).recursive(true).create(path);
    made.and_then(|()| {
        // A link would lead elsewhere.
        if fs::symlink_metadata(path)?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
    })
    .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
    .map_err(|error| RemoteError::from_io(format!("cannot make {}", path.display()), &error))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), RemoteError> {
    files::replace(path, bytes, mode)
        .map_err(|error| RemoteError::from_io(format!("cannot write {}", path.display()), &error))
}
