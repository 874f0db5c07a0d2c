//! What an image's name stood for when it was looked up.

use super::Fingerprint;
use crate::date::Date;
use crate::image::ContentDigest;
use crate::text::clip;
use std::fmt;
use std::str::FromStr;

/// When the publisher says that what it publishes was made: `20261121T101500Z`, in UTC. Serials are ordered as time goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(u64);

/// A text that is no serial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a serial such as 20261121T101500Z")]
pub struct InvalidSerial(String);

/// The files that a name of the catalog stands for, all of one serial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePin {
    /// The disk image.
    pub disk: ContentDigest,
    /// The kernel, where it is not inside the image.
    pub kernel: Option<ContentDigest>,
    /// When its digests were signed; none where nobody signs.
    pub serial: Option<Serial>,
    /// Whose signature was found good.
    pub signer: Option<Fingerprint>,
}

/// A text that pins no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` pins no image: a digest is wanted, and perhaps `kernel=DIGEST`, `serial=TIME` and `signer=FINGERPRINT`"
)]
pub struct InvalidImagePin(String);

impl Serial {
    /// Returns the serial of so many seconds after 1970 began.
    pub fn of_unix_seconds(seconds: u64) -> Self {
        Self(seconds)
    }

    /// Returns the seconds since 1970 began.
    pub fn unix_seconds(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = Date::of_unix_seconds(self.0).to_string().replace('-', "");
        let second = self.0 % 86_400;
        write!(f, "{day}T{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }
}

impl FromStr for Serial {
    type Err = InvalidSerial;

    fn from_str(text: &str) -> Result<Self, InvalidSerial> {
        let invalid = || InvalidSerial(clip(text));
        let digits = |range: std::ops::Range<usize>| {
            text.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit())).ok_or_else(invalid)
        };
        if text.len() != 16 || text.as_bytes()[8] != b'T' || text.as_bytes()[15] != b'Z' {
            return Err(invalid());
        }
        let day = format!("{}-{}-{}", digits(0..4)?, digits(4..6)?, digits(6..8)?);
        let day: Date = day.parse().map_err(|_| invalid())?;
        let two = |range| digits(range)?.parse::<u64>().map_err(|_| invalid());
        let (hour, minute, second) = (two(9..11)?, two(11..13)?, two(13..15)?);
        if hour > 23 || minute > 59 || second > 59 {
            return Err(invalid());
        }
        let start = day.unix_seconds().ok_or_else(invalid)?;
        Ok(Self(start + hour * 3600 + minute * 60 + second))
    }
}

impl fmt::Display for ImagePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.disk)?;
        if let Some(kernel) = &self.kernel {
            write!(f, " kernel={kernel}")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, " serial={serial}")?;
        }
        self.signer.map_or(Ok(()), |signer| write!(f, " signer={signer}"))
    }
}

impl FromStr for ImagePin {
    type Err = InvalidImagePin;

    fn from_str(text: &str) -> Result<Self, InvalidImagePin> {
        let invalid = || InvalidImagePin(clip(text));
        let mut words = text.split(' ');
        let disk = words.next().unwrap_or_default().parse().map_err(|_| invalid())?;
        let mut pin = Self { disk, kernel: None, serial: None, signer: None };
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(invalid)?;
            let twice = match key {
                "kernel" => pin.kernel.replace(value.parse().map_err(|_| invalid())?).is_some(),
                "serial" => pin.serial.replace(value.parse().map_err(|_| invalid())?).is_some(),
                "signer" => pin.signer.replace(value.parse().map_err(|_| invalid())?).is_some(),
                _ => return Err(invalid()),
            };
            if twice {
                return Err(invalid());
            }
        }
        Ok(pin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_a_time_of_one_form() {
        let serial = Serial::of_unix_seconds(1_795_256_100);
        assert_eq!(serial.to_string(), "20261121T101500Z");
        assert_eq!(serial.to_string().parse(), Ok(serial));
        for seconds in [0, 59, 951_782_400, 4_102_444_799, 253_402_300_799] {
            let serial = Serial::of_unix_seconds(seconds);
            assert_eq!(serial.to_string().parse(), Ok(serial), "{seconds}");
        }
        for text in
            ["", "20261121", "20261121T101500", "20261121T241500Z", "20260230T000000Z", "2026112+T101500Z"]
        {
            assert!(text.parse::<Serial>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pin_is_read_as_it_is_written() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let signer = "0123456789ABCDEF0123456789ABCDEF01234567";
        for text in [
            digest.clone(),
            format!("{digest} serial=20261121T101500Z signer={signer}"),
            format!("{digest} kernel=sha512:{}", "b".repeat(128)),
        ] {
            let pin: ImagePin = text.parse().unwrap();
            assert_eq!(pin.to_string(), text);
        }
        for text in [
            "".to_owned(),
            "sha256:a".to_owned(),
            format!("{digest} "),
            format!("{digest} serial=x"),
            format!("{digest} more=1"),
            format!("{digest} serial=20261121T101500Z serial=20261121T101500Z"),
        ] {
            assert!(text.parse::<ImagePin>().is_err(), "{text}");
        }
    }
}
