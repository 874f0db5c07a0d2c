//! Processes that are killed while they fetch, again and again.

use super::server::Server;
use super::{Fetcher, content, sha256};
use kiln_source::download::{Client, ClientOptions, Download, Origin, Progress};
use kiln_sys::{Cancel, Toolbox};
use kiln_testing::{Served, Worker};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Kills of each kind of download.
const KILLS: usize = 100;
/// The bytes of the file.
const LENGTH: usize = 4_000_000;
/// The most bytes that come before a kill.
const STEP_MAX: u64 = 400_000;

#[derive(Serialize, Deserialize)]
struct Order {
    host: String,
    directory: PathBuf,
    digest: String,
    /// How many bytes come before it pauses to be killed.
    pause: u64,
    /// From which size on it is fetched by several connections.
    ranges_bytes_min: u64,
}

#[test]
#[ignore = "a worker of the others: it serves orders from standard input"]
fn worker() {
    kiln_testing::serve(|line| {
        let order: Order = serde_json::from_str(line).unwrap();
        let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
        let (urls, digest) =
            ([format!("http://{}/file", order.host).parse().unwrap()], order.digest.parse().unwrap());
        let (cache, target) = (order.directory.join("cache"), order.directory.join("image"));
        let download = Download {
            urls: &urls,
            digest: Some(&digest),
            bytes_max: 1 << 30,
            cache: &cache,
            target: &target,
            durable: true,
            origin: Origin::Web,
        };
        let mut options = ClientOptions::new(&toolbox);
        options.ranges_bytes_min = order.ranges_bytes_min;
        let (mut begun, mut paused) = (None, false);
        let mut progress = |progress: Progress<'_>| {
            if let Progress::Bytes { have, .. } = progress {
                let begun = *begun.get_or_insert(have);
                if have - begun >= order.pause && !paused {
                    paused = true;
                    kiln_testing::pause();
                }
            }
        };
        download.run(&Client::new(options), &mut progress, &cancel).unwrap().digest.to_string()
    });
}

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn seed() -> u64 {
    u64::from_le_bytes(kiln_sys::clock::random()) | 1
}

/// Returns the file of a kind in the cache.
fn cached(directory: &Path, kind: &str) -> Option<PathBuf> {
    let cache = std::fs::read_dir(directory.join("cache")).into_iter().flatten();
    let mut paths = cache.map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension() == Some(kind.as_ref()))
}

/// Checks that what is said to be there is that of the file; returns how much it is.
fn check_partial(directory: &Path, bytes: &[u8]) -> usize {
    let (Some(part), Some(note)) = (cached(directory, "part"), cached(directory, "json")) else { return 0 };
    let part = std::fs::read(part).unwrap();
    let note: serde_json::Value = serde_json::from_slice(&std::fs::read(note).unwrap()).unwrap();
    let end = |range: &serde_json::Value, at: usize| usize::try_from(range[at].as_u64().unwrap()).unwrap();
    let there: Vec<(usize, usize)> = match note["there"].as_array() {
        Some(there) => there.iter().map(|range| (end(range, 0), end(range, 1))).collect(),
        None => vec![(0, part.len())],
    };
    let mut have = 0;
    for (from, to) in there {
        assert!(part.get(from..to) == bytes.get(from..to), "{from}..{to}");
        have += to - from;
    }
    have
}

/// Kills processes that fetch one file, each as far as chance has it, until all the kills are done.
fn kill(seed: u64, ranges_bytes_min: u64) -> Vec<usize> {
    let bytes = content(LENGTH);
    let digest = sha256(&bytes);
    let server = Server::of(&bytes);
    let fetcher = Fetcher::new();
    let directory = fetcher.dir.path();
    let mut random = Random(seed);
    let order = |pause| {
        let (host, digest) = (server.address().to_string(), digest.to_string());
        let order = Order { host, directory: directory.to_owned(), digest, pause, ranges_bytes_min };
        serde_json::to_string(&order).unwrap()
    };
    let (mut ends, mut gone_on) = (0, 0);
    for kill in 0..KILLS {
        let have = check_partial(directory, &bytes) as u64;
        gone_on += usize::from(have > 0);
        // Now and then about where it ends, and while it is made what it is to be.
        let pause =
            if kill % 10 == 9 { (LENGTH as u64 - have).saturating_sub(1) } else { random.below(STEP_MAX) };
        let mut worker = Worker::spawn("download::processes::worker");
        worker.order(&order(pause));
        // One that needs no more is done.
        if worker.paused() && random.below(2) == 0 {
            // It is killed wherever it is then.
            worker.go_on();
            for _ in 0..random.below(20_000) {
                std::hint::spin_loop();
            }
        }
        drop(worker);
        if fetcher.target().exists() {
            ends += 1;
            assert!(std::fs::read(fetcher.target()).unwrap() == bytes, "kill {kill}");
            std::fs::remove_file(fetcher.target()).unwrap();
        }
    }
    assert!(gone_on > KILLS / 4, "{gone_on} of {KILLS} had something to go on with, {ends} ended");
    let mut worker = Worker::spawn("download::processes::worker");
    worker.order(&order(u64::MAX));
    assert_eq!(worker.served(), Served::Answer(digest.to_string()));
    assert!(std::fs::read(fetcher.target()).unwrap() == bytes);
    server.froms()
}

#[test]
fn a_process_killed_anywhere_leaves_what_the_next_goes_on_with() {
    let seed = seed();
    // Shown when the test fails.
    eprintln!("seed {seed:#x}");
    let froms = kill(seed, u64::MAX);
    assert!(froms.iter().any(|from| *from > 0));
}

#[test]
fn a_process_killed_with_several_connections_leaves_what_the_next_goes_on_with() {
    let seed = seed();
    // Shown when the test fails.
    eprintln!("seed {seed:#x}");
    let froms = kill(seed, 1);
    assert!(froms.iter().any(|from| *from > 0));
}
