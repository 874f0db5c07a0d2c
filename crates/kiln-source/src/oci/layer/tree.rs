//! The tree that layers come to, in memory: paths are followed in it as a process whose root it is would follow them, so
//! that no link leads out.

use super::super::error::LayerError;
use super::super::limits::{COMPONENT_BYTES_MAX, DEPTH_MAX, LINKS_MAX, NODES_MAX, PATH_BYTES_MAX};
use super::entry::{Entry, Kind, show};
use std::collections::BTreeMap;

/// Where an [`Inode`] is in [`Tree::inodes`].
pub(super) type InodeId = u32;
type NodeId = u32;

/// A file and the layer its content is in.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) layer: u32,
    pub(super) entry: Entry,
}

#[derive(Debug)]
enum Node {
    /// A directory; none where no entry says anything of it.
    Directory {
        children: BTreeMap<Box<[u8]>, NodeId>,
        inode: Option<InodeId>,
    },
    Leaf(InodeId),
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    pub(super) inodes: Vec<Inode>,
    /// How many nodes there may yet be.
    room: usize,
}

const ROOT: NodeId = 0;

/// Splits a path into its parts, after the checks that keep it plain. One that begins at the root begins at the image's, as
/// some programs write all of them.
pub(super) fn parts(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let refuse = |problem| LayerError::Name { entry: show(path), problem };
    if path.is_empty() {
        return Err(refuse("has no name"));
    }
    if path.contains(&0) {
        return Err(refuse("has a zero byte in its name"));
    }
    if path.len() > PATH_BYTES_MAX + 2 {
        return Err(refuse("has a longer path than 4095 bytes"));
    }
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err(refuse("leads out of its directory"));
    }
    if parts.iter().any(|part| part.len() > COMPONENT_BYTES_MAX) {
        return Err(refuse("has a longer name than 255 bytes"));
    }
    Ok(parts)
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { nodes: vec![empty()], inodes: Vec::new(), room: NODES_MAX }
    }

    fn child(&self, node: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[node as usize] {
            Node::Directory { children, .. } => children.get(name).copied(),
            Node::Leaf(_) => None,
        }
    }

    fn set_child(&mut self, node: NodeId, name: &[u8], child: Node) -> Result<NodeId, LayerError> {
        self.room = self.room.checked_sub(1).ok_or(LayerError::TooManyNames(NODES_MAX))?;
        #[expect(clippy::cast_possible_truncation, reason = "they are limited to far fewer")]
        let id = self.nodes.len() as NodeId;
        self.nodes.push(child);
        if let Node::Directory { children, .. } = &mut self.nodes[node as usize] {
            children.insert(name.into(), id);
        }
        Ok(id)
    }

    /// Follows the parts of a path to a directory, through links; `create` makes what is missing. None where there is none.
    fn directory(
        &mut self,
        path: &[&[u8]],
        shown: &[u8],
        create: bool,
    ) -> Result<Option<NodeId>, LayerError> {
        let mut stack = vec![ROOT];
        let mut rest: Vec<Box<[u8]>> = path.iter().rev().map(|part| (*part).into()).collect();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part.as_ref() == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let here = stack.last().copied().unwrap_or(ROOT);
            let next = match self.child(here, &part) {
                Some(next) => next,
                None if create && stack.len() < DEPTH_MAX && part.len() <= COMPONENT_BYTES_MAX => {
                    self.set_child(here, &part, empty())?
                }
                None if create => {
                    let problem = "lies in more directories than 512, or below a longer name than 255 bytes";
                    return Err(LayerError::Name { entry: show(shown), problem });
                }
                None => return Ok(None),
            };
            match &self.nodes[next as usize] {
                Node::Directory { .. } => stack.push(next),
                Node::Leaf(inode) => {
                    let inode = &self.inodes[*inode as usize].entry;
                    if inode.kind != Kind::Symlink {
                        if !create {
                            return Ok(None);
                        }
                        let (entry, parent) = (show(shown), show(&part));
                        return Err(LayerError::BelowNonDirectory { entry, parent });
                    }
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(LayerError::Links(show(shown)));
                    }
                    if inode.link.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let target = inode.link.split(|byte| *byte == b'/').rev();
                    rest.extend(target.filter(|part| !part.is_empty() && *part != b".").map(Into::into));
                }
            }
        }
        Ok(stack.last().copied())
    }

    /// Hides a name of the tree; one that is not there is hidden already.
    pub(super) fn remove(&mut self, parents: &[&[u8]], name: &[u8], shown: &[u8]) -> Result<(), LayerError> {
        if let Some(node) = self.directory(parents, shown, false)?
            && let Node::Directory { children, .. } = &mut self.nodes[node as usize]
        {
            children.remove(name);
        }
        Ok(())
    }

    /// Hides all that a directory holds.
    pub(super) fn clear(&mut self, path: &[&[u8]], shown: &[u8]) -> Result<(), LayerError> {
        if let Some(node) = self.directory(path, shown, false)?
            && let Node::Directory { children, .. } = &mut self.nodes[node as usize]
        {
            children.clear();
        }
        Ok(())
    }

    /// Puts an entry where its path leads, in place of what is there; a directory keeps what it holds.
    pub(super) fn place(&mut self, layer: u32, entry: Entry) -> Result<(), LayerError> {
        let shown = entry.path.clone();
        let path = parts(&shown)?;
        let Some((name, parents)) = path.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(LayerError::Name {
                    entry: show(&shown),
                    problem: "is the root and no directory",
                });
            }
            let id = self.add(layer, entry);
            if let Node::Directory { inode, .. } = &mut self.nodes[ROOT as usize] {
                *inode = Some(id);
            }
            return Ok(());
        };
        let wrong = |problem| Err(LayerError::Name { entry: show(&shown), problem });
        if entry.link.contains(&0) || entry.link.len() > PATH_BYTES_MAX {
            return wrong("links to a name with a zero byte, or a longer one than 4095 bytes");
        }
        if entry.kind == Kind::Symlink && entry.link.is_empty() {
            return wrong("is a symbolic link to nothing");
        }
        let Some(parent) = self.directory(parents, &shown, true)? else {
            return wrong("has no directory");
        };
        if entry.kind == Kind::HardLink {
            let inode = self.link_target(parent, name, &entry)?;
            self.set_child(parent, name, Node::Leaf(inode))?;
            return Ok(());
        }
        let known = self.child(parent, name);
        let directory = entry.kind == Kind::Directory;
        let id = self.add(layer, entry);
        match known.map(|node| &mut self.nodes[node as usize]) {
            Some(Node::Directory { inode, .. }) if directory => *inode = Some(id),
            _ if directory => {
                self.set_child(parent, name, Node::Directory { children: BTreeMap::new(), inode: Some(id) })?;
            }
            _ => {
                self.set_child(parent, name, Node::Leaf(id))?;
            }
        }
        Ok(())
    }

    fn link_target(&mut self, parent: NodeId, name: &[u8], entry: &Entry) -> Result<InodeId, LayerError> {
        let refuse = || LayerError::HardLink { entry: show(&entry.path), target: show(&entry.link) };
        // Some writers begin targets at the root, which is the image's.
        let start = entry.link.iter().position(|byte| *byte != b'/').ok_or_else(refuse)?;
        let target = parts(&entry.link[start..])?;
        let (last, above) = target.split_last().ok_or_else(refuse)?;
        let directory = self.directory(above, &entry.path, false)?.ok_or_else(refuse)?;
        match self.child(directory, last).map(|node| &self.nodes[node as usize]) {
            Some(Node::Leaf(inode)) if (directory, *last) != (parent, name) => Ok(*inode),
            _ => Err(refuse()),
        }
    }

    fn add(&mut self, layer: u32, mut entry: Entry) -> InodeId {
        entry.path = Vec::new();
        #[expect(clippy::cast_possible_truncation, reason = "entries are limited to far fewer")]
        let id = self.inodes.len() as InodeId;
        self.inodes.push(Inode { layer, entry });
        id
    }

    /// Calls `visit` with the path and inode of every name, by name, each directory before what it holds.
    pub(super) fn walk<E>(
        &self,
        mut visit: impl FnMut(&[u8], Option<InodeId>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stack: Vec<(Vec<u8>, NodeId)> = vec![(Vec::new(), ROOT)];
        while let Some((path, node)) = stack.pop() {
            match &self.nodes[node as usize] {
                Node::Leaf(inode) => visit(&path, Some(*inode))?,
                Node::Directory { children, inode } => {
                    visit(&path, *inode)?;
                    for (name, child) in children.iter().rev() {
                        let mut below = path.clone();
                        if !below.is_empty() {
                            below.push(b'/');
                        }
                        below.extend_from_slice(name);
                        stack.push((below, *child));
                    }
                }
            }
        }
        Ok(())
    }
}

fn empty() -> Node {
    Node::Directory { children: BTreeMap::new(), inode: None }
}

#[cfg(test)]
mod tests {
    use super::super::entry::TarReader;
    use super::*;

    /// A file whose name says nothing of the directories above it.
    fn entry(path: &str) -> Entry {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        for set in [tar::Header::set_size, tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_mtime]
        {
            set(&mut header, 0);
        }
        header.set_mode(0o644);
        header.set_cksum();
        let scratch = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = scratch.path().join("layer");
        std::io::Write::write_all(&mut kiln_sys::fs::create_new(&path).unwrap(), header.as_bytes()).unwrap();
        TarReader::new(&kiln_sys::fs::open(&path).unwrap(), 0, 512).next().unwrap().unwrap()
    }

    #[test]
    fn the_names_of_a_tree_are_limited_with_directories_that_nothing_is_said_of() {
        assert_eq!(Tree::new().room, NODES_MAX);
        let with_room = |room| Tree { room, ..Tree::new() };
        with_room(5).place(0, entry("a/b/c/d/file")).unwrap();
        let error = with_room(4).place(0, entry("a/b/c/d/file")).unwrap_err();
        assert_eq!(error.to_string(), "with it, the image has more than 8000000 names");
        // What was hidden counts, or a layer could add and hide names without end.
        let mut tree = with_room(2);
        for _ in 0..2 {
            tree.place(0, entry("file")).unwrap();
            tree.remove(&[], b"file", b"file").unwrap();
        }
        assert!(matches!(tree.place(0, entry("file")), Err(LayerError::TooManyNames(NODES_MAX))));
    }
}
