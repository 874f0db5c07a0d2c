//! Processes that do what a test orders, line by line, and that may die or pause while they do it.
//!
//! The test program is its own worker: a test of it that is ignored calls [`serve`], and [`Worker::spawn`] runs that
//! one test in a process of its own. Orders and answers are one line each, of the test's own making.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What marks an answer among what the test harness says.
const ANSWER: &str = "answer: ";
/// The answer of a worker that waits in the middle of an order.
const PAUSED: &str = "paused";
/// The order that ends such a wait.
const GO_ON: &str = "go on";

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

    /// Waits until the worker pauses at what it does; false when it ends instead.
    pub fn paused(&mut self) -> bool {
        self.served() == Served::Answer(PAUSED.to_owned())
    }

    /// Lets a worker that paused go on.
    pub fn go_on(&mut self) {
        self.order(GO_ON);
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
    while let Some(line) = next_line() {
        answer(&serve_one(&line));
    }
}

/// In the middle of an order: says so, and waits until [`Worker::go_on`].
pub fn pause() {
    answer(PAUSED);
    assert_eq!(next_line().as_deref(), Some(GO_ON));
}

fn next_line() -> Option<String> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).unwrap();
    (read > 0).then(|| line.trim_end().to_owned())
}

fn answer(text: &str) {
    // The harness may have begun a line of its own.
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "\n{ANSWER}{text}").unwrap();
}
