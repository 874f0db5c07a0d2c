//! Extents: where a file's content lies.

use super::{EXTENTS_MAX, Image, ImageError, ImageResult, Inode, u16_at, u32_at};

const MAGIC: u16 = 0xf30a;
const ENTRY_BYTES: usize = 12;
const DEPTH_MAX: u16 = 5;
/// A longer extent is one of reserved blocks that read as zeros, shorter by this.
const WRITTEN_BLOCKS_MAX: u16 = 1 << 15;

/// A run of bytes of a file that lies in one piece; what is in none is a hole and reads as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where in the file it begins, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Where in the artifact it begins, in bytes.
    pub at: u64,
}

impl Extent {
    /// Returns where in the file it ends.
    pub fn end(&self) -> u64 {
        self.start + self.length
    }
}

/// The state of one walk through a tree. `next` only grows, so a tree that leads back into itself ends the walk.
struct Walk<'a> {
    image: &'a Image,
    inode: &'a Inode,
    found: Vec<Extent>,
    /// The first block of the file that may come next.
    next: u64,
}

impl Image {
    /// Returns the extents of a file, directory or link that hold data, in order and without overlap.
    pub fn extents(&self, inode: &Inode) -> ImageResult<Vec<Extent>> {
        if !inode.has_extents() {
            return if inode.size == 0 {
                Ok(Vec::new())
            } else {
                Err(ImageError::Unsupported("files without extents"))
            };
        }
        let mut walk = Walk { image: self, inode, found: Vec::new(), next: 0 };
        let depth = u16_at(&inode.map, 6);
        if depth > DEPTH_MAX {
            return Err(inode.damaged("its extents are nested deeper than 5"));
        }
        walk.node(&inode.map, depth, true)?;
        Ok(walk.found)
    }
}

impl Walk<'_> {
    fn node(&mut self, node: &[u8], depth: u16, is_root: bool) -> ImageResult<()> {
        let damaged = |reason| Err(self.inode.damaged(reason));
        let count = usize::from(u16_at(node, 2));
        if u16_at(node, 0) != MAGIC || u16_at(node, 6) != depth {
            return damaged("an extent node is none");
        }
        if count > node.len() / ENTRY_BYTES - 1 {
            return damaged("an extent node has more entries than room");
        }
        if count == 0 && !is_root {
            return damaged("an extent node is empty");
        }
        for entry in node.chunks_exact(ENTRY_BYTES).skip(1).take(count) {
            if depth == 0 {
                self.leaf(entry)?;
            } else {
                if u64::from(u32_at(entry, 0)) < self.next {
                    return Err(self.inode.damaged("its extents are out of order"));
                }
                let child = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
                let child = self.image.read_block(child)?;
                self.node(&child, depth - 1, false)?;
            }
        }
        Ok(())
    }

    fn leaf(&mut self, entry: &[u8]) -> ImageResult<()> {
        let (first, length) = (u64::from(u32_at(entry, 0)), u16_at(entry, 4));
        let written = length <= WRITTEN_BLOCKS_MAX;
        let blocks = u64::from(if written { length } else { length - WRITTEN_BLOCKS_MAX });
        let at = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
        if first < self.next || blocks == 0 {
            return Err(self.inode.damaged("its extents are out of order"));
        }
        if at == 0 || at + blocks > self.image.block_count {
            return Err(self.inode.damaged("an extent lies outside the file system"));
        }
        self.next = first + blocks;
        if !written {
            return Ok(());
        }
        if self.found.len() == EXTENTS_MAX {
            return Err(ImageError::Limit { what: "extents in a file", max: EXTENTS_MAX as u64 });
        }
        let unit = self.image.block_bytes();
        self.found.push(Extent { start: first * unit, length: blocks * unit, at: at * unit });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{image, open, tree};
    use super::*;

    #[test]
    fn the_extents_of_a_file_are_limited_and_so_is_their_tree() {
        let scratch = tree();
        let image = open(&image(&scratch, "image", &[])).unwrap();
        let mut inode = image.find("/etc/deep/er/large").unwrap().unwrap();
        let known = image.extents(&inode).unwrap()[0];
        let leaf = [[0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]].concat();
        let walk = |found: usize| {
            let mut walk = Walk { image: &image, inode: &inode, found: vec![known; found], next: 0 };
            walk.leaf(&leaf[..ENTRY_BYTES])
        };
        walk(EXTENTS_MAX - 1).unwrap();
        let error = walk(EXTENTS_MAX).unwrap_err().to_string();
        assert_eq!(error, "it has extents in a file above the limit of 1048576");
        let mut nested = |depth| {
            inode.map[6] = depth;
            image.extents(&inode).unwrap_err().to_string()
        };
        // At the limit the tree is followed, and found to lead nowhere.
        assert!(!nested(5).contains("nested"));
        assert!(nested(6).ends_with("its extents are nested deeper than 5"));
    }
}
