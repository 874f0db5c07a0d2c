//! Signals that cancel the work, without a thread that waits for them.

use crate::Cancel;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Has each of these signals set `cancel` from now on, for the life of the process, while `handed_on` is not set:
/// somebody else looks after them then.
///
/// # Errors
/// For a signal that the kernel or the registry of handlers lets nobody take.
pub fn cancel_on(signals: &[i32], cancel: &Cancel, handed_on: &Arc<AtomicBool>) -> io::Result<()> {
    for &signal in signals {
        let (cancel, handed_on) = (cancel.clone(), Arc::clone(handed_on));
        let act = move || {
            if !handed_on.load(Ordering::SeqCst) {
                cancel.cancel();
            }
        };
        #[expect(unsafe_code, reason = "what runs in a handler of signals is the caller's to answer for")]
        // SAFETY: the action loads and stores atomics and writes to an eventfd by a bare system call that leaves errno
        // alone: it neither allocates, locks nor panics.
        unsafe {
            signal_hook::low_level::register(signal, act)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::consts::SIGUSR2;
    use signal_hook::low_level::raise;

    #[test]
    fn a_signal_cancels_unless_somebody_else_looks_after_it() {
        let (cancel, handed_on) = (Cancel::new().unwrap(), Arc::new(AtomicBool::new(true)));
        cancel_on(&[SIGUSR2], &cancel, &handed_on).unwrap();
        raise(SIGUSR2).unwrap();
        assert!(!cancel.is_cancelled());
        handed_on.store(false, Ordering::SeqCst);
        raise(SIGUSR2).unwrap();
        assert!(cancel.is_cancelled());
        assert!(crate::lock::wait_cancelled(&cancel, std::time::Duration::from_secs(60)));
    }

    #[test]
    fn a_signal_that_cannot_be_taken_is_refused() {
        let handed_on = Arc::new(AtomicBool::new(false));
        assert!(cancel_on(&[10_000], &Cancel::new().unwrap(), &handed_on).is_err());
    }
}
