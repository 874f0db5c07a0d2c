//! One header block of tar, read and written: ustar, GNU and pax.

use std::io::Write as _;

/// The unit of tar.
pub(super) const BLOCK: usize = 512;

/// The fields of a header block. Names may be continued by extended headers.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) type_flag: u8,
    pub(super) mode: u64,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) device: (u64, u64),
    /// Whether GNU tar wrote it: only then is a sparse map within.
    pub(super) gnu: bool,
}

const NOT_A_NUMBER: &str = "a field of it is not a number";

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let byte = |(i, b): (usize, &u8)| if (148..156).contains(&i) { 32 } else { i64::from(*b) };
        let sum: i64 = block.iter().enumerate().map(byte).sum();
        if number(&block[148..156])? != sum {
            return Err("its checksum does not match");
        }
        let gnu = &block[257..265] == b"ustar  \0";
        let ustar = &block[257..263] == b"ustar\0";
        let mut path = until_zero(&block[..100]).to_vec();
        let prefix = until_zero(&block[345..500]);
        if ustar && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let positive = |field: &[u8]| number(field).and_then(|n| u64::try_from(n).map_err(|_| NOT_A_NUMBER));
        let device = match gnu || ustar {
            true => (positive(&block[329..337])?, positive(&block[337..345])?),
            false => (0, 0),
        };
        Ok(Self {
            path,
            link: until_zero(&block[157..257]).to_vec(),
            type_flag: block[156],
            mode: positive(&block[100..108])?,
            uid: positive(&block[108..116])?,
            gid: positive(&block[116..124])?,
            size: positive(&block[124..136])?,
            mtime: number(&block[136..148])?,
            device,
            gnu,
        })
    }
}

/// Pairs of offset and length in a block, up to the first that is empty: a sparse map of GNU tar.
pub(super) fn sparse_pairs(area: &[u8]) -> Result<Vec<(u64, u64)>, &'static str> {
    let mut pairs = Vec::new();
    for pair in area.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let positive = |field| number(field).and_then(|n| u64::try_from(n).map_err(|_| NOT_A_NUMBER));
        pairs.push((positive(&pair[..12])?, positive(&pair[12..])?));
    }
    Ok(pairs)
}

/// The part of a header, or of a block that continues its map, that says how large a sparse file is.
pub(super) fn sparse_size(block: &[u8; BLOCK]) -> Result<u64, &'static str> {
    number(&block[483..495]).and_then(|n| u64::try_from(n).map_err(|_| NOT_A_NUMBER))
}

pub(super) fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(bytes)
}

/// Reads an octal number, or the binary form of GNU tar.
fn number(field: &[u8]) -> Result<i64, &'static str> {
    match field[0] {
        0x80 | 0xff => {
            let (high, low) = field.split_at(field.len().saturating_sub(8));
            let fill = if field[0] == 0xff { 0xff } else { 0 };
            if high.iter().skip(1).any(|byte| *byte != fill) {
                return Err(NOT_A_NUMBER);
            }
            // A field of eight bytes has its mark in the number.
            let first = if high.is_empty() { fill } else { low[0] };
            let start = if fill == 0 { 0 } else { -1_i64 };
            let value =
                low[1..].iter().fold(start << 8 | i64::from(first), |sum, b| sum << 8 | i64::from(*b));
            if (value < 0) == (fill == 0xff) { Ok(value) } else { Err(NOT_A_NUMBER) }
        }
        _ => {
            let text = field.trim_ascii_start();
            let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (digits, rest) = text.split_at(digits);
            if rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
                return Err(NOT_A_NUMBER);
            }
            let octal = |sum: i64, byte: &u8| match byte {
                b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
                _ => None,
            };
            digits.iter().try_fold(0, octal).ok_or(NOT_A_NUMBER)
        }
    }
}

/// The largest number of a field of so many bytes, the zero at its end included.
pub(super) fn octal_max(width: usize) -> u64 {
    (1 << (3 * (width - 1))) - 1
}

impl Header {
    /// Writes the block. What does not fit its field has to be said by an extended header before it, and is left out here.
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let text = |field: &mut [u8], bytes: &[u8]| {
            let len = bytes.len().min(field.len());
            field[..len].copy_from_slice(&bytes[..len]);
        };
        let octal = |mut field: &mut [u8], value: u64| {
            let width = field.len() - 1;
            let value = if value > octal_max(field.len()) { 0 } else { value };
            // The field is as wide as what is written.
            let _ = write!(field, "{value:0width$o}\0");
        };
        text(&mut block[..100], &self.path);
        octal(&mut block[100..108], self.mode);
        octal(&mut block[108..116], self.uid);
        octal(&mut block[116..124], self.gid);
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], u64::try_from(self.mtime).unwrap_or(0));
        block[148..156].fill(b' ');
        block[156] = self.type_flag;
        text(&mut block[157..257], &self.link);
        text(&mut block[257..265], b"ustar\x0000");
        octal(&mut block[329..337], self.device.0);
        octal(&mut block[337..345], self.device.1);
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let _ = write!(&mut block[148..156], "{sum:06o}\0 ");
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"  644 \0\0"), Ok(0o644));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0x20, 0]), Ok(0x2000));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]), Err(NOT_A_NUMBER));
        assert!(number(b"12z").is_err());
        assert_eq!((octal_max(8), octal_max(12)), (0o7777777, 0o77777777777));
    }
}
