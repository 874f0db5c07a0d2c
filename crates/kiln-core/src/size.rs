//! Sizes in bytes with units: `256M`, `1.5GiB` is refused, `4096K`. Units are powers of 1024.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSize {
    /// Not a whole number followed by a unit.
    #[error("`{0}` is not a size: a whole number with a unit is, such as 512K, 256M, 4G or 1T")]
    Form(String),
    /// More than 2^63 bytes.
    #[error("size `{0}` is larger than 8 EiB")]
    TooLarge(String),
}

const UNITS: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];

impl ByteSize {
    /// Wraps a number of bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }
    /// Returns the number of bytes that `mib` mebibytes are.
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }
    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
    /// Returns the number of whole mebibytes, rounded down.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
    /// Returns the size for people, with one decimal and a binary unit: `1.5 GiB`.
    pub fn human(self) -> String {
        if self.0 < 1024 {
            return format!("{} B", self.0);
        }
        let mut whole = self.0;
        let mut rest = 0;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            if whole < 1024 {
                break;
            }
            rest = whole % 1024;
            whole /= 1024;
            unit = next;
        }
        format!("{whole}.{} {unit}", rest * 10 / 1024)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let form = || InvalidSize::Form(crate::text::clip(text));
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() || number.len() > 20 {
            return Err(form());
        }
        let unit = unit
            .strip_suffix("iB")
            .or_else(|| unit.strip_suffix('B').filter(|u| u.is_empty()))
            .unwrap_or(unit);
        let shift = match unit {
            "" if text.ends_with('B') => 0,
            _ => UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, shift)| *shift)
                .ok_or_else(form)?,
        };
        let large = || InvalidSize::TooLarge(crate::text::clip(text));
        let number: u64 = number.parse().map_err(|_| large())?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes <= 1 << 63).map(Self).ok_or_else(large)
    }
}

impl fmt::Display for ByteSize {
    /// Prints the largest unit that loses nothing, a form that parses back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, shift) in UNITS.iter().rev() {
            if self.0 != 0 && self.0.trailing_zeros() >= *shift {
                return write!(f, "{}{name}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for ByteSize {
    /// Writes the number of bytes: manifests and records hold numbers, recipes hold text.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_binary_and_needed() {
        for (text, bytes) in [
            ("256M", 256 << 20),
            ("256MiB", 256 << 20),
            ("1g", 1 << 30),
            ("512K", 512 << 10),
            ("7B", 7),
            ("0K", 0),
            ("2T", 2 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "256", "2g2", "1.5G", "-1M", "M", "1Q", "1 G", "99999999999999999999999M", "1MB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert!(matches!("99999999999T".parse::<ByteSize>(), Err(InvalidSize::TooLarge(_))));
    }

    #[test]
    fn people_read_one_decimal() {
        assert_eq!(ByteSize::from_bytes(1536 << 20).human(), "1.5 GiB");
        assert_eq!(ByteSize::from_bytes(12).human(), "12 B");
    }

    proptest! {
        #[test]
        fn print_and_parse_agree(bytes in 0_u64..=1 << 63) {
            let size = ByteSize::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }
    }
}
