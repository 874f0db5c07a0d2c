//! Tar files from outside, checked from end to end before anything is unpacked.
//!
//! [`check`] reads every header and says how large the content is; it refuses whatever could put a file outside the
//! target, and every form of tar that two readers could understand differently. Unpacking itself is GNU tar's work:
//! it is given exactly the bytes that were checked, see [`Checked::len`].

mod header;

use crate::tree::TreeSize;
use header::{BLOCK, Header, Kind, Pending};
use kiln_core::digest::Digest;
use sha2::Digest as _;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The most entries a tar file may have.
pub const ENTRIES_MAX: u64 = 4_000_000;
/// The most bytes a tar file may have once uncompressed (1 TiB).
pub const ARCHIVE_BYTES_MAX: u64 = 1 << 40;
/// The most bytes the files of a tar file may have together, holes included (4 TiB).
pub const CONTENT_BYTES_MAX: u64 = 1 << 42;
/// The longest path of an entry, in bytes.
pub const PATH_BYTES_MAX: usize = 4095;
/// The longest component of a path, in bytes.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// The most bytes an extended header may have.
pub const EXTENDED_BYTES_MAX: u64 = 1 << 20;

/// Why a tar file is refused. Names are clipped and escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Compressed in a format that is not read.
    #[error("it is compressed with {0}; plain, gzip and zstd can be read")]
    Compression(&'static str),
    /// It ends before its end mark.
    #[error("it is truncated: it ends within {0}")]
    Truncated(String),
    /// A header that is none.
    #[error("the header at byte {offset} is damaged: {problem}")]
    Header {
        /// Where it is, in the uncompressed file.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// An absolute name.
    #[error("entry `{0}` has an absolute name")]
    Absolute(String),
    /// A name with `..`.
    #[error("entry `{0}` leads out of its directory")]
    Parent(String),
    /// A name with a zero byte.
    #[error("entry `{0}` has a zero byte in its name")]
    ZeroByte(String),
    /// An empty name.
    #[error("the entry at byte {0} has no name")]
    NoName(u64),
    /// A name that no file system takes.
    #[error(
        "entry `{0}` has a name of more than {COMPONENT_BYTES_MAX} bytes or a path of more than {PATH_BYTES_MAX}"
    )]
    NameTooLong(String),
    /// An entry below something that is no directory.
    #[error("entry `{entry}` lies below `{parent}`, which is {what}")]
    BelowNonDirectory {
        /// The entry.
        entry: String,
        /// What it lies below.
        parent: String,
        /// What that is.
        what: &'static str,
    },
    /// An entry that replaces another of a different type.
    #[error("entry `{entry}` is {second} and was {first} before")]
    TypeChanged {
        /// The entry.
        entry: String,
        /// What it was first.
        first: &'static str,
        /// What it is now.
        second: &'static str,
    },
    /// A hard link to something the tar file does not hold.
    #[error("entry `{entry}` is a hard link to `{target}`, which is not an earlier file of the tar file")]
    HardLink {
        /// The entry.
        entry: String,
        /// What it links to.
        target: String,
    },
    /// A type that no root file system needs.
    #[error("entry `{entry}` has type `{kind}`, which cannot be unpacked")]
    Type {
        /// The entry.
        entry: String,
        /// The type's letter.
        kind: String,
    },
    /// An entry with content that cannot have any.
    #[error("entry `{entry}` is {what} with {size} bytes of content")]
    Content {
        /// The entry.
        entry: String,
        /// What it is.
        what: &'static str,
        /// The bytes it claims.
        size: u64,
    },
    /// An extended header kiln does not know.
    #[error("the extended header at byte {offset} has the key `{key}`, which is not supported")]
    ExtendedKey {
        /// Where it is.
        offset: u64,
        /// The key.
        key: String,
    },
    /// Over a limit.
    #[error("it has more {what} than {max}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// The data cannot be uncompressed or read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
}

/// What a tar file holds.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The bytes, uncompressed, up to the end of the last entry. Whatever follows is not to be unpacked.
    pub len: u64,
    /// The size of the content.
    pub size: TreeSize,
    /// A digest of names, types, owners, modes, sizes and times: the same for the same listing.
    pub listing: Digest,
    /// Directories that hold entries and have no entry of their own, the outermost first.
    pub implied: Vec<PathBuf>,
}

/// Checks a tar file, given uncompressed. `proceed` is asked now and then; false ends the check as a read error.
pub fn check(input: impl Read, proceed: &dyn Fn() -> bool) -> Result<Checked, ArchiveError> {
    Checker::new(Counting { inner: input, position: 0 }, proceed).run()
}

struct Counting<R> {
    inner: R,
    position: u64,
}

struct Checker<'a, R> {
    input: Counting<R>,
    proceed: &'a dyn Fn() -> bool,
    seen: HashMap<Vec<u8>, Kind>,
    size: TreeSize,
    listing: sha2::Sha256,
    /// Headers seen.
    entries: u64,
    content: u64,
    buffer: Vec<u8>,
}

/// Bytes read between two looks at `proceed`.
const STEP_BYTES: usize = 128 << 10;

impl<'a, R: Read> Checker<'a, R> {
    fn new(input: Counting<R>, proceed: &'a dyn Fn() -> bool) -> Self {
        Self {
            input,
            proceed,
            seen: HashMap::new(),
            size: TreeSize::default(),
            listing: sha2::Sha256::new(),
            entries: 0,
            content: 0,
            buffer: vec![0; STEP_BYTES],
        }
    }

    fn run(mut self) -> Result<Checked, ArchiveError> {
        self.seen.insert(Vec::new(), Kind::Implied);
        self.size.add_directory(0);
        let mut len = 0;
        let mut pending = Pending::default();
        loop {
            let offset = self.input.position;
            let mut block = [0; BLOCK];
            self.fill(&mut block, || format!("the header at byte {offset}, without an end mark"))?;
            if block.iter().all(|byte| *byte == 0) {
                if !pending.is_empty() {
                    return Err(ArchiveError::Truncated("an extended header without its entry".to_owned()));
                }
                break;
            }
            self.entries += 1;
            limit("entries", self.entries, ENTRIES_MAX)?;
            let header = Header::parse(&block).map_err(|problem| ArchiveError::Header { offset, problem })?;
            if header.is_extension() {
                limit("bytes in an extended header", header.size, EXTENDED_BYTES_MAX)?;
                let bytes = self.data(header.size, || format!("the extended header at byte {offset}"))?;
                pending.add(&header, &bytes, offset)?;
                continue;
            }
            self.entry(&header, std::mem::take(&mut pending), offset)?;
            len = self.input.position;
        }
        let implied = self.seen.into_iter().filter(|(_, kind)| *kind == Kind::Implied);
        let mut implied: Vec<PathBuf> = implied.map(|(path, _)| OsString::from_vec(path).into()).collect();
        implied.sort();
        Ok(Checked {
            implied,
            len,
            size: self.size,
            listing: Digest::from_bytes(self.listing.finalize().into()),
        })
    }

    fn entry(&mut self, header: &Header, pending: Pending, offset: u64) -> Result<(), ArchiveError> {
        let raw_path = pending.path.as_deref().unwrap_or(&header.path);
        let path = clean(raw_path, offset)?;
        let shown = show(&path);
        let stored = pending.size.unwrap_or(header.size);
        let mut real = pending.real_size.unwrap_or(stored);
        let kind = header.kind(raw_path).ok_or_else(|| ArchiveError::Type {
            entry: shown.clone(),
            kind: char::from(header.type_flag).escape_default().to_string(),
        })?;
        if header.is_sparse() {
            real = header.sparse_real_size().map_err(|problem| ArchiveError::Header { offset, problem })?;
            self.sparse_map(header.sparse_continues(), &shown)?;
        }
        if kind != Kind::File && stored != 0 {
            return Err(ArchiveError::Content { entry: shown, what: kind.what(), size: stored });
        }
        let kind = self.place(&path, kind, || {
            let target = pending.link.as_deref().unwrap_or(&header.link);
            clean(target, offset)
        })?;
        self.content = self.content.saturating_add(real);
        limit("bytes of content", self.content, CONTENT_BYTES_MAX)?;
        match kind {
            Placed::New(Kind::Directory) => self.size.add_directory(path.len()),
            Placed::New(Kind::File) | Placed::Again(Kind::File) => {
                self.size.add_file(stored.min(real), path.len());
            }
            Placed::New(_) => self.size.add_special(path.len()),
            Placed::Again(_) => {}
        }
        self.size.add_attributes(pending.attribute_bytes);
        self.list(header, &pending, &path, real);
        self.skip(stored, || format!("entry `{shown}`"))
    }

    /// Notes an entry, after the checks that keep it inside the target.
    fn place(
        &mut self,
        path: &[u8],
        kind: Kind,
        target: impl FnOnce() -> Result<Vec<u8>, ArchiveError>,
    ) -> Result<Placed, ArchiveError> {
        for (index, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let parent = &path[..index];
            match self.seen.get(parent) {
                Some(Kind::Directory | Kind::Implied) => {}
                Some(other) => {
                    let (entry, parent) = (show(path), show(parent));
                    return Err(ArchiveError::BelowNonDirectory { entry, parent, what: other.what() });
                }
                None => {
                    self.seen.insert(parent.to_vec(), Kind::Implied);
                    self.size.add_directory(parent.len());
                }
            }
        }
        let mut kind = kind;
        let linked = kind == Kind::HardLink;
        if linked {
            let target = target()?;
            match self.seen.get(&target) {
                Some(Kind::Directory | Kind::Implied) | None => {
                    return Err(ArchiveError::HardLink { entry: show(path), target: show(&target) });
                }
                Some(_) if target == path => {
                    return Err(ArchiveError::HardLink { entry: show(path), target: show(&target) });
                }
                Some(found) => kind = *found,
            }
        }
        match self.seen.insert(path.to_vec(), kind) {
            Some(Kind::Implied) if kind == Kind::Directory => Ok(Placed::Again(kind)),
            Some(first) if first != kind => {
                let (first, second) = (first.what(), kind.what());
                Err(ArchiveError::TypeChanged { entry: show(path), first, second })
            }
            Some(_) => Ok(Placed::Again(if linked { Kind::HardLink } else { kind })),
            None if linked => {
                self.size.add_name(path.len());
                Ok(Placed::Again(Kind::HardLink))
            }
            None => Ok(Placed::New(kind)),
        }
    }

    fn list(&mut self, header: &Header, pending: &Pending, path: &[u8], real: u64) {
        let numbers = [u64::from(header.type_flag), real, path.len() as u64, header.link.len() as u64];
        for number in numbers {
            self.listing.update(number.to_le_bytes());
        }
        self.listing.update(path);
        self.listing.update(&header.link);
        // Mode, owner, group, time and device as they stand in the header; extended headers may say more.
        self.listing.update(&header.metadata);
        self.listing.update((pending.raw.len() as u64).to_le_bytes());
        self.listing.update(&pending.raw);
    }

    /// Reads the blocks that continue an old sparse map.
    fn sparse_map(&mut self, mut more: bool, shown: &str) -> Result<(), ArchiveError> {
        let mut blocks = 0;
        while more {
            blocks += 1;
            limit("sparse headers in an entry", blocks, EXTENDED_BYTES_MAX)?;
            let mut block = [0; BLOCK];
            self.fill(&mut block, || format!("entry `{shown}`"))?;
            more = block[504] != 0;
        }
        Ok(())
    }

    fn data(&mut self, len: u64, within: impl Fn() -> String) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.fill(&mut bytes, &within)?;
        self.skip_exact(padding(len), &within)?;
        Ok(bytes)
    }

    fn skip(&mut self, len: u64, within: impl Fn() -> String) -> Result<(), ArchiveError> {
        let whole = len.checked_add(padding(len));
        let whole = whole.ok_or(ArchiveError::TooLarge { what: "bytes", max: ARCHIVE_BYTES_MAX })?;
        self.skip_exact(whole, within)
    }

    fn skip_exact(&mut self, mut len: u64, within: impl Fn() -> String) -> Result<(), ArchiveError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        while len > 0 {
            let part = usize::try_from(len).unwrap_or(usize::MAX).min(buffer.len());
            self.fill(&mut buffer[..part], &within)?;
            len -= part as u64;
        }
        self.buffer = buffer;
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8], within: impl Fn() -> String) -> Result<(), ArchiveError> {
        if !(self.proceed)() {
            return Err(ArchiveError::Read(io::Error::new(io::ErrorKind::Interrupted, "cancelled")));
        }
        self.input.position += bytes.len() as u64;
        limit("bytes", self.input.position, ARCHIVE_BYTES_MAX)?;
        self.input.inner.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated(within()),
            _ => ArchiveError::Read(error),
        })
    }
}

/// What an entry meant for the tree.
enum Placed {
    New(Kind),
    Again(Kind),
}

fn limit(what: &'static str, value: u64, max: u64) -> Result<(), ArchiveError> {
    if value > max { Err(ArchiveError::TooLarge { what, max }) } else { Ok(()) }
}

fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK as u64
}

/// Returns a path without `.`, doubled and trailing slashes, after the checks that keep it relative and plain.
fn clean(raw: &[u8], offset: u64) -> Result<Vec<u8>, ArchiveError> {
    if raw.is_empty() {
        return Err(ArchiveError::NoName(offset));
    }
    if raw.contains(&0) {
        return Err(ArchiveError::ZeroByte(show(raw)));
    }
    if raw[0] == b'/' {
        return Err(ArchiveError::Absolute(show(raw)));
    }
    let mut path = Vec::with_capacity(raw.len());
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(ArchiveError::Parent(show(raw))),
            part if part.len() > COMPONENT_BYTES_MAX => return Err(ArchiveError::NameTooLong(show(raw))),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(ArchiveError::NameTooLong(show(raw)));
    }
    Ok(path)
}

fn show(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { kiln_core::text::clip(&String::from_utf8_lossy(path)) }
}

#[cfg(test)]
mod tests;
