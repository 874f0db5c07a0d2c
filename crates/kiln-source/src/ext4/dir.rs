//! Directories: names and the inodes they lead to.

use super::{DIR_BYTES_MAX, DIR_ENTRIES_MAX, Image, ImageError, ImageResult, Inode, Kind, u16_at, u32_at};

/// Bytes of an entry before its name.
const HEADER_BYTES: usize = 8;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name: not empty, neither `.` nor `..`, without `/` and zero bytes.
    pub name: Vec<u8>,
    /// The number of the inode it leads to.
    pub inode: u32,
}

impl Image {
    /// Returns what is in a directory, sorted by the bytes of the names, no name twice.
    pub fn entries(&self, dir: &Inode) -> ImageResult<Vec<Entry>> {
        if dir.kind != Kind::Directory {
            return Err(dir.damaged("it is no directory"));
        }
        if dir.size > DIR_BYTES_MAX {
            return Err(ImageError::Limit { what: "bytes in a directory", max: DIR_BYTES_MAX });
        }
        let mut entries = Vec::new();
        let unit = self.block_bytes();
        for extent in self.extents(dir)? {
            for place in (0..extent.length).step_by(self.block_bytes as usize) {
                if extent.start + place >= dir.size {
                    break;
                }
                let block = self.read_block((extent.at + place) / unit)?;
                parse(dir, &block, &mut entries)?;
            }
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if entries.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(dir.damaged("it has a name twice"));
        }
        Ok(entries)
    }

    /// Returns the inode at a path, none when it or a directory on the way is not there. Symbolic links on the way are
    /// not followed: what lies behind one counts as not there.
    pub fn find(&self, path: &str) -> ImageResult<Option<Inode>> {
        let mut inode = self.root()?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if inode.kind != Kind::Directory {
                return Ok(None);
            }
            let entries = self.entries(&inode)?;
            match entries.binary_search_by(|entry| entry.name.as_slice().cmp(name.as_bytes())) {
                Ok(place) => inode = self.inode(entries[place].inode)?,
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(inode))
    }
}

/// Adds the entries of a block. Blocks of a directory's hash tree look like blocks without names.
fn parse(dir: &Inode, block: &[u8], entries: &mut Vec<Entry>) -> ImageResult<()> {
    let mut at = 0;
    while at < block.len() {
        if block.len() - at < HEADER_BYTES {
            return Err(dir.damaged("an entry is cut off"));
        }
        let (inode, mut length) = (u32_at(block, at), usize::from(u16_at(block, at + 4)));
        if block.len() == 1 << 16 && (length == 0 || length == 0xffff) {
            length = 1 << 16;
        }
        let name_end = HEADER_BYTES + usize::from(block[at + 6]);
        if length < HEADER_BYTES || length % 4 != 0 || length > block.len() - at {
            return Err(dir.damaged("an entry has an impossible length"));
        }
        if inode != 0 {
            if name_end > length {
                return Err(dir.damaged("a name is longer than its entry"));
            }
            let name = &block[at + HEADER_BYTES..at + name_end];
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return Err(dir.damaged("a name in it is none"));
            }
            if name != b"." && name != b".." {
                if entries.len() == DIR_ENTRIES_MAX {
                    return Err(ImageError::Limit {
                        what: "entries in a directory",
                        max: DIR_ENTRIES_MAX as u64,
                    });
                }
                entries.push(Entry { name: name.to_vec(), inode });
            }
        }
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{image, open, tree};
    use super::*;

    #[test]
    fn a_directory_has_a_largest_size_and_so_many_entries_at_most() {
        let scratch = tree();
        let image = open(&image(&scratch, "image", &[])).unwrap();
        let mut root = image.root().unwrap();
        let block = [&[5, 0, 0, 0, 12, 0, 1, 2][..], b"name"].concat();
        let more =
            |known: usize| parse(&root, &block, &mut vec![Entry { name: Vec::new(), inode: 1 }; known]);
        more(DIR_ENTRIES_MAX - 1).unwrap();
        let error = more(DIR_ENTRIES_MAX).unwrap_err().to_string();
        assert_eq!(error, "it has entries in a directory above the limit of 1048576");
        root.size = DIR_BYTES_MAX;
        image.entries(&root).unwrap();
        root.size = DIR_BYTES_MAX + 1;
        let error = image.entries(&root).unwrap_err().to_string();
        assert_eq!(error, "it has bytes in a directory above the limit of 268435456");
    }
}
