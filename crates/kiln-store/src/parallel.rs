//! Work on many small things on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fewer things than this are not worth a thread.
const FEW: usize = 64;
/// Things that one thread takes at a time.
const BATCH: usize = 128;
/// The most threads.
const THREADS_MAX: usize = 8;

/// Returns what `work` makes of each item, in their order.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    if items.len() < FEW || threads < 2 {
        return items.iter().map(work).collect();
    }
    let batches: Vec<&[T]> = items.chunks(BATCH).collect();
    let done: Mutex<Vec<(usize, Vec<R>)>> = Mutex::new(Vec::with_capacity(batches.len()));
    let cursor = AtomicUsize::new(0);
    let labour = || {
        loop {
            let at = cursor.fetch_add(1, Ordering::Relaxed);
            let Some(batch) = batches.get(at) else { return };
            let made = batch.iter().map(&work).collect();
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, made));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(batches.len()) {
            // Where the host has no thread to give, this one does the work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, labour);
        }
        labour();
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().flat_map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_order_is_that_of_the_items() {
        for count in [0, 1, 63, 64, 129, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let doubled: Vec<usize> = items.iter().map(|n| n * 2).collect();
            assert_eq!(super::map(&items, |n| n * 2), doubled);
        }
    }
}
