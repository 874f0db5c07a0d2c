//! What a program is started as, worked out before it has a process: who it is, its environment, where it may lie.
//!
//! Everything that allocates or reads a database is done here. [`super::child`] does the rest in the new process.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::io::Errno;

use super::child::{Attempt, BadFormat, Failure, Places};
use super::process::Process;
use super::raw;
use super::reaper::Reaper;
use super::user::{self, Identity};
use crate::config::Entrypoint;
use crate::error::{ErrorKind, RemoteError};
use crate::message::{ExecRequest, ExitStatus};
use crate::name::{GuestPath, UserSpec};

/// `PATH` of programs that are given none.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const DEFAULT_TERM: &str = "xterm-256color";

/// What to become.
#[derive(Debug)]
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

/// Standard streams of a program.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// A program that was started.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) process: Arc<Process>,
    /// Hears how it ended, once nothing of it is left to wait for.
    pub(super) exited: Receiver<ExitStatus>,
}

/// Starts a program and waits until it is itself. `terminal` is the agent's side of the one it runs in.
pub(super) fn start(
    reaper: &Reaper,
    spec: &Spec,
    streams: Streams,
    terminal: Option<OwnedFd>,
) -> Result<Launched, RemoteError> {
    let attempt = prepare(spec, streams)?;
    let mut started = None;
    let spawned = reaper.spawn(|| Ok(started.insert(raw::start_child(&attempt)?).pid));
    let io = |error| RemoteError::from_io("cannot start a process", &error);
    let (pid, exited) = spawned.map_err(io)?;
    let Some(raw::StartedChild { ended, failure, .. }) = started else {
        return Err(RemoteError::new(ErrorKind::Io, "cannot start a process"));
    };
    match failure {
        None => Ok(Launched { process: Process::new(pid, ended, terminal), exited }),
        Some(failure) => Err(explain(spec, &attempt, failure)),
    }
}

fn prepare(spec: &Spec, streams: Streams) -> Result<Attempt, RemoteError> {
    let identity = user::resolve(spec.user.as_ref())?;
    let env = environment(spec, &identity);
    let name = spec.argv.first().map(String::as_str).unwrap_or_default();
    let places = if name.contains('/') {
        Places::Exactly([c_string(name)?])
    } else {
        let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let place = |directory: &str| {
            c_string(&format!("{}/{name}", if directory.is_empty() { "." } else { directory }))
        };
        Places::Path(path.split(':').map(place).collect::<Result<_, _>>()?)
    };
    let argv = spec.argv.iter().map(|word| c_string(word)).collect::<Result<_, _>>()?;
    let env = env.iter().map(|(name, value)| c_string(&format!("{name}={value}")));
    Ok(Attempt {
        streams,
        terminal: spec.tty,
        identity: spec.user.is_some().then_some(identity),
        directory: c_string(spec.cwd.as_ref().map_or("/", |cwd| cwd.as_str()))?,
        places,
        argv: raw::CStrings::new(argv),
        env: raw::CStrings::new(env.collect::<Result<_, _>>()?),
    })
}

fn c_string(text: &str) -> Result<CString, RemoteError> {
    CString::new(text).map_err(|_| RemoteError::new(ErrorKind::Invalid, "a zero byte in what is to be run"))
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

/// Says why the new process did not become the program.
fn explain(spec: &Spec, attempt: &Attempt, failure: Failure) -> RemoteError {
    let errno = |what: &str, error: Errno| RemoteError::from_io(what, &error.into());
    let place = |at: usize| attempt.places.get(at).map(CStr::to_string_lossy).unwrap_or_default();
    match failure {
        Failure::Session(error) => errno("cannot start a session", error),
        Failure::Streams(error) => errno("cannot connect the program's streams", error),
        Failure::Terminal(error) => errno("cannot take the terminal", error),
        Failure::Groups(error) => errno("cannot become a member of the user's groups", error),
        Failure::Group(error) => errno("cannot become a member of the group", error),
        Failure::User(error) => errno("cannot become the user", error),
        Failure::Directory(error) => {
            let directory = attempt.directory.to_string_lossy();
            errno(&format!("cannot enter the working directory {directory}"), error)
        }
        Failure::NotFound(error) => errno(&format!("cannot find program {}", place(0)), error),
        Failure::NotInPath => {
            let name = spec.argv.first().map(String::as_str).unwrap_or_default();
            RemoteError::new(ErrorKind::NotFound, format!("program {name} is not in PATH"))
        }
        Failure::NotExecutable(at) => {
            RemoteError::new(ErrorKind::Permission, format!("program {} is not executable", place(at)))
        }
        Failure::Format(at, format) => RemoteError::new(ErrorKind::Invalid, bad_format(&place(at), format)),
        Failure::Exec(at, error @ Errno::NOENT) => errno(
            &format!("cannot run {}: it, its interpreter or its loader does not exist", place(at)),
            error,
        ),
        Failure::Exec(at, error) => errno(&format!("cannot run {}", place(at)), error),
    }
}

/// Refuses what the kernel cannot run.
pub(super) fn check_format(program: &Path) -> Result<(), String> {
    super::child::check_format(program).map_err(|format| bad_format(&program.to_string_lossy(), format))
}

fn bad_format(program: &str, format: BadFormat) -> String {
    match format {
        BadFormat::OtherMachine => format!("program {program} is for another machine"),
        BadFormat::Unknown => {
            format!("program {program} is neither ELF nor a script that names its interpreter")
        }
    }
}
