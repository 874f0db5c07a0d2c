//! The headers of tar: ustar, GNU and pax, read strictly.

use super::{ArchiveError, show};

/// The unit of tar.
pub(super) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Device,
    Directory,
    /// A directory without an entry of its own.
    Implied,
    Fifo,
}

impl Kind {
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::HardLink => "a hard link",
            Self::Symlink => "a symbolic link",
            Self::Device => "a device",
            Self::Directory | Self::Implied => "a directory",
            Self::Fifo => "a FIFO",
        }
    }
}

/// One header block.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: u64,
    pub(super) type_flag: u8,
    /// Mode, owner, group, time and device numbers as written.
    pub(super) metadata: Vec<u8>,
    sparse_size: [u8; 12],
    continues: bool,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        if number(&block[148..156])? != u64::from(sum) {
            return Err("its checksum does not match");
        }
        let gnu = &block[257..265] == b"ustar  \0";
        let ustar = &block[257..263] == b"ustar\0";
        let mut path = until_zero(&block[..100]).to_vec();
        let prefix = until_zero(&block[345..500]);
        if ustar && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let mut sparse_size = [0; 12];
        sparse_size.copy_from_slice(&block[483..495]);
        let type_flag = block[156];
        if type_flag == b'S' && !gnu {
            return Err("it is sparse and not written by GNU tar");
        }
        for field in [&block[100..108], &block[108..116], &block[116..124]] {
            number(field)?;
        }
        let mut metadata = [&block[100..124], &block[136..148]].concat();
        if gnu || ustar {
            metadata.extend_from_slice(&block[329..345]);
        }
        Ok(Self {
            path,
            link: until_zero(&block[157..257]).to_vec(),
            size: number(&block[124..136])?,
            type_flag,
            metadata,
            sparse_size,
            continues: block[482] != 0,
        })
    }

    /// Returns whether the header only tells about the entry that follows.
    pub(super) fn is_extension(&self) -> bool {
        matches!(self.type_flag, b'x' | b'g' | b'L' | b'K')
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.type_flag == b'S'
    }

    pub(super) fn sparse_real_size(&self) -> Result<u64, &'static str> {
        number(&self.sparse_size)
    }

    pub(super) fn sparse_continues(&self) -> bool {
        self.continues
    }

    /// Returns what the entry is; none for types that are not unpacked.
    pub(super) fn kind(&self, path: &[u8]) -> Option<Kind> {
        Some(match self.type_flag {
            // Before directories had a type of their own, they were files with a slash at the end.
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | b'7' | b'S' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return None,
        })
    }
}

/// What extended headers said about the entry that follows.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    /// The bytes stored for the entry.
    pub(super) size: Option<u64>,
    /// The bytes of the file, holes included.
    pub(super) real_size: Option<u64>,
    pub(super) attribute_bytes: u64,
    gnu: bool,
    /// The extended headers as they stand.
    pub(super) raw: Vec<u8>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    pub(super) fn add(&mut self, header: &Header, bytes: &[u8], offset: u64) -> Result<(), ArchiveError> {
        self.raw.push(header.type_flag);
        self.raw.extend_from_slice(bytes);
        let damaged = |problem| ArchiveError::Header { offset, problem };
        if self.raw.len() as u64 > super::EXTENDED_BYTES_MAX {
            return Err(damaged("its entry has more than 1 MiB of extended headers"));
        }
        let long = || bytes.strip_suffix(&[0]).unwrap_or(bytes).to_vec();
        self.gnu |= matches!(header.type_flag, b'L' | b'K');
        let slot = match header.type_flag {
            b'L' => &mut self.path,
            b'K' => &mut self.link,
            // Readers differ in which of the two kinds of long names wins.
            b'x' if self.gnu => return Err(damaged("its entry has two kinds of extended headers")),
            global => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let (record, after) =
                        record(rest).ok_or_else(|| damaged("a record of it has a wrong length"))?;
                    rest = after;
                    let split = record.iter().position(|byte| *byte == b'=');
                    let (key, value) =
                        record.split_at(split.ok_or_else(|| damaged("a record of it has no `=`"))?);
                    self.record(key, &value[1..], global == b'g', offset)?;
                }
                return Ok(());
            }
        };
        if slot.replace(long()).is_some() {
            return Err(damaged("its entry has two names"));
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8], global: bool, offset: u64) -> Result<(), ArchiveError> {
        let damaged = |problem| ArchiveError::Header { offset, problem };
        let decimal = || {
            let text =
                std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            text.and_then(|text| text.parse().ok()).ok_or_else(|| damaged("a record of it is not a number"))
        };
        let unknown = || ArchiveError::ExtendedKey { offset, key: show(key) };
        match key {
            b"comment" => {}
            _ if global => return Err(unknown()),
            b"GNU.sparse.name" => self.path = Some(value.to_vec()),
            b"path" if self.raw.windows(16).any(|part| part == b"GNU.sparse.name=") => {}
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal()?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.real_size = Some(decimal()?),
            b"mtime" | b"atime" | b"ctime" | b"uid" | b"gid" | b"uname" | b"gname" | b"charset"
            | b"hdrcharset" => {}
            key if key.starts_with(b"SCHILY.xattr.") || key.starts_with(b"SCHILY.acl.") => {
                self.attribute_bytes += (key.len() + value.len()) as u64;
            }
            key if [&b"GNU.sparse."[..], b"LIBARCHIVE.", b"SCHILY.", b"RHT."]
                .iter()
                .any(|p| key.starts_with(p)) => {}
            _ => return Err(unknown()),
        }
        Ok(())
    }
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

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(bytes)
}

/// Reads an octal number, or the binary form of GNU tar for numbers that are not negative.
fn number(field: &[u8]) -> Result<u64, &'static str> {
    const PROBLEM: &str = "a field of it is not a number";
    if field[0] == 0x80 {
        let (high, low) = field[1..].split_at(field.len().saturating_sub(9));
        if high.iter().any(|byte| *byte != 0) {
            return Err(PROBLEM);
        }
        return Ok(low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    }
    let text = field.trim_ascii_start();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(digits);
    if rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return Err(PROBLEM);
    }
    digits
        .iter()
        .try_fold(0_u64, |sum, byte| match byte {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
            _ => None,
        })
        .ok_or(PROBLEM)
}
