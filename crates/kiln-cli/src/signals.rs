//! Signals: Ctrl-C and its kin end the work in a state that can be taken up again.

use kiln_sys::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::Mutex;

/// What is done with a signal.
type Handler = Box<dyn FnMut(i32) -> Handled + Send>;

/// Whether a handler took a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handled {
    /// It did.
    Yes,
    /// It is up to the default: to cancel.
    No,
}

/// The process's signals: they cancel the work, unless a handler takes them.
#[derive(Clone)]
pub(crate) struct SignalDesk {
    handler: Arc<Mutex<Option<Handler>>>,
}

impl SignalDesk {
    /// Takes the process's signals.
    pub(crate) fn open(cancel: &Cancel) -> std::io::Result<Self> {
        let desk = Self { handler: Arc::new(Mutex::new(None)) };
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH])?;
        let (handler, cancel) = (Arc::clone(&desk.handler), cancel.clone());
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                let mut handler = handler.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let handled = handler.as_mut().map_or(Handled::No, |handler| handler(signal));
                if handled == Handled::No && signal != SIGWINCH {
                    cancel.cancel();
                }
            }
        })?;
        Ok(desk)
    }

    /// Sends signals to `handler` from now on.
    pub(crate) fn handle(&self, handler: impl FnMut(i32) -> Handled + Send + 'static) {
        *self.handler.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Box::new(handler));
    }

    /// Lets signals cancel again.
    pub(crate) fn release(&self) {
        *self.handler.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}
