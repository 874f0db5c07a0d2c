//! Makes output the same on every run: paths, digests, ids and times become words.

use crate::TestContext;

/// Returns `text` with what differs from run to run replaced.
pub fn plain(context: &TestContext, text: &str) -> String {
    let mut text = text.replace(&*context.home().to_string_lossy(), "[HOME]");
    text = text.replace(&*context.work().to_string_lossy(), "[WORK]");
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_hexdigit() && !c.is_ascii_uppercase() {
            word.push(c);
            continue;
        }
        match word.len() {
            64 => out.push_str("[DIGEST]"),
            12 if word.contains(|c: char| c.is_ascii_digit()) => out.push_str("[ID]"),
            _ => out.push_str(&word),
        }
        word.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    out
}
