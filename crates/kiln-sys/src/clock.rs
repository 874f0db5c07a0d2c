//! The wall clock and random bytes: the two facts of the host that no file holds.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the milliseconds since 1970 (UTC); 0 on a host whose clock stands before that.
pub fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Fills an array with random bytes from the kernel.
///
/// # Panics
/// When the kernel has no random source: nothing safe can be done without one.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::unwrap_used, reason = "a host without getrandom(2) cannot make identities")]
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// Returns `2 * N` random hexadecimal digits.
pub fn random_hex<const N: usize>() -> String {
    random::<N>().iter().map(|byte| format!("{byte:02x}")).collect()
}
