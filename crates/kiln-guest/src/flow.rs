//! Flow control: the sender's credit and the receiver's window of one direction of one stream.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::limits::{CREDIT_BATCH_BYTES, WINDOW_BYTES};

/// Locks a mutex; a panic elsewhere does not make the data unusable here, all updates are single steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a sender may still send.
#[derive(Debug)]
pub(crate) struct Credit {
    state: Mutex<CreditState>,
    changed: Condvar,
}

#[derive(Debug)]
struct CreditState {
    available: u32,
    closed: bool,
}

impl Default for Credit {
    fn default() -> Self {
        Self {
            state: Mutex::new(CreditState { available: WINDOW_BYTES, closed: false }),
            changed: Condvar::new(),
        }
    }
}

impl Credit {
    /// Waits for credit and takes up to `wanted` bytes of it; `None` once closed.
    pub(crate) fn take(&self, wanted: usize) -> Option<usize> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if state.available > 0 {
                let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
                let taken = wanted.min(state.available);
                state.available -= taken;
                return usize::try_from(taken).ok();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns credit; `false` when the other side returns more than it was sent.
    pub(crate) fn add(&self, bytes: u32) -> bool {
        let mut state = lock(&self.state);
        match state.available.checked_add(bytes) {
            Some(available) if available <= WINDOW_BYTES => state.available = available,
            _ => return false,
        }
        self.changed.notify_all();
        true
    }

    /// Puts back credit that was taken and not used.
    pub(crate) fn put_back(&self, bytes: usize) {
        let _ = self.add(u32::try_from(bytes).unwrap_or(0));
    }

    /// Wakes every waiter for good.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

/// What a receiver has been sent and has consumed.
#[derive(Debug, Default)]
pub(crate) struct Window {
    state: Mutex<WindowState>,
}

#[derive(Debug, Default)]
struct WindowState {
    /// Received and not yet returned as credit.
    outstanding: u32,
    /// Part of `outstanding` that is consumed.
    consumed: u32,
}

impl Window {
    /// Counts received bytes; `false` when the sender overran its credit.
    pub(crate) fn receive(&self, bytes: usize) -> bool {
        let mut state = lock(&self.state);
        let total = u32::try_from(bytes).ok().and_then(|bytes| state.outstanding.checked_add(bytes));
        match total {
            Some(total) if total <= WINDOW_BYTES => {
                state.outstanding = total;
                true
            }
            _ => false,
        }
    }

    /// Counts consumed bytes; returns the credit to send, if it is worth a frame.
    pub(crate) fn consume(&self, bytes: usize) -> Option<u32> {
        let mut state = lock(&self.state);
        state.consumed =
            state.consumed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX)).min(state.outstanding);
        if state.consumed < CREDIT_BATCH_BYTES {
            return None;
        }
        let credit = std::mem::take(&mut state.consumed);
        state.outstanding -= credit;
        Some(credit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_spent_and_returned() {
        let credit = Credit::default();
        let window = usize::try_from(WINDOW_BYTES).unwrap();
        assert_eq!(credit.take(10), Some(10));
        assert_eq!(credit.take(window), Some(window - 10));
        assert!(credit.add(5));
        assert_eq!(credit.take(window), Some(5));
        assert!(!credit.add(WINDOW_BYTES + 1));
        credit.close();
        assert_eq!(credit.take(1), None);
    }

    #[test]
    fn an_overrun_is_seen_and_credit_is_batched() {
        let window = Window::default();
        let batch = usize::try_from(CREDIT_BATCH_BYTES).unwrap();
        assert!(window.receive(batch * 4));
        assert!(!window.receive(1));
        assert_eq!(window.consume(batch - 1), None);
        assert_eq!(window.consume(1), Some(CREDIT_BATCH_BYTES));
        assert!(window.receive(batch));
        assert!(!window.receive(1));
    }
}
