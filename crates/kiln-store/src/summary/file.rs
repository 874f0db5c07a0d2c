//! The file of summaries: `docs/formats/store.md` describes it. What is not exactly a file of this version is none.

use kiln_core::revision::{ARTIFACTS_MAX, VARIANTS_MAX};
use kiln_core::{Digest, VariantName};
use kiln_sys::stamp::Stamp;
use std::ops::Range;

/// The first bytes of the file, its version among them.
const MAGIC: &[u8; 16] = b"kiln.summaries2\n";
/// The length of the checksum that follows.
const SUM_BYTES: usize = 32;
/// The largest file that is read or written, in bytes: a million revisions as most are.
pub(super) const BYTES_MAX: usize = 256 << 20;

/// What stands for no stamp: no inode has the number 0.
const NO_STAMP: Stamp = Stamp { inode: 0, size: 0, modified: [0; 2], changed: [0; 2] };

/// What is remembered of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: Digest,
    pub(super) manifest: Stamp,
    /// None when there was no build record.
    pub(super) record: Option<Stamp>,
    pub(super) built_unix_ms: Option<u64>,
    /// The length of all artifacts, in bytes.
    pub(super) apparent: u64,
    pub(super) variants: Vec<VariantName>,
    /// Where the artifacts are in [`Remembered`].
    pub(super) edges: Range<usize>,
}

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remembered {
    /// The stamp of the directory when the rows were those of all its revisions.
    pub(super) directory: Option<Stamp>,
    /// Sorted by id, each once.
    pub(super) rows: Vec<Row>,
    /// Sorted, each once.
    pub(super) artifacts: Vec<Digest>,
    /// Places in `artifacts`.
    pub(super) edges: Vec<u32>,
}

impl Remembered {
    pub(super) fn place(&self, id: &Digest) -> Option<usize> {
        self.rows.binary_search_by(|row| row.id.cmp(id)).ok()
    }

    pub(super) fn artifacts_of(&self, row: &Row) -> impl Iterator<Item = Digest> {
        self.edges[row.edges.clone()].iter().map(|at| self.artifacts[*at as usize])
    }
}

/// Returns the bytes of the file; none when they would be too many. The rows are sorted by id, each with its artifacts.
pub(super) fn to_bytes(directory: Option<&Stamp>, rows: &[(Row, Vec<Digest>)]) -> Option<Vec<u8>> {
    let mut artifacts: Vec<Digest> = rows.iter().flat_map(|(_, own)| own.iter().copied()).collect();
    artifacts.sort_unstable();
    artifacts.dedup();
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[0; SUM_BYTES]);
    out.extend_from_slice(&u32::try_from(artifacts.len()).ok()?.to_le_bytes());
    out.extend_from_slice(&u32::try_from(rows.len()).ok()?.to_le_bytes());
    put_stamp(&mut out, directory.unwrap_or(&NO_STAMP));
    for digest in &artifacts {
        out.extend_from_slice(digest.as_bytes());
    }
    for (row, own) in rows {
        out.extend_from_slice(row.id.as_bytes());
        out.push(u8::from(row.record.is_some()) | u8::from(row.built_unix_ms.is_some()) << 1);
        put_stamp(&mut out, &row.manifest);
        if let Some(stamp) = &row.record {
            put_stamp(&mut out, stamp);
        }
        if let Some(built) = row.built_unix_ms {
            out.extend_from_slice(&built.to_le_bytes());
        }
        out.extend_from_slice(&row.apparent.to_le_bytes());
        out.extend_from_slice(&u16::try_from(row.variants.len()).ok()?.to_le_bytes());
        for name in &row.variants {
            out.push(u8::try_from(name.as_str().len()).ok()?);
            out.extend_from_slice(name.as_str().as_bytes());
        }
        out.extend_from_slice(&u16::try_from(own.len()).ok()?.to_le_bytes());
        for digest in own {
            let at = artifacts.binary_search(digest).ok().and_then(|at| u32::try_from(at).ok())?;
            out.extend_from_slice(&at.to_le_bytes());
        }
    }
    let body = MAGIC.len() + SUM_BYTES;
    let sum = blake3::hash(&out[body..]);
    out[MAGIC.len()..body].copy_from_slice(sum.as_bytes());
    (out.len() <= BYTES_MAX).then_some(out)
}

fn put_stamp(out: &mut Vec<u8>, stamp: &Stamp) {
    out.extend_from_slice(&stamp.inode.to_le_bytes());
    out.extend_from_slice(&stamp.size.to_le_bytes());
    for part in stamp.modified.iter().chain(&stamp.changed) {
        out.extend_from_slice(&part.to_le_bytes());
    }
}

/// Reads the file; none when it is of another version, damaged, or breaks a rule.
pub(super) fn parse(bytes: &[u8]) -> Option<Remembered> {
    let (sum, body) = bytes.strip_prefix(MAGIC)?.split_at_checked(SUM_BYTES)?;
    if blake3::hash(body).as_bytes() != sum {
        return None;
    }
    let mut input = Input(body);
    let (artifact_count, row_count) = (u32::from_le_bytes(input.take()?), u32::from_le_bytes(input.take()?));
    let directory = Some(input.stamp()?).filter(|stamp| *stamp != NO_STAMP);
    let mut found = Remembered { directory, ..Remembered::default() };
    // Room is made for what is there, not for what a count says.
    found.artifacts.reserve((artifact_count as usize).min(body.len() / 32));
    for _ in 0..artifact_count {
        let digest = Digest::from_bytes(input.take()?);
        if found.artifacts.last().is_some_and(|last| *last >= digest) {
            return None;
        }
        found.artifacts.push(digest);
    }
    found.rows.reserve((row_count as usize).min(body.len() / 32));
    for _ in 0..row_count {
        let row = row(&mut input, artifact_count, &mut found.edges)?;
        if found.rows.last().is_some_and(|last| last.id >= row.id) {
            return None;
        }
        found.rows.push(row);
    }
    input.0.is_empty().then_some(found)
}

fn row(input: &mut Input<'_>, artifact_count: u32, edges: &mut Vec<u32>) -> Option<Row> {
    let id = Digest::from_bytes(input.take()?);
    let [flags] = input.take()?;
    if flags > 0b11 {
        return None;
    }
    let manifest = input.stamp()?;
    let record = if flags & 1 != 0 { Some(input.stamp()?) } else { None };
    let built_unix_ms = if flags & 2 != 0 { Some(u64::from_le_bytes(input.take()?)) } else { None };
    let apparent = u64::from_le_bytes(input.take()?);
    let variant_count = usize::from(u16::from_le_bytes(input.take()?));
    if variant_count > VARIANTS_MAX {
        return None;
    }
    let mut variants: Vec<VariantName> = Vec::with_capacity(variant_count);
    for _ in 0..variant_count {
        let [length] = input.take()?;
        let name = std::str::from_utf8(input.bytes(usize::from(length))?).ok()?.parse().ok()?;
        if variants.last().is_some_and(|last| *last >= name) {
            return None;
        }
        variants.push(name);
    }
    let edge_count = usize::from(u16::from_le_bytes(input.take()?));
    if edge_count > ARTIFACTS_MAX {
        return None;
    }
    let begin = edges.len();
    for _ in 0..edge_count {
        let at = u32::from_le_bytes(input.take()?);
        if at >= artifact_count {
            return None;
        }
        edges.push(at);
    }
    Some(Row { id, manifest, record, built_unix_ms, apparent, variants, edges: begin..edges.len() })
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn stamp(&mut self) -> Option<Stamp> {
        let mut number = || Some(i64::from_le_bytes(self.take()?));
        Some(Stamp {
            inode: number()?.cast_unsigned(),
            size: number()?.cast_unsigned(),
            modified: [number()?, number()?],
            changed: [number()?, number()?],
        })
    }
}
