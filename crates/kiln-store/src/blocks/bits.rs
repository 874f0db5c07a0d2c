//! A stream of bits: each byte is filled from its least significant bit.

/// Writes bits to the end of a list of bytes.
#[derive(Debug)]
pub(super) struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    pending: u128,
    held: u32,
}

/// Reads bits from bytes.
#[derive(Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    pending: u128,
    held: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, pending: 0, held: 0 }
    }

    /// Writes the lowest `width` bits of `value`, which has no others; at most 64.
    pub(super) fn write(&mut self, value: u64, width: u32) {
        self.pending |= u128::from(value) << self.held;
        self.held += width;
        while self.held >= 8 {
            self.bytes.push(self.pending.to_le_bytes()[0]);
            self.pending >>= 8;
            self.held -= 8;
        }
    }

    /// Writes `count` ones and a zero.
    pub(super) fn write_unary(&mut self, mut count: u64) {
        while count >= 63 {
            self.write(u64::MAX >> 1, 63);
            count -= 63;
        }
        let width = u32::try_from(count).unwrap_or(0);
        self.write((1 << width) - 1, width + 1);
    }

    /// Fills the last byte with zeros.
    pub(super) fn finish(mut self) {
        let rest = (8 - self.held % 8) % 8;
        self.write(0, rest);
    }
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pending: 0, held: 0 }
    }

    fn fill(&mut self) {
        if let Some((word, rest)) = self.bytes.split_first_chunk::<8>() {
            self.pending |= u128::from(u64::from_le_bytes(*word)) << self.held;
            (self.held, self.bytes) = (self.held + 64, rest);
        } else if let Some((byte, rest)) = self.bytes.split_first() {
            self.pending |= u128::from(*byte) << self.held;
            (self.held, self.bytes) = (self.held + 8, rest);
        }
    }

    /// Reads `width` bits, at most 63; `None` at the end.
    pub(super) fn read(&mut self, width: u32) -> Option<u64> {
        while self.held < width {
            if self.bytes.is_empty() {
                return None;
            }
            self.fill();
        }
        let value = u64::try_from(self.pending & ((1 << width) - 1)).ok()?;
        self.pending >>= width;
        self.held -= width;
        Some(value)
    }

    /// Reads ones up to a zero and returns how many; `None` at the end or above `most`.
    pub(super) fn read_unary(&mut self, most: u64) -> Option<u64> {
        let mut count = 0;
        loop {
            if self.held == 0 {
                self.fill();
            }
            let ones = self.pending.trailing_ones().min(self.held);
            count += u64::from(ones);
            if count > most || self.held == 0 {
                return None;
            }
            if ones < self.held {
                self.pending >>= ones + 1;
                self.held -= ones + 1;
                return Some(count);
            }
            (self.pending, self.held) = (0, 0);
        }
    }

    /// Returns whether what is left is the zeros that fill the last byte.
    pub(super) fn is_finished(&self) -> bool {
        self.bytes.is_empty() && self.held < 8 && self.pending == 0
    }
}
