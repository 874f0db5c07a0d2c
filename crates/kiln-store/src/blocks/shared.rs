//! Which blocks of one artifact are in another: candidates by fingerprint, confirmed by content.

use super::{BLOCK_BYTES, BlockTable, Fingerprint};
use crate::error::StoreResult;
use kiln_sys::{Cancel, IoResultExt as _};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Blocks that are compared at a time.
const PIECE_BLOCKS: u64 = 64;
/// The most candidates that are compared for one block. Only made-up content has more that are not equal.
const CANDIDATES_MAX: usize = 16;

/// Blocks of one artifact, one after another, that are equal to blocks of another, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRun {
    /// The first block in the artifact that has the content already.
    pub from: u64,
    /// The first block in the artifact that wants it.
    pub to: u64,
    /// How many blocks.
    pub count: u64,
}

/// The blocks of one artifact that another has too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SharedBlocks {
    /// How many of them there are.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many data blocks there are, shared or not.
    pub data_blocks: u64,
    /// Comparisons of blocks with equal fingerprints that found other content.
    pub false_matches: u64,
    /// The shared blocks, in the order of the artifact that wants them; none can be joined with the next.
    pub runs: Vec<SharedRun>,
}

/// A table with its artifact, open, and the path for errors.
pub(super) type Side<'a> = (&'a BlockTable, &'a File, &'a Path);

/// Finds the data blocks of `b` that are in `a`.
pub(super) fn find(a: Side<'_>, b: Side<'_>, cancel: &Cancel) -> StoreResult<SharedBlocks> {
    let mut search = Search { a, b, found: SharedBlocks::default() };
    let mut guessed: Option<Guess> = None;
    for (block, fingerprint) in b.0.blocks() {
        search.found.data_blocks += 1;
        let from = a.0.guess(guessed.as_ref().map(Guess::next), fingerprint);
        if let Some((guess, from)) = guessed.as_mut().zip(from)
            && guess.next() == from
            && guess.to + guess.fingerprints.len() as u64 == block
            && (guess.fingerprints.len() as u64) < PIECE_BLOCKS
        {
            guess.fingerprints.push(fingerprint);
            continue;
        }
        cancel.check()?;
        if let Some(done) = guessed.take() {
            search.confirm(&done)?;
        }
        guessed = from.map(|from| Guess { from, to: block, fingerprints: vec![fingerprint] });
    }
    if let Some(done) = guessed {
        search.confirm(&done)?;
    }
    Ok(search.found)
}

impl BlockTable {
    /// Returns a block that may have the content of this fingerprint: `next` if it may, so that runs are long.
    fn guess(&self, next: Option<u64>, fingerprint: Fingerprint) -> Option<u64> {
        next.filter(|next| self.has(*next, fingerprint)).or_else(|| self.candidates(fingerprint).next())
    }
}

/// Blocks that look equal to blocks of the other artifact.
#[derive(Debug)]
struct Guess {
    from: u64,
    to: u64,
    fingerprints: Vec<Fingerprint>,
}

impl Guess {
    /// Returns the block that follows on the side that has the content.
    fn next(&self) -> u64 {
        self.from + self.fingerprints.len() as u64
    }
}

#[derive(Debug)]
struct Search<'a> {
    a: Side<'a>,
    b: Side<'a>,
    found: SharedBlocks,
}

impl Search<'_> {
    fn confirm(&mut self, guess: &Guess) -> StoreResult<()> {
        let count = guess.fingerprints.len() as u64;
        let (ours, wanted) = (read(self.a, guess.from, count)?, read(self.b, guess.to, count)?);
        let block_bytes = usize::try_from(BLOCK_BYTES).unwrap_or(4 << 10);
        let mut ours = ours.chunks(block_bytes);
        let blocks = (0_u64..).zip(wanted.chunks(block_bytes)).zip(&guess.fingerprints);
        for ((offset, wanted), fingerprint) in blocks {
            let (first, to) = (guess.from + offset, guess.to + offset);
            if ours.next() == Some(wanted) {
                self.add(first, to, wanted.len());
            } else {
                self.found.false_matches += 1;
                self.try_others(first, to, wanted, *fingerprint)?;
            }
        }
        Ok(())
    }

    /// Compares a block with the candidates other than `tried`.
    fn try_others(
        &mut self,
        tried: u64,
        to: u64,
        wanted: &[u8],
        fingerprint: Fingerprint,
    ) -> StoreResult<()> {
        let table = self.a.0;
        for from in table.candidates(fingerprint).filter(|from| *from != tried).take(CANDIDATES_MAX - 1) {
            if read(self.a, from, 1)? == wanted {
                self.add(from, to, wanted.len());
                return Ok(());
            }
            self.found.false_matches += 1;
        }
        Ok(())
    }

    fn add(&mut self, from: u64, to: u64, bytes: usize) {
        self.found.blocks += 1;
        self.found.bytes += bytes as u64;
        match self.found.runs.last_mut() {
            Some(run) if run.from + run.count == from && run.to + run.count == to => run.count += 1,
            _ => self.found.runs.push(SharedRun { from, to, count: 1 }),
        }
    }
}

/// Reads blocks; the last one of an artifact is as long as the artifact goes.
fn read((table, file, path): Side<'_>, block: u64, count: u64) -> StoreResult<Vec<u8>> {
    let start = block * BLOCK_BYTES;
    let end = (start + count * BLOCK_BYTES).min(table.length());
    let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, start).at("read", path)?;
    Ok(bytes)
}
