//! The header of an image, checked field by field before anything it leads to is read.

use super::error::Qcow2Error;
use super::{Qcow2Result, u32_at, u64_at};

/// The largest guest disk, in bytes.
pub const VIRTUAL_BYTES_MAX: u64 = 64 << 40;
/// The largest first-level table, in bytes.
pub const L1_BYTES_MAX: u64 = 32 << 20;
/// The most snapshots inside an image.
pub const SNAPSHOTS_MAX: u32 = 65_536;
/// The longest name of a backing file, in bytes.
pub const BACKING_NAME_MAX: u32 = 1023;
/// The largest header with its extensions, in bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 64 << 10;

const MAGIC: &[u8; 4] = b"QFI\xfb";
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Deflate,
    Zstd,
}

/// What the header says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) virtual_bytes: u64,
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u64,
    pub(crate) compression: Compression,
    pub(crate) extended_l2: bool,
    pub(crate) snapshots: u32,
    pub(crate) backing: Option<Backing>,
}

/// The backing file as the header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) name: String,
    pub(crate) format: Option<String>,
}

impl Header {
    /// Reads the header of a file of `file` bytes; `bytes` are its first [`HEADER_BYTES_MAX`], or all there are.
    pub(crate) fn parse(bytes: &[u8], file: u64) -> Qcow2Result<Self> {
        if !bytes.starts_with(MAGIC) {
            return Err(Qcow2Error::NotQcow2);
        }
        let short = || Qcow2Error::Header { field: "the length of the file", value: file };
        let version = u32_at(bytes, 4).ok_or_else(short)?;
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Version(version));
        }
        let least = if version == 2 { V2_BYTES } else { V3_BYTES };
        if bytes.len() < least {
            return Err(short());
        }
        let u32_of = |at| u32_at(bytes, at).unwrap_or_default();
        let u64_of = |at| u64_at(bytes, at).unwrap_or_default();
        let wrong = |field, value| Qcow2Error::Header { field, value };

        let (features, refcount_order, header_bytes) = match version {
            2 => (0, 4, V2_BYTES),
            _ => (u64_of(72), u32_of(96), u32_of(100) as usize),
        };
        let cluster_bits = u32_of(20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(wrong("cluster_bits", cluster_bits.into()));
        }
        let cluster = 1_u64 << cluster_bits;
        if header_bytes < least || header_bytes % 8 != 0 || header_bytes as u64 > cluster {
            return Err(wrong("header_length", header_bytes as u64));
        }
        if header_bytes > bytes.len() {
            return Err(short());
        }
        match u32_of(32) {
            0 => {}
            1 => return Err(Qcow2Error::Unsupported("AES encryption")),
            2 => return Err(Qcow2Error::Unsupported("LUKS encryption")),
            method => return Err(wrong("crypt_method", method.into())),
        }
        check_features(features)?;
        let kind = if header_bytes > V3_BYTES { bytes[V3_BYTES] } else { 0 };
        let compression = match (kind, features & COMPRESSION != 0) {
            (0, false) => Compression::Deflate,
            (1, true) => Compression::Zstd,
            (kind, _) => return Err(wrong("compression_type", kind.into())),
        };
        let extended_l2 = features & EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < 14 {
            return Err(wrong("cluster_bits of an image with subclusters", cluster_bits.into()));
        }
        if refcount_order > 6 {
            return Err(wrong("refcount_order", refcount_order.into()));
        }
        let virtual_bytes = u64_of(24);
        if virtual_bytes > VIRTUAL_BYTES_MAX {
            return Err(Qcow2Error::Limit {
                what: "virtual size",
                value: virtual_bytes,
                max: VIRTUAL_BYTES_MAX,
            });
        }
        let table = |table, offset: u64, len: u64| {
            let ends = offset.checked_add(len).is_some_and(|end| end <= file);
            if ends && offset.is_multiple_of(cluster) && (offset > 0 || len == 0) {
                Ok(())
            } else {
                Err(Qcow2Error::Table { table, offset, len, file })
            }
        };
        let (l1_entries, l1_offset) = (u64::from(u32_of(36)), u64_of(40));
        if l1_entries * 8 > L1_BYTES_MAX {
            return Err(Qcow2Error::Limit {
                what: "first-level table",
                value: l1_entries * 8,
                max: L1_BYTES_MAX,
            });
        }
        table("first-level table", l1_offset, l1_entries * 8)?;
        let l2_entries = cluster / if extended_l2 { 16 } else { 8 };
        if l1_entries < virtual_bytes.div_ceil(cluster * l2_entries) {
            return Err(wrong("l1_size", l1_entries));
        }
        let refcount_bytes = u64::from(u32_of(56)) << cluster_bits;
        if refcount_bytes == 0 {
            return Err(wrong("refcount_table_clusters", 0));
        }
        table("reference count table", u64_of(48), refcount_bytes)?;
        let snapshots = u32_of(60);
        if snapshots > SNAPSHOTS_MAX {
            return Err(wrong("nb_snapshots", snapshots.into()));
        }
        if snapshots > 0 {
            table("snapshot table", u64_of(64), u64::from(snapshots) * 40)?;
        }
        let backing = backing(bytes, header_bytes, cluster, u64_of(8), u32_of(16))?;
        Ok(Self {
            version,
            cluster_bits,
            virtual_bytes,
            l1_offset,
            l1_entries,
            compression,
            extended_l2,
            snapshots,
            backing,
        })
    }

    /// Returns the bytes of a cluster.
    pub(crate) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Returns the bytes of an entry of a second-level table.
    pub(crate) fn entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Returns the bytes of the guest's disk that one second-level table is for.
    pub(crate) fn table_covers(&self) -> u64 {
        (self.cluster_bytes() / self.entry_bytes()) << self.cluster_bits
    }
}

fn check_features(features: u64) -> Qcow2Result<()> {
    // Of a dirty image only the reference counts are not to be trusted, and nothing here needs them.
    let unknown = features & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        return Err(Qcow2Error::Features(unknown));
    }
    if features & CORRUPT != 0 {
        return Err(Qcow2Error::Unsupported("the mark of a corrupt image"));
    }
    if features & DATA_FILE != 0 {
        return Err(Qcow2Error::Unsupported("an external data file"));
    }
    Ok(())
}

/// Reads the backing file's name and what the header's extensions say of its format.
fn backing(bytes: &[u8], header: usize, cluster: u64, offset: u64, len: u32) -> Qcow2Result<Option<Backing>> {
    let format = extensions(bytes, header, cluster, offset)?;
    if offset == 0 {
        return Ok(None);
    }
    if len > BACKING_NAME_MAX {
        let max = BACKING_NAME_MAX.into();
        return Err(Qcow2Error::Limit { what: "backing file's name", value: len.into(), max });
    }
    let damaged = || Qcow2Error::Header { field: "backing_file_offset", value: offset };
    let end = offset.checked_add(len.into()).filter(|end| *end <= cluster).ok_or_else(damaged)?;
    let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    let name = range.and_then(|(from, to)| bytes.get(from..to)).ok_or_else(damaged)?;
    if len == 0 {
        return Ok(None);
    }
    let name = std::str::from_utf8(name)
        .map_err(|_| Qcow2Error::Unsupported("a backing file without a name in UTF-8"))?;
    Ok(Some(Backing { name: name.to_owned(), format }))
}

/// Walks the header's extensions and returns the backing file's format. Others say nothing that reading needs.
fn extensions(bytes: &[u8], header: usize, cluster: u64, backing: u64) -> Qcow2Result<Option<String>> {
    let end = if backing == 0 { cluster } else { backing.min(cluster) };
    let end = usize::try_from(end).unwrap_or(usize::MAX).min(bytes.len());
    let (mut at, mut format) = (header, None);
    while at + 8 <= end {
        let (kind, len) = (u32_at(bytes, at).unwrap_or(0), u32_at(bytes, at + 4).unwrap_or(0));
        if kind == EXTENSION_END {
            break;
        }
        let from = at + 8;
        let to = from + len as usize;
        if to > end {
            return Err(Qcow2Error::Header { field: "the length of a header extension", value: len.into() });
        }
        if kind == EXTENSION_BACKING_FORMAT {
            format = Some(String::from_utf8_lossy(&bytes[from..to]).into_owned());
        }
        at = to.next_multiple_of(8);
    }
    Ok(format)
}
