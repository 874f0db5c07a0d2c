//! Progress: typed events that a terminal, a log or a test makes of what it wants.

pub use kiln_build::{BuildEvent, Reporter as BuildReporter};

use kiln_sys::lock::Holder;

/// Something worth telling while work goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A step began.
    Started {
        /// What it does.
        step: String,
    },
    /// A program of the current step said something.
    Said {
        /// Its words.
        line: String,
    },
    /// So much of a file is there.
    Bytes {
        /// The bytes that are there.
        have: u64,
        /// All, where that is known.
        total: Option<u64>,
    },
    /// The current step is done.
    Done {
        /// What it did.
        step: String,
        /// How long it took, in milliseconds.
        elapsed_ms: u64,
        /// What came of it: sizes, counts.
        result: String,
    },
    /// A fact worth a line.
    Note {
        /// The fact.
        text: String,
    },
    /// A machine that may begin as a snapshot boots, since none of those there are fits.
    Boots {
        /// Why the youngest does not.
        reason: String,
    },
    /// Somebody else holds what is needed.
    Waiting {
        /// Who.
        holder: String,
    },
}

/// Takes progress.
pub trait Reporter: Send + Sync {
    /// Takes one event.
    fn progress(&self, event: Progress);
}

/// A reporter that keeps silent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn progress(&self, _event: Progress) {}
}

/// Reports who holds a lock that is waited for.
pub(crate) fn waiting(reporter: &dyn Reporter) -> impl FnMut(&Holder) {
    |holder: &Holder| reporter.progress(Progress::Waiting { holder: holder.text.clone() })
}

/// Times a step and reports its begin and end.
pub(crate) fn step<T, E>(
    reporter: &dyn Reporter,
    name: &str,
    work: impl FnOnce() -> Result<(T, String), E>,
) -> Result<T, E> {
    reporter.progress(Progress::Started { step: name.to_owned() });
    let begun = std::time::Instant::now();
    let (value, result) = work()?;
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    reporter.progress(Progress::Done { step: name.to_owned(), elapsed_ms, result });
    Ok(value)
}
