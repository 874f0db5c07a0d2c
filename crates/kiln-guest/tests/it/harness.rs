//! Starts the agent in a directory of its own and cleans up behind it, whatever happens.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_guest::message::ExecRequest;
use kiln_guest::session::{ExecEvent, ExecOutcome, ExecStream};
use kiln_guest::{GuestPath, Session};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const OUTPUT_MAX: usize = 16 * 1024 * 1024;

pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub(crate) struct Agent {
    child: Child,
    dir: tempfile::TempDir,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &[])
    }

    /// Starts an agent whose guest is the directory `root`.
    pub(crate) fn start_pretended() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        Self::start_in(dir, &["--pretend-root".as_ref(), root.as_os_str()])
    }

    fn start_in(dir: tempfile::TempDir, options: &[&OsStr]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiln-agent"))
            .args(["serve", "--socket"])
            .arg(dir.path().join("agent.sock"))
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let socket = dir.path().join("agent.sock");
        let deadline = soon();
        while UnixStream::connect(&socket).is_err() {
            assert!(
                Instant::now() < deadline && child.try_wait().unwrap().is_none(),
                "the agent did not start"
            );
            tick();
        }
        Self { child, dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> GuestPath {
        GuestPath::new(self.file(name).to_str().unwrap()).unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn stream(&self) -> UnixStream {
        UnixStream::connect(self.file("agent.sock")).unwrap()
    }

    pub(crate) fn session(&self) -> Session {
        Session::connect(Box::new(self.stream()), soon()).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory of the agent in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn kill(&mut self) {
        let children = descendants(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in children {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

fn descendants(root: u32) -> Vec<Pid> {
    let mut found = vec![root];
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.push((pid, parent));
    }
    let mut index = 0;
    while let Some(&parent) = found.get(index) {
        found.extend(parents.iter().filter(|(_, p)| *p == Some(parent)).map(|(pid, _)| *pid));
        index += 1;
    }
    found.into_iter().skip(1).filter_map(|pid| Pid::from_raw(pid.try_into().ok()?)).collect()
}

/// Gives other processes a moment between two looks.
pub(crate) fn tick() {
    let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
}

/// Waits until a process has ended.
pub(crate) fn assert_ends(pid: u32) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "process {pid:?} is still there");
}

pub(crate) fn sh(script: &str) -> ExecRequest {
    ExecRequest::new(["sh", "-c", script])
}

pub(crate) fn run(session: &Session, request: ExecRequest) -> ExecOutcome {
    session.exec(request).unwrap().collect(OUTPUT_MAX, soon()).unwrap()
}

pub(crate) fn stdout_of(session: &Session, script: &str) -> String {
    let outcome = run(session, sh(script));
    assert!(outcome.status.success(), "{script}: {outcome:?}");
    String::from_utf8(outcome.stdout).unwrap()
}

/// Reads stdout until it contains a text; returns all of it.
pub(crate) fn read_until(stream: &mut ExecStream, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        match stream.recv().unwrap() {
            ExecEvent::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} after {text:?}"),
        }
    }
    text
}

/// Bytes no compression or repetition can fake.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}
