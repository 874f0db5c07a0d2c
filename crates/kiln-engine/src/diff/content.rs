//! Whether two regular files of one length have the same content.

use super::side::Side;
use crate::EngineResult;
use kiln_source::ext4::{Extent, Inode};
use kiln_store::index::SEGMENT_BYTES;

/// What a step is counted as, so that steps without reading are bounded as well.
const STEP_BYTES: u64 = 64;

/// A place in a file: the artifact's offset of its data, or none in a hole; and how far that goes.
#[derive(Clone, Copy)]
struct Place {
    at: Option<u64>,
    until: u64,
}

/// Walks along the extents of a file.
struct Cursor {
    extents: Vec<Extent>,
    next: usize,
}

impl Cursor {
    /// Returns what is at `position`, which never decreases from call to call.
    fn place(&mut self, position: u64) -> Place {
        while self.extents.get(self.next).is_some_and(|extent| extent.end() <= position) {
            self.next += 1;
        }
        match self.extents.get(self.next) {
            None => Place { at: None, until: u64::MAX },
            Some(extent) if extent.start > position => Place { at: None, until: extent.start },
            Some(extent) => Place { at: Some(extent.at + (position - extent.start)), until: extent.end() },
        }
    }
}

/// Returns whether the contents are the same. Lengths must be.
pub(super) fn same(a: (&Side, &Inode), b: (&Side, &Inode)) -> EngineResult<bool> {
    let size = a.1.size;
    let mut cursor_a = Cursor { extents: a.0.extents(a.1)?, next: 0 };
    let mut cursor_b = Cursor { extents: b.0.extents(b.1)?, next: 0 };
    let mut buffers = (Vec::new(), Vec::new());
    let mut position = 0;
    while position < size {
        a.0.spend(STEP_BYTES)?;
        b.0.spend(STEP_BYTES)?;
        let (place_a, place_b) = (cursor_a.place(position), cursor_b.place(position));
        let mut step = place_a.until.min(place_b.until).min(size) - position;
        for at in [place_a.at, place_b.at].into_iter().flatten() {
            step = step.min(SEGMENT_BYTES - at % SEGMENT_BYTES);
        }
        let equal = match (place_a.at, place_b.at) {
            (None, None) => true,
            (Some(at), None) => is_zero(a.0, at, step, &mut buffers.0)?,
            (None, Some(at)) => is_zero(b.0, at, step, &mut buffers.0)?,
            (Some(at_a), Some(at_b)) => {
                same_segment(a.0, at_a, b.0, at_b)
                    || read(a.0, at_a, step, &mut buffers.0)? == read(b.0, at_b, step, &mut buffers.1)?
            }
        };
        if !equal {
            return Ok(false);
        }
        position += step;
    }
    Ok(true)
}

/// Whether two offsets lie at the same place of equal segments.
fn same_segment(a: &Side, at_a: u64, b: &Side, at_b: u64) -> bool {
    at_a % SEGMENT_BYTES == at_b % SEGMENT_BYTES
        && a.segment(at_a / SEGMENT_BYTES) == b.segment(at_b / SEGMENT_BYTES)
}

/// Reads at most a segment.
fn read<'a>(side: &Side, at: u64, length: u64, buffer: &'a mut Vec<u8>) -> EngineResult<&'a [u8]> {
    buffer.resize(usize::try_from(length.min(SEGMENT_BYTES)).unwrap_or_default(), 0);
    side.read_at(at, buffer)?;
    Ok(buffer)
}

fn is_zero(side: &Side, at: u64, length: u64, buffer: &mut Vec<u8>) -> EngineResult<bool> {
    if side.segment(at / SEGMENT_BYTES).is_none() {
        return Ok(true);
    }
    Ok(read(side, at, length, buffer)?.iter().all(|byte| *byte == 0))
}
