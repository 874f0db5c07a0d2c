//! The bytes of a block table: `docs/formats/blocks.md`.

use super::bits::{BitReader, BitWriter};
use super::{
    BLOCKS_MAX, BlockTable, DataRun, FINGERPRINT_BITS, MAGIC, RANK_BITS, TABLE_BYTES_MAX, block_count,
    fingerprint_of, rank_of,
};
use crate::index::LENGTH_MAX;
use kiln_core::Digest;

/// Bytes before the runs.
const HEADER_BYTES: usize = 64;
/// Bytes of the check sum at the end.
const CHECK_BYTES: usize = 16;
/// The longest number in a run, in bytes: 35 bits, more than any block number has.
const VARINT_BYTES_MAX: usize = 5;

/// Why bytes are not a block table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBlockTable {
    /// Other first bytes.
    #[error("it does not begin as a block table of version 1")]
    Magic,
    /// More bytes than [`TABLE_BYTES_MAX`].
    #[error("it has {0} bytes, more than {TABLE_BYTES_MAX}")]
    TooLarge(u64),
    /// Fewer bytes than its counts need.
    #[error("it has {0} bytes, which does not fit its counts")]
    Size(u64),
    /// Bytes that were changed.
    #[error("its check sum is another")]
    Check,
    /// An artifact longer than an index describes.
    #[error("it describes {0} bytes, more than {LENGTH_MAX}")]
    Length(u64),
    /// More data blocks than [`BLOCKS_MAX`] or than the artifact has.
    #[error("it names {0} data blocks, more than its artifact has or more than {BLOCKS_MAX}")]
    Blocks(u64),
    /// A run that is empty, touches the one before, lies outside, or is not written in the shortest way.
    #[error("run {0} is not canonical")]
    Run(u64),
    /// A fingerprint out of order or too large, or a rank that is there twice.
    #[error("fingerprint {0} is not canonical")]
    Fingerprint(u64),
    /// Something after the last fingerprint.
    #[error("something follows its fingerprints")]
    Trailing,
}

impl BlockTable {
    /// Returns the canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.runs.len() * 4 + self.keys.len() * 6);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(self.artifact.as_bytes());
        for number in [self.length, self.data_blocks(), self.runs.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let mut position = 0;
        for run in &self.runs {
            write_varint(&mut bytes, run.blocks.start - position);
            write_varint(&mut bytes, run.blocks.end - run.blocks.start);
            position = run.blocks.end;
        }
        let widths = Widths::of(self.data_blocks());
        let mut writer = BitWriter::new(&mut bytes);
        let mut before = 0;
        for key in &self.keys {
            let fingerprint = fingerprint_of(*key).0;
            let gap = fingerprint - before;
            writer.write_unary(gap >> widths.low);
            writer.write(gap & ((1 << widths.low) - 1), widths.low);
            writer.write(rank_of(*key), widths.rank);
            before = fingerprint;
        }
        writer.finish();
        let check = check_sum(&bytes);
        bytes.extend_from_slice(&check);
        bytes
    }

    /// Parses a table; bytes that another table would not produce are refused. Allocates no more than a few times the
    /// bytes that are there.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidBlockTable> {
        let have = bytes.len() as u64;
        if bytes.get(..8) != Some(&MAGIC) {
            return Err(InvalidBlockTable::Magic);
        }
        if bytes.len() > TABLE_BYTES_MAX {
            return Err(InvalidBlockTable::TooLarge(have));
        }
        if bytes.len() < HEADER_BYTES + CHECK_BYTES {
            return Err(InvalidBlockTable::Size(have));
        }
        let (body, check) = bytes.split_at(bytes.len() - CHECK_BYTES);
        if check != check_sum(body) {
            return Err(InvalidBlockTable::Check);
        }
        let (header, mut rest) = body.split_at(HEADER_BYTES);
        let mut artifact = [0; 32];
        artifact.copy_from_slice(&header[8..40]);
        let [length, count, run_count] = [40, 48, 56].map(|at| word(header, at));
        if length > LENGTH_MAX {
            return Err(InvalidBlockTable::Length(length));
        }
        if count > BLOCKS_MAX || count > block_count(length) {
            return Err(InvalidBlockTable::Blocks(count));
        }
        let widths = Widths::of(count);
        let least =
            (count * u64::from(widths.least())).div_ceil(8).saturating_add(run_count.saturating_mul(2));
        if least > rest.len() as u64 {
            return Err(InvalidBlockTable::Size(have));
        }
        let runs = read_runs(&mut rest, run_count, count, block_count(length))?;
        let keys = read_keys(rest, count, widths)?;
        Ok(Self { artifact: Digest::from_bytes(artifact), length, runs, keys })
    }
}

/// The widths of the parts of an entry, in bits.
#[derive(Debug, Clone, Copy)]
struct Widths {
    /// The lower part of a gap; the upper part is unary, less than two bits on average.
    low: u32,
    /// The rank.
    rank: u32,
}

impl Widths {
    fn of(count: u64) -> Self {
        let bits = |number: u64| u64::BITS - number.leading_zeros();
        Self { low: FINGERPRINT_BITS - bits(count), rank: bits(count.saturating_sub(1)) }
    }

    /// The least bits that an entry takes.
    fn least(self) -> u32 {
        1 + self.low + self.rank
    }
}

fn read_runs(
    rest: &mut &[u8],
    run_count: u64,
    count: u64,
    total: u64,
) -> Result<Vec<DataRun>, InvalidBlockTable> {
    let mut runs = Vec::new();
    let (mut position, mut rank) = (0, 0);
    for number in 0..run_count {
        let invalid = InvalidBlockTable::Run(number);
        let (Some(hole), Some(data)) = (read_varint(rest), read_varint(rest)) else { return Err(invalid) };
        let start = position + hole;
        let end = start + data;
        if (hole == 0 && number > 0) || data == 0 || end > total || data > count - rank {
            return Err(invalid);
        }
        runs.push(DataRun { blocks: start..end, rank });
        (position, rank) = (end, rank + data);
    }
    if rank == count { Ok(runs) } else { Err(InvalidBlockTable::Blocks(count)) }
}

fn read_keys(bytes: &[u8], count: u64, widths: Widths) -> Result<Vec<u64>, InvalidBlockTable> {
    let mut reader = BitReader::new(bytes);
    let mut keys = Vec::new();
    let mut seen = vec![0_u64; usize::try_from(count.div_ceil(64)).unwrap_or(0)];
    let mut before = 0;
    for number in 0..count {
        let invalid = InvalidBlockTable::Fingerprint(number);
        let most = ((1 << FINGERPRINT_BITS) - 1 - before) >> widths.low;
        let (Some(high), Some(low), Some(rank)) =
            (reader.read_unary(most), reader.read(widths.low), reader.read(widths.rank))
        else {
            return Err(invalid);
        };
        let fingerprint = before + (high << widths.low | low);
        if fingerprint >> FINGERPRINT_BITS != 0 || rank >= count {
            return Err(invalid);
        }
        let key = fingerprint << RANK_BITS | rank;
        let slot = usize::try_from(rank / 64).ok().and_then(|at| seen.get_mut(at));
        let taken =
            slot.is_none_or(|word| std::mem::replace(word, *word | 1 << (rank % 64)) >> (rank % 64) & 1 == 1);
        if taken || keys.last().is_some_and(|last| *last >= key) {
            return Err(invalid);
        }
        keys.push(key);
        before = fingerprint;
    }
    if reader.is_finished() { Ok(keys) } else { Err(InvalidBlockTable::Trailing) }
}

fn check_sum(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECK_BYTES]);
    check
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Writes seven bits a byte, the lowest first; the highest bit says that more follow.
fn write_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// Reads a number in its shortest form.
fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..VARINT_BYTES_MAX {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return (*byte != 0 || place == 0).then_some(number);
        }
    }
    None
}
