//! Fingerprints of several widths: size of the table, time of a lookup, matches that are none.

use crate::image::{Hash, Image};
use kiln_store::blocks::FINGERPRINT_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Instant;

/// Rounds of a measurement; the median counts.
const ROUNDS: usize = 9;
/// Widths in bytes. Three is too narrow to be of use: it shows that matches come as often as chance says.
const WIDTHS: [usize; 5] = [3, 4, 5, 6, 8];

pub(crate) fn print(old: &Image, new: &Image) {
    let distinct: BTreeSet<Hash> = old.blocks.iter().map(|(_, hash)| *hash).collect();
    let wanted: BTreeSet<Hash> = new.blocks.iter().map(|(_, hash)| *hash).collect();
    println!("\n| width | table of the new image | a block | lookup | false matches | by chance |");
    println!("|---|---|---|---|---|---|");
    // All but the entries is the same at any width.
    let fixed = new.table.to_bytes().len() - entry_bytes(new, FINGERPRINT_BYTES);
    for width in WIDTHS {
        let mut places: BTreeMap<u64, Vec<&Hash>> = BTreeMap::new();
        for hash in &distinct {
            places.entry(cut(hash, width)).or_default().push(hash);
        }
        let others = |hash: &Hash| {
            let same = places.get(&cut(hash, width));
            same.map_or(0, |list| list.iter().filter(|other| **other != hash).count())
        };
        let false_matches: usize = wanted.iter().map(others).sum();
        let pairs = crate::image::ratio(distinct.len() * wanted.len(), 1);
        let chance = pairs / 256_f64.powi(i32::try_from(width).unwrap_or(0));
        let size = fixed + entry_bytes(new, width);
        let each = crate::image::ratio(size, new.blocks.len());
        let nanos = lookup_nanos(old, new, width);
        println!("| {width} | {size} | {each:.2} | {nanos:.0} ns | {false_matches} | {chance:.6} |");
    }
    let mut times: Vec<f64> = (0..ROUNDS).map(|_| table_nanos(old, new)).collect();
    times.sort_by(f64::total_cmp);
    println!("\n`BlockTable::candidates`, to the first block number: {:.0} ns", times[ROUNDS / 2]);
}

/// Returns the first bytes of a hash as a number.
fn cut(hash: &Hash, width: usize) -> u64 {
    hash[..width].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Returns the bytes of the sorted fingerprints with their ranks, coded as the format codes them.
fn entry_bytes(image: &Image, width: usize) -> usize {
    let bits = |number: u64| u64::from(u64::BITS - number.leading_zeros());
    let count = image.blocks.len() as u64;
    let low = (width as u64 * 8).saturating_sub(bits(count));
    let mut fingerprints: Vec<u64> = image.blocks.iter().map(|(_, hash)| cut(hash, width)).collect();
    fingerprints.sort_unstable();
    let mut before = 0;
    let mut sum = 0;
    for fingerprint in fingerprints {
        sum += ((fingerprint - before) >> low) + 1 + low + bits(count.saturating_sub(1));
        before = fingerprint;
    }
    usize::try_from(sum.div_ceil(8)).unwrap_or(usize::MAX)
}

/// Looks up all blocks of the new image in the sorted fingerprints of the old one, by bisection.
fn lookup_nanos(old: &Image, new: &Image, width: usize) -> f64 {
    let mut sorted: Vec<u64> = old.blocks.iter().map(|(_, hash)| cut(hash, width)).collect();
    sorted.sort_unstable();
    let wanted: Vec<u64> = new.blocks.iter().map(|(_, hash)| cut(hash, width)).collect();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            for fingerprint in &wanted {
                let at = sorted.partition_point(|other| other < fingerprint);
                black_box(sorted.get(at) == Some(fingerprint));
            }
            begin.elapsed().as_secs_f64() * 1e9 / crate::image::ratio(wanted.len(), 1)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn table_nanos(old: &Image, new: &Image) -> f64 {
    let wanted: Vec<_> = new.table.blocks().collect();
    let begin = Instant::now();
    for (_, fingerprint) in &wanted {
        black_box(old.table.candidates(*fingerprint).next());
    }
    begin.elapsed().as_secs_f64() * 1e9 / crate::image::ratio(wanted.len(), 1)
}
