//! Days of the calendar.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Days from 1970-01-01 to 9999-12-31.
const DAYS_MAX: u64 = 2_932_896;

/// A day: `2029-05-31`. Days are ordered as time goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

/// A text that is no day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a day such as 2029-05-31")]
pub struct InvalidDate(String);

fn days_of(year: u16, month: u8) -> u8 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

impl Date {
    /// Returns the day, in UTC, so many seconds after 1970 began. What is later than the last day that can be written,
    /// 9999-12-31, is that day.
    pub fn of_unix_seconds(seconds: u64) -> Self {
        // Eras of 400 years, counted from a first of March, so that the leap day is a year's last.
        let days = (seconds / 86_400).min(DAYS_MAX) + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let shifted = (5 * day + 2) / 153;
        let day = day - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year + era * 400 + u64::from(month <= 2);
        let small = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
        Self { year: u16::try_from(year).unwrap_or(u16::MAX), month: small(month), day: small(day) }
    }

    /// Returns the seconds from the beginning of 1970 to the beginning of the day, in UTC; none for a day before.
    pub fn unix_seconds(self) -> Option<u64> {
        // As above: years begin with March.
        let (year, month) = (u64::from(self.year), u64::from(self.month));
        let year = if month <= 2 { year.checked_sub(1)? } else { year };
        let shifted = (month + 9) % 12;
        let day = (153 * shifted + 2) / 5 + u64::from(self.day) - 1;
        let days = year * 365 + year / 4 - year / 100 + year / 400 + day;
        Some(days.checked_sub(719_468)? * 86_400)
    }
}

impl FromStr for Date {
    type Err = InvalidDate;

    fn from_str(text: &str) -> Result<Self, InvalidDate> {
        let invalid = || InvalidDate(crate::text::clip(text));
        let digits = |range: std::ops::Range<usize>| {
            text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit())).ok_or_else(invalid)
        };
        if text.len() != 10 || text.as_bytes()[4] != b'-' || text.as_bytes()[7] != b'-' {
            return Err(invalid());
        }
        let year = digits(0..4)?.parse().map_err(|_| invalid())?;
        let month = digits(5..7)?.parse().map_err(|_| invalid())?;
        let day = digits(8..10)?.parse().map_err(|_| invalid())?;
        if !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day) {
            return Err(invalid());
        }
        Ok(Self { year, month, day })
    }
}

impl TryFrom<String> for Date {
    type Error = InvalidDate;

    fn try_from(text: String) -> Result<Self, InvalidDate> {
        text.parse()
    }
}

impl From<Date> for String {
    fn from(date: Date) -> Self {
        date.to_string()
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_parsed_ordered_and_printed() {
        for text in ["1970-01-01", "2024-02-29", "2000-02-29", "2026-12-31"] {
            assert_eq!(text.parse::<Date>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "2026-1-01",
            "2026-13-01",
            "2026-00-01",
            "2025-02-29",
            "1900-02-29",
            "2026-04-31",
            "+026-01-01",
            "2026/01/01",
            "2026-01-011",
            "２026-01-0",
        ] {
            assert!(text.parse::<Date>().is_err(), "{text}");
        }
        assert!("2026-02-28".parse::<Date>().unwrap() < "2026-03-01".parse().unwrap());
    }

    #[test]
    fn seconds_have_a_day() {
        for (seconds, text) in [
            (0, "1970-01-01"),
            (86399, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_700_000_000, "2023-11-14"),
            (1_709_251_199, "2024-02-29"),
            (4_102_444_800, "2100-01-01"),
            (4_294_967_295, "2106-02-07"),
            (253_402_300_799, "9999-12-31"),
            (253_402_300_800, "9999-12-31"),
            (u64::MAX, "9999-12-31"),
        ] {
            assert_eq!(Date::of_unix_seconds(seconds).to_string(), text);
        }
    }
}
