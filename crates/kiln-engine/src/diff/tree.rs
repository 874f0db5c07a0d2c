//! Two directory trees, walked side by side in the order of their names.

use super::content;
use super::report::{Aspect, Change, FileChange, FileFacts, FileKind};
use super::side::Side;
use super::sink::Sink;
use crate::EngineResult;
use kiln_source::ext4::{Entry, ImageError, ImageResult, Inode, Kind};
use std::collections::HashMap;

/// The deepest directory. A directory that contains itself ends here.
const DEPTH_MAX: usize = 128;
/// The longest path in bytes, as in Linux.
const PATH_BYTES_MAX: usize = 4096;
/// The most names in one file system.
const NAMES_MAX: u64 = 4 << 20;

/// Tells `sink` all names that lead to something else in `b` than in `a`.
pub(super) fn compare(a: &Side, b: &Side, sink: &mut Sink) -> EngineResult<()> {
    let mut walk = Walk {
        a: Half { side: a, names: 0 },
        b: Half { side: b, names: 0 },
        sink,
        path: Vec::new(),
        depth: 0,
        verdicts: HashMap::new(),
    };
    let (root_a, root_b) = (a.root()?, b.root()?);
    walk.pair(&root_a, &root_b)
}

struct Half<'a> {
    side: &'a Side,
    /// Names seen so far.
    names: u64,
}

impl Half<'_> {
    fn entries(&mut self, dir: &Inode) -> EngineResult<Vec<Entry>> {
        let entries = self.side.entries(dir)?;
        self.names += entries.len() as u64;
        limit("names", self.names, NAMES_MAX).map_err(|error| self.side.error(error))?;
        Ok(entries)
    }
}

struct Walk<'a> {
    a: Half<'a>,
    b: Half<'a>,
    sink: &'a mut Sink,
    /// Where the walk is; empty at the root.
    path: Vec<u8>,
    depth: usize,
    /// Verdicts on files with several names, by their inodes: each pair is read once.
    verdicts: HashMap<(u32, u32), bool>,
}

impl<'a> Walk<'a> {
    /// Compares what one name leads to, and everything below.
    fn pair(&mut self, a: &Inode, b: &Inode) -> EngineResult<()> {
        let aspects = self.aspects(a, b)?;
        if !aspects.is_empty() {
            self.tell(Change::Changed, Some(a), Some(b), aspects);
        }
        match (a.kind == Kind::Directory, b.kind == Kind::Directory) {
            (true, true) => self.directories(a, b),
            (true, false) => self.below(Change::Removed, a),
            (false, true) => self.below(Change::Added, b),
            (false, false) => Ok(()),
        }
    }

    fn directories(&mut self, a: &Inode, b: &Inode) -> EngineResult<()> {
        let mut left = self.a.entries(a)?.into_iter().peekable();
        let mut right = self.b.entries(b)?.into_iter().peekable();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => a.name.cmp(&b.name),
            };
            let (one, two) = (left.next_if(|_| order.is_le()), right.next_if(|_| order.is_ge()));
            let Some(name) = one.as_ref().or(two.as_ref()).map(|entry| entry.name.clone()) else {
                return Ok(());
            };
            let blamed = if one.is_some() { self.a.side } else { self.b.side };
            self.within(blamed, &name, |walk| match (one, two) {
                (Some(a), Some(b)) => {
                    let (a, b) = (walk.a.side.inode(a.inode)?, walk.b.side.inode(b.inode)?);
                    walk.pair(&a, &b)
                }
                (Some(a), None) => {
                    let inode = walk.a.side.inode(a.inode)?;
                    walk.single(Change::Removed, &inode)
                }
                (None, Some(b)) => {
                    let inode = walk.b.side.inode(b.inode)?;
                    walk.single(Change::Added, &inode)
                }
                (None, None) => Ok(()),
            })?;
        }
    }

    /// Tells what only one has, and everything below.
    fn single(&mut self, change: Change, inode: &Inode) -> EngineResult<()> {
        match change {
            Change::Added => self.tell(change, None, Some(inode), Vec::new()),
            _ => self.tell(change, Some(inode), None, Vec::new()),
        }
        if inode.kind == Kind::Directory { self.below(change, inode) } else { Ok(()) }
    }

    fn below(&mut self, change: Change, dir: &Inode) -> EngineResult<()> {
        let half = if change == Change::Added { &mut self.b } else { &mut self.a };
        let side = half.side;
        for entry in half.entries(dir)? {
            self.within(side, &entry.name, |walk| {
                let inode = side.inode(entry.inode)?;
                walk.single(change, &inode)
            })?;
        }
        Ok(())
    }

    /// Does something one name deeper.
    fn within(
        &mut self,
        side: &Side,
        name: &[u8],
        work: impl FnOnce(&mut Self) -> EngineResult<()>,
    ) -> EngineResult<()> {
        let length = self.path.len();
        check_place(length + 1 + name.len(), self.depth + 1).map_err(|error| side.error(error))?;
        self.path.push(b'/');
        self.path.extend_from_slice(name);
        self.depth += 1;
        work(self)?;
        self.depth -= 1;
        self.path.truncate(length);
        Ok(())
    }

    fn aspects(&mut self, a: &Inode, b: &Inode) -> EngineResult<Vec<Aspect>> {
        let mut aspects = Vec::new();
        match (a.kind, b.kind) {
            (Kind::File, Kind::File) => {
                if a.size != b.size || !self.same_content(a, b)? {
                    aspects.push(Aspect::Content);
                }
            }
            (Kind::Link, Kind::Link) => {
                if self.a.side.link_target(a)? != self.b.side.link_target(b)? {
                    aspects.push(Aspect::Target);
                }
            }
            (one, two) if one == two => {}
            (Kind::Device { block: one, .. }, Kind::Device { block: two, .. }) if one == two => {
                aspects.push(Aspect::Device);
            }
            _ => aspects.push(Aspect::Type),
        }
        if a.mode != b.mode {
            aspects.push(Aspect::Mode);
        }
        if (a.uid, a.gid) != (b.uid, b.gid) {
            aspects.push(Aspect::Owner);
        }
        Ok(aspects)
    }

    fn same_content(&mut self, a: &Inode, b: &Inode) -> EngineResult<bool> {
        let key = (a.number, b.number);
        if let Some(verdict) = self.verdicts.get(&key) {
            return Ok(*verdict);
        }
        let verdict = content::same((self.a.side, a), (self.b.side, b))?;
        if a.links > 1 || b.links > 1 {
            self.verdicts.insert(key, verdict);
        }
        Ok(verdict)
    }

    fn tell(&mut self, change: Change, a: Option<&Inode>, b: Option<&Inode>, aspects: Vec<Aspect>) {
        let path = if self.path.is_empty() { "/".into() } else { String::from_utf8_lossy(&self.path) };
        let (before, after) = (a.map(facts), b.map(facts));
        self.sink.push(FileChange { change, path: path.into_owned(), before, after, aspects });
    }
}

/// Checks the bytes of a path, and how many names it has.
fn check_place(path_bytes: usize, names: usize) -> ImageResult<()> {
    limit("paths", path_bytes as u64, PATH_BYTES_MAX as u64)?;
    limit("nested directories", names as u64, DEPTH_MAX as u64)
}

fn limit(what: &'static str, value: u64, max: u64) -> ImageResult<()> {
    if value > max { Err(ImageError::Limit { what, max }) } else { Ok(()) }
}

fn facts(inode: &Inode) -> FileFacts {
    let kind = match inode.kind {
        Kind::File => FileKind::File,
        Kind::Directory => FileKind::Directory,
        Kind::Link => FileKind::Link,
        Kind::Device { block: true, .. } => FileKind::BlockDevice,
        Kind::Device { block: false, .. } => FileKind::CharacterDevice,
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
    };
    let size = if kind == FileKind::File { inode.size } else { 0 };
    FileFacts { kind, size, mode: inode.mode, uid: inode.uid, gid: inode.gid }
}

#[cfg(test)]
mod tests;
