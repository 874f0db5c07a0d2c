//! Writing without zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The unit in which zeros are looked for: the block of file systems.
const BLOCK_BYTES: usize = 4096;

/// Writes what is not zeros of `bytes` at an offset of a file that reads as zeros there.
pub(crate) fn write_sparse(to: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    // Blocks of the file, not of the buffer.
    let first = BLOCK_BYTES - usize::try_from(at % BLOCK_BYTES as u64).unwrap_or(0);
    let (mut start, mut position) = (None, 0);
    while position < bytes.len() {
        let step = if position == 0 { first } else { BLOCK_BYTES };
        let end = (position + step).min(bytes.len());
        if is_zero(&bytes[position..end]) {
            if let Some(start) = start.take() {
                to.write_all_at(&bytes[start..position], at + start as u64)?;
            }
        } else {
            start.get_or_insert(position);
        }
        position = end;
    }
    match start {
        Some(start) => to.write_all_at(&bytes[start..], at + start as u64),
        None => Ok(()),
    }
}

fn is_zero(block: &[u8]) -> bool {
    let chunks = block.chunks_exact(64);
    chunks.remainder().iter().all(|byte| *byte == 0)
        && chunks.into_iter().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
