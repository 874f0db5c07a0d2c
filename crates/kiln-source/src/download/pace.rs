//! When something is asked for again, how fast it may come, and how many connections a host gets.

use super::error::DownloadError;
use super::{Progress, TRIES_MAX};
use kiln_sys::cancel::Cancelled;
use kiln_sys::{Cancel, clock, lock};
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// The most connections to a host at a time, over all downloads of a client.
pub const CONNECTIONS_MAX: usize = 4;
/// The longest wait that a server may ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// The longest first wait before another try; each further one is twice as long.
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait before another try that no server asked for.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The time between two looks at whether a wait for another thread was cancelled.
const LOOK: Duration = Duration::from_millis(50);

/// What a download knows of time and chance.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the time since some point before: it never goes back.
    fn now(&self) -> Duration;
    /// Returns the seconds since 1970 (UTC).
    fn unix_seconds(&self) -> u64;
    /// Returns any number, each as likely as any other.
    fn random(&self) -> u64;
    /// Waits; a cancellation ends the wait at once.
    ///
    /// # Errors
    /// When it was cancelled.
    fn wait(&self, wait: Duration, cancel: &Cancel) -> Result<(), Cancelled>;
}

/// The host's clock.
#[derive(Debug)]
pub struct HostClock(Instant);

impl HostClock {
    /// Makes a clock that begins now.
    #[expect(clippy::new_without_default, reason = "each one begins at another time")]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for HostClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix_seconds(&self) -> u64 {
        clock::now_unix_ms() / 1000
    }

    fn random(&self) -> u64 {
        u64::from_le_bytes(clock::random())
    }

    fn wait(&self, wait: Duration, cancel: &Cancel) -> Result<(), Cancelled> {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            cancel.check()?;
            if left.is_zero() {
                return Ok(());
            }
            lock::wait_cancelled(cancel, left);
        }
    }
}

/// Tries in a row that brought nothing.
#[derive(Debug, Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// Counts one that failed and waits before the next, `after` where that is given; returns the error where there were
    /// as many as there may be.
    pub(super) fn again(
        &mut self,
        error: DownloadError,
        after: Option<Duration>,
        clock: &dyn Clock,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<(), DownloadError> {
        self.0 += 1;
        if self.0 >= TRIES_MAX {
            return Err(error);
        }
        let wait = after.unwrap_or_else(|| backoff(self.0, clock.random()));
        progress(Progress::Again { error: &error, wait });
        Ok(clock.wait(wait, cancel)?)
    }

    /// Begins to count anew: something came.
    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Returns the wait before the next try after so many in a row that brought nothing, all of it chance.
pub(super) fn backoff(tries: u32, random: u64) -> Duration {
    let most = BACKOFF.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(BACKOFF_MAX);
    let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX - 1);
    Duration::from_micros(random % (most + 1))
}

/// Returns the wait that a `Retry-After` asks for, in seconds or until a date.
pub(crate) fn retry_after(value: &str, now_unix_seconds: u64) -> Option<Duration> {
    let value = value.trim();
    let seconds = match value.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => u64::MAX,
        Err(_) => date(value)?.saturating_sub(now_unix_seconds),
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Reads a date of HTTP as seconds since 1970.
fn date(text: &str) -> Option<u64> {
    let at = httpdate::parse_http_date(text).ok()?;
    at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// The rate that all connections of a client share: who takes bytes waits until they are paid for.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_second: NonZeroU64,
    /// When all that was taken is paid for.
    paid: Mutex<Duration>,
}

impl Rate {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, paid: Mutex::new(Duration::ZERO) }
    }

    /// Returns the most bytes to take at once: a quarter of a second's.
    pub(super) fn burst(&self) -> usize {
        usize::try_from(self.bytes_per_second.get() / 4).unwrap_or(usize::MAX).max(1)
    }

    /// Returns how long to wait for bytes that were taken.
    pub(super) fn take(&self, bytes: u64, now: Duration) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = (*paid).max(now).saturating_add(cost);
        paid.saturating_sub(now)
    }
}

/// The connections that are open, by host.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    open: Mutex<HashMap<String, Open>>,
    closed: Condvar,
}

/// What a host has.
#[derive(Debug, Default)]
struct Open {
    connections: usize,
    /// Who waits for one.
    waiting: usize,
}

impl Open {
    fn is_idle(&self) -> bool {
        self.connections == 0 && self.waiting == 0
    }
}

/// A connection that may be open. Dropping it lets another be.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    hosts: &'a Hosts,
    host: String,
}

impl Hosts {
    /// Waits until a host may be connected to.
    pub(super) fn connect(&self, host: &str, cancel: &Cancel) -> Result<Permit<'_>, DownloadError> {
        let host = host.to_ascii_lowercase();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waits = false;
        loop {
            let known = open.entry(host.clone()).or_default();
            known.waiting -= usize::from(waits);
            if let Err(cancelled) = cancel.check() {
                if known.is_idle() {
                    open.remove(&host);
                }
                return Err(cancelled.into());
            }
            if known.connections < CONNECTIONS_MAX {
                known.connections += 1;
                return Ok(Permit { hosts: self, host });
            }
            known.waiting += 1;
            waits = true;
            open = self.closed.wait_timeout(open, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets a host be connected to if nobody has to wait for it.
    pub(super) fn try_connect(&self, host: &str) -> Option<Permit<'_>> {
        let host = host.to_ascii_lowercase();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.entry(host.clone()).or_default();
        // A further connection of one download is worth less than the first of another.
        let free = known.connections < CONNECTIONS_MAX && known.waiting == 0;
        known.connections += usize::from(free);
        free.then(|| Permit { hosts: self, host })
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut open = self.hosts.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get_mut(&self.host) {
            known.connections -= 1;
            if known.is_idle() {
                open.remove(&self.host);
            }
        }
        self.hosts.closed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_are_all_chance() {
        for (tries, most) in [(1, 500), (2, 1000), (3, 2000), (7, 30_000), (40, 30_000)] {
            let most = Duration::from_millis(most);
            assert_eq!(backoff(tries, 0), Duration::ZERO);
            let micros = u64::try_from(most.as_micros()).unwrap();
            assert_eq!(backoff(tries, micros), most);
            assert!(backoff(tries, u64::MAX) <= most);
        }
    }

    #[test]
    fn a_server_says_when_in_seconds_or_by_a_date_within_a_limit() {
        let now = 784_111_777;
        for (value, seconds) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("301", Some(300)),
            ("99999999999999999999999", Some(300)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:40:37 GMT", Some(0)),
            ("Sat, 06 Nov 2094 08:49:37 GMT", Some(300)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("Sun, 00 Nov 1994 05:49:37 GMT", None),
            ("Thu, 01 Jan 0000 00:00:00 GMT", None),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        }
        assert_eq!(date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(date("Thu, 01 Jan 1970 00:00:01 GMT"), Some(1));
    }

    #[test]
    fn a_rate_is_shared_and_time_that_passed_is_not_saved_up() {
        let rate = Rate::new(NonZeroU64::new(1000).unwrap());
        assert_eq!(rate.burst(), 250);
        assert_eq!(rate.take(500, Duration::ZERO), Duration::from_millis(500));
        assert_eq!(rate.take(500, Duration::ZERO), Duration::from_secs(1));
        assert_eq!(rate.take(500, Duration::from_secs(60)), Duration::from_millis(500));
    }

    #[test]
    fn connections_to_a_host_are_limited_over_all_downloads() {
        let (hosts, cancel) = (Hosts::default(), Cancel::new().unwrap());
        let mut held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| hosts.connect("a", &cancel).unwrap()).collect();
        drop(hosts.connect("b", &cancel).unwrap());
        let seen = std::thread::scope(|scope| {
            let fifth = scope.spawn(|| hosts.connect("A", &cancel).map(drop));
            held.pop();
            fifth.join().unwrap()
        });
        seen.unwrap();
        held.push(hosts.try_connect("a").unwrap());
        assert!(hosts.try_connect("a").is_none());
        cancel.cancel();
        assert!(matches!(hosts.connect("a", &cancel), Err(DownloadError::Cancelled)));
        drop(held);
        assert!(hosts.open.lock().unwrap().is_empty());
    }
}
