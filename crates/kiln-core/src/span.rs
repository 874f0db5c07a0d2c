//! Spans of time as people write them: `30s`, `2m`, `12h`, `7d`, `4w`, `0`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A span of time of whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct TimeSpan(Duration);

/// A text that is not a span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a span of time: a whole number with s, m, h, d or w is, such as 30m or 7d, and 0")]
pub struct InvalidSpan(String);

/// The longest span, in seconds: a thousand years.
const SECONDS_MAX: u64 = 1000 * 366 * 86_400;
const UNITS: [(char, u64); 5] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)];

impl TimeSpan {
    /// Wraps a number of seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns the span.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for TimeSpan {
    type Err = InvalidSpan;

    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        if text == "0" {
            return Ok(Self::default());
        }
        let invalid = || InvalidSpan(crate::text::clip(text));
        let (digits, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((text.strip_suffix(*unit)?, *factor)))
            .ok_or_else(invalid)?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let seconds = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(factor));
        seconds.filter(|seconds| *seconds <= SECONDS_MAX).map(Self::from_secs).ok_or_else(invalid)
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds == 0 {
            return f.write_str("0");
        }
        let (unit, factor) =
            UNITS.iter().rev().find(|(_, factor)| seconds.is_multiple_of(*factor)).unwrap_or(&UNITS[0]);
        write!(f, "{}{unit}", seconds / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_printed() {
        for (text, seconds, printed) in [
            ("0", 0, "0"),
            ("90s", 90, "90s"),
            ("120s", 120, "2m"),
            ("36h", 129_600, "36h"),
            ("7d", 604_800, "1w"),
            ("0d", 0, "0"),
        ] {
            let span: TimeSpan = text.parse().unwrap();
            assert_eq!((span, span.to_string().as_str()), (TimeSpan::from_secs(seconds), printed));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "d", "5", "1.5h", "-1d", "+1d", "1 d", "1D", "5ms", "99999999999999999999d", "60000w"]
        {
            assert!(text.parse::<TimeSpan>().is_err(), "{text}");
        }
    }
}
