//! Shapes of the table: bytes, and the time from its bytes to a table that can be searched.

use crate::Failure;
use crate::image::Image;
use kiln_store::BlockTable;
use kiln_store::blocks::{BLOCK_BYTES, FINGERPRINT_BYTES, Fingerprint};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 9;

/// Data blocks of the large table, which names numbers in place of an image's blocks: 16 GiB of data.
const LARGE_BLOCKS: u64 = 4 << 20;

pub(crate) fn print(image: &Image) -> Result<(), Failure> {
    let large =
        (0..LARGE_BLOCKS).filter_map(|number| Some((number, Fingerprint::of(&(number + 1).to_le_bytes())?)));
    let large = BlockTable::from_blocks(*image.table.artifact(), LARGE_BLOCKS * BLOCK_BYTES, large)
        .ok_or("too many blocks")?;
    println!("\n| shape, {FINGERPRINT_BYTES} bytes a fingerprint | blocks | bytes | to a searchable table |");
    println!("|---|---|---|---|");
    for table in [&image.table, &large] {
        let bytes = table.to_bytes();
        let count = usize::try_from(table.data_blocks())?;
        let in_order: Vec<_> = table.blocks().collect();
        let rank_bytes = count.ilog2() as usize / 8 + 1;
        let fixed = 80 + runs_bytes(&in_order);
        let sort = median(|| {
            let mut keys: Vec<_> =
                in_order.iter().map(|(block, fingerprint)| (*fingerprint, *block)).collect();
            keys.sort_unstable();
            black_box(keys);
        });
        let parse = median(|| {
            black_box(BlockTable::parse(&bytes).is_ok());
        });
        // The check sum is read whatever the shape is.
        let check = median(|| {
            black_box(blake3::hash(&bytes));
        });
        let (plain, ranked) = (fixed + 5 * count, fixed + (5 + rank_bytes) * count);
        println!("| in the artifact's order, sorted on reading | {count} | {plain} | {sort:.2} ms |");
        println!("| sorted, rank in whole bytes | {count} | {ranked} | – |");
        println!("| sorted, gaps and ranks in bits | {count} | {} | {:.2} ms |", bytes.len(), parse - check);
    }
    Ok(())
}

/// Returns about the bytes of the runs.
fn runs_bytes(blocks: &[(u64, Fingerprint)]) -> usize {
    4 * (1 + blocks.windows(2).filter(|pair| pair[0].0 + 1 != pair[1].0).count())
}

fn median(work: impl Fn()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            work();
            begin.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}
