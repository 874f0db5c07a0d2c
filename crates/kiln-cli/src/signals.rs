//! Signals: Ctrl-C and its kin end the work in a state that can be taken up again.

use kiln_sys::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

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

/// Signals that cancel the work.
const CANCEL: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// The process's signals: they cancel the work, unless a handler takes them.
#[derive(Clone)]
pub(crate) struct SignalDesk {
    cancel: Cancel,
    handler: Arc<Mutex<Option<Handler>>>,
    /// Whether there is a handler: the signals are its thread's then.
    handed_on: Arc<AtomicBool>,
    /// Whether the handler's thread runs.
    watched: Arc<OnceLock<bool>>,
}

impl SignalDesk {
    /// Takes the process's signals.
    pub(crate) fn open(cancel: &Cancel) -> std::io::Result<Self> {
        let handed_on = Arc::new(AtomicBool::new(false));
        kiln_sys::signal::cancel_on(&CANCEL, cancel, &handed_on)?;
        let (cancel, handler, watched) = (cancel.clone(), Arc::default(), Arc::default());
        Ok(Self { cancel, handler, handed_on, watched })
    }

    /// Starts the thread that a handler runs in: most commands have none and end sooner without.
    fn watch(&self) -> std::io::Result<()> {
        let mut signals = Signals::new(CANCEL.into_iter().chain([SIGWINCH]))?;
        let desk = self.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                let mut handler = desk.handler.lock().unwrap_or_else(PoisonError::into_inner);
                let handled = handler.as_mut().map_or(Handled::No, |handler| handler(signal));
                if handled == Handled::No && signal != SIGWINCH {
                    desk.cancel.cancel();
                }
            }
        })?;
        Ok(())
    }

    /// Sends signals to `handler` from now on. Where no thread is to be had for it, they go on to cancel.
    pub(crate) fn handle(&self, handler: impl FnMut(i32) -> Handled + Send + 'static) {
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(handler));
        let watched = *self.watched.get_or_init(|| self.watch().is_ok());
        self.handed_on.store(watched, Ordering::SeqCst);
    }

    /// Lets signals cancel again.
    pub(crate) fn release(&self) {
        self.handed_on.store(false, Ordering::SeqCst);
        *self.handler.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
