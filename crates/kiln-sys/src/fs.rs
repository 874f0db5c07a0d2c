//! Plain file work, with limits on what is read and the path in every error.
#![expect(clippy::disallowed_methods, reason = "this module is what the others are told to use")]

use crate::error::{IoResult, IoResultExt};
use crate::protect;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// What one call to list a directory may return, in bytes: some hundred names.
const LIST_BUFFER_BYTES: usize = 64 << 10;

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a larger one. One that says so of itself is not read at all; others, such as the
/// kernel's own, whose length is not known before, are read no further.
pub fn read_limited(path: &Path, max: usize) -> IoResult<Vec<u8>> {
    let (file, length) = open_regular(path)?;
    read_open(file, length, path, max)
}

/// Reads a file to its end: at most `max` bytes, about `length` as far as is known.
pub(crate) fn read_open(file: File, length: u64, path: &Path, max: usize) -> IoResult<Vec<u8>> {
    let too_large = || {
        let error = io::Error::new(io::ErrorKind::InvalidData, format!("more than {max} bytes"));
        Err(error).at("read", path)
    };
    if length > max as u64 {
        return too_large();
    }
    // One byte more than there should be: the end is found without growing.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(max).min(max) + 1);
    file.take(max as u64 + 1).read_to_end(&mut bytes).at("read", path)?;
    if bytes.len() > max { too_large() } else { Ok(bytes) }
}

/// Reads a whole text file of at most `max` bytes.
pub fn read_text_limited(path: &Path, max: usize) -> IoResult<String> {
    let bytes = read_limited(path, max)?;
    String::from_utf8(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        .at("read", path)
}

/// Like [`read_limited`], with `None` for a file that is not there.
pub fn read_optional(path: &Path, max: usize) -> IoResult<Option<Vec<u8>>> {
    optional(read_limited(path, max))
}

/// Turns "not found" into `None`.
pub fn optional<T>(result: IoResult<T>) -> IoResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a regular file for reading; anything else there (a directory, a FIFO, a device) is refused without blocking.
pub fn open(path: &Path) -> IoResult<File> {
    open_regular(path).map(|(file, _)| file)
}

fn open_regular(path: &Path) -> IoResult<(File, u64)> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .at("open", path)?;
    let file = File::from(fd);
    let meta = file.metadata().at("inspect", path)?;
    if meta.is_file() {
        Ok((file, meta.len()))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")).at("open", path)
    }
}

/// Creates a file that must not exist, readable and writable by its owner only.
pub fn create_new(path: &Path) -> IoResult<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from).at("create", path)
}

/// Opens a file of our own for reading and writing; it exists, and is no link.
pub fn open_rw(path: &Path) -> IoResult<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from).at("open", path)
}

/// Opens or creates a file of our own for reading and writing, readable by its owner only; what is in it stays.
pub fn open_or_create(path: &Path) -> IoResult<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from).at("open", path)
}

/// Makes a file at least so many bytes long, and has the file system set space aside for them where it can.
///
/// # Errors
/// When there is not so much space.
pub fn reserve(file: &File, path: &Path, bytes: u64) -> IoResult<()> {
    let long = file.metadata().at("inspect", path)?.len() >= bytes;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) if long => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            file.set_len(bytes).at("set the length of", path)
        }
        other => other.at("set space aside for", path),
    }
}

/// Opens or creates a file for appending, readable by its owner only.
pub fn append(path: &Path) -> IoResult<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from).at("open", path)
}

/// Returns whether this process may open a file for writing, as far as its mode and flags tell.
///
/// # Errors
/// When there is no such file, or it cannot be asked.
pub fn may_write(path: &Path) -> IoResult<bool> {
    match rustix::fs::access(path, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Ok(true),
        Err(
            rustix::io::Errno::ACCESS
            | rustix::io::Errno::PERM
            | rustix::io::Errno::ROFS
            | rustix::io::Errno::TXTBSY,
        ) => Ok(false),
        Err(error) => Err(error).at("ask about", path),
    }
}

/// Creates a directory and its parents, for the owner only; one that is there is fine.
pub fn create_dir_all(path: &Path) -> IoResult<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).at("create directory", path)
}

/// Creates a directory that must not exist, for the owner only.
pub fn create_dir(path: &Path) -> IoResult<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(path).at("create directory", path)
}

/// Lists the names in a directory, sorted; a directory that is not there has none.
pub fn list_dir(path: &Path) -> IoResult<Vec<OsString>> {
    list_dir_where(path, |name| Some(name.to_owned()))
}

/// Like [`list_dir`], of what `wanted` makes of each name: what is not wanted is neither kept nor sorted.
pub fn list_dir_where<T: Ord>(path: &Path, wanted: impl Fn(&OsStr) -> Option<T>) -> IoResult<Vec<T>> {
    let mut found = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Some(dir) = optional(rustix::fs::open(path, flags, Mode::empty()).at("list", path))? else {
        return Ok(found);
    };
    let mut buffer = Vec::with_capacity(LIST_BUFFER_BYTES);
    let mut entries = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.at("list", path)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.extend(wanted(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name)));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Returns what a path leads to, through symbolic links.
pub fn metadata(path: &Path) -> IoResult<Metadata> {
    std::fs::metadata(path).at("inspect", path)
}

/// Returns what stands at a path itself.
pub fn symlink_metadata(path: &Path) -> IoResult<Metadata> {
    std::fs::symlink_metadata(path).at("inspect", path)
}

/// Returns whether something stands at a path, be it a dangling link.
pub fn exists(path: &Path) -> IoResult<bool> {
    Ok(optional(symlink_metadata(path))?.is_some())
}

/// Returns the absolute path without symbolic links.
pub fn canonicalize(path: &Path) -> IoResult<std::path::PathBuf> {
    std::fs::canonicalize(path).at("resolve", path)
}

/// Returns what a symbolic link says.
pub fn read_link(path: &Path) -> IoResult<std::path::PathBuf> {
    std::fs::read_link(path).at("read the link", path)
}

/// Makes a symbolic link with this text, where nothing is yet.
pub fn symlink(text: &Path, path: &Path) -> IoResult<()> {
    rustix::fs::symlink(text, path).at("make the link", path)
}

/// Removes a file; one that is not there is fine.
pub fn remove_file(path: &Path) -> IoResult<()> {
    optional(std::fs::remove_file(path).at("remove", path)).map(|_| ())
}

/// Moves a file or directory within a file system; the target must not be a directory with content.
pub fn rename(from: &Path, to: &Path) -> IoResult<()> {
    std::fs::rename(from, to).at("rename", from)
}

/// Moves a file or directory, failing when something stands at the target already.
pub fn rename_new(from: &Path, to: &Path) -> IoResult<()> {
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, from, here, to, rustix::fs::RenameFlags::NOREPLACE).at("publish", to)
}

/// Has two files or directories change places, in one step.
pub fn exchange(one: &Path, other: &Path) -> IoResult<()> {
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, one, here, other, rustix::fs::RenameFlags::EXCHANGE).at("replace", other)
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> IoResult<()> {
    let dir = open_dir(path)?;
    rustix::fs::fsync(&dir).at("sync", path)
}

/// Opens a directory.
pub fn open_dir(path: &Path) -> IoResult<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open", path)
}

/// Removes a directory tree without following links and without leaving its file system: a mount inside is an error,
/// and nothing below it is touched. Files in it that are immutable lose the flag.
pub fn remove_tree(path: &Path) -> IoResult<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let Some(name) = path.file_name() else { return Ok(()) };
    let parent_path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Some(parent) = optional(open_dir(parent_path))? else { return Ok(()) };
    let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).at("inspect", path),
    };
    remove_at(parent.as_fd(), name, stat.st_dev, path)
}

fn remove_at(
    parent: rustix::fd::BorrowedFd<'_>,
    name: &std::ffi::OsStr,
    device: u64,
    path: &Path,
) -> IoResult<()> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).at("inspect", path),
    };
    if stat.st_dev != device {
        let error = io::Error::other("a file system is mounted there");
        return Err(error).at("remove", path);
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::Directory {
        let mut removed = rustix::fs::unlinkat(parent, name, AtFlags::empty());
        if removed == Err(rustix::io::Errno::PERM)
            && kind == FileType::RegularFile
            && protect::clear_at(parent, name)
        {
            removed = rustix::fs::unlinkat(parent, name, AtFlags::empty());
        }
        return ignore_missing(removed).at("remove", path);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(rustix::io::Errno::ACCESS) => {
            // A tree from an image may hold directories its owner cannot list.
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty()).at("open", path)?;
            rustix::fs::openat(parent, name, flags, Mode::empty())
        }
        other => other,
    }
    .at("open", path)?;
    if stat.st_mode & 0o300 != 0o300 {
        // Nor can a directory be emptied that its owner cannot write to or search, as those of Nix's store. Where this fails the
        // removal of what is in it says more.
        let _ = rustix::fs::fchmod(&dir, Mode::RWXU);
    }
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir).at("list", path)? {
        let entry = entry.at("list", path)?;
        let bytes = entry.file_name().to_bytes();
        if bytes != b"." && bytes != b".." {
            names.push(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes).to_owned());
        }
    }
    for name in names {
        remove_at(dir.as_fd(), &name, device, &path.join(&name))?;
    }
    ignore_missing(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)).at("remove", path)
}

fn ignore_missing(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Sets the permission bits of a file.
pub fn set_mode(path: &Path, mode: u32) -> IoResult<()> {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).at("set the mode of", path)
}

/// Space of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free for this user.
    pub available: u64,
    /// In all.
    pub total: u64,
}

/// Returns the space of the file system that holds `path`.
pub fn space(path: &Path) -> IoResult<Space> {
    let stat = rustix::fs::statvfs(path).at("measure the file system of", path)?;
    Ok(Space {
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// Returns the name of the file system that holds `path`, where it is a known one.
pub fn file_system_name(path: &Path) -> IoResult<&'static str> {
    let magic = rustix::fs::statfs(path).at("measure the file system of", path)?.f_type;
    Ok(match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        0xca45_1a4e => "bcachefs",
        0x6969 => "nfs",
        _ => "unknown",
    })
}

#[cfg(test)]
mod tests;
