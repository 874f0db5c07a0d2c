//! What the user sees: data on standard output, the rest on standard error.

use serde::Serialize;
use std::io::{self, IsTerminal as _, Write};

/// The version of what `--json` prints.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// Writes data to standard output. A reader that went away is no error: `kiln ls | head` is fine.
pub(crate) fn data(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes one line of data.
pub(crate) fn line(text: &str) {
    data(&format!("{text}\n"));
}

/// Writes a line for people to standard error.
pub(crate) fn tell(text: &str) {
    let mut out = io::stderr().lock();
    let _ = writeln!(out, "{text}");
}

/// An object of JSON with the version of its shape.
#[derive(Serialize)]
pub(crate) struct Versioned<T: Serialize> {
    schema_version: u32,
    #[serde(flatten)]
    content: T,
}

impl<T: Serialize> Versioned<T> {
    pub(crate) fn new(content: T) -> Self {
        Self { schema_version: SCHEMA_VERSION, content }
    }
}

/// Prints an object as JSON.
pub(crate) fn json<T: Serialize>(content: T) {
    print_json(&Versioned::new(content));
}

/// Prints an array of objects as JSON.
pub(crate) fn json_list<T: Serialize>(items: impl IntoIterator<Item = T>) {
    print_json(&items.into_iter().map(Versioned::new).collect::<Vec<_>>());
}

fn print_json(value: &impl Serialize) {
    #[expect(clippy::unwrap_used, reason = "what is printed is plain data")]
    let text = serde_json::to_string_pretty(value).unwrap();
    line(&text);
}

/// Whether standard error is a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Prints rows in aligned columns under a head.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    data(&aligned(head, rows));
}

/// Returns rows in aligned columns under a head.
pub(crate) fn aligned(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>| {
        let mut row = String::new();
        for (cell, width) in cells.zip(&widths) {
            row.push_str(cell);
            row.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    push(&mut head.iter().copied());
    for row in rows {
        push(&mut row.iter().map(String::as_str));
    }
    text
}

/// Returns how long ago a time was, for people.
pub(crate) fn ago(unix_ms: u64) -> String {
    let seconds = kiln_sys::clock::now_unix_ms().saturating_sub(unix_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Returns a short time span, given in microseconds, for people.
pub(crate) fn micros(us: u64) -> String {
    let ms = f64::from(u32::try_from(us).unwrap_or(u32::MAX)) / 1000.0;
    format!("{ms:.1} ms")
}

/// Returns a time span for people.
pub(crate) fn span(ms: u64) -> String {
    if ms < 1000 { format!("{ms} ms") } else { format!("{}.{} s", ms / 1000, ms % 1000 / 100) }
}

/// Writes bytes of data as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}
