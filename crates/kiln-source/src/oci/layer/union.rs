//! What layers come to when one lies over the other.

use super::super::error::{LayerError, OciError};
use super::super::limits::{ENTRIES_MAX, METADATA_BYTES_MAX, PATH_BYTES_MAX};
use super::entry::{Entry, TarReader, show};
use super::stream::{Member, Merged};
use super::tree::{Tree, parts};
use super::uncompress::Uncompressed;
use kiln_sys::Cancel;
use std::collections::HashMap;

/// What begins the name of a mark that hides another.
const WHITEOUT: &[u8] = b".wh.";
/// What begins the names that are AUFS's own.
const AUFS: &[u8] = b".wh..wh.";
/// The mark that hides all that a directory of lower layers holds.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What is counted over all layers.
#[derive(Debug, Default)]
pub(in super::super) struct Totals {
    pub(super) entries: u64,
    pub(super) metadata: u64,
}

impl Totals {
    pub(in super::super) fn add(&mut self, entry: &Entry) -> Result<(), OciError> {
        self.entries += 1;
        self.metadata = self.metadata.saturating_add(entry.weight());
        if self.entries > ENTRIES_MAX {
            return Err(OciError::TooLarge { what: "entries", max: ENTRIES_MAX });
        }
        if self.metadata > METADATA_BYTES_MAX {
            return Err(OciError::TooLarge {
                what: "bytes of names and attributes",
                max: METADATA_BYTES_MAX,
            });
        }
        Ok(())
    }
}

/// Computes what the layers come to, the lowest first.
///
/// A mark hides what lower layers have and nothing of its own layer, wherever in the layer it stands. A path leads through
/// symbolic links as it would for a process in the image. What is no directory takes the place of whatever was there; a
/// directory takes the place of what is none, and lies over one.
pub fn merge(layers: Vec<Uncompressed>, cancel: &Cancel) -> Result<Merged, OciError> {
    let mut tree = Tree::new();
    let mut totals = Totals::default();
    for (index, layer) in layers.iter().enumerate() {
        let refuse = |source| OciError::Layer { number: index + 1, source };
        let (mut entries, mut marks) = (Vec::new(), Vec::new());
        let mut reader = TarReader::new(&layer.file, layer.offset, layer.len);
        while let Some(entry) = reader.next().map_err(refuse)? {
            cancel.check()?;
            totals.add(&entry)?;
            match classify(&entry).map_err(refuse)? {
                Class::File => entries.push(entry),
                Class::Mark => marks.push(entry.path),
                Class::Nothing => {}
            }
        }
        for mark in &marks {
            cancel.check()?;
            hide(&mut tree, mark).map_err(refuse)?;
        }
        #[expect(clippy::cast_possible_truncation, reason = "layers are limited to far fewer")]
        let number = index as u32;
        for entry in entries {
            cancel.check()?;
            tree.place(number, entry).map_err(refuse)?;
        }
    }
    let members = members(&tree)?;
    Ok(Merged::new(layers, members, tree.inodes))
}

enum Class {
    File,
    Mark,
    Nothing,
}

fn classify(entry: &Entry) -> Result<Class, LayerError> {
    let parts = parts(&entry.path)?;
    let Some((name, above)) = parts.split_last() else { return Ok(Class::File) };
    if *name == OPAQUE && !above.iter().any(|part| part.starts_with(WHITEOUT)) {
        return Ok(Class::Mark);
    }
    if parts.iter().any(|part| part.starts_with(AUFS)) {
        return Ok(Class::Nothing);
    }
    if above.iter().any(|part| part.starts_with(WHITEOUT)) {
        let problem = "lies below a mark that hides a name";
        return Err(LayerError::Name { entry: show(&entry.path), problem });
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Class::File),
        Some(hidden @ (b"" | b"." | b"..")) => Err(LayerError::Whiteout {
            entry: show(&entry.path),
            name: String::from_utf8_lossy(hidden).into_owned(),
        }),
        Some(_) => Ok(Class::Mark),
    }
}

fn hide(tree: &mut Tree, mark: &[u8]) -> Result<(), LayerError> {
    let parts = parts(mark)?;
    match parts.split_last() {
        Some((name, above)) if *name == OPAQUE => tree.clear(above, mark),
        Some((name, above)) => tree.remove(above, name.strip_prefix(WHITEOUT).unwrap_or(name), mark),
        None => Ok(()),
    }
}

/// Lists the tree: the first name of a file has its content, the others are links to that one.
fn members(tree: &Tree) -> Result<Vec<Member>, OciError> {
    let mut first: HashMap<u32, u32> = HashMap::new();
    let mut members: Vec<Member> = Vec::new();
    // Links make paths longer than they were written.
    let mut bytes = 0_u64;
    tree.walk(|path, inode| {
        // Directories without an entry come to be with what they hold.
        let Some(inode) = inode else { return Ok(()) };
        if path.len() > PATH_BYTES_MAX {
            return Err(OciError::TooLarge { what: "bytes in a path", max: PATH_BYTES_MAX as u64 });
        }
        bytes += path.len() as u64;
        if bytes > METADATA_BYTES_MAX {
            return Err(OciError::TooLarge { what: "bytes of paths", max: METADATA_BYTES_MAX });
        }
        #[expect(clippy::cast_possible_truncation, reason = "entries are limited to far fewer")]
        let here = members.len() as u32;
        let earlier = *first.entry(inode).or_insert(here);
        members.push(Member { path: path.into(), inode, link_to: (earlier != here).then_some(earlier) });
        Ok(())
    })?;
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_their_names_are_limited_over_all_layers() {
        let mut header = tar::Header::new_ustar();
        header.set_path("a").unwrap();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let scratch = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = scratch.path().join("layer");
        std::io::Write::write_all(&mut kiln_sys::fs::create_new(&path).unwrap(), header.as_bytes()).unwrap();
        let file = kiln_sys::fs::open(&path).unwrap();
        let entry = TarReader::new(&file, 0, 512).next().unwrap().unwrap();
        let mut totals = Totals { entries: ENTRIES_MAX - 1, metadata: 0 };
        totals.add(&entry).unwrap();
        assert_eq!(totals.add(&entry).unwrap_err().to_string(), "the image has more entries than 4000000");
        let mut totals = Totals { entries: 0, metadata: METADATA_BYTES_MAX - 1 };
        totals.add(&entry).unwrap();
        assert!(totals.add(&entry).unwrap_err().to_string().contains("names and attributes"));
    }
}
