//! The guest's console, for what cannot be said over the channel.

use std::io::Write;

/// Writes a line to stderr, which is the console when the agent is PID 1.
pub(super) fn log(text: impl AsRef<str>) {
    // No one is left to tell when the console is gone.
    let _ = writeln!(std::io::stderr(), "kiln: {}", text.as_ref());
}
