//! Queue of encoded frames in front of a writer thread.
//!
//! Control frames never wait: data is bounded by credit, so the queue is too. A frame is pushed for an epoch
//! (a session); a new epoch drops what the old one left, so nothing stale is sent.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::flow::lock;
use crate::frame::Frame;

#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Vec<u8>>,
    bytes: usize,
    writing: bool,
    epoch: u64,
    closed: bool,
}

impl Outbox {
    /// `limit` is in bytes: [`Outbox::push_wait`] waits above it, [`Outbox::push_limited`] fails.
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limit }
    }

    /// Drops every queued frame and starts an epoch with a first frame; returns the epoch.
    pub(crate) fn begin(&self, first: &Frame) -> u64 {
        let mut state = lock(&self.state);
        state.queue.clear();
        state.bytes = 0;
        state.epoch += 1;
        let epoch = state.epoch;
        push(&mut state, first);
        self.changed.notify_all();
        epoch
    }

    /// Queues a frame at once; `false` when its epoch has passed or the outbox is closed.
    pub(crate) fn push(&self, epoch: u64, frame: &Frame) -> bool {
        let mut state = lock(&self.state);
        if state.closed || state.epoch != epoch {
            return false;
        }
        push(&mut state, frame);
        self.changed.notify_all();
        true
    }

    /// As [`Outbox::push`], but waits while the queue is over its limit.
    pub(crate) fn push_wait(&self, epoch: u64, frame: &Frame) -> bool {
        let mut state = lock(&self.state);
        while !state.closed && state.epoch == epoch && state.bytes > self.limit {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed || state.epoch != epoch {
            return false;
        }
        push(&mut state, frame);
        self.changed.notify_all();
        true
    }

    /// Queues bytes that are no frame.
    pub(crate) fn push_raw(&self, bytes: Vec<u8>) {
        let mut state = lock(&self.state);
        state.bytes += bytes.len();
        state.queue.push_back(bytes);
        self.changed.notify_all();
    }

    /// As [`Outbox::push`], but fails when the queue is over its limit.
    pub(crate) fn push_limited(&self, epoch: u64, frame: &Frame) -> bool {
        if lock(&self.state).bytes > self.limit {
            return false;
        }
        self.push(epoch, frame)
    }

    /// Ends the writer thread and every waiter; queued frames are dropped.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Waits until everything queued has been written; `false` at the deadline.
    pub(crate) fn wait_drained(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        while !state.closed && (state.writing || !state.queue.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        !state.closed
    }

    /// Writes frames until closed, which is `Ok`, or until the writer fails.
    pub(crate) fn run<W: Write + ?Sized>(&self, writer: &mut W) -> io::Result<()> {
        loop {
            let bytes = {
                let mut state = lock(&self.state);
                state.writing = false;
                self.changed.notify_all();
                loop {
                    if state.closed {
                        return Ok(());
                    }
                    if let Some(bytes) = state.queue.pop_front() {
                        state.bytes = state.bytes.saturating_sub(bytes.len());
                        state.writing = true;
                        break bytes;
                    }
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            writer.write_all(&bytes)?;
        }
    }
}

fn push(state: &mut State, frame: &Frame) {
    // Frames made here are within the limit: requests are checked, data is chunked, texts are clipped.
    if let Ok(bytes) = frame.encode() {
        state.bytes += bytes.len();
        state.queue.push_back(bytes);
    }
}
