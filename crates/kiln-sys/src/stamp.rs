//! Stamps: what the file system says of a file, by which a later look sees that the file was not changed meanwhile; and
//! looks at many files of one directory.

use crate::error::{IoError, IoResult, IoResultExt};
use crate::{clock, fs};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How long ago a file must have changed for its stamp to be proof: two changes within one tick of the file system's
/// clock look the same. No file system that kiln knows has longer ticks.
const SETTLED_MS: i128 = 2000;

/// What the file system says of a regular file. Programs cannot set the time of the last change of anything about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The number of its inode.
    pub inode: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When its content changed: seconds since 1970 (UTC) and nanoseconds.
    pub modified: [i64; 2],
    /// When anything about it changed: seconds since 1970 (UTC) and nanoseconds.
    pub changed: [i64; 2],
}

impl Stamp {
    /// Takes what was said of a file.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.len(),
            modified: [meta.mtime(), meta.mtime_nsec()],
            changed: [meta.ctime(), meta.ctime_nsec()],
        }
    }

    /// Whether a stamp that is seen again proves that the file is as it was. `looked_unix_ms` is a time before the
    /// stamp was taken; a change that came shortly before, or from a clock that runs ahead, leaves it open.
    pub fn is_settled(&self, looked_unix_ms: u64) -> bool {
        let changed_ms = i128::from(self.changed[0]) * 1000 + i128::from(self.changed[1]) / 1_000_000;
        changed_ms + SETTLED_MS <= i128::from(looked_unix_ms)
    }
}

/// The content of a file, with what proves later that it is still that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamped {
    /// The content.
    pub bytes: Vec<u8>,
    /// The stamp from before the content was read; none while the file's last change is too fresh for a proof.
    pub stamp: Option<Stamp>,
}

/// Reads a whole regular file of at most `max` bytes with its stamp; `None` for a file that is not there.
pub fn read_stamped(path: &Path, max: usize) -> IoResult<Option<Stamped>> {
    let looked = clock::now_unix_ms();
    let Some(file) = fs::optional(fs::open(path))? else { return Ok(None) };
    let meta = file.metadata().at("inspect", path)?;
    let stamp = Stamp::of(&meta);
    let bytes = fs::read_open(file, meta.len(), path, max)?;
    Ok(Some(Stamped { bytes, stamp: stamp.is_settled(looked).then_some(stamp) }))
}

/// An open directory whose files are looked at by name, without a walk from the root for each.
#[derive(Debug)]
pub struct OpenDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl OpenDir {
    /// Opens a directory.
    pub fn open(path: &Path) -> IoResult<Self> {
        Ok(Self { fd: fs::open_dir(path)?, path: path.to_owned() })
    }

    /// Returns the stamp of the directory itself: another one once a name in it was added, removed or replaced.
    pub fn own_stamp(&self) -> IoResult<Stamp> {
        rustix::fs::fstat(&self.fd).map(|stat| stamp_of(&stat)).at("inspect", &self.path)
    }

    /// Reads a whole regular file of at most `max` bytes; `None` for a name that is not there.
    pub fn read_optional(&self, name: &str, max: usize) -> IoResult<Option<Vec<u8>>> {
        let path = || self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).at("open", path()),
        };
        let meta = file.metadata().at("inspect", path())?;
        if !meta.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(error).at("open", path());
        }
        fs::read_open(file, meta.len(), &self.path, max)
            .map(Some)
            .map_err(|error| IoError { path: path(), ..error })
    }

    /// Returns whether something has a name, be it a dangling link.
    pub fn is_there(&self, name: &str) -> IoResult<bool> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error).at("inspect", self.path.join(name)),
        }
    }

    /// Returns the length of a file and the bytes it takes up; `None` for a name that is not there.
    pub fn sizes(&self, name: &str) -> IoResult<Option<(u64, u64)>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            #[expect(clippy::cast_sign_loss, reason = "neither is negative")]
            Ok(stat) => Ok(Some((stat.st_size as u64, stat.st_blocks as u64 * 512))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error).at("inspect", self.path.join(name)),
        }
    }

    /// Returns the stamp of a regular file; `None` for a name that is not there, or that is a link or anything else.
    pub fn stamp(&self, name: &str) -> IoResult<Option<Stamp>> {
        let stat = match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).at("inspect", self.path.join(name)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        Ok(Some(stamp_of(&stat)))
    }
}

#[expect(clippy::cast_sign_loss, reason = "the length of a file is not negative")]
#[allow(
    clippy::allow_attributes,
    clippy::unnecessary_cast,
    clippy::useless_conversion,
    reason = "types differ by processor"
)]
fn stamp_of(stat: &rustix::fs::Stat) -> Stamp {
    Stamp {
        inode: stat.st_ino,
        size: stat.st_size as u64,
        modified: [stat.st_mtime as i64, stat.st_mtime_nsec as i64],
        changed: [stat.st_ctime as i64, stat.st_ctime_nsec as i64],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::{Existing, write_file};
    use crate::tool::ScratchDir;

    #[test]
    fn a_fresh_change_is_no_proof_and_an_old_one_is() {
        let at = |changed| Stamp { inode: 1, size: 2, modified: [0, 0], changed };
        assert!(at([10, 0]).is_settled(12_000));
        assert!(!at([10, 1_000_000]).is_settled(12_000));
        assert!(!at([99, 0]).is_settled(12_000), "from a clock that runs ahead");
        assert!(at([-5, 0]).is_settled(0));
        assert!(!at([i64::MAX, 999_999_999]).is_settled(u64::from(u32::MAX)));
    }

    #[test]
    fn reading_and_looking_agree_and_links_have_no_stamp() {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("file");
        assert_eq!(read_stamped(&path, 9).unwrap(), None);
        write_file(&path, b"text", 0o600, Existing::Replace).unwrap();
        let found = read_stamped(&path, 9).unwrap().unwrap();
        assert_eq!((found.bytes.as_slice(), found.stamp), (&b"text"[..], None), "it was written just now");
        assert!(read_stamped(&path, 3).is_err());
        let looks = OpenDir::open(dir.path()).unwrap();
        let before = looks.stamp("file").unwrap().unwrap();
        assert_eq!(before.size, 4);
        write_file(&path, b"next", 0o600, Existing::Replace).unwrap();
        assert_ne!(looks.stamp("file").unwrap().unwrap(), before);
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        assert_eq!(looks.stamp("link").unwrap(), None);
        assert_eq!(looks.stamp("none").unwrap(), None);
        assert!(looks.is_there("link").unwrap() && !looks.is_there("none").unwrap());
        assert_eq!(looks.read_optional("file", 4).unwrap().as_deref(), Some(&b"next"[..]));
        assert!(looks.read_optional("file", 3).is_err());
        assert_eq!(looks.read_optional("none", 4).unwrap(), None);
        assert!(looks.read_optional(".", 4).is_err());
    }
}
