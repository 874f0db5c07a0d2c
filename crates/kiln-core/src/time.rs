//! Times as people write them.

use std::str::FromStr;
use std::time::Duration;

/// The longest time that is taken, in milliseconds: a day.
pub const MILLISECONDS_MAX: u64 = 86_400_000;

/// A time of 1 to [`MILLISECONDS_MAX`] milliseconds. Written as `500ms`, `30s` or `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Milliseconds(u64);

/// A text that is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time: 500ms, 30s and 2m are")]
pub struct InvalidTime(String);

impl Milliseconds {
    /// Returns the number of milliseconds.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<Milliseconds> for Duration {
    fn from(time: Milliseconds) -> Self {
        Self::from_millis(time.0)
    }
}

impl FromStr for Milliseconds {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            _ => 0,
        };
        let milliseconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
        milliseconds
            .filter(|count| (1..=MILLISECONDS_MAX).contains(count))
            .map(Self)
            .ok_or_else(|| InvalidTime(crate::text::clip(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_a_most() {
        for (text, count) in [("1ms", 1), ("30s", 30_000), ("2m", 120_000), ("1440m", MILLISECONDS_MAX)] {
            assert_eq!(text.parse::<Milliseconds>().unwrap().get(), count);
        }
        for text in ["", "5", "0s", "-1s", "1h", "1441m", "86400001ms", "s", "1 s", "99999999999999999999s"] {
            assert!(text.parse::<Milliseconds>().is_err(), "{text}");
        }
    }
}
