//! How long a machine rests before its restart policy starts it again.

use std::time::Duration;

/// The first rest.
const FIRST: Duration = Duration::from_millis(100);
/// The longest rest.
const LONGEST: Duration = Duration::from_secs(60);
/// A machine that ran so long begins with the first rest again.
const STEADY_AFTER: Duration = Duration::from_secs(10);

/// Rests that double with each short run, from 100 ms to a minute.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// Returns the rest after a run of the given length.
    pub(super) fn after(&mut self, ran_for: Duration) -> Duration {
        let next = match self.last {
            Some(last) if ran_for < STEADY_AFTER => (last * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some(next);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_double_to_a_minute_and_begin_again_after_ten_seconds() {
        let mut backoff = Backoff::default();
        let short = STEADY_AFTER - Duration::from_millis(1);
        let rests: Vec<u128> = (0..12).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(rests, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(backoff.after(STEADY_AFTER), FIRST);
        assert_eq!(backoff.after(Duration::ZERO), 2 * FIRST);
    }
}
