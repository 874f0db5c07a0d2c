//! Threads that serve streams, kept for the next stream for as long as the agent lives.
//!
//! A restored guest finds a waiting thread and has none to make.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::flow::lock;

/// Stack of a thread; the tar reader and serde need the most.
const STACK_BYTES: usize = 512 * 1024;

/// Threads kept waiting.
const WAITING_MAX: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Workers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads that wait for a job; there are never more jobs.
    waiting: usize,
    jobs: VecDeque<Job>,
}

impl Workers {
    /// Has a thread do a job at once.
    pub(super) fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.waiting > state.jobs.len() {
            state.jobs.push_back(Box::new(job));
            self.changed.notify_one();
            return Ok(());
        }
        drop(state);
        let workers = Arc::clone(self);
        let work = move || {
            job();
            while let Some(job) = workers.next() {
                job();
            }
        };
        thread::Builder::new().name("stream".to_owned()).stack_size(STACK_BYTES).spawn(work).map(|_| ())
    }

    /// Waits for a job; none when enough others wait.
    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        if state.waiting - state.jobs.len() >= WAITING_MAX {
            return None;
        }
        state.waiting += 1;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.waiting -= 1;
                return Some(job);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::mpsc;

    #[test]
    fn a_waiting_thread_does_the_next_job_and_a_busy_one_holds_up_none() {
        let workers = Arc::new(Workers::default());
        let (sender, done) = mpsc::channel();
        let mut threads = HashSet::new();
        for _ in 0..50 {
            let sender = sender.clone();
            workers.run(move || sender.send(thread::current().id()).unwrap()).unwrap();
            threads.insert(done.recv().unwrap());
            while lock(&workers.state).waiting == 0 {
                thread::yield_now();
            }
        }
        assert_eq!(threads.len(), 1);
        let (hold, held) = mpsc::channel::<()>();
        workers.run(move || assert!(held.recv().is_err())).unwrap();
        for _ in 0..3 {
            let sender = sender.clone();
            workers.run(move || sender.send(thread::current().id()).unwrap()).unwrap();
            done.recv().unwrap();
        }
        drop(hold);
    }
}
