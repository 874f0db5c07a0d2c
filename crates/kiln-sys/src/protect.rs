//! Protection of finished files by the kernel: fs-verity, by which a byte that was changed below the file system cannot
//! be read, and the immutable flag, by which nobody writes, renames or removes a file before the flag is taken off.
//!
//! Neither is content: copies and clones have neither.

use crate::error::{IoError, IoResult, IoResultExt};
use crate::fs;
use crate::stamp::Stamp;
use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// `linux/fsverity.h`.
const FS_IOC_ENABLE_VERITY: Opcode = opcode::write::<EnableVerity>(b'f', 133);
const HASH_SHA256: u32 = 1;
const BLOCK_BYTES: u32 = 4096;
/// The bits of a mode that are permissions.
const PERMISSIONS: u32 = 0o7777;

/// `struct fsverity_enable_arg`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct EnableVerity {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    reserved_more: [u64; 11],
}

/// A way to protect a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// fs-verity, SHA-256 over blocks of 4 KiB, without salt and signature. It cannot be taken off again.
    Verity,
    /// The immutable flag, `chattr +i`.
    Immutable,
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verity => "fs-verity",
            Self::Immutable => "the immutable flag",
        })
    }
}

/// Why a file is not protected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// The kernel or the file system has nothing of the kind.
    #[error("the kernel or file system has not {means} for {}", path.display())]
    Unsupported {
        /// What was tried.
        means: Means,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// This process may not.
    #[error("{means} of {} may not be changed by this user", path.display())]
    Denied {
        /// What was tried.
        means: Means,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody has the file open for writing, or does the same at this moment.
    #[error("{means} of {} cannot be set while somebody has it in use", path.display())]
    Busy {
        /// What was tried.
        means: Means,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file has it already.
    #[error("{} has {means} already", path.display())]
    Already {
        /// What was tried.
        means: Means,
        /// The file.
        path: PathBuf,
    },
    /// It failed as any other work on a file does.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ProtectError {
    /// Whether the file can be used, and is as well protected as it was before.
    pub fn is_inability(&self) -> bool {
        !matches!(self, Self::Io(_))
    }
}

fn refused(means: Means, path: &Path, error: Errno) -> ProtectError {
    let path = path.to_owned();
    let source = error.into();
    match error {
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS | Errno::NOPKG => {
            ProtectError::Unsupported { means, path, source }
        }
        Errno::PERM | Errno::ACCESS => ProtectError::Denied { means, path, source },
        Errno::TXTBSY | Errno::BUSY => ProtectError::Busy { means, path, source },
        Errno::EXIST => ProtectError::Already { means, path },
        _ => ProtectError::Io(IoError { action: "protect", path, source }),
    }
}

/// What protects a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protection {
    /// fs-verity.
    pub verity: bool,
    /// The immutable flag.
    pub immutable: bool,
}

impl Protection {
    /// Whether `other` has everything that this has.
    pub fn is_within(self, other: Self) -> bool {
        (other.verity || !self.verity) && (other.immutable || !self.immutable)
    }

    /// Returns it in one word.
    pub fn as_str(self) -> &'static str {
        match (self.verity, self.immutable) {
            (false, false) => "none",
            (true, false) => "verity",
            (false, true) => "immutable",
            (true, true) => "verity+immutable",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one look at a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// By what a later look sees that it was not changed.
    pub stamp: Stamp,
    /// Its permission bits.
    pub mode: u32,
    /// Whether it is a regular file.
    pub is_file: bool,
    /// What protects it, as far as the file system tells.
    pub protection: Protection,
}

/// Looks at what stands at a path itself, with one system call.
pub fn look(path: &Path) -> IoResult<Look> {
    look_by(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, path)
}

/// Looks at an open file.
pub fn look_at(file: &File, path: &Path) -> IoResult<Look> {
    look_by(file.as_fd(), Path::new(""), AtFlags::EMPTY_PATH, path)
}

fn look_by(dir: BorrowedFd<'_>, name: &Path, flags: AtFlags, path: &Path) -> IoResult<Look> {
    let stat = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS).at("inspect", path)?;
    let mode = u32::from(stat.stx_mode);
    let time = |time: rustix::fs::StatxTimestamp| [time.tv_sec, i64::from(time.tv_nsec)];
    Ok(Look {
        stamp: Stamp {
            inode: stat.stx_ino,
            size: stat.stx_size,
            modified: time(stat.stx_mtime),
            changed: time(stat.stx_ctime),
        },
        mode: mode & PERMISSIONS,
        is_file: FileType::from_raw_mode(mode) == FileType::RegularFile,
        protection: Protection {
            verity: stat.stx_attributes.contains(StatxAttributes::VERITY),
            immutable: stat.stx_attributes.contains(StatxAttributes::IMMUTABLE),
        },
    })
}

/// Turns fs-verity on. The file is open for reading only, here and everywhere, and its mode lets this user write. The
/// kernel reads the whole file, holes too. `path` is for errors.
///
/// # Errors
/// [`ProtectError::Already`] when it is on.
pub fn enable_verity(file: &File, path: &Path) -> Result<(), ProtectError> {
    let request = EnableVerity {
        version: 1,
        hash_algorithm: HASH_SHA256,
        block_size: BLOCK_BYTES,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        reserved_more: [0; 11],
    };
    #[expect(unsafe_code, reason = "FS_IOC_ENABLE_VERITY has no safe wrapper")]
    // SAFETY: the kernel reads the request, in which no length and no address but zero stands, and keeps nothing of it.
    let enabled = unsafe { ioctl(file, Setter::<FS_IOC_ENABLE_VERITY, EnableVerity>::new(request)) };
    enabled.map_err(|error| refused(Means::Verity, path, error))
}

/// Sets the immutable flag. `path` is for errors.
///
/// # Errors
/// [`ProtectError::Already`] when it is set.
pub fn set_immutable(file: &File, path: &Path) -> Result<(), ProtectError> {
    let flags = flags(file, path)?;
    if flags.contains(IFlags::IMMUTABLE) {
        return Err(ProtectError::Already { means: Means::Immutable, path: path.to_owned() });
    }
    set_flags(file, path, flags | IFlags::IMMUTABLE)
}

/// Takes the immutable flag off a regular file, so that it can be renamed or removed; returns whether it was set. What
/// is not there, or is no regular file, has none.
pub fn clear_immutable(path: &Path) -> Result<bool, ProtectError> {
    match fs::optional(look(path))? {
        Some(look) if look.is_file && look.protection.immutable => {}
        _ => return Ok(false),
    }
    let Some(file) = fs::optional(fs::open(path))? else { return Ok(false) };
    let flags = flags(&file, path)?;
    set_flags(&file, path, flags - IFlags::IMMUTABLE)?;
    Ok(flags.contains(IFlags::IMMUTABLE))
}

/// Takes the flag off a regular file in a directory that is to go; returns whether it is worth another try.
pub(crate) fn clear_at(dir: BorrowedFd<'_>, name: &std::ffi::OsStr) -> bool {
    let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(dir, name, open, Mode::empty()) else { return false };
    match rustix::fs::ioctl_getflags(&file) {
        Ok(flags) if flags.contains(IFlags::IMMUTABLE) => {
            rustix::fs::ioctl_setflags(&file, flags - IFlags::IMMUTABLE).is_ok()
        }
        _ => false,
    }
}

fn flags(file: &File, path: &Path) -> Result<IFlags, ProtectError> {
    rustix::fs::ioctl_getflags(file).map_err(|error| refused(Means::Immutable, path, error))
}

fn set_flags(file: &File, path: &Path, flags: IFlags) -> Result<(), ProtectError> {
    rustix::fs::ioctl_setflags(file, flags).map_err(|error| refused(Means::Immutable, path, error))
}

/// Whether reading failed in the way it does for a block that the disk has lost, or that fs-verity finds changed.
pub fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

#[cfg(test)]
mod tests;
