//! What goes over the wire from the old image to the new one, by the unit of sharing. All that is new is compressed in
//! the same way, and every unit pays for what names its pieces.

use crate::Failure;
use crate::image::{Hash, Image, ratio};
use kiln_store::index::segment_digest;
use std::collections::BTreeSet;

const FRAME_BYTES: usize = 256 << 10;
const LEVEL: i32 = 3;

/// Pieces of an image with their hashes, without those that are all zero.
type Pieces<'a> = Vec<(Hash, &'a [u8])>;

pub(crate) fn print(old: &Image, new: &Image) -> Result<(), Failure> {
    let whole: Pieces<'_> = blocks(new);
    let data = whole.iter().map(|(_, piece)| piece.len()).sum::<usize>();
    let full = compressed(whole.iter().map(|(_, piece)| *piece))?;
    println!("\nwhole: {data} bytes of data blocks, {full} compressed\n");
    println!("| unit of sharing | new data | new data compressed | names | sum of the whole compressed |");
    println!("|---|---|---|---|---|");
    let (table, index) = (new.table.to_bytes().len(), new.index.to_bytes().len());
    row("block 4 KiB: table", blocks(old), blocks(new), |_| table, (data, full))?;
    row("block 4 KiB: table and index", blocks(old), blocks(new), |_| table + index, (data, full))?;
    row("fixed 64 KiB: 32 bytes a piece", fixed(old), fixed(new), |count| 32 * count, (data, full))?;
    row("FastCDC 64 KiB: 40 bytes a piece", cdc(old), cdc(new), |count| 40 * count, (data, full))
}

fn row(
    name: &str,
    old: Pieces<'_>,
    new: Pieces<'_>,
    names: impl Fn(usize) -> usize,
    (data, full): (usize, usize),
) -> Result<(), Failure> {
    let names = names(new.len());
    let mut known: BTreeSet<Hash> = old.into_iter().map(|(hash, _)| hash).collect();
    let fresh: Vec<&[u8]> =
        new.into_iter().filter(|(hash, _)| known.insert(*hash)).map(|(_, piece)| piece).collect();
    let bytes = fresh.iter().map(|piece| piece.len()).sum::<usize>();
    let packed = compressed(fresh.into_iter())?;
    println!(
        "| {name} | {bytes} ({:.1} %) | {packed} ({:.2} %) | {names} ({:.2} %) | {:.2} % |",
        100.0 * ratio(bytes, data),
        100.0 * ratio(packed, full),
        100.0 * ratio(names, full),
        100.0 * ratio(packed + names, full),
    );
    Ok(())
}

fn blocks(image: &Image) -> Pieces<'_> {
    image.blocks.iter().map(|(number, hash)| (*hash, image.block(*number))).collect()
}

fn fixed(image: &Image) -> Pieces<'_> {
    let pieces = image.bytes.chunks(64 << 10);
    pieces.filter_map(|piece| Some((segment_digest(piece)?, piece))).collect()
}

fn cdc(image: &Image) -> Pieces<'_> {
    fastcdc::v2020::FastCDC::new(&image.bytes, 16 << 10, 64 << 10, 256 << 10)
        .map(|chunk| &image.bytes[chunk.offset..chunk.offset + chunk.length])
        .filter_map(|piece| Some((segment_digest(piece)?, piece)))
        .collect()
}

/// Returns the bytes of pieces compressed together in frames of [`FRAME_BYTES`].
fn compressed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<usize, Failure> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    let mut sum = 0;
    let mut frame = Vec::with_capacity(2 * FRAME_BYTES);
    for piece in pieces {
        frame.extend_from_slice(piece);
        while frame.len() >= FRAME_BYTES {
            sum += compressor.compress(&frame[..FRAME_BYTES])?.len();
            frame.drain(..FRAME_BYTES);
        }
    }
    if !frame.is_empty() {
        sum += compressor.compress(&frame)?.len();
    }
    Ok(sum)
}
