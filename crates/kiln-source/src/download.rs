//! Files of the web, fetched into a cache and checked: streamed, gone on with after a break or a kill, from the next
//! mirror where one fails, once for all processes that want the same.
//!
//! What has come so far is beside the file in the cache: `<name>.part`, with a note `<name>.json` of what its origin
//! calls this version and of what is there, and a lock `<name>.lock` of whoever fetches it. Nothing is at its final path before it is whole
//! and its digest is the one expected.

mod asker;
mod attempt;
mod authorize;
mod client;
mod document;
mod error;
mod pace;
mod partial;
mod redirect;
mod segments;
mod there;
mod url;
mod wire;

pub use authorize::Authorize;
pub use client::{CONNECT_MAX, Client, ClientOptions, STALL_MAX};
pub(crate) use document::Document;
pub use error::{Broken, DownloadError, Refusal};
pub(crate) use pace::retry_after;
pub use pace::{CONNECTIONS_MAX, Clock, HostClock, RETRY_AFTER_MAX};
pub use partial::{NOTE_BYTES_MAX, VALIDATOR_BYTES_MAX};
pub use segments::{RANGES_BYTES_MIN, SEGMENT_BYTES_MAX};
pub use there::PARTS_MAX;
pub use url::{InvalidUrl, URL_BYTES_MAX, Url};

use crate::hash::Hasher;
use attempt::{Attempt, Failure};
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::lock::{FileLock, Holder};
use kiln_sys::{Cancel, IoResult, fs};
use pace::Tries;
use partial::Partial;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tries in a row that bring nothing.
pub const TRIES_MAX: u32 = 5;

/// Something to fetch.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// Where it can be had, the best place first.
    pub urls: &'a [Url],
    /// What it must be. Without a digest it is fetched each time, and what is there is used only offline.
    pub digest: Option<&'a ContentDigest>,
    /// The most bytes it may have.
    pub bytes_max: u64,
    /// The directory of what has come so far; it is made if need be.
    pub cache: &'a Path,
    /// Where it is in the end: a path in an existing directory of the same file system.
    pub target: &'a Path,
    /// Whether it is to be there after a loss of power. What is not may be there with other bytes then, which whoever
    /// fetches by its digest again finds.
    pub durable: bool,
    /// What is where the addresses lead.
    pub origin: Origin<'a>,
}

/// What is where the addresses of a download lead.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// Files, of which an address may have another version at any time.
    Web,
    /// What a registry has by its digest, which is the one expected: whatever came of it is gone on with at any address.
    /// A registry asks who wants it.
    Registry(&'a dyn Authorize),
}

impl<'a> Origin<'a> {
    fn authorize(self) -> Option<&'a dyn Authorize> {
        match self {
            Self::Web => None,
            Self::Registry(authorize) => Some(authorize),
        }
    }
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its digest: SHA-256, unless one of another kind was expected.
    pub digest: ContentDigest,
    /// Its bytes.
    pub bytes: u64,
    /// Where the last of it came from; none when it was there.
    pub from: Option<Url>,
}

/// How a download goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Somebody else is fetching it.
    Waiting(&'a Holder),
    /// So many bytes are there.
    Bytes {
        /// Those that are there, of an earlier try too.
        have: u64,
        /// All, where the origin says.
        total: Option<u64>,
    },
    /// It failed for now, and is tried again.
    Again {
        /// Why it failed.
        error: &'a DownloadError,
        /// When it is tried again.
        wait: Duration,
    },
}

impl Download<'_> {
    /// Fetches it, unless it is there.
    ///
    /// # Errors
    /// That of the last address when none has it; nothing is changed at the final path then.
    pub fn run(
        &self,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Fetched, DownloadError> {
        let first = self.urls.first().ok_or(DownloadError::NoUrl)?;
        let offline = client.options.offline;
        if let Some(there) = self.finished(offline, cancel)? {
            return Ok(there);
        }
        if offline {
            return Err(DownloadError::Offline { url: first.clone() });
        }
        fs::create_dir_all(self.cache)?;
        let partial = self.partial_path(first);
        let lock = partial.with_extension("lock");
        let mut waiting = |holder: &Holder| progress(Progress::Waiting(holder));
        let _lock = FileLock::take(&lock, &format!("fetching {first}"), cancel, &mut waiting)?;
        // Whoever held the lock has fetched it.
        if let Some(there) = self.finished(false, cancel)? {
            fs::remove_file(&lock)?;
            return Ok(there);
        }
        let (partial, url) = match self.fetch(client, &partial, progress, cancel) {
            Ok(fetched) => fetched,
            Err(error) => {
                // The error that is returned says more than a failed clean-up would.
                let _ = remove_empty(&partial, &lock);
                return Err(error);
            }
        };
        let fetched = Fetched { digest: partial.digest(), bytes: partial.have, from: Some(url) };
        partial.commit(self.target, self.durable)?;
        fs::remove_file(&lock)?;
        Ok(fetched)
    }

    fn algorithm(&self) -> Algorithm {
        self.digest.map_or(Algorithm::Sha256, ContentDigest::algorithm)
    }

    /// Returns the finished file, if it is there and what it must be; `any` takes what nothing is known of.
    fn finished(&self, any: bool, cancel: &Cancel) -> Result<Option<Fetched>, DownloadError> {
        if self.digest.is_none() && !any {
            return Ok(None);
        }
        let length =
            fs::optional(fs::metadata(self.target))?.filter(|meta| meta.is_file()).map(|meta| meta.len());
        if length.is_none_or(|length| length > self.bytes_max) {
            return Ok(None);
        }
        let mut hasher = Hasher::new(self.algorithm());
        let bytes = partial::hash(self.target, &mut hasher, cancel)?;
        let digest = hasher.finish();
        let fits = self.digest.is_none_or(|expected| *expected == digest);
        Ok(fits.then_some(Fetched { digest, bytes, from: None }))
    }

    /// Returns where it is while it is fetched: named by where it is from first, unless that is the same for all, and what
    /// it must be.
    fn partial_path(&self, first: &Url) -> PathBuf {
        let expected = self.digest.map(ToString::to_string).unwrap_or_default();
        let from = match self.origin {
            Origin::Web => first.secret_text(),
            Origin::Registry(_) => String::new(),
        };
        let name = Hasher::of(Algorithm::Sha256, format!("{from}\n{expected}").as_bytes());
        self.cache.join(format!("{}.part", name.hex()))
    }

    /// Tries each address in turn until the content is there and is the one expected.
    fn fetch(
        &self,
        client: &Client<'_>,
        path: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<(Partial, Url), DownloadError> {
        let clock = &client.options.clock;
        let partial = Partial::open(path, self.algorithm(), self.digest.is_some(), cancel)?;
        let mut attempt = Attempt::new(client, cancel, self, partial);
        let mut places: Vec<&Url> = self.urls.iter().collect();
        let mut at = 0;
        let mut best = attempt.partial.have;
        let (mut tries, mut wrong) = (Tries::default(), 0);
        let mut last: Option<&Url> = None;
        loop {
            cancel.check()?;
            let Some(&url) = places.get(at) else { return Err(DownloadError::NoUrl) };
            // One place's name of a version says nothing of another's, and no digest would tell the halves apart.
            if self.digest.is_none() && last.replace(url).is_some_and(|last| last != url) {
                attempt.partial.begin(None, None)?;
            }
            let result = attempt.run(url, progress);
            // Only what was never there before is progress: an origin that breaks off and cannot go on would never end.
            if attempt.partial.have > best {
                best = attempt.partial.have;
                tries.reset();
            }
            let (error, after) = match result {
                Ok(()) => {
                    let actual = attempt.partial.digest();
                    match self.digest.filter(|expected| **expected != actual) {
                        None => return Ok((attempt.partial, url.clone())),
                        Some(expected) => {
                            attempt.partial.begin(None, None)?;
                            (wrong, best) = (wrong + 1, 0);
                            let (url, expected) = (url.clone(), expected.clone());
                            let error = DownloadError::Digest { url, expected, actual };
                            if wrong > 1 {
                                return Err(error);
                            }
                            at = (at + 1) % places.len();
                            progress(Progress::Again { error: &error, wait: Duration::ZERO });
                            continue;
                        }
                    }
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Place(error)) => {
                    places.remove(at);
                    if places.is_empty() {
                        return Err(error);
                    }
                    at %= places.len();
                    progress(Progress::Again { error: &error, wait: Duration::ZERO });
                    continue;
                }
                Err(Failure::Anew(error)) => (error, Some(Duration::ZERO)),
                Err(Failure::Passing(error, after)) => {
                    at = (at + 1) % places.len();
                    // Another place need not wait for what this one asked for.
                    (error, if at == 0 { after } else { Some(Duration::ZERO) })
                }
            };
            tries.again(error, after, clock.as_ref(), progress, cancel)?;
        }
    }
}

/// Leaves nothing of a download that brought nothing. The caller holds its lock.
fn remove_empty(partial: &Path, lock: &Path) -> IoResult<()> {
    if fs::metadata(partial)?.len() == 0 {
        fs::remove_file(&partial.with_extension("json"))?;
        fs::remove_file(partial)?;
        fs::remove_file(lock)?;
    }
    Ok(())
}
