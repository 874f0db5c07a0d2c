//! Directory trees: how much room one needs, and two digests of it from one walk.

use crate::error::BuildError;
use crate::fingerprint::Hasher;
use kiln_core::digest::Digest;
use kiln_sys::{Cancel, IoResultExt, copy, fs};
use std::fs::FileType;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// The most files a directory tree may hold.
pub(crate) const FILES_MAX: u64 = 4_000_000;
/// The most directories within one another.
pub(crate) const DEPTH_MAX: usize = 512;
/// The block of the file systems kiln makes, in bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// The most symbolic links followed in one path.
const LINKS_MAX: usize = 40;

/// The room a tree needs in a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSize {
    /// Bytes of the files' data, each rounded up to blocks, holes left out.
    pub data_bytes: u64,
    /// Files, directories and the rest, one for each inode.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Bytes of all names.
    pub name_bytes: u64,
}

/// What a name needs in a directory besides its bytes, generously.
const NAME_OVERHEAD_BYTES: u64 = 16;

impl TreeSize {
    pub(crate) fn add_name(&mut self, name_len: usize) {
        self.name_bytes += name_len as u64 + NAME_OVERHEAD_BYTES;
    }

    pub(crate) fn add_directory(&mut self, name_len: usize) {
        self.directories += 1;
        self.add_special(name_len);
    }

    pub(crate) fn add_special(&mut self, name_len: usize) {
        self.inodes += 1;
        self.add_name(name_len);
    }

    pub(crate) fn add_file(&mut self, bytes: u64, name_len: usize) {
        self.data_bytes =
            self.data_bytes.saturating_add(bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES));
        self.add_special(name_len);
    }

    pub(crate) fn add_attributes(&mut self, bytes: u64) {
        self.data_bytes = self.data_bytes.saturating_add(bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES);
    }

    /// Returns the bytes the tree needs in a file system, its inode table left out.
    pub fn bytes(&self) -> u64 {
        self.data_bytes.saturating_add(self.directories * BLOCK_BYTES + self.name_bytes * 2)
    }
}

/// What a walk over a tree found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walked {
    pub(crate) size: TreeSize,
    /// Names, types, modes, lengths, times and link targets: the same wherever a copy of the tree lies.
    pub(crate) listing: Digest,
    /// The identity of every file on this host, which changes with each write.
    pub(crate) identity: Digest,
}

/// Walks over a tree in the order of names, without following links. With `readable`, every file and directory must
/// be one that can be read.
pub(crate) fn walk(root: &Path, cancel: Option<&Cancel>, readable: bool) -> Result<Walked, BuildError> {
    let (mut listing, mut identity) = (Hasher::default(), Hasher::default());
    let mut size = TreeSize::default();
    let mut linked = std::collections::HashSet::new();
    let mut stack = vec![(PathBuf::new(), 0_usize)];
    while let Some((relative, depth)) = stack.pop() {
        if let Some(cancel) = cancel {
            cancel.check()?;
        }
        check_files(size.inodes, root)?;
        let path = if depth == 0 { root.to_owned() } else { root.join(&relative) };
        let meta = fs::symlink_metadata(&path)?;
        let kind = meta.file_type();
        let name_len = relative.file_name().map_or(0, std::ffi::OsStr::len);
        identity.text(relative.as_os_str().as_bytes());
        identity.file(&meta);
        listing.text(relative.as_os_str().as_bytes());
        listing.numbers(&[u64::from(meta.mode()), meta.mtime().cast_unsigned(), kind_number(kind)]);
        if kind.is_dir() {
            if depth >= DEPTH_MAX {
                return Err(BuildError::TooDeep { path: root.to_owned(), max: DEPTH_MAX });
            }
            size.add_directory(name_len);
            for name in fs::list_dir(&path)?.into_iter().rev() {
                stack.push((relative.join(name), depth + 1));
            }
        } else if kind.is_symlink() {
            let target = path.read_link().at("read the link", &path)?;
            listing.text(target.as_os_str().as_bytes());
            size.add_special(name_len);
        } else if meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
            size.add_name(name_len);
        } else if kind.is_file() {
            listing.numbers(&[meta.len()]);
            size.add_file(data_bytes(&path, meta.len(), meta.blocks() * 512)?, name_len);
            if readable {
                fs::open(&path)?;
            }
        } else {
            size.add_special(name_len);
        }
    }
    Ok(Walked { size, listing: listing.finish(), identity: identity.finish() })
}

/// Returns the bytes of a file's data, holes left out. The bytes that are allocated for it say of most files that they have
/// no holes, and nothing else: a file system that compresses has fewer, and the disk that is made does not compress.
fn data_bytes(path: &Path, len: u64, allocated: u64) -> Result<u64, BuildError> {
    if allocated >= len {
        return Ok(len);
    }
    // What cannot be read is refused elsewhere, where it is to be.
    let Ok(file) = fs::open(path) else { return Ok(len) };
    let ranges = copy::DataExtents::new(&file, len).map(|range| range.map(|(start, end)| end - start));
    Ok(ranges.sum::<std::io::Result<u64>>().at("read", path)?)
}

/// Checks that a tree that has so many files already may have another.
fn check_files(files: u64, root: &Path) -> Result<(), BuildError> {
    if files >= FILES_MAX {
        return Err(BuildError::TooManyFiles { path: root.to_owned(), max: FILES_MAX });
    }
    Ok(())
}

fn kind_number(kind: FileType) -> u64 {
    let kinds = [kind.is_block_device(), kind.is_char_device(), kind.is_fifo(), kind.is_socket()];
    kinds.iter().position(|is| *is).map_or(0, |index| index as u64 + 1)
}

/// Returns the path on the host of a program in a tree, with links followed as a process within the tree would; none
/// when there is no such program.
pub(crate) fn find_program(root: &Path, program: &str) -> Option<PathBuf> {
    find_file(root, program).filter(|path| fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o111 != 0))
}

/// The same of any regular file.
pub(crate) fn find_file(root: &Path, file: &str) -> Option<PathBuf> {
    let mut rest: Vec<std::ffi::OsString> = parts(Path::new(file));
    let mut found = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            found.pop();
            continue;
        }
        let here = root.join(&found).join(&part);
        if fs::symlink_metadata(&here).ok()?.is_symlink() {
            links += 1;
            if links > LINKS_MAX {
                return None;
            }
            let target = here.read_link().ok()?;
            if target.is_absolute() {
                found = PathBuf::new();
            }
            rest.extend(parts(&target));
        } else {
            found.push(part);
        }
    }
    let path = root.join(found);
    fs::metadata(&path).ok().filter(std::fs::Metadata::is_file).map(|_| path)
}

/// Returns the components of a path from the last to the first, `..` among them.
fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::tool::ScratchDir;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn the_files_of_a_tree_are_limited() {
        let root = Path::new("/tree");
        check_files(FILES_MAX - 1, root).unwrap();
        let error = check_files(FILES_MAX, root).unwrap_err().to_string();
        assert!(error.contains("/tree") && error.contains("4000000"), "{error}");
    }

    #[test]
    fn holes_are_left_out_and_compressed_data_counts_whole() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = scratch.path().join("file");
        let file = fs::create_new(&path).unwrap();
        file.write_all_at(&[7; 256 << 10], 0).unwrap();
        // As a file system tells it that packed these into one block.
        assert_eq!(data_bytes(&path, 256 << 10, 4096).unwrap(), 256 << 10);
        file.set_len(1 << 30).unwrap();
        let size = walk(scratch.path(), None, true).unwrap().size;
        assert!((256 << 10..1 << 20).contains(&size.data_bytes), "{size:?}");
        assert_eq!(data_bytes(&scratch.path().join("gone"), 5, 0).unwrap(), 5);
    }

    #[test]
    fn the_depth_of_a_tree_is_limited() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        // The root is the first directory.
        let deepest = (1..DEPTH_MAX).fold(scratch.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(&deepest).unwrap();
        assert_eq!(walk(scratch.path(), None, false).unwrap().size.directories, DEPTH_MAX as u64);
        fs::create_dir(&deepest.join("d")).unwrap();
        let error = walk(scratch.path(), None, false).unwrap_err().to_string();
        assert_eq!(error, format!("{} is deeper than 512 directories", scratch.path().display()));
    }
}
