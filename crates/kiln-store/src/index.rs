//! The index of an artifact: its length and the digests of its segments, holes run-length coded. The SHA-256 of the
//! index's bytes is the artifact's digest. `docs/formats/index.md` describes the bytes; the constants are part of the
//! format.

use kiln_core::Digest;
use std::ops::Range;

/// The unit of verification, in bytes.
pub const SEGMENT_BYTES: u64 = 64 << 10;
/// The first bytes of an index of version 1.
pub const MAGIC: [u8; 8] = *b"KILNIDX1";
/// The longest artifact an index describes: 64 TiB.
pub const LENGTH_MAX: u64 = 64 << 40;
/// The largest index that is read, in bytes: that of 512 GiB of data.
pub const INDEX_BYTES_MAX: usize = 256 << 20;

/// Bytes before the runs.
const HEADER_BYTES: usize = 24;
/// The bit of a run's word that tells data from a hole.
const DATA_BIT: u64 = 1 << 63;

/// The digest of one segment: BLAKE3 of its bytes, the last one's only up to the artifact's length.
pub type SegmentDigest = [u8; 32];

/// An artifact's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    length: u64,
    /// Segment numbers that hold data, in order, never touching: what touches is one run.
    data: Vec<Range<u64>>,
    /// One digest for each segment of `data`, in order.
    digests: Vec<SegmentDigest>,
}

/// Why bytes are not an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidIndex {
    /// Other first bytes.
    #[error("it does not begin as an index of version 1")]
    Magic,
    /// More or fewer bytes than its runs say.
    #[error("it has {have} bytes, its runs say {want}")]
    Size {
        /// Bytes there.
        have: u64,
        /// Bytes wanted.
        want: u64,
    },
    /// Longer than [`LENGTH_MAX`].
    #[error("it describes {0} bytes, more than {LENGTH_MAX}")]
    Length(u64),
    /// Runs that are empty, do not alternate, or do not add up to the length.
    #[error("run {0} is not canonical")]
    Run(u64),
}

impl Index {
    /// Makes an index of a file of `length` bytes from its segments, `None` for all-zero ones.
    ///
    /// # Panics
    /// When the number of segments is not that of the length.
    pub fn from_segments(length: u64, segments: impl IntoIterator<Item = Option<SegmentDigest>>) -> Self {
        let mut count = 0;
        let counted = (0_u64..).zip(segments).inspect(|(number, _)| count = number + 1);
        let index = Self::from_data_segments(
            length,
            counted.filter_map(|(number, digest)| digest.map(|digest| (number, digest))),
        );
        assert_eq!(count, segment_count(length), "one entry for each segment");
        index
    }

    /// Makes an index of a file of `length` bytes from its segments that are not all zero, in order.
    ///
    /// # Panics
    /// When the segments are out of order or beyond the length.
    pub fn from_data_segments(length: u64, segments: impl IntoIterator<Item = (u64, SegmentDigest)>) -> Self {
        let mut data: Vec<Range<u64>> = Vec::new();
        let mut digests = Vec::new();
        for (number, digest) in segments {
            digests.push(digest);
            match data.last_mut() {
                Some(run) if run.end == number => run.end += 1,
                last => {
                    assert!(last.is_none_or(|run| run.end < number), "segments come in order");
                    data.push(number..number + 1);
                }
            }
        }
        let end = data.last().map_or(0, |run| run.end);
        assert!(end <= segment_count(length), "segments lie in the artifact");
        Self { length, data, digests }
    }

    /// Returns the artifact's length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Returns the bytes of the segments that hold data.
    pub fn data_bytes(&self) -> u64 {
        self.data
            .iter()
            .map(|run| (run.end * SEGMENT_BYTES).min(self.length) - run.start * SEGMENT_BYTES)
            .sum()
    }

    /// Returns the segments that hold data with their digests.
    pub fn segments(&self) -> impl Iterator<Item = (u64, &SegmentDigest)> {
        self.data.iter().flat_map(Clone::clone).zip(&self.digests)
    }

    /// Returns the canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut runs = Vec::new();
        let mut position = 0;
        for run in &self.data {
            if run.start > position {
                runs.push(run.start - position);
            }
            runs.push((run.end - run.start) | DATA_BIT);
            position = run.end;
        }
        if segment_count(self.length) > position {
            runs.push(segment_count(self.length) - position);
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + runs.len() * 8 + self.digests.len() * 32);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.length.to_le_bytes());
        bytes.extend_from_slice(&(runs.len() as u64).to_le_bytes());
        for run in runs {
            bytes.extend_from_slice(&run.to_le_bytes());
        }
        for digest in &self.digests {
            bytes.extend_from_slice(digest);
        }
        bytes
    }

    /// Returns the artifact's digest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Parses an index; bytes that another index would not produce are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidIndex> {
        let have = bytes.len() as u64;
        let word = |at: usize| {
            let slice = bytes.get(at..at + 8)?;
            Some(u64::from_le_bytes(slice.try_into().ok()?))
        };
        if bytes.get(..8) != Some(&MAGIC) {
            return Err(InvalidIndex::Magic);
        }
        let short = |want| InvalidIndex::Size { have, want };
        let (Some(length), Some(run_count)) = (word(8), word(16)) else {
            return Err(short(HEADER_BYTES as u64));
        };
        if length > LENGTH_MAX {
            return Err(InvalidIndex::Length(length));
        }
        let runs_end = run_count.saturating_mul(8).saturating_add(HEADER_BYTES as u64);
        if runs_end > have {
            return Err(short(runs_end));
        }
        let mut data = Vec::new();
        let (mut position, mut data_segments, mut before) = (0_u64, 0_u64, None);
        let total = segment_count(length);
        for (number, word) in (0..run_count).zip(bytes[HEADER_BYTES..].chunks_exact(8)) {
            let word =
                u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
            let (is_data, count) = (word & DATA_BIT != 0, word & !DATA_BIT);
            let end = position.saturating_add(count);
            if count == 0 || before == Some(is_data) || end > total {
                return Err(InvalidIndex::Run(number));
            }
            if is_data {
                data.push(position..end);
                data_segments += count;
            }
            (position, before) = (end, Some(is_data));
        }
        if position != total {
            return Err(InvalidIndex::Run(run_count));
        }
        let want = data_segments.saturating_mul(32).saturating_add(runs_end);
        if want != have {
            return Err(short(want));
        }
        let digests_start = usize::try_from(runs_end).map_err(|_| short(want))?;
        let digests = bytes[digests_start..]
            .chunks_exact(32)
            .map(|chunk| {
                let mut digest = [0; 32];
                digest.copy_from_slice(chunk);
                digest
            })
            .collect();
        Ok(Self { length, data, digests })
    }
}

/// Returns how many segments a file of `length` bytes has.
pub fn segment_count(length: u64) -> u64 {
    length.div_ceil(SEGMENT_BYTES)
}

/// Returns a segment's digest, or `None` when all its bytes are zero.
pub fn segment_digest(bytes: &[u8]) -> Option<SegmentDigest> {
    if is_zero(bytes) { None } else { Some(*blake3::hash(bytes).as_bytes()) }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, tail) = bytes.as_chunks::<32>();
    chunks.iter().all(|chunk| *chunk == [0; 32]) && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index(length: u64, zero: impl Fn(u64) -> bool) -> Index {
        Index::from_segments(
            length,
            (0..segment_count(length))
                .map(|n| (!zero(n)).then(|| *blake3::hash(&n.to_le_bytes()).as_bytes())),
        )
    }

    /// Vectors of `docs/formats/index.md`: bytes and digests.
    #[test]
    fn vectors_are_pinned() {
        // BLAKE3 of `abc`, from the reference test vectors.
        const ABC: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        let abc = segment_digest(b"abc");
        let vectors = [
            (
                Index::from_segments(0, []),
                "4b494c4e49445831 0000000000000000 0000000000000000".to_owned(),
                "sha256:0c05d7a58aa0a374a192e1daaa28b3ef12bc065fbc0939e7c762f51c863a91e6",
            ),
            (
                Index::from_segments(SEGMENT_BYTES, [segment_digest(&[0; 65_536])]),
                "4b494c4e49445831 0000010000000000 0100000000000000 0100000000000000".to_owned(),
                "sha256:eba0579c9d02b5eb100cb983ddbd2ca3538832ee59d44eadede07bd3ce81b31b",
            ),
            (
                Index::from_segments(3, [abc]),
                format!("4b494c4e49445831 0300000000000000 0100000000000000 0100000000000080 {ABC}"),
                "sha256:c9cbee4d022b617ffccd5f1b92043648c76e47d0a1b581f94304c5f3e95dc3d7",
            ),
            (
                Index::from_segments(3 * SEGMENT_BYTES + 3, [None, None, None, abc]),
                format!(
                    "4b494c4e49445831 0300030000000000 0200000000000000 0300000000000000 0100000000000080 {ABC}"
                ),
                "sha256:71be54e5d9c534d827323b5b43670dbf0aaa6649ffcc3726d9d60f1ee553691c",
            ),
        ];
        for (index, bytes, digest) in vectors {
            let hex: String = index.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, bytes.replace(' ', ""));
            assert_eq!(index.digest().to_string(), digest);
            assert_eq!(Index::parse(&index.to_bytes()).unwrap(), index);
        }
    }

    #[test]
    fn a_vast_empty_disk_has_a_small_index() {
        // Sixteen tebibytes: built from runs, as a parser would.
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(16_u64 << 40).to_le_bytes());
        bytes.extend_from_slice(&1_u64.to_le_bytes());
        bytes.extend_from_slice(&((16_u64 << 40) / SEGMENT_BYTES).to_le_bytes());
        let index = Index::parse(&bytes).unwrap();
        assert_eq!(index.data_bytes(), 0);
        assert_eq!(index.to_bytes(), bytes);
    }

    #[test]
    fn an_index_describes_so_much_at_most() {
        let with = |length: u64| {
            let mut bytes = MAGIC.to_vec();
            for number in [length, 1, segment_count(length)] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            Index::parse(&bytes)
        };
        assert_eq!(with(LENGTH_MAX).unwrap().length(), 64 << 40);
        let error = with(LENGTH_MAX + 1).unwrap_err().to_string();
        assert_eq!(error, "it describes 70368744177665 bytes, more than 70368744177664");
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        let good = index(5 * SEGMENT_BYTES + 1, |n| n == 1 || n == 2).to_bytes();
        assert!(Index::parse(&good).is_ok());
        for (at, value) in [(0, b'X'), (10, 9), (16, 9), (24, 0), (24, 9), (31, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Index::parse(&bad).is_err(), "byte {at} = {value}");
        }
        assert!(Index::parse(&good[..good.len() - 1]).is_err());
        assert!(Index::parse(&[good.as_slice(), b"x"].concat()).is_err());
    }

    proptest! {
        #[test]
        fn print_and_parse_agree(length in 0_u64..40 * SEGMENT_BYTES, mask: u64) {
            let index = index(length, |n| mask >> (n % 64) & 1 == 0);
            prop_assert_eq!(Index::parse(&index.to_bytes()).unwrap(), index);
        }

        #[test]
        fn parsing_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [MAGIC.as_slice(), &tail].concat();
            if let Ok(index) = Index::parse(&bytes) {
                prop_assert_eq!(index.to_bytes(), bytes);
            }
        }
    }
}
