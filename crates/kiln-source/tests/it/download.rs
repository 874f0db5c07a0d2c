//! Files of the web, from a server of our own that does all that goes wrong.

mod authorize;
mod faults;
mod nginx;
mod processes;
mod ranges;
mod redirects;
pub(crate) mod server;
mod whole;

use kiln_core::image::{Algorithm, ContentDigest};
use kiln_source::download::{
    Client, ClientOptions, Clock, Download, DownloadError, Fetched, Origin, Progress, Url,
};
use kiln_sys::cancel::Cancelled;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox};
use server::Server;
use sha2::Digest as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes of which no two parts are alike.
pub(crate) fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> ContentDigest {
    ContentDigest::from_bytes(Algorithm::Sha256, &sha2::Sha256::digest(bytes)).unwrap()
}

/// Time that passes as fast as it is waited for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waits(Arc<Mutex<Vec<Duration>>>);

impl Waits {
    pub(crate) fn seen(&self) -> Vec<Duration> {
        self.0.lock().unwrap().clone()
    }
}

impl Clock for Waits {
    fn now(&self) -> Duration {
        self.seen().iter().sum()
    }

    fn unix_seconds(&self) -> u64 {
        784_111_777
    }

    fn random(&self) -> u64 {
        100_000
    }

    fn wait(&self, wait: Duration, cancel: &Cancel) -> Result<(), Cancelled> {
        self.0.lock().unwrap().push(wait);
        cancel.check()
    }
}

/// A cache, and how it is filled.
#[derive(Debug)]
struct Fetcher {
    dir: ScratchDir,
    toolbox: Toolbox,
    waits: Waits,
    offline: bool,
    rate: Option<u64>,
    stall: Duration,
    bytes_max: u64,
    ranges_bytes_min: u64,
    cancel: Cancel,
}

impl Fetcher {
    fn new() -> Self {
        Self {
            dir: ScratchDir::new(&std::env::temp_dir()).unwrap(),
            toolbox: Toolbox::default(),
            waits: Waits::default(),
            offline: false,
            rate: None,
            stall: Duration::from_secs(20),
            bytes_max: 64 << 20,
            ranges_bytes_min: u64::MAX,
            cancel: Cancel::new().unwrap(),
        }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn client(&self) -> Client<'_> {
        let mut options = ClientOptions::new(&self.toolbox);
        (options.offline, options.stall_max) = (self.offline, self.stall);
        options.rate_max = self.rate.and_then(std::num::NonZeroU64::new);
        options.ranges_bytes_min = self.ranges_bytes_min;
        options.clock = Box::new(self.waits.clone());
        Client::new(options)
    }

    fn fetch(&self, urls: &[Url], digest: Option<&ContentDigest>) -> Result<Fetched, DownloadError> {
        self.fetch_told(urls, digest, &mut |_| ())
    }

    fn fetch_told(
        &self,
        urls: &[Url],
        digest: Option<&ContentDigest>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Fetched, DownloadError> {
        let (cache, target) = (self.dir.path().join("cache"), self.target());
        let download = Download {
            urls,
            digest,
            bytes_max: self.bytes_max,
            cache: &cache,
            target: &target,
            durable: true,
            origin: Origin::Web,
        };
        download.run(&self.client(), progress, &self.cancel)
    }

    /// Fetches `/file` of a server, which must become these bytes, and leaves nothing else.
    #[track_caller]
    fn fetch_ok(&self, server: &Server, bytes: &[u8]) -> Fetched {
        let fetched = self.fetch(&[server.url("/file")], Some(&sha256(bytes))).unwrap();
        assert_eq!(fetched.bytes, bytes.len() as u64);
        assert!(std::fs::read(self.target()).unwrap() == bytes);
        assert_eq!(self.left(), Vec::<String>::new());
        fetched
    }

    /// Returns the kinds of files in the cache.
    fn left(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path().join("cache")).into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut kinds: Vec<String> =
            names.map(|name| name.rsplit('.').next().unwrap_or_default().to_owned()).collect();
        kinds.sort();
        kinds
    }
}
