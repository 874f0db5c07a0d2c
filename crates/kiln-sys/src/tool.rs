//! Programs that kiln runs to their end: an argument vector, a cleared environment, a deadline, capped output, and a
//! process group that dies with the caller. Never a shell line.

mod measure;

use crate::cancel::Cancel;
use crate::error::{IoError, IoResult, IoResultExt};
use crate::process::{Bond, Child, Exit, bind, kill_group, poll_within};
use crate::{clock, fs};
use rustix::event::{PollFd, PollFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of standard error kept for messages.
const STDERR_TAIL_BYTES: usize = 8 << 10;
/// Bytes of standard output kept where nothing else is asked for.
const STDOUT_BYTES_MAX: usize = 4 << 20;
/// Time a tool may take where nothing else is asked for.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Where programs are looked for and what environment they get: decided once, by the program that has a user.
#[derive(Debug, Clone)]
pub struct Toolbox {
    search: Vec<PathBuf>,
    env: Vec<(OsString, OsString)>,
}

/// The directories programs are found in where the user's path is not consulted.
pub const SEARCH_DEFAULT: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

impl Default for Toolbox {
    fn default() -> Self {
        Self::new(SEARCH_DEFAULT.iter().map(PathBuf::from).collect(), Vec::new())
    }
}

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// No such program on this host.
    #[error("program `{name}` is not installed")]
    NotFound {
        /// The program's name.
        name: String,
    },
    /// It ended with an error.
    #[error("`{name}` failed: {exit}{}", said(stderr))]
    Failed {
        /// The program's name.
        name: String,
        /// How it ended.
        exit: ExitText,
        /// Its last words.
        stderr: String,
    },
    /// It took too long and was killed.
    #[error("`{name}` was killed after {} s{}", after.as_secs(), said(stderr))]
    TimedOut {
        /// The program's name.
        name: String,
        /// The time it had.
        after: Duration,
        /// Its last words.
        stderr: String,
    },
    /// It was killed because the work was cancelled.
    #[error("`{name}` was cancelled")]
    Cancelled {
        /// The program's name.
        name: String,
    },
    /// It wrote more than was agreed.
    #[error("`{name}` wrote more than {max} bytes")]
    TooMuchOutput {
        /// The program's name.
        name: String,
        /// The agreed limit in bytes.
        max: usize,
    },
    /// It could not be started or watched.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// An exit, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitText(pub Exit);

impl std::fmt::Display for ExitText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

fn said(stderr: &str) -> String {
    if stderr.trim().is_empty() { String::new() } else { format!("; it said:\n{}", stderr.trim_end()) }
}

impl Toolbox {
    /// Makes a toolbox that searches these directories, in order, and hands `env` to every program, besides a plain
    /// `PATH` and `LC_ALL=C.UTF-8`.
    pub fn new(search: Vec<PathBuf>, env: Vec<(OsString, OsString)>) -> Self {
        let path = std::env::join_paths(&search).unwrap_or_default();
        let mut all = vec![("PATH".into(), path), ("LC_ALL".into(), "C.UTF-8".into())];
        all.extend(env);
        Self { search, env: all }
    }

    /// Finds a program by its name.
    pub fn find(&self, name: &str) -> Result<Tool, ToolError> {
        use std::os::unix::fs::PermissionsExt as _;
        let runs = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let program = self.search.iter().map(|dir| dir.join(name)).find(runs);
        match program {
            Some(program) => Ok(Tool::new(name, program, self.env.clone())),
            None => Err(ToolError::NotFound { name: name.to_owned() }),
        }
    }

    /// Returns the environment programs get.
    pub fn env(&self) -> &[(OsString, OsString)] {
        &self.env
    }
}

/// A program with its arguments.
#[derive(Debug)]
pub struct Tool {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    current_dir: PathBuf,
    deadline: Duration,
    stdout_max: usize,
    stdout: Option<File>,
    stdin: Option<Stdio>,
}

/// What writes a tool's standard input.
pub type Feed<'a> = Box<dyn FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'a>;

/// What a tool left.
#[derive(Debug)]
pub struct ToolOutput {
    /// Standard output, empty when it went to a file.
    pub stdout: Vec<u8>,
    /// The end of standard error.
    pub stderr: String,
}

impl Tool {
    /// Makes a tool of a program's file.
    pub fn new(name: &str, program: PathBuf, env: Vec<(OsString, OsString)>) -> Self {
        Self {
            name: name.to_owned(),
            program,
            args: Vec::new(),
            env,
            current_dir: PathBuf::from("/"),
            deadline: DEADLINE,
            stdout_max: STDOUT_BYTES_MAX,
            stdout: None,
            stdin: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory; `/` otherwise.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.current_dir = dir.to_owned();
        self
    }

    /// Sets the time the tool may take.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sends standard output to a file.
    #[must_use]
    pub fn stdout_file(mut self, file: File) -> Self {
        self.stdout = Some(file);
        self
    }

    /// Sets how much standard output is kept; more is an error.
    #[must_use]
    pub fn stdout_max(mut self, max: usize) -> Self {
        self.stdout_max = max;
        self
    }

    /// Reads standard input from a file; otherwise it is empty.
    #[must_use]
    pub fn stdin_file(mut self, file: File) -> Self {
        self.stdin = Some(Stdio::from(file));
        self
    }

    /// Returns how long it may run, and how many bytes of its standard output are taken.
    pub fn limits(&self) -> (Duration, usize) {
        (self.deadline, self.stdout_max)
    }

    /// Returns the program's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs the tool to its end. `line` is given each line of its standard error as it comes.
    pub fn run(self, cancel: &Cancel, line: &mut (dyn FnMut(&str) + Send)) -> Result<ToolOutput, ToolError> {
        self.run_fed(cancel, line, None)
    }

    /// Like [`Tool::run`], with `feed` writing the tool's standard input from another thread.
    pub fn run_fed(
        mut self,
        cancel: &Cancel,
        line: &mut (dyn FnMut(&str) + Send),
        feed: Option<Feed<'_>>,
    ) -> Result<ToolOutput, ToolError> {
        if cancel.is_cancelled() {
            return Err(ToolError::Cancelled { name: self.name });
        }
        #[expect(clippy::disallowed_methods, reason = "this is where programs are run")]
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env.iter().map(|(k, v)| (k, v)));
        command.current_dir(&self.current_dir).stderr(Stdio::piped());
        command.stdin(match (&feed, self.stdin.take()) {
            (Some(_), _) => Stdio::piped(),
            (None, Some(stdin)) => stdin,
            (None, None) => Stdio::null(),
        });
        command.stdout(self.stdout.take().map_or_else(Stdio::piped, Stdio::from));
        bind(&mut command, Bond::DiesWithParent);
        let mut inner = command.spawn().at("start", &self.program)?;
        let (stdout, stderr) = (inner.stdout.take(), inner.stderr.take());
        let mut child = Child::adopt(inner, &self.program)?;
        let stdin = child.stdin();
        let max = self.stdout_max;
        let (ending, stdout, stderr, fed) = std::thread::scope(|scope| {
            let out = scope.spawn(move || stdout.map_or(Ok(Vec::new()), |pipe| read_all(pipe, max)));
            let err = scope.spawn(move || stderr.map_or(String::new(), |pipe| read_lines(pipe, line)));
            let fed = scope.spawn(move || match (feed, stdin) {
                (Some(feed), Some(mut stdin)) => feed(&mut stdin),
                _ => Ok(()),
            });
            let ending = watch(&mut child, cancel, self.deadline);
            // Whatever the tool started goes with it, so that the pipes close.
            kill_group(child.id());
            let join = "a reader of a pipe does not panic";
            (ending, out.join().expect(join), err.join().expect(join), fed.join().expect(join))
        });
        let name = self.name;
        let exit = match ending.at("wait for", &self.program)? {
            Ending::Exit(exit) => exit,
            Ending::Cancelled => return Err(ToolError::Cancelled { name }),
            Ending::TimedOut => return Err(ToolError::TimedOut { name, after: self.deadline, stderr }),
        };
        if exit != Exit::Code(0) {
            return Err(ToolError::Failed { name, exit: ExitText(exit), stderr });
        }
        match fed {
            // A tool that succeeded without reading everything has what it wanted.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(error).at("write the input of", &self.program).map_err(Into::into);
            }
            _ => {}
        }
        match stdout.at("read the output of", &self.program)? {
            stdout if stdout.len() > max => Err(ToolError::TooMuchOutput { name, max }),
            stdout => Ok(ToolOutput { stdout, stderr }),
        }
    }
}

enum Ending {
    Exit(Exit),
    Cancelled,
    TimedOut,
}

fn watch(child: &mut Child, cancel: &Cancel, deadline: Duration) -> io::Result<Ending> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(exit) = child.try_wait()? {
            return Ok(Ending::Exit(exit));
        }
        let left = until.saturating_duration_since(Instant::now());
        let ending = match (cancel.is_cancelled(), left.is_zero()) {
            (true, _) => Some(Ending::Cancelled),
            (_, true) => Some(Ending::TimedOut),
            _ => None,
        };
        if let Some(ending) = ending {
            kill_group(child.id());
            child.wait()?;
            return Ok(ending);
        }
        let (pidfd, cancelled) = (child.pidfd(), cancel.fd());
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&cancelled, PollFlags::IN)];
        poll_within(&mut fds, Some(left))?;
    }
}

fn read_all(mut pipe: impl Read, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.by_ref().take(max as u64 + 1).read_to_end(&mut bytes)?;
    // Read on, so that the tool is not stopped by a full pipe before its exit code tells more.
    io::copy(&mut pipe, &mut io::sink())?;
    Ok(bytes)
}

fn read_lines(mut pipe: impl Read, line: &mut (dyn FnMut(&str) + Send)) -> String {
    let mut tail: Vec<u8> = Vec::new();
    let mut partial: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut buffer) {
        tail.extend_from_slice(&buffer[..read]);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
        for byte in &buffer[..read] {
            match byte {
                b'\n' | b'\r' => {
                    line(&String::from_utf8_lossy(&partial));
                    partial.clear();
                }
                byte if partial.len() < 1024 => partial.push(*byte),
                _ => {}
            }
        }
    }
    String::from_utf8_lossy(&tail).into_owned()
}

/// A directory of its own under a parent, removed with its content when dropped.
#[derive(Debug)]
pub struct ScratchDir(PathBuf);

impl ScratchDir {
    /// Makes the directory.
    pub fn new(parent: &Path) -> IoResult<Self> {
        let path = parent.join(format!("kiln-{}", clock::random_hex::<8>()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // A destructor cannot report; what stays is named `kiln-…` in the parent.
        let _ = fs::remove_tree(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Tool {
        Toolbox::default().find("sh").unwrap().arg("-c").arg(script)
    }

    #[test]
    fn exit_code_and_last_words_come_back() {
        let cancel = Cancel::new().unwrap();
        let mut lines = Vec::new();
        let error =
            sh("echo one >&2; echo two >&2; exit 3").run(&cancel, &mut |line| lines.push(line.to_owned()));
        let message = error.unwrap_err().to_string();
        assert_eq!(message, "`sh` failed: exit code 3; it said:\none\ntwo");
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn the_environment_is_cleared() {
        let cancel = Cancel::new().unwrap();
        let out = Toolbox::default().find("env").unwrap().env("A", "1").run(&cancel, &mut |_| ()).unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let mut keys: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["A", "LC_ALL", "PATH"]);
    }

    #[test]
    fn a_deadline_and_a_cancellation_kill_the_whole_group() {
        let cancel = Cancel::new().unwrap();
        let slow = sh("sleep 1000 & sleep 1000").deadline(Duration::from_millis(50));
        assert!(matches!(slow.run(&cancel, &mut |_| ()), Err(ToolError::TimedOut { .. })));
        let flag = cancel.clone();
        let cancelled = sh("echo up >&2; sleep 1000 & sleep 1000").run(&cancel, &mut |_| flag.cancel());
        assert!(matches!(cancelled, Err(ToolError::Cancelled { .. })));
    }

    #[test]
    fn input_is_fed_and_output_is_capped() {
        let cancel = Cancel::new().unwrap();
        let cat = Toolbox::default().find("cat").unwrap();
        let out =
            cat.run_fed(&cancel, &mut |_| (), Some(Box::new(|stdin| stdin.write_all(b"hello")))).unwrap();
        assert_eq!(out.stdout, b"hello");
        let large = sh("head -c 100000 /dev/zero").stdout_max(10).run(&cancel, &mut |_| ());
        assert!(matches!(large, Err(ToolError::TooMuchOutput { .. })));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Toolbox::default().find("no-such-program").unwrap_err();
        assert_eq!(error.to_string(), "program `no-such-program` is not installed");
    }
}
