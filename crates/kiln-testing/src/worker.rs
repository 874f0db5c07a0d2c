//! Processes that do what a test orders, line by line, and that may die or stop while they do it.
//!
//! The test program is its own worker: a test of it that is ignored calls [`serve`], and [`Worker::spawn`] runs that
//! one test in a process of its own. Orders and answers are one line each, of the test's own making.

use rustix::process::{Pid, Signal, WaitOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What marks an answer among what the test harness says.
const ANSWER: &str = "answer: ";

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// With this answer.
    Answer(String),
    /// With the worker's death by this signal.
    Died(i32),
}

/// A worker. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this test program's test `name` as a worker.
    pub fn spawn(name: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, orders, answers }
    }

    /// Gives an order, without a look at what comes of it.
    pub fn order(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap();
    }

    /// Waits for the end of the order that was given.
    pub fn served(&mut self) -> Served {
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line).unwrap() == 0 {
                let status = self.child.wait().unwrap();
                return Served::Died(status.signal().unwrap_or_default());
            }
            if let Some(answer) = line.trim_end().strip_prefix(ANSWER) {
                return Served::Answer(answer.to_owned());
            }
        }
    }

    /// Waits until the worker stops itself; false when it ends instead.
    pub fn stopped(&mut self) -> bool {
        let pid = Pid::from_child(&self.child);
        let status = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
        status.is_some_and(|(_, status)| status.stopped())
    }

    /// Lets a stopped worker go on.
    pub fn go_on(&self) {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves the orders on standard input until it ends.
pub fn serve(mut serve_one: impl FnMut(&str) -> String) {
    for line in std::io::stdin().lines() {
        let answer = serve_one(&line.unwrap());
        // The harness may have begun a line of its own.
        writeln!(std::io::stdout(), "\n{ANSWER}{answer}").unwrap();
    }
}
