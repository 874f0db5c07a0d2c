//! The tar stream of merged layers: every name once, in the order of names, written anew; content comes from the layers.

use super::entry::{Entry, Kind, Record};
use super::header::{BLOCK, Header, octal_max};
use super::tree::{Inode, InodeId};
use super::uncompress::Uncompressed;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

/// A name of the merged tree.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) path: Box<[u8]>,
    pub(super) inode: InodeId,
    /// The member whose file this is another name of.
    pub(super) link_to: Option<u32>,
}

/// What layers come to. It can be read any number of times, and gives the same bytes while nobody writes to the layers.
#[derive(Debug)]
pub struct Merged {
    layers: Vec<Uncompressed>,
    members: Vec<Member>,
    inodes: Vec<Inode>,
}

impl Merged {
    pub(super) fn new(layers: Vec<Uncompressed>, members: Vec<Member>, inodes: Vec<Inode>) -> Self {
        Self { layers, members, inodes }
    }

    /// Returns how many names there are.
    pub fn names(&self) -> usize {
        self.members.len()
    }

    /// Returns the stream from its beginning.
    pub fn reader(&self) -> MergedReader<'_> {
        MergedReader { merged: self, next: 0, head: Vec::new(), read: 0, data: None, ended: false }
    }

    fn head(&self, member: &Member) -> Vec<u8> {
        let entry = &self.inodes[member.inode as usize].entry;
        let mut path = member.path.to_vec();
        if entry.kind == Kind::Directory {
            if path.is_empty() {
                path.push(b'.');
            }
            path.push(b'/');
        }
        match member.link_to {
            Some(first) => encode(entry, path, &self.members[first as usize].path, Kind::HardLink),
            None => encode(entry, path, &entry.link, entry.kind),
        }
    }
}

/// Writes the headers of an entry.
fn encode(entry: &Entry, path: Vec<u8>, link: &[u8], kind: Kind) -> Vec<u8> {
    let len = if kind == Kind::File { entry.len } else { 0 };
    let mut records: Vec<Record> = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| records.push((key.to_vec(), value.to_vec()));
    if path.len() > 100 {
        record(b"path", &path);
    }
    let link = if matches!(kind, Kind::HardLink | Kind::Symlink) { link } else { b"" };
    if link.len() > 100 {
        record(b"linkpath", link);
    }
    for (key, value, width) in [(&b"uid"[..], entry.uid, 8), (b"gid", entry.gid, 8), (b"size", len, 12)] {
        if value > octal_max(width) {
            record(key, value.to_string().as_bytes());
        }
    }
    let seconds = entry.mtime.parse().ok().filter(|seconds: &u64| *seconds <= octal_max(12));
    if seconds.is_none() {
        record(b"mtime", entry.mtime.as_bytes());
    }
    if kind != Kind::HardLink {
        records.extend(entry.records.iter().cloned());
    }
    let header = Header {
        path,
        link: link.to_vec(),
        type_flag: kind.type_flag(),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: len,
        mtime: seconds.map_or(0, u64::cast_signed),
        device: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) { entry.device } else { (0, 0) },
        gnu: false,
    };
    let mut head = Vec::with_capacity(3 * BLOCK);
    if !records.is_empty() {
        let body: Vec<u8> = records.iter().flat_map(line).collect();
        let about = Header {
            path: b"PaxHeaders/0".to_vec(),
            link: Vec::new(),
            type_flag: b'x',
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: body.len() as u64,
            mtime: 0,
            device: (0, 0),
            gnu: false,
        };
        head.extend_from_slice(&about.encode());
        head.extend_from_slice(&body);
        head.resize(head.len().next_multiple_of(BLOCK), 0);
    }
    head.extend_from_slice(&header.encode());
    head
}

/// Writes `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn line((key, value): &Record) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    [format!("{len} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// A stream of merged layers.
#[derive(Debug)]
pub struct MergedReader<'a> {
    merged: &'a Merged,
    next: usize,
    head: Vec<u8>,
    read: usize,
    /// The content that follows: layer, offset, and what is left of it.
    data: Option<(&'a Uncompressed, u64, u64)>,
    ended: bool,
}

impl Read for MergedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.read < self.head.len() {
                let read = (self.head.len() - self.read).min(buffer.len());
                buffer[..read].copy_from_slice(&self.head[self.read..self.read + read]);
                self.read += read;
                return Ok(read);
            }
            if let Some((layer, offset, left)) = &mut self.data {
                let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                let read = layer.file.read_at(&mut buffer[..wanted], *offset)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                (*offset, *left) = (*offset + read as u64, *left - read as u64);
                if *left == 0 {
                    self.data = None;
                }
                return Ok(read);
            }
            if self.ended {
                return Ok(0);
            }
            self.advance();
        }
    }
}

impl MergedReader<'_> {
    fn advance(&mut self) {
        self.read = 0;
        let Some(member) = self.merged.members.get(self.next) else {
            self.head = vec![0; 2 * BLOCK];
            self.ended = true;
            return;
        };
        self.next += 1;
        self.head = self.merged.head(member);
        let Inode { layer, entry } = &self.merged.inodes[member.inode as usize];
        if member.link_to.is_none() && entry.len > 0 {
            let layer = &self.merged.layers[*layer as usize];
            // The layer's own padding was found to be there when the entry was read.
            self.data = Some((layer, entry.data, entry.len.next_multiple_of(BLOCK as u64)));
        }
    }
}
