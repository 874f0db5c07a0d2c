//! Which bytes of a file are there.

/// The most parts that a note says are there. More than that are not noted, and fetched again.
pub const PARTS_MAX: usize = 64;

/// Parts of a file, in order, of which no two touch. Each has its first byte and the one after its last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct There(Vec<(u64, u64)>);

impl There {
    /// Returns what is there of a file that is there to a byte.
    pub(super) fn up_to(end: u64) -> Self {
        let mut there = Self::default();
        there.add(0, end);
        there
    }

    /// Reads what a note says of a file of so many bytes; nothing is there where it cannot be so.
    pub(super) fn of(parts: &[(u64, u64)], length: u64) -> Option<Self> {
        let mut there = Self::default();
        let mut last = None;
        for (from, to) in parts.iter().copied() {
            if parts.len() > PARTS_MAX || from >= to || to > length || last.is_some_and(|last| from <= last) {
                return None;
            }
            last = Some(to);
            there.0.push((from, to));
        }
        Some(there)
    }

    /// Adds a part.
    pub(super) fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let first = self.0.partition_point(|part| part.1 < from);
        let after = self.0.partition_point(|part| part.0 <= to);
        let touched = &self.0[first..after];
        let from = touched.first().map_or(from, |part| part.0.min(from));
        let to = touched.last().map_or(to, |part| part.1.max(to));
        self.0.splice(first..after, [(from, to)]);
    }

    /// Returns how many bytes are there.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from).sum()
    }

    /// Returns the first byte that is missing.
    pub(super) fn prefix(&self) -> u64 {
        self.0.first().filter(|part| part.0 == 0).map_or(0, |part| part.1)
    }

    /// Returns the parts.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Returns what is missing of so many bytes.
    pub(super) fn gaps(&self, total: u64) -> Vec<(u64, u64)> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|part| part.1));
        let ends = self.0.iter().map(|part| part.0).chain(std::iter::once(total));
        starts.zip(ends).filter(|(from, to)| from < to).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_touch_are_one() {
        let mut there = There::default();
        for (from, to, parts) in [
            (10, 20, &[(10, 20)][..]),
            (10, 10, &[(10, 20)]),
            (30, 40, &[(10, 20), (30, 40)]),
            (5, 10, &[(5, 20), (30, 40)]),
            (0, 1, &[(0, 1), (5, 20), (30, 40)]),
            (15, 32, &[(0, 1), (5, 40)]),
            (6, 7, &[(0, 1), (5, 40)]),
            (0, 50, &[(0, 50)]),
        ] {
            there.add(from, to);
            assert_eq!(there.0, parts, "{from}..{to}");
        }
        assert_eq!((there.bytes(), there.prefix()), (50, 50));
        let there = There(vec![(5, 10), (20, 30)]);
        assert_eq!((there.bytes(), there.prefix()), (15, 0));
        assert_eq!(there.gaps(40), [(0, 5), (10, 20), (30, 40)]);
        assert_eq!(there.gaps(30), [(0, 5), (10, 20)]);
        assert_eq!(There::up_to(7).gaps(7), []);
        assert_eq!(There::up_to(0).gaps(7), [(0, 7)]);
    }

    #[test]
    fn a_note_of_what_cannot_be_so_says_nothing() {
        for (parts, fits) in [
            (&[(0, 10), (20, 30)][..], true),
            (&[], true),
            (&[(0, 10), (10, 30)], false),
            (&[(20, 30), (0, 10)], false),
            (&[(5, 5)], false),
            (&[(6, 5)], false),
            (&[(0, 31)], false),
        ] {
            assert_eq!(There::of(parts, 30).is_some(), fits, "{parts:?}");
        }
        let many = |count: u64| (0..count).map(|part| (part * 2, part * 2 + 1)).collect::<Vec<_>>();
        assert!(There::of(&many(PARTS_MAX as u64), 1000).is_some());
        assert!(There::of(&many(PARTS_MAX as u64 + 1), 1000).is_none());
    }
}
