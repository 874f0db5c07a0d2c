//! A new process on its way to the program it becomes.
//!
//! It shares the agent's memory while the thread that started it stands still, and other threads go on: nothing here
//! allocates, takes a lock or panics. What it finds is looked for as the program's user, in the program's directory.

use std::ffi::{CStr, CString};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, access, accessat, open, stat};
use rustix::io::{Errno, read};
use rustix::path::Arg;
use rustix::process::{chdir, ioctl_tiocsctty, setsid, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stdin};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use super::launch::Streams;
use super::raw;
use super::user::Identity;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_MACHINE_AT: usize = 18;

/// Machines whose programs the kernel runs: this one, and its 32-bit form.
#[cfg(target_arch = "x86_64")]
const ELF_MACHINES: [u16; 2] = [62, 3];
#[cfg(target_arch = "aarch64")]
const ELF_MACHINES: [u16; 2] = [183, 40];

/// Exists when the guest has taught its kernel more formats.
const OTHER_FORMATS: &CStr = c"/proc/sys/fs/binfmt_misc/status";

const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// Everything a new process needs.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) streams: Streams,
    /// Whether stdin is to be its controlling terminal.
    pub(super) terminal: bool,
    /// Whom to become; absent when it stays who the agent is.
    pub(super) identity: Option<Identity>,
    pub(super) directory: CString,
    pub(super) places: Places,
    pub(super) argv: raw::CStrings,
    pub(super) env: raw::CStrings,
}

/// Where the program may lie.
#[derive(Debug)]
pub(super) enum Places {
    /// There and nowhere else.
    Exactly([CString; 1]),
    /// In the first of these that is an executable file.
    Path(Vec<CString>),
}

impl Places {
    fn all(&self) -> &[CString] {
        match self {
            Self::Exactly(place) => place,
            Self::Path(places) => places,
        }
    }

    pub(super) fn get(&self, at: usize) -> Option<&CStr> {
        self.all().get(at).map(CString::as_c_str)
    }
}

/// Why a new process did not become its program; a number is that of the place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Failure {
    Session(Errno),
    Streams(Errno),
    Terminal(Errno),
    Groups(Errno),
    Group(Errno),
    User(Errno),
    Directory(Errno),
    NotFound(Errno),
    NotInPath,
    NotExecutable(usize),
    Format(usize, BadFormat),
    Exec(usize, Errno),
}

/// Why the kernel cannot run a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum BadFormat {
    OtherMachine,
    Unknown,
}

/// Becomes the program; returns only when that failed.
pub(super) fn become_program(attempt: &Attempt) -> Failure {
    match prepare(attempt).and_then(|()| find(&attempt.places)) {
        Ok((at, program)) => Failure::Exec(at, raw::execute(program, &attempt.argv, &attempt.env)),
        Err(failure) => failure,
    }
}

fn prepare(attempt: &Attempt) -> Result<(), Failure> {
    setsid().map_err(Failure::Session)?;
    let streams = &attempt.streams;
    dup2_stdin(&streams.stdin).map_err(Failure::Streams)?;
    dup2_stdout(&streams.stdout).map_err(Failure::Streams)?;
    dup2_stderr(&streams.stderr).map_err(Failure::Streams)?;
    if attempt.terminal {
        ioctl_tiocsctty(stdin()).map_err(Failure::Terminal)?;
    }
    umask(UMASK);
    if let Some(identity) = &attempt.identity {
        // Only this process changes: the calls are the kernel's, which know of no other threads.
        set_thread_groups(&identity.groups).map_err(Failure::Groups)?;
        set_thread_gid(identity.gid).map_err(Failure::Group)?;
        set_thread_uid(identity.uid).map_err(Failure::User)?;
    }
    chdir(attempt.directory.as_c_str()).map_err(Failure::Directory)
}

fn find(places: &Places) -> Result<(usize, &CStr), Failure> {
    let exactly = matches!(places, Places::Exactly(_));
    let mut denied = None;
    for (at, place) in places.all().iter().enumerate() {
        let place = place.as_c_str();
        let is_file = match stat(place) {
            Ok(found) => FileType::from_raw_mode(found.st_mode).is_file(),
            Err(error) if exactly => return Err(Failure::NotFound(error)),
            Err(_) => continue,
        };
        if is_file && accessat(CWD, place, Access::EXEC_OK, AtFlags::EACCESS).is_ok() {
            return match check_format(place) {
                Ok(()) => Ok((at, place)),
                Err(format) => Err(Failure::Format(at, format)),
            };
        }
        if is_file || exactly {
            denied = denied.or(Some(at));
        }
    }
    Err(denied.map_or(Failure::NotInPath, Failure::NotExecutable))
}

/// Refuses what the kernel cannot run, which would only say that it is no program.
pub(super) fn check_format(program: impl Arg) -> Result<(), BadFormat> {
    let mut head = [0; ELF_MACHINE_AT + 2];
    let count = open(program, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| read(&file, &mut head));
    // A program need not be readable; the kernel then tells.
    let Ok(count) = count else { return Ok(()) };
    let head = head.get(..count).unwrap_or_default();
    let machine = head.get(ELF_MACHINE_AT..).and_then(|bytes| bytes.first_chunk::<2>());
    let bad = match machine.map(|bytes| u16::from_le_bytes(*bytes)) {
        Some(machine) if head.starts_with(ELF_MAGIC) => {
            if ELF_MACHINES.contains(&machine) {
                return Ok(());
            }
            BadFormat::OtherMachine
        }
        _ => BadFormat::Unknown,
    };
    if head.starts_with(b"#!") || access(OTHER_FORMATS, Access::EXISTS).is_ok() {
        return Ok(());
    }
    Err(bad)
}
