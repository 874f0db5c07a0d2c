//! Reads, writes and describes single files.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::stream::{AgentStream, InputReader, OutputWriter, invalid};
use crate::error::RemoteError;
use crate::limits::DATA_CHUNK_BYTES;
use crate::message::{FileKind, FileStat, Opened, WriteFile};
use crate::name::GuestPath;

const MODE_MASK: u32 = 0o7777;

/// Mode of a file that is being written for a host.
const PRIVATE_MODE: u32 = 0o600;

pub(super) fn read(
    stream: &AgentStream,
    mut output: OutputWriter,
    path: &GuestPath,
    offset: u64,
) -> Result<(), RemoteError> {
    let failed = |error| RemoteError::from_io(format!("cannot read {path}"), &error);
    let mut file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(invalid(format!("cannot read {path}: it is a directory")));
    }
    if offset > 0 {
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    }
    stream.opened(&Opened::default());
    copy(&mut file, &mut output).map_err(failed)
}

pub(super) fn stat(path: &GuestPath) -> Result<FileStat, RemoteError> {
    let failed = |error| RemoteError::from_io(format!("cannot stat {path}"), &error);
    let found = fs::symlink_metadata(path).map_err(failed)?;
    let kind = found.file_type();
    let (kind, link_target) = if kind.is_symlink() {
        let target = fs::read_link(path).map_err(failed)?;
        (FileKind::Symlink, Some(target.to_string_lossy().into_owned()))
    } else if kind.is_dir() {
        (FileKind::Directory, None)
    } else if kind.is_file() {
        (FileKind::File, None)
    } else {
        (FileKind::Other, None)
    };
    Ok(FileStat {
        kind,
        size: found.len(),
        mode: found.mode() & MODE_MASK,
        uid: found.uid(),
        gid: found.gid(),
        mtime: found.mtime(),
        link_target,
    })
}

pub(super) fn write(
    stream: &AgentStream,
    mut input: InputReader,
    request: &WriteFile,
) -> Result<(), RemoteError> {
    let path = &request.path;
    let failed = |error| RemoteError::from_io(format!("cannot write {path}"), &error);
    if request.mode & !MODE_MASK != 0 {
        return Err(invalid(format!("mode {:o} of {path} has bits that are no permissions", request.mode)));
    }
    if request.append {
        let created = !Path::new(path.as_str()).exists();
        let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
        if created {
            set_owner(&file, request).map_err(failed)?;
        }
        stream.opened(&Opened::default());
        copy(&mut input, &mut file).map_err(failed)?;
        return file.sync_all().map_err(failed);
    }
    let target = Path::new(path.as_str());
    if target.is_dir() {
        return Err(invalid(format!("cannot write {path}: it is a directory")));
    }
    let (Some(directory), Some(_)) = (target.parent(), target.file_name()) else {
        return Err(invalid(format!("cannot write {path}: it names no file")));
    };
    let (temporary, mut file) = Temporary::create(directory, PRIVATE_MODE).map_err(failed)?;
    stream.opened(&Opened::default());
    copy(&mut input, &mut file).map_err(failed)?;
    set_owner(&file, request).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    temporary.rename(target).map_err(failed)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn set_owner(file: &File, request: &WriteFile) -> io::Result<()> {
    if request.uid.is_some() || request.gid.is_some() {
        fchown(file, request.uid, request.gid)?;
    }
    // After the owner: changing it clears the set-id bits.
    file.set_permissions(Permissions::from_mode(request.mode))
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; DATA_CHUNK_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(count) => to.write_all(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A file beside its target, removed unless it is renamed.
#[derive(Debug)]
pub(super) struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    /// `mode` is without what the agent's mask takes away.
    pub(super) fn create(directory: &Path, mode: u32) -> io::Result<(Self, File)> {
        let path = directory.join(format!(".kiln-{}.tmp", random_hex::<8>()?));
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        Ok((Self { path: Some(path) }, file))
    }

    pub(super) fn rename(mut self, target: &Path) -> io::Result<()> {
        match self.path.as_deref() {
            Some(path) => fs::rename(path, target)?,
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It is gone, or its directory is.
            let _ = fs::remove_file(path);
        }
    }
}

/// Replaces a small file at once.
pub(super) fn replace(target: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let (temporary, file) = Temporary::create(directory, mode)?;
    file.write_all_at(bytes, 0)?;
    if file.metadata()?.mode() & MODE_MASK != mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    temporary.rename(target)
}

/// Returns random bytes in hex. They are for names, not for secrets: waiting for the kernel's generator to be
/// seeded would hold up a guest that has no source of entropy, possibly for ever.
pub(super) fn random_hex<const BYTES: usize>() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::INSECURE)?;
    Ok(hex(&bytes))
}

/// Prints bytes in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Parses hex of an exact length.
pub(super) fn parse_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    if text.len() != BYTES * 2 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(index * 2..index * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}
