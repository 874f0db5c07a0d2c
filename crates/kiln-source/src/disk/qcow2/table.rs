//! The two levels of tables, read as a stream: never more than a slice of one table is in memory.

use super::error::Qcow2Error;
use super::{Qcow2, u64_at};
use crate::disk::{DiskError, DiskResult};
use kiln_sys::Cancel;

/// Bytes of a table that are in memory at once.
const SLICE_BYTES: u64 = 64 << 10;
/// Bits 9 to 55: where a table or a cluster lies.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Deflate gets no further than this many bytes out of one.
const DEFLATE_RATIO: u64 = 1032;
/// Zstandard gets further: runs of a byte take 4 bytes for a block of 128 KiB.
const ZSTD_RATIO: u64 = 1 << 15;

/// A piece of the guest's disk that the image says something of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where the guest has it.
    pub(crate) guest: u64,
    /// Its length in bytes; the last piece may reach beyond the disk's end.
    pub(crate) len: u64,
    /// What is there.
    pub(crate) content: Content,
}

/// What a piece holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Bytes of the file as they are, from this offset on.
    Plain(u64),
    /// A compressed cluster: where it begins, and the most bytes it has.
    Compressed {
        /// Where it begins.
        at: u64,
        /// The most bytes it has.
        len: u64,
    },
    /// Zeros, whatever a backing file has there.
    Zeros,
}

/// How much of an image's file was referred to.
struct Tally {
    tables: u64,
    plain_bytes: u64,
    compressed_bytes: u64,
}

impl Qcow2 {
    /// Calls `found` with all pieces in the guest's order. What no piece covers is the backing file's, or zeros.
    ///
    /// An honest image refers to each of its clusters once: one that makes its reader do more than its file can stand
    /// for is refused.
    pub(crate) fn pieces(
        &self,
        cancel: &Cancel,
        found: &mut dyn FnMut(Piece) -> DiskResult<()>,
    ) -> DiskResult<()> {
        let header = &self.header;
        let covers = header.table_covers();
        let tables = header.virtual_bytes.div_ceil(covers);
        let mut tally = Tally { tables: 0, plain_bytes: 0, compressed_bytes: 0 };
        let mut buffer = Vec::new();
        let mut slice = Vec::new();
        let mut first = 0;
        while first < tables {
            let count = (SLICE_BYTES / 8).min(tables - first);
            self.read_slice(&mut slice, header.l1_offset + first * 8, count * 8)?;
            for (bytes, number) in slice.chunks_exact(8).zip(0..count) {
                let entry = u64_at(bytes, 0).unwrap_or_default();
                let (guest, table) = ((first + number) * covers, entry & OFFSET);
                if table == 0 {
                    continue;
                }
                let len = header.cluster_bytes();
                if !table.is_multiple_of(len) || table.checked_add(len).is_none_or(|end| end > self.len) {
                    let (table, file) = ("second-level table", self.len);
                    return Err(self.refused(Qcow2Error::Table { table, offset: entry & OFFSET, len, file }));
                }
                tally.tables += 1;
                if tally.tables > self.len / len {
                    return Err(self.refused(Qcow2Error::Repeated { what: "tables" }));
                }
                self.table(guest, table, &mut tally, &mut buffer, cancel, found)?;
            }
            first += count;
        }
        Ok(())
    }

    /// Walks one second-level table.
    fn table(
        &self,
        guest: u64,
        table: u64,
        tally: &mut Tally,
        buffer: &mut Vec<u8>,
        cancel: &Cancel,
        found: &mut dyn FnMut(Piece) -> DiskResult<()>,
    ) -> DiskResult<()> {
        let (cluster, unit) = (self.header.cluster_bytes(), self.header.entry_bytes());
        let entries = (self.header.virtual_bytes - guest).div_ceil(cluster).min(cluster / unit);
        let mut at = 0;
        while at < entries {
            cancel.check()?;
            let count = (entries - at).min(SLICE_BYTES / unit);
            self.read_slice(buffer, table + at * unit, count * unit)?;
            let size = if unit == 16 { 16 } else { 8 };
            for (bytes, number) in buffer.chunks_exact(size).zip(0..count) {
                let entry = u64_at(bytes, 0).unwrap_or_default();
                // Entries of 8 bytes have none.
                let bitmap = u64_at(bytes, 8);
                if entry == 0 && bitmap.unwrap_or_default() == 0 {
                    continue;
                }
                let guest = guest + (at + number) * cluster;
                self.entry(guest, entry, bitmap, tally, found)?;
            }
            at += count;
        }
        Ok(())
    }

    fn entry(
        &self,
        guest: u64,
        entry: u64,
        bitmap: Option<u64>,
        tally: &mut Tally,
        found: &mut dyn FnMut(Piece) -> DiskResult<()>,
    ) -> DiskResult<()> {
        let cluster = self.header.cluster_bytes();
        if entry & COMPRESSED != 0 {
            let piece = self.compressed(guest, entry)?;
            tally.compressed_bytes += cluster;
            let ratio = if self.header.compression == super::header::Compression::Zstd {
                ZSTD_RATIO
            } else {
                DEFLATE_RATIO
            };
            if tally.compressed_bytes > self.len.saturating_mul(ratio) {
                return Err(self.refused(Qcow2Error::Repeated { what: "compressed clusters" }));
            }
            return found(piece);
        }
        let host = entry & OFFSET;
        match bitmap {
            Some(bitmap) => self.subclusters(guest, entry, bitmap, tally, found),
            None if entry & ZERO != 0 => {
                if self.header.version < 3 {
                    return Err(self.damaged(guest, "zero clusters are not of version 2"));
                }
                found(Piece { guest, len: cluster, content: Content::Zeros })
            }
            None if host == 0 => Ok(()),
            None => found(self.plain(guest, host, 0, cluster, tally)?),
        }
    }

    /// Returns a piece that lies in the file as it is: `len` bytes, `inside` bytes into the cluster at `host`.
    fn plain(&self, guest: u64, host: u64, inside: u64, len: u64, tally: &mut Tally) -> DiskResult<Piece> {
        let (at, guest) = (host + inside, guest + inside);
        // What lies beyond the disk's end need not be in the file.
        let seen = len.min(self.header.virtual_bytes.saturating_sub(guest));
        if !host.is_multiple_of(self.header.cluster_bytes()) || at + seen > self.len {
            return Err(self.refused(Qcow2Error::Outside { guest, host, file: self.len }));
        }
        tally.plain_bytes += seen;
        if tally.plain_bytes > self.len {
            return Err(self.refused(Qcow2Error::Repeated { what: "clusters" }));
        }
        Ok(Piece { guest, len, content: Content::Plain(at) })
    }

    fn compressed(&self, guest: u64, entry: u64) -> DiskResult<Piece> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let at = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let len = ((sectors + 1) * 512 - at % 512).min(self.len.saturating_sub(at));
        if len == 0 {
            return Err(self.refused(Qcow2Error::Outside { guest, host: at, file: self.len }));
        }
        Ok(Piece { guest, len: self.header.cluster_bytes(), content: Content::Compressed { at, len } })
    }

    /// An extended entry: each of 32 subclusters is in the file, zeros, or not there. Neighbours of a kind are one piece.
    fn subclusters(
        &self,
        guest: u64,
        entry: u64,
        bitmap: u64,
        tally: &mut Tally,
        found: &mut dyn FnMut(Piece) -> DiskResult<()>,
    ) -> DiskResult<()> {
        let (host, unit) = (entry & OFFSET, self.header.cluster_bytes() / 32);
        let (there, zeros) = (bitmap & 0xffff_ffff, bitmap >> 32);
        if entry & ZERO != 0 {
            return Err(self.damaged(guest, "the zero flag is not of images with subclusters"));
        }
        if there & zeros != 0 {
            return Err(self.damaged(guest, "a subcluster is both zeros and data"));
        }
        if there != 0 && host == 0 {
            return Err(self.damaged(guest, "subclusters have data, and the cluster has no place"));
        }
        let kind = |at: u64| (there >> at & 1, zeros >> at & 1);
        let mut first = 0;
        while first < 32 {
            let next = (first + 1..32).find(|at| kind(*at) != kind(first)).unwrap_or(32);
            let (inside, len) = (first * unit, (next - first) * unit);
            if guest + inside >= self.header.virtual_bytes {
                break;
            }
            match kind(first) {
                (1, _) => found(self.plain(guest, host, inside, len, tally)?)?,
                (_, 1) => found(Piece { guest: guest + inside, len, content: Content::Zeros })?,
                _ => {}
            }
            first = next;
        }
        Ok(())
    }

    fn read_slice(&self, buffer: &mut Vec<u8>, at: u64, len: u64) -> DiskResult<()> {
        use kiln_sys::IoResultExt as _;
        use std::os::unix::fs::FileExt as _;
        buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        Ok(self.file.read_exact_at(buffer, at).at("read", &self.path)?)
    }

    fn damaged(&self, guest: u64, reason: &'static str) -> DiskError {
        self.refused(Qcow2Error::Entry { guest, reason })
    }
}
