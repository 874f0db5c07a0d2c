//! Entries of a tar file that lies in a file: headers are read, content is passed over.

use super::super::error::LayerError;
use super::super::limits::EXTENDED_BYTES_MAX;
use super::header::{BLOCK, Header, sparse_pairs, sparse_size};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::oci) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    pub(super) fn type_flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::CharDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// A record of an extended header: key and value.
pub(super) type Record = (Vec<u8>, Vec<u8>);

/// What an entry says of its file.
#[derive(Debug, Clone)]
pub(in crate::oci) struct Entry {
    pub(in crate::oci) path: Vec<u8>,
    pub(in crate::oci) link: Vec<u8>,
    pub(in crate::oci) kind: Kind,
    pub(super) mode: u64,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds since 1970, with a fraction where there is one.
    pub(super) mtime: String,
    pub(super) device: (u64, u64),
    /// Attributes, access lists and the map of a sparse file.
    pub(super) records: Vec<Record>,
    /// Where its stored content begins in the file, and how long it is.
    pub(in crate::oci) data: u64,
    pub(in crate::oci) len: u64,
}

impl Entry {
    /// The bytes it takes in memory, about.
    pub(super) fn weight(&self) -> u64 {
        let records: usize = self.records.iter().map(|(key, value)| key.len() + value.len() + 48).sum();
        (self.path.len() + self.link.len() + records) as u64
    }
}

/// Reads the entries of a part of a file.
pub(in crate::oci) struct TarReader<'a> {
    file: &'a File,
    start: u64,
    end: u64,
    position: u64,
}

#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<String>,
    sparse_name: Option<Vec<u8>>,
    records: Vec<Record>,
    bytes: u64,
    gnu: bool,
    pax: bool,
}

impl<'a> TarReader<'a> {
    pub(in crate::oci) fn new(file: &'a File, start: u64, len: u64) -> Self {
        Self { file, start, end: start.saturating_add(len), position: start }
    }

    /// Returns the next entry; none at the end mark.
    pub(in crate::oci) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extended = Extended::default();
        loop {
            let offset = self.position - self.start;
            let damaged = |problem| LayerError::Header { offset, problem };
            // Its digest was checked: a layer without an end mark was written so, and ends where its file does.
            if self.position == self.end && extended.bytes == 0 {
                return Ok(None);
            }
            let block = self.block(|| format!("the header at byte {offset}"))?;
            if block.iter().all(|byte| *byte == 0) {
                if extended.bytes > 0 {
                    return Err(LayerError::Truncated("an extended header without its entry".to_owned()));
                }
                return Ok(None);
            }
            let header = Header::parse(&block).map_err(damaged)?;
            if matches!(header.type_flag, b'x' | b'g' | b'L' | b'K') {
                extended.bytes = extended.bytes.saturating_add(header.size).saturating_add(1);
                if extended.bytes > EXTENDED_BYTES_MAX {
                    return Err(damaged("its entry has more than 1 MiB of extended headers"));
                }
                let bytes = self.bytes(header.size, || format!("the extended header at byte {offset}"))?;
                extended.add(header.type_flag, &bytes).map_err(damaged)?;
                continue;
            }
            return self.entry(&header, &block, extended, offset).map(Some);
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        block: &[u8; BLOCK],
        extended: Extended,
        offset: u64,
    ) -> Result<Entry, LayerError> {
        let damaged = |problem| LayerError::Header { offset, problem };
        let mut records = extended.records;
        let path = extended.sparse_name.or(extended.path).unwrap_or_else(|| header.path.clone());
        let shown = show(&path);
        let kind = match header.type_flag {
            // Before directories had a type of their own, they were files with a slash at the end.
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | b'7' | 0 => Kind::File,
            b'S' if header.gnu => Kind::File,
            b'S' => return Err(damaged("it is sparse and not written by GNU tar")),
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let kind = char::from(other).escape_default().to_string();
                return Err(LayerError::Type { entry: shown, kind });
            }
        };
        if header.type_flag == b'S' {
            self.sparse_map(block, &mut records, &shown, offset)?;
        }
        let len = extended.size.unwrap_or(header.size);
        if kind != Kind::File && len > 0 {
            return Err(LayerError::Content { entry: shown, size: len });
        }
        let owner = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).map(u64::from);
        let out_of_range = || damaged("a number of it is too large");
        let entry = Entry {
            path,
            link: extended.link.unwrap_or_else(|| header.link.clone()),
            kind,
            mode: header.mode & 0o7777,
            uid: owner(extended.uid.unwrap_or(header.uid)).ok_or_else(out_of_range)?,
            gid: owner(extended.gid.unwrap_or(header.gid)).ok_or_else(out_of_range)?,
            mtime: extended.mtime.unwrap_or_else(|| header.mtime.to_string()),
            device: header.device,
            records,
            data: self.position,
            len,
        };
        let whole = len.checked_next_multiple_of(BLOCK as u64).and_then(|len| self.position.checked_add(len));
        self.position =
            whole.filter(|end| *end <= self.end).ok_or(LayerError::Truncated(format!("entry `{shown}`")))?;
        Ok(entry)
    }

    /// Turns the map of GNU's own form into records, which say the same.
    fn sparse_map(
        &mut self,
        block: &[u8; BLOCK],
        records: &mut Vec<Record>,
        shown: &str,
        offset: u64,
    ) -> Result<(), LayerError> {
        let damaged = |problem| LayerError::Header { offset, problem };
        let mut pairs = sparse_pairs(&block[386..482]).map_err(damaged)?;
        let mut more = block[482] != 0;
        while more {
            let next = self.block(|| format!("entry `{shown}`"))?;
            pairs.extend(sparse_pairs(&next[..504]).map_err(damaged)?);
            more = next[504] != 0;
            if pairs.len() as u64 > EXTENDED_BYTES_MAX / 16 {
                return Err(damaged("its map of holes is too long"));
            }
        }
        let map: Vec<String> = pairs.iter().map(|(at, len)| format!("{at},{len}")).collect();
        let size = sparse_size(block).map_err(damaged)?;
        let mut record = |key: &[u8], value: String| records.push((key.to_vec(), value.into_bytes()));
        record(b"GNU.sparse.size", size.to_string());
        record(b"GNU.sparse.numblocks", pairs.len().to_string());
        record(b"GNU.sparse.map", map.join(","));
        Ok(())
    }

    fn block(&mut self, within: impl Fn() -> String) -> Result<[u8; BLOCK], LayerError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block, within)?;
        Ok(block)
    }

    fn bytes(&mut self, len: u64, within: impl Fn() -> String) -> Result<Vec<u8>, LayerError> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.fill(&mut bytes, within)?;
        // Blocks are counted from where the tar file begins, which may be anywhere in the file.
        self.position = self.start + (self.position - self.start).next_multiple_of(BLOCK as u64);
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], within: impl Fn() -> String) -> Result<(), LayerError> {
        if self.end.saturating_sub(self.position) < bytes.len() as u64 {
            return Err(LayerError::Truncated(within()));
        }
        self.file.read_exact_at(bytes, self.position).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => LayerError::Truncated(within()),
            _ => LayerError::Damaged(error),
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl Extended {
    fn add(&mut self, type_flag: u8, bytes: &[u8]) -> Result<(), &'static str> {
        let long = || Some(bytes.strip_suffix(&[0]).unwrap_or(bytes).to_vec());
        self.gnu |= matches!(type_flag, b'L' | b'K');
        self.pax |= type_flag == b'x';
        if self.gnu && self.pax {
            // Readers differ in which of the two kinds of long names wins.
            return Err("its entry has two kinds of extended headers");
        }
        match type_flag {
            b'L' => self.path = long(),
            b'K' => self.link = long(),
            _ => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let (record, after) = record(rest).ok_or("a record of it has a wrong length")?;
                    rest = after;
                    let split =
                        record.iter().position(|byte| *byte == b'=').ok_or("a record of it has no `=`")?;
                    let (key, value) = (&record[..split], &record[split + 1..]);
                    if type_flag == b'g' {
                        if key != b"comment" {
                            return Err("it speaks of all entries that follow, which is not supported");
                        }
                        continue;
                    }
                    self.record(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let decimal = || {
            let text =
                std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            text.and_then(|text| text.parse().ok()).ok_or("a record of it is not a number")
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"size" => self.size = Some(decimal()?),
            b"uid" => self.uid = Some(decimal()?),
            b"gid" => self.gid = Some(decimal()?),
            b"mtime" => self.mtime = Some(time(value).ok_or("its time is none")?),
            key if key.starts_with(b"GNU.sparse.") => self.records.push((key.to_vec(), value.to_vec())),
            key if key.starts_with(b"SCHILY.xattr.") || key.starts_with(b"SCHILY.acl.") => {
                self.records.retain(|(known, _)| known != key);
                self.records.push((key.to_vec(), value.to_vec()));
            }
            // What other programs note there shapes no file.
            _ => {}
        }
        Ok(())
    }
}

/// Checks a decimal number of seconds, negative and with a fraction where need be.
fn time(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= 40)?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let whole = seconds.strip_prefix('-').unwrap_or(seconds);
    seconds.parse::<i64>().ok().filter(|_| digits(whole) && digits(fraction))?;
    Some(text.to_owned())
}

/// Splits the first `LENGTH KEY=VALUE\n` off; returns `KEY=VALUE` and the rest.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let digits =
        std::str::from_utf8(&bytes[..space]).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    let len: usize = digits.parse().ok()?;
    let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    Some((record, &bytes[len..]))
}

pub(in crate::oci) fn show(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { kiln_core::text::clip(&String::from_utf8_lossy(path)) }
}
