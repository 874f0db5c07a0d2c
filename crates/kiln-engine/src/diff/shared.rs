//! How much two artifacts have in common.

use kiln_store::Index;
use kiln_store::index::{SEGMENT_BYTES, SegmentDigest};
use std::collections::HashMap;

/// Returns the bytes of segments that two artifacts both hold, wherever they lie. A segment that one holds twice and
/// the other once counts once. Holes do not count.
pub(super) fn bytes(a: &Index, b: &Index) -> u64 {
    let mut left: HashMap<&SegmentDigest, u64> = HashMap::new();
    for (_, digest) in a.segments() {
        *left.entry(digest).or_default() += 1;
    }
    let mut shared = 0;
    for (number, digest) in b.segments() {
        if let Some(count) = left.get_mut(digest).filter(|count| **count > 0) {
            *count -= 1;
            shared += (b.length() - number * SEGMENT_BYTES).min(SEGMENT_BYTES);
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(length: u64, segments: &[u8]) -> Index {
        Index::from_segments(length, segments.iter().map(|byte| (*byte > 0).then_some([*byte; 32])))
    }

    #[test]
    fn equal_segments_count_wherever_they_lie_and_holes_do_not() {
        let a = index(4 * SEGMENT_BYTES, &[1, 0, 2, 1]);
        let b = index(3 * SEGMENT_BYTES + 100, &[0, 1, 3, 2]);
        assert_eq!(bytes(&a, &b), SEGMENT_BYTES + 100);
        assert_eq!(bytes(&a, &a), a.data_bytes());
        assert_eq!(bytes(&a, &index(0, &[])), 0);
    }
}
