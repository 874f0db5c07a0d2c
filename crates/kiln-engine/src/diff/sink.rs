//! Counts changed files and keeps those that are listed, in bounded memory.

use super::FileList;
use super::report::{Change, FileChange, FileDiff, FileSum};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// The most bytes of paths in a list of all files.
const LISTED_PATH_BYTES_MAX: usize = 64 << 20;
/// The most files in a list of all of them.
const LISTED_MAX: usize = 1 << 20;

/// Takes changes in the order of their paths.
#[derive(Debug)]
pub(super) struct Sink {
    list: FileList,
    diff: FileDiff,
    path_bytes: usize,
    largest: BinaryHeap<Reverse<Weighed>>,
}

/// A change that weighs as much as the larger of its two contents; of equal ones the path that comes first is more.
#[derive(Debug, PartialEq, Eq)]
struct Weighed(FileChange);

impl Weighed {
    fn weight(&self) -> u64 {
        let size = |facts: &Option<super::FileFacts>| facts.map_or(0, |facts| facts.size);
        size(&self.0.before).max(size(&self.0.after))
    }
}

impl Ord for Weighed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.weight().cmp(&other.weight()).then_with(|| other.0.path.cmp(&self.0.path))
    }
}

impl PartialOrd for Weighed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Sink {
    pub(super) fn new(list: FileList) -> Self {
        Self { list, diff: FileDiff::default(), path_bytes: 0, largest: BinaryHeap::new() }
    }

    /// Takes a change.
    pub(super) fn push(&mut self, change: FileChange) {
        let sum = match change.change {
            Change::Added => &mut self.diff.added,
            Change::Changed => &mut self.diff.changed,
            Change::Removed => &mut self.diff.removed,
        };
        add(sum, &change);
        match self.list {
            FileList::None => {}
            FileList::Largest(max) => {
                self.largest.push(Reverse(Weighed(change)));
                if self.largest.len() > max {
                    self.largest.pop();
                }
            }
            FileList::All => {
                let path_bytes = self.path_bytes + change.path.len();
                if fits(self.diff.changes.len() + 1, path_bytes) {
                    self.path_bytes = path_bytes;
                    self.diff.changes.push(change);
                }
            }
        }
    }

    /// Returns counts and list.
    pub(super) fn finish(self) -> FileDiff {
        let mut diff = self.diff;
        // Reversed, so that what sorts first is the largest.
        diff.changes
            .extend(self.largest.into_sorted_vec().into_iter().map(|Reverse(Weighed(change))| change));
        let all = diff.added.count + diff.changed.count + diff.removed.count;
        diff.omitted = all - diff.changes.len() as u64;
        diff
    }
}

/// Whether a list may have so many files with so many bytes of paths.
fn fits(files: usize, path_bytes: usize) -> bool {
    files <= LISTED_MAX && path_bytes <= LISTED_PATH_BYTES_MAX
}

fn add(sum: &mut FileSum, change: &FileChange) {
    sum.count += 1;
    let bytes = |facts: Option<super::FileFacts>| facts.map_or(0, |facts| facts.size);
    sum.bytes_before = sum.bytes_before.saturating_add(bytes(change.before));
    sum.bytes_after = sum.bytes_after.saturating_add(bytes(change.after));
}

#[cfg(test)]
mod tests {
    use super::super::report::{FileFacts, FileKind};
    use super::*;

    fn added(path: &str, size: u64) -> FileChange {
        let facts = FileFacts { kind: FileKind::File, size, mode: 0o644, uid: 0, gid: 0 };
        FileChange {
            change: Change::Added,
            path: path.to_owned(),
            before: None,
            after: Some(facts),
            aspects: Vec::new(),
        }
    }

    #[test]
    fn a_list_of_all_files_is_limited_and_says_how_many_it_omits() {
        assert!(fits(1 << 20, 64 << 20));
        assert!(!fits((1 << 20) + 1, 0) && !fits(1, (64 << 20) + 1));
        let mut sink = Sink::new(FileList::All);
        // As if the paths before were long.
        sink.path_bytes = LISTED_PATH_BYTES_MAX - 2;
        for path in ["/a", "/b"] {
            sink.push(added(path, 1));
        }
        let diff = sink.finish();
        assert_eq!((diff.changes.len(), diff.added.count, diff.omitted), (1, 2, 1));
    }

    #[test]
    fn the_largest_are_kept_and_all_are_counted() {
        let mut sink = Sink::new(FileList::Largest(3));
        for (path, size) in [("/a", 1), ("/b", 9), ("/c", 5), ("/d", 5), ("/e", 5)] {
            sink.push(added(path, size));
        }
        let diff = sink.finish();
        let paths: Vec<&str> = diff.changes.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(paths, ["/b", "/c", "/d"]);
        assert_eq!((diff.added.count, diff.added.bytes_after, diff.omitted), (5, 25, 2));
    }
}
