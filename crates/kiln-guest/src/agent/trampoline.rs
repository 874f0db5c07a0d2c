//! The trampoline: a fresh process that makes itself what a program wants to be started as, and becomes it.
//!
//! Its stdin is a socket to the agent. It receives the specification and the program's real stdin there, and
//! answers only when it fails: the socket is closed by the exec.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::fs::{Access, AtFlags, CWD, Mode, accessat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{ioctl_tiocsctty, setsid, umask};
use rustix::stdio::dup2_stdin;
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use serde::{Deserialize, Serialize};

use super::user::{self, Identity};
use crate::config::Entrypoint;
use crate::error::{ErrorKind, RemoteError};
use crate::limits::ARGV_ENV_BYTES_MAX;
use crate::message::{ExecRequest, to_json};
use crate::name::{GuestPath, UserSpec};

/// Argument that selects this mode.
pub(super) const MODE: &str = "exec";

/// Largest answer.
pub(super) const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Largest specification; JSON may need six bytes for one.
const SPEC_BYTES_MAX: usize = ARGV_ENV_BYTES_MAX * 6 + 64 * 1024;

/// `PATH` of programs that are given none.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const DEFAULT_TERM: &str = "xterm-256color";

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_MACHINE_AT: usize = 18;

/// Machines whose programs the kernel runs: this one, and its 32-bit form.
#[cfg(target_arch = "x86_64")]
const ELF_MACHINES: [u16; 2] = [62, 3];
#[cfg(target_arch = "aarch64")]
const ELF_MACHINES: [u16; 2] = [183, 40];

/// Exists when the guest has taught its kernel more formats.
const OTHER_FORMATS: &str = "/proc/sys/fs/binfmt_misc/status";

const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// What to become; written and read by the same program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    clear_env: bool,
    cwd: Option<GuestPath>,
    user: Option<UserSpec>,
    tty: bool,
    term: Option<String>,
}

impl Spec {
    pub(super) fn new(request: ExecRequest, tty: bool) -> Self {
        Self {
            argv: request.argv,
            env: request.env,
            clear_env: request.clear_env,
            cwd: request.cwd,
            user: request.user,
            tty,
            term: request.term,
        }
    }

    pub(super) fn for_entrypoint(entrypoint: Entrypoint) -> Self {
        Self {
            argv: entrypoint.argv,
            env: entrypoint.env,
            clear_env: false,
            cwd: entrypoint.cwd,
            user: entrypoint.user,
            tty: false,
            term: None,
        }
    }
}

/// Sends the specification with the program's stdin, and ends the sending side.
pub(super) fn send_spec(mut control: &UnixStream, spec: &Spec, stdin: OwnedFd) -> io::Result<()> {
    let fds = [stdin.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(control, &[IoSlice::new(b"S")], &mut ancillary, SendFlags::NOSIGNAL)?;
    control.write_all(&to_json(spec))?;
    control.shutdown(std::net::Shutdown::Write)
}

/// Becomes the program the agent asks for.
pub(super) fn run() -> ExitCode {
    let control = match fcntl_dupfd_cloexec(io::stdin(), 3) {
        Ok(control) => UnixStream::from(control),
        Err(_) => return ExitCode::FAILURE,
    };
    let error = match receive_spec(&control) {
        Ok(spec) => become_program(&spec),
        Err(error) => RemoteError::from_io("cannot receive the program's specification", &error),
    };
    // The agent reads an empty answer as success, and then sees this process end.
    let _ = (&control).write_all(&to_json(&error));
    ExitCode::FAILURE
}

fn receive_spec(control: &UnixStream) -> io::Result<Spec> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut marker = [0];
    recvmsg(control, &mut [IoSliceMut::new(&mut marker)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let stdin = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    dup2_stdin(stdin.ok_or(io::ErrorKind::InvalidData)?)?;
    let mut json = Vec::new();
    let limit = u64::try_from(SPEC_BYTES_MAX).unwrap_or(u64::MAX);
    control.take(limit).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Returns only with an error.
fn become_program(spec: &Spec) -> RemoteError {
    match prepare(spec) {
        Ok(mut command) => {
            let error = command.exec();
            let program = command.get_program().to_string_lossy().into_owned();
            match error.kind() {
                io::ErrorKind::NotFound => RemoteError::from_io(
                    format!("cannot run {program}: it, its interpreter or its loader does not exist"),
                    &error,
                ),
                _ => RemoteError::from_io(format!("cannot run {program}"), &error),
            }
        }
        Err(error) => error,
    }
}

fn prepare(spec: &Spec) -> Result<Command, RemoteError> {
    let errno = |what: &str, error: rustix::io::Errno| RemoteError::from_io(what, &error.into());
    setsid().map_err(|error| errno("cannot start a session", error))?;
    if spec.tty {
        ioctl_tiocsctty(io::stdin()).map_err(|error| errno("cannot take the terminal", error))?;
    }
    umask(UMASK);
    let identity = user::resolve(spec.user.as_ref())?;
    if spec.user.is_some() {
        assume(&identity)?;
    }
    let env = environment(spec, &identity);
    let cwd = spec.cwd.as_ref().map_or("/", |cwd| cwd.as_str());
    rustix::process::chdir(cwd)
        .map_err(|error| errno(&format!("cannot enter the working directory {cwd}"), error))?;
    let name = spec.argv.first().map(String::as_str).unwrap_or_default();
    let program = find_program(name, env.get("PATH").map(String::as_str))?;
    check_format(&program).map_err(|reason| RemoteError::new(ErrorKind::Invalid, reason))?;
    let mut command = Command::new(program);
    command.arg0(name).args(spec.argv.iter().skip(1)).env_clear().envs(env);
    Ok(command)
}

fn assume(identity: &Identity) -> Result<(), RemoteError> {
    let failed = |what: &'static str| {
        move |error: rustix::io::Errno| RemoteError::from_io(format!("cannot become {what}"), &error.into())
    };
    // Only this thread changes, and it is the only one.
    set_thread_groups(&identity.groups).map_err(failed("a member of the user's groups"))?;
    set_thread_gid(identity.gid).map_err(failed("a member of the group"))?;
    set_thread_uid(identity.uid).map_err(failed("the user"))
}

fn environment(spec: &Spec, identity: &Identity) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    if !spec.clear_env {
        env.insert("PATH".to_owned(), DEFAULT_PATH.to_owned());
        env.insert("HOME".to_owned(), identity.home.clone());
        if let Some(name) = &identity.name {
            env.insert("USER".to_owned(), name.clone());
        }
        if spec.tty {
            let term = spec.term.as_deref().unwrap_or(DEFAULT_TERM);
            env.insert("TERM".to_owned(), term.to_owned());
        }
    }
    env.extend(spec.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

fn find_program(name: &str, path: Option<&str>) -> Result<PathBuf, RemoteError> {
    let not_executable = |path: &Path| {
        RemoteError::new(ErrorKind::Permission, format!("program {} is not executable", path.display()))
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match std::fs::metadata(&path) {
            Ok(found) if found.is_file() && executable(&path) => Ok(path),
            Ok(_) => Err(not_executable(&path)),
            Err(error) => Err(RemoteError::from_io(format!("cannot find program {name}"), &error)),
        };
    }
    let mut denied = None;
    for directory in path.unwrap_or(DEFAULT_PATH).split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        if candidate.is_file() {
            if executable(&candidate) {
                return Ok(candidate);
            }
            denied.get_or_insert(candidate);
        }
    }
    Err(match denied {
        Some(candidate) => not_executable(&candidate),
        None => RemoteError::new(ErrorKind::NotFound, format!("program {name} is not in PATH")),
    })
}

/// Refuses what the kernel cannot run: the C library would hand it to a shell, which makes nonsense of it.
pub(super) fn check_format(program: &Path) -> Result<(), String> {
    let mut head = [0; ELF_MACHINE_AT + 2];
    let count = File::open(program).and_then(|mut file| file.read(&mut head));
    // A program need not be readable; the kernel then tells.
    let Ok(count) = count else { return Ok(()) };
    let head = head.get(..count).unwrap_or_default();
    if head.starts_with(b"#!") || Path::new(OTHER_FORMATS).exists() {
        return Ok(());
    }
    let machine = head.get(ELF_MACHINE_AT..).and_then(|bytes| bytes.first_chunk::<2>());
    let machine = machine.map(|bytes| u16::from_le_bytes(*bytes));
    match machine {
        Some(machine) if head.starts_with(ELF_MAGIC) => {
            if ELF_MACHINES.contains(&machine) {
                Ok(())
            } else {
                Err(format!("program {} is for another machine", program.display()))
            }
        }
        _ => Err(format!(
            "program {} is neither ELF nor a script that names its interpreter",
            program.display()
        )),
    }
}

fn executable(path: &Path) -> bool {
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}
