//! A directory, a store and the program for one test.

use kiln_sys::tool::ScratchDir;
use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time any one command of a test may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(300);

/// What a finished command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code, or 128 and the signal's number.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Returns standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Returns standard error of a command that must have ended with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stderr
    }

    /// Returns standard output as JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap()
    }
}

/// A store of its own and the program, for one test. Dropping it ends the machines of the store.
#[derive(Debug)]
pub struct TestContext {
    dir: ScratchDir,
    program: PathBuf,
}

impl TestContext {
    /// Makes a context for the program at `program`.
    pub fn new(program: &str) -> Self {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        Self { dir, program: PathBuf::from(program) }
    }

    /// Returns the store's directory.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Returns the directory in which commands run.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Returns the program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Writes a file in the working directory.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Returns the program with the context's store and nothing of the test's environment.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.work()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("KILN_HOME", self.home()).env("HOME", self.work());
        command.stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn kiln<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.start(args).finish()
    }

    /// Runs the program with these variables too.
    #[track_caller]
    pub fn kiln_env<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        env: &[(&str, &str)],
    ) -> Output {
        let mut command = self.command(args);
        command.envs(env.iter().copied());
        Running::spawn(command).finish()
    }

    /// Runs the program with `input` on its standard input.
    #[track_caller]
    pub fn kiln_with_input<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: Vec<u8>,
    ) -> Output {
        let mut command = self.command(args);
        command.stdin(Stdio::piped());
        let mut running = Running::spawn(command);
        let mut stdin = running.child.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || {
            // A program that ends without reading is no fault of the test.
            let _ = stdin.write_all(&input);
        });
        let output = running.finish();
        feeder.join().unwrap();
        output
    }

    /// Starts the program.
    #[track_caller]
    pub fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        Running::spawn(self.command(args))
    }

    /// Lists what is staged in the store: nothing, while no command runs.
    pub fn staged(&self) -> Vec<String> {
        list(&self.home().join("staging"))
    }

    /// Lists the machines' directories.
    pub fn machine_dirs(&self) -> Vec<String> {
        list(&self.home().join("machines"))
    }

    /// Returns the processes whose command line names this context's directory, this test aside.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let needle = self.dir.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(bytes) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&bytes).replace('\0', " ");
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            let own = pid == std::process::id();
            if !own && (line.contains(&needle) || cwd.starts_with(&needle)) {
                found.push((pid, line));
            }
        }
        found
    }

    /// Waits until `condition` holds, looking again whenever a child could have changed it.
    #[track_caller]
    pub fn eventually(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begun = Instant::now();
        let cancel = kiln_sys::Cancel::new().unwrap();
        while !condition() {
            assert!(begun.elapsed() < Duration::from_secs(60), "not within 60 s: {what}");
            kiln_sys::lock::wait_cancelled(&cancel, Duration::from_millis(20));
        }
    }
}

impl Drop for TestContext {
    fn drop(&mut self) {
        if !self.machine_dirs().is_empty() {
            let _ =
                self.command(["rm", "--all", "--force"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

fn list(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A command that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Option<std::thread::JoinHandle<Vec<u8>>>,
    stderr: Option<std::thread::JoinHandle<Vec<u8>>>,
    seen: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
}

impl Running {
    #[track_caller]
    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let collect = |mut pipe: Box<dyn Read + Send>,
                       seen: Option<std::sync::Arc<std::sync::Mutex<Vec<u8>>>>| {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let mut buffer = [0; 64 << 10];
                while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                    all.extend_from_slice(&buffer[..read]);
                    if let Some(seen) = &seen {
                        seen.lock().unwrap().extend_from_slice(&buffer[..read]);
                    }
                }
                all
            })
        };
        let stdout = Some(collect(Box::new(child.stdout.take().unwrap()), Some(seen.clone())));
        let stderr = Some(collect(Box::new(child.stderr.take().unwrap()), Some(seen.clone())));
        Self { child, stdout, stderr, seen }
    }

    /// Returns what the command has said so far, on both outputs.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        use std::os::unix::process::ExitStatusExt as _;
        let begun = Instant::now();
        let pidfd =
            rustix::process::pidfd_open(Pid::from_child(&self.child), rustix::process::PidfdFlags::empty())
                .unwrap();
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        while self.child.try_wait().unwrap().is_none() {
            let left = COMMAND_WITHIN.saturating_sub(begun.elapsed());
            assert!(!left.is_zero(), "the command did not end; it said:\n{}", self.said());
            kiln_sys::process::poll_within(&mut fds, Some(left)).unwrap();
        }
        let status = self.child.wait().unwrap();
        let text = |thread: Option<std::thread::JoinHandle<Vec<u8>>>| {
            String::from_utf8_lossy(&thread.unwrap().join().unwrap()).into_owned()
        };
        Output {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
