//! What a process has in memory, by `/proc/PID/smaps_rollup`.

use super::kib_line;
use crate::error::{IoError, IoResultExt};
use kiln_core::ByteSize;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The kernel's line has some 50 numbers.
const STAT_BYTES_MAX: usize = 4 << 10;
/// The kernel's text has some 25 lines of about 30 bytes.
const ROLLUP_BYTES_MAX: usize = 16 << 10;

/// A process, pinned: a later one with the same id is never taken for it.
#[derive(Debug)]
pub struct Process {
    id: u32,
    dir: OwnedFd,
}

/// What a process has in memory. Pages of hugetlbfs are not in it: the kernel counts them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessMemory {
    /// All pages that are mapped and present (Rss): own ones, and those that others have too.
    pub resident: ByteSize,
    /// Its fair share (Pss): own pages whole, and of each other page the part that falls to one of those who map it.
    /// Shares may be added up; residents would count what is shared several times.
    pub share: ByteSize,
    /// Own pages that are as they are on disk.
    pub private_clean: ByteSize,
    /// Own pages that were written to, or have no file.
    pub private_dirty: ByteSize,
    /// Pages that others map too, as they are on disk.
    pub shared_clean: ByteSize,
    /// Pages that others map too and that were written to, or have no file.
    pub shared_dirty: ByteSize,
    /// What is swapped out.
    pub swap: ByteSize,
}

/// Why the memory of a process is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessMemoryError {
    /// It ended, or never was.
    #[error("process {id} is gone")]
    Gone {
        /// The process.
        id: u32,
    },
    /// It is somebody else's.
    #[error("the memory of process {id} may not be read")]
    Denied {
        /// The process.
        id: u32,
    },
    /// The kernel has no such account: it is older than 4.14 or was built without it.
    #[error("the kernel has no /proc/{id}/smaps_rollup")]
    NoAccount {
        /// The process.
        id: u32,
    },
    /// The kernel's text lacks a field that is needed.
    #[error("{} says no {field}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// The system refused otherwise.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl ProcessMemory {
    /// Returns what it alone has and would give back if it ended (private pages, clean and dirty).
    pub fn private(&self) -> ByteSize {
        sum(self.private_clean, self.private_dirty)
    }

    /// Returns what of its resident pages others map too, each page whole.
    pub fn shared(&self) -> ByteSize {
        sum(self.shared_clean, self.shared_dirty)
    }

    /// Parses the text of `smaps_rollup`; fails with the name of a field that is missing or no number.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let field = |key: &'static str| kib_line(text, key).ok_or(key);
        Ok(Self {
            resident: field("Rss")?,
            share: field("Pss")?,
            private_clean: field("Private_Clean")?,
            private_dirty: field("Private_Dirty")?,
            shared_clean: field("Shared_Clean")?,
            shared_dirty: field("Shared_Dirty")?,
            swap: field("Swap")?,
        })
    }
}

fn sum(a: ByteSize, b: ByteSize) -> ByteSize {
    ByteSize::from_bytes(a.bytes().saturating_add(b.bytes()))
}

impl Process {
    /// Finds the process that has `id` now.
    ///
    /// # Errors
    /// [`ProcessMemoryError::Gone`] where there is none, or none that the caller may see.
    pub fn open(id: u32) -> Result<Self, ProcessMemoryError> {
        let path = PathBuf::from(format!("/proc/{id}"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => Ok(Self { id, dir }),
            Err(Errno::NOENT) => Err(ProcessMemoryError::Gone { id }),
            Err(error) => Err(IoError { action: "open", path, source: error.into() }.into()),
        }
    }

    /// Returns whether `dir` is its working directory, under whatever name.
    ///
    /// # Errors
    /// [`ProcessMemoryError::Gone`], also where only its parent's `wait` is left to come;
    /// [`ProcessMemoryError::Denied`] for another user's process; otherwise when `dir` cannot be inspected.
    pub fn works_in(&self, dir: &Path) -> Result<bool, ProcessMemoryError> {
        let its = rustix::fs::statat(&self.dir, "cwd", AtFlags::empty())
            .map_err(|error| self.refused(error, "cwd", ProcessMemoryError::Gone { id: self.id }))?;
        let wanted = rustix::fs::stat(dir).at("inspect", dir)?;
        Ok((its.st_dev, its.st_ino) == (wanted.st_dev, wanted.st_ino))
    }

    /// Returns what it has in memory. The kernel walks its page tables for that: some 10 ms for each resident GiB.
    ///
    /// # Errors
    /// [`ProcessMemoryError`]; one that ended and waits to be collected is [`ProcessMemoryError::Gone`].
    pub fn memory(&self) -> Result<ProcessMemory, ProcessMemoryError> {
        let name = "smaps_rollup";
        let path = PathBuf::from(format!("/proc/{}/{name}", self.id));
        let fd = rustix::fs::openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| self.refused(error, name, self.without_account()))?;
        let bytes =
            crate::fs::read_open(File::from(fd), 0, &path, ROLLUP_BYTES_MAX).map_err(|error| match error
                .source
                .raw_os_error()
                .map(Errno::from_raw_os_error)
            {
                Some(errno) => self.refused(errno, name, self.without_account()),
                None => error.into(),
            })?;
        // What is not a text has no field.
        ProcessMemory::parse(&String::from_utf8_lossy(&bytes))
            .map_err(|field| ProcessMemoryError::Malformed { path, field })
    }

    /// Returns the time that processors have worked for it, in steps of the kernel's clock (usually 10 ms).
    ///
    /// # Errors
    /// [`ProcessMemoryError::Gone`] for one that ended.
    pub fn processor_time(&self) -> Result<Duration, ProcessMemoryError> {
        let (id, name) = (self.id, "stat");
        let path = PathBuf::from(format!("/proc/{id}/{name}"));
        let fd = rustix::fs::openat(&self.dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| self.refused(error, name, ProcessMemoryError::Gone { id }))?;
        let line =
            crate::fs::read_open(File::from(fd), 0, &path, STAT_BYTES_MAX).map_err(|error| {
                match error.source.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(errno) => self.refused(errno, name, ProcessMemoryError::Gone { id }),
                    None => error.into(),
                }
            })?;
        let ticks = ticks(&String::from_utf8_lossy(&line))
            .ok_or(ProcessMemoryError::Malformed { path, field: "processor time" })?;
        let a_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Duration::from_millis(ticks.saturating_mul(1000) / a_second))
    }

    /// Returns what a missing `smaps_rollup` means: no such account while the process is there.
    fn without_account(&self) -> ProcessMemoryError {
        match rustix::fs::statat(&self.dir, "stat", AtFlags::empty()) {
            Ok(_) => ProcessMemoryError::NoAccount { id: self.id },
            Err(_) => ProcessMemoryError::Gone { id: self.id },
        }
    }

    /// Names a refusal of a file in the process's directory; `missing` is what its absence means.
    fn refused(&self, error: Errno, name: &str, missing: ProcessMemoryError) -> ProcessMemoryError {
        let id = self.id;
        match error {
            Errno::SRCH => ProcessMemoryError::Gone { id },
            Errno::NOENT => missing,
            Errno::ACCESS | Errno::PERM => ProcessMemoryError::Denied { id },
            error => {
                let path = PathBuf::from(format!("/proc/{id}/{name}"));
                ProcessMemoryError::Io(IoError { action: "read", path, source: error.into() })
            }
        }
    }
}

/// Returns the ticks in user and in kernel mode. The name before them may hold blanks and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()?.saturating_add(next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const TEXT: &str = "\
562fd17fe000-7ffdfbb25000 ---p 00000000 00:00 0                          [rollup]
Rss:                1764 kB
Pss:                 478 kB
Pss_Dirty:           112 kB
Shared_Clean:       1608 kB
Shared_Dirty:          0 kB
Private_Clean:        44 kB
Private_Dirty:       112 kB
Swap:                  8 kB
SwapPss:               4 kB
";

    #[test]
    fn the_kernels_text_is_understood() {
        let memory = ProcessMemory::parse(TEXT).unwrap();
        let kib = |kib: u64| ByteSize::from_bytes(kib << 10);
        assert_eq!((memory.resident, memory.share, memory.swap), (kib(1764), kib(478), kib(8)));
        assert_eq!((memory.private(), memory.shared()), (kib(156), kib(1608)));
        for field in ["Rss", "Pss", "Private_Clean", "Private_Dirty", "Shared_Clean", "Shared_Dirty", "Swap"]
        {
            let without = TEXT.replace(&format!("\n{field}:"), "\nOther:");
            assert_eq!(ProcessMemory::parse(&without), Err(field));
        }
        assert_eq!(ProcessMemory::parse(""), Err("Rss"));
    }

    #[test]
    fn the_own_process_has_memory_and_gets_what_it_touches() {
        let own = Process::open(std::process::id()).unwrap();
        let before = match own.memory() {
            // Nothing else can be tested on such a kernel.
            Err(ProcessMemoryError::NoAccount { .. }) => return,
            other => other.unwrap(),
        };
        assert!(before.private() <= before.resident && before.share <= before.resident, "{before:?}");
        assert_eq!(sum(before.private(), before.shared()), before.resident);
        assert!(before.share >= before.private(), "{before:?}");
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = own.memory().unwrap();
        let grown =
            |of: fn(&ProcessMemory) -> ByteSize| of(&after).bytes().saturating_sub(of(&before).bytes());
        // Other tests of this process may give some back meanwhile.
        for grown in [grown(|of| of.resident), grown(ProcessMemory::private), grown(|of| of.share)] {
            assert!(grown > 32 << 20, "{before:?} {after:?}");
        }
        drop(touched);
    }

    #[test]
    fn processor_time_is_read_behind_any_name_and_grows_with_work() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1";
        assert_eq!(ticks(line), Some(300));
        assert_eq!(
            (ticks(""), ticks("7 (x) S 1"), ticks("7 (x) S 1 7 7 0 -1 4 1 0 0 0 a 5")),
            (None, None, None)
        );
        let own = Process::open(std::process::id()).unwrap();
        let before = own.processor_time().unwrap();
        let mut sum = 0_u64;
        while own.processor_time().unwrap() < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }

    #[test]
    fn a_working_directory_is_told_by_what_it_is() {
        let own = Process::open(std::process::id()).unwrap();
        let here = std::env::current_dir().unwrap();
        assert!(own.works_in(&here).unwrap());
        assert!(own.works_in(&here.join("src/..")).unwrap());
        assert!(!own.works_in(Path::new("/proc")).unwrap());
        assert!(matches!(own.works_in(&here.join("no such")), Err(ProcessMemoryError::Io(_))));
    }

    #[test]
    fn a_process_that_ended_is_gone_before_and_after_it_is_collected() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a child with a pipe, and nothing of this crate's about it"
        )]
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        child.kill().unwrap();
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&child),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        crate::process::poll_within(&mut fds, None).unwrap();
        let gone = |id: u32| matches!(process.memory(), Err(ProcessMemoryError::Gone { id: of }) if of == id);
        assert!(gone(child.id()), "a zombie: {:?}", process.memory());
        assert!(matches!(process.works_in(Path::new("/")), Err(ProcessMemoryError::Gone { .. })));
        child.wait().unwrap();
        assert!(gone(child.id()), "{:?}", process.memory());
        assert!(matches!(process.works_in(Path::new("/")), Err(ProcessMemoryError::Gone { .. })));
        assert!(matches!(Process::open(u32::MAX), Err(ProcessMemoryError::Gone { .. })));
    }
}
