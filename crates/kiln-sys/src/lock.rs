//! Locks between processes: `flock`ed files that name their holder. The kernel drops a lock with its holder, however
//! that ends, so a lock that can be taken proves that nobody is at work.

use crate::error::{IoError, IoResult, IoResultExt};
use crate::{Cancel, clock, fail, fs};
use rustix::fs::FlockOperation;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest holder text that is read, in bytes.
const HOLDER_BYTES_MAX: usize = 4096;
/// Time between two tries at a lock that somebody holds: flock has no wait that can be cancelled.
const RETRY: Duration = Duration::from_millis(50);

/// How often a held lock is tried again before it counts as held: [`FileLock::is_held`] holds it for a moment.
const LOOKS: u32 = 3;
/// Time between these tries.
const LOOK: Duration = Duration::from_millis(2);

/// A held lock. Dropping it lets go.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
    path: PathBuf,
}

/// Whether a lock is held alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Nobody else holds it.
    Exclusive,
    /// Others may hold it too, if they share.
    Shared,
}

/// Who holds a lock, as written by the holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The holder's words about itself: process id and work.
    pub text: String,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The lock file cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The wait was cancelled.
    #[error("cancelled while {} held the lock {}", holder.text, path.display())]
    Cancelled {
        /// Who held it.
        holder: Holder,
        /// The lock's file.
        path: PathBuf,
    },
}

impl FileLock {
    /// Takes the lock at `path` or tells who holds it. `work` is what the holder is named by: "building web".
    pub fn try_take(path: &Path, work: &str) -> IoResult<Result<Self, Holder>> {
        Self::try_take_as(Share::Exclusive, path, work)
    }

    fn try_take_as(share: Share, path: &Path, work: &str) -> IoResult<Result<Self, Holder>> {
        let operation = match share {
            Share::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Share::Shared => FlockOperation::NonBlockingLockShared,
        };
        let mut looks = 0;
        loop {
            fail::point("lock.open", path)?;
            let file = open_lock(path)?;
            fail::point("lock.take", path)?;
            match rustix::fs::flock(&file, operation) {
                Ok(()) => {
                    let meta = file.metadata().at("inspect", path)?;
                    // Who swept the file away between the two steps locked it first: then this is nobody's lock.
                    if is_at(&meta, path)? {
                        return Ok(Ok(Self::named(file, meta.len(), path, work)));
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) if looks < LOOKS => {
                    looks += 1;
                    pause(LOOK);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Err(read_holder(path))),
                Err(error) => return Err(error).at("lock", path),
            }
        }
    }

    /// Takes the lock at `path`, waiting for whoever holds it; `waiting` is told once for whom.
    pub fn take(
        path: &Path,
        work: &str,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(&Holder),
    ) -> Result<Self, LockError> {
        Self::take_as(Share::Exclusive, path, work, cancel, waiting)
    }

    /// Like [`FileLock::take`], exclusively or together with others who share.
    pub fn take_as(
        share: Share,
        path: &Path,
        work: &str,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(&Holder),
    ) -> Result<Self, LockError> {
        let mut told = false;
        loop {
            let holder = match Self::try_take_as(share, path, work)? {
                Ok(lock) => return Ok(lock),
                Err(holder) => holder,
            };
            if !told {
                waiting(&holder);
                told = true;
            }
            if wait_cancelled(cancel, RETRY) {
                return Err(LockError::Cancelled { holder, path: path.to_owned() });
            }
        }
    }

    /// Returns whether somebody holds the lock at `path`; a file that is not there is held by nobody.
    pub fn is_held(path: &Path) -> IoResult<bool> {
        let Some(file) = fs::optional(fs::open(path))? else { return Ok(false) };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error).at("lock", path),
        }
    }

    /// Returns the lock's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock is held whether its holder can be named or not: a full disk must not keep anybody from freeing space.
    /// The new name is written over the old one, which is there to be read until then.
    fn named(file: File, length: u64, path: &Path, work: &str) -> Self {
        use std::os::unix::fs::FileExt as _;
        let text = format!("process {} ({work}) since {}\n", std::process::id(), clock::now_unix_ms());
        let written = fail::point("lock.name", path).is_ok() && file.write_all_at(text.as_bytes(), 0).is_ok();
        // Only a longer name leaves a rest. Some file systems write the file out when its length is set.
        if written && length > text.len() as u64 {
            let _ = file.set_len(text.len() as u64);
        }
        Self { _file: file, path: path.to_owned() }
    }
}

/// Waits for a cancellation at most `wait`; returns whether it came.
pub fn wait_cancelled(cancel: &Cancel, wait: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let fd = cancel.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = rustix::time::Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    // An interrupted wait is only a shorter one.
    let _ = poll(&mut fds, Some(&timeout));
    cancel.is_cancelled()
}

/// Waits without anything to wake it.
fn pause(wait: Duration) {
    let timeout = rustix::time::Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    // An interrupted pause is only a shorter one.
    let _ = rustix::event::poll(&mut [], Some(&timeout));
}

/// Returns whether a path leads to the very file that was inspected.
fn is_at(own: &Metadata, path: &Path) -> IoResult<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let there = fs::optional(fs::symlink_metadata(path))?;
    Ok(there.is_some_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())))
}

fn open_lock(path: &Path) -> IoResult<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from).at("open", path)
}

fn read_holder(path: &Path) -> Holder {
    let text = fs::read_text_limited(path, HOLDER_BYTES_MAX).unwrap_or_default();
    let text = text.split(" since ").next().unwrap_or_default().trim();
    Holder { text: if text.is_empty() { "another process".to_owned() } else { text.to_owned() } }
}

/// Returns whether an error means that a wait was cancelled.
pub fn is_cancelled(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::ScratchDir;

    #[test]
    fn a_held_lock_names_its_holder_and_is_free_after_it() {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("lock");
        assert!(!FileLock::is_held(&path).unwrap());
        let lock = FileLock::try_take(&path, "building web").unwrap().unwrap();
        assert!(FileLock::is_held(&path).unwrap());
        let holder = FileLock::try_take(&path, "x").unwrap().unwrap_err();
        assert_eq!(holder.text, format!("process {} (building web)", std::process::id()));
        drop(lock);
        assert!(!FileLock::is_held(&path).unwrap());
    }

    #[test]
    fn a_shorter_name_leaves_nothing_of_a_longer_one() {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("lock");
        for work in ["building web", "a", "removing a disk"] {
            let _lock = FileLock::try_take(&path, work).unwrap().unwrap();
            let text = fs::read_text_limited(&path, HOLDER_BYTES_MAX).unwrap();
            assert_eq!(text.matches(" since ").count(), 1, "{text}");
            assert!(text.contains(&format!(" ({work}) since ")), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }

    #[test]
    fn looking_at_a_lock_keeps_nobody_from_taking_it() {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("lock");
        drop(FileLock::try_take(&path, "a").unwrap().unwrap());
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    FileLock::is_held(&path).unwrap();
                    pause(Duration::from_millis(1));
                }
            });
            let taken = (0..1000).all(|_| FileLock::try_take(&path, "b").unwrap().is_ok());
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(taken);
        });
    }

    #[test]
    fn a_lock_that_is_swept_away_while_it_is_taken_is_taken_anew() {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("lock");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // As a sweep does: take, remove, let go.
                    if let Ok(_lock) = FileLock::try_take(&path, "sweeping").unwrap() {
                        fs::remove_file(&path).unwrap();
                    }
                }
            });
            let cancel = Cancel::new().unwrap();
            let held = (0..300).all(|_| {
                let lock = FileLock::take(&path, "work", &cancel, &mut |_| {}).unwrap();
                is_at(&lock._file.metadata().unwrap(), &path).unwrap()
            });
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(held);
        });
    }

    #[test]
    fn waiting_can_be_cancelled_and_says_for_whom() {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("lock");
        let _lock = FileLock::try_take(&path, "a").unwrap().unwrap();
        let cancel = Cancel::new().unwrap();
        let mut told = Vec::new();
        let result = FileLock::take(&path, "b", &cancel, &mut |holder| {
            told.push(holder.text.clone());
            cancel.cancel();
        });
        assert!(matches!(result, Err(LockError::Cancelled { .. })));
        assert_eq!(told.len(), 1);
    }
}
