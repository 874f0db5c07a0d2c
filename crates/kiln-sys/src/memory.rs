//! Memory as the kernel accounts for it: what a process has, and what this host or the caller's control group has left.

mod group;
mod host;
mod process;

pub use group::GroupMemory;
pub use host::HostMemory;
pub use process::{Process, ProcessMemory, ProcessMemoryError};

use kiln_core::ByteSize;

/// Returns the value of `key` in lines of the form `Key:   123 kB`; none where it is not there or not a number.
fn kib_line(text: &str, key: &str) -> Option<ByteSize> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let number = rest.trim().strip_suffix("kB")?.trim_end();
    Some(ByteSize::from_bytes(decimal(number)?.checked_mul(1024)?))
}

/// Parses digits and nothing else: the library's parser also takes a sign.
fn decimal(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_kib_is_found_by_its_whole_key() {
        let text = "PssAnon:  1 kB\nPss:   478 kB\nBad: 4 MB\nSigned: +4 kB\nEmpty: kB\nHuge: 18446744073709551615 kB\n";
        assert_eq!(kib_line(text, "Pss"), Some(ByteSize::from_bytes(478 << 10)));
        for key in ["PssA", "Rss", "Bad", "Signed", "Empty", "Huge", ""] {
            assert_eq!(kib_line(text, key), None, "{key}");
        }
    }
}
