//! One request for what is missing, and what comes of it.

use super::client::{Answer, Asker, Client};
use super::error::{Broken, DownloadError};
use super::partial::{BUFFER_BYTES, Partial, Validator};
use super::url::Url;
use super::{Progress, pace};
use crate::http;
use kiln_sys::Cancel;
use std::io::Read as _;
use std::time::Duration;

/// How an attempt failed.
pub(super) enum Failure {
    /// For good.
    Final(DownloadError),
    /// For good at this place; another may have it.
    Place(DownloadError),
    /// It may come the next time; perhaps the place said when.
    Passing(DownloadError, Option<Duration>),
    /// What was there is of no use, and is gone.
    Anew(DownloadError),
}

impl From<DownloadError> for Failure {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Broken { source: Broken::Http(inner), url } => {
                let for_good = matches!(
                    *inner,
                    ureq::Error::Rustls(_)
                        | ureq::Error::Tls(_)
                        | ureq::Error::Http(_)
                        | ureq::Error::BadUri(_)
                        | ureq::Error::LargeResponseHeader(..)
                ) || is_untrusted(&inner);
                let error = DownloadError::Broken { url, source: Broken::Http(inner) };
                if for_good { Self::Place(error) } else { Self::Passing(error, None) }
            }
            error @ DownloadError::Broken { .. } => Self::Passing(error, None),
            error @ (DownloadError::Status { .. }
            | DownloadError::TooLarge { .. }
            | DownloadError::RedirectRefused { .. }
            | DownloadError::TooManyRedirects { .. }) => Self::Place(error),
            error => Self::Final(error),
        }
    }
}

/// Whether the place could not say who it is. What TLS says of it comes wrapped, as the handshake is part of a write.
fn is_untrusted(error: &ureq::Error) -> bool {
    let ureq::Error::Io(error) = error else { return false };
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

impl From<kiln_sys::cancel::Cancelled> for Failure {
    fn from(cancelled: kiln_sys::cancel::Cancelled) -> Self {
        Self::Final(cancelled.into())
    }
}

/// The attempts of one download.
pub(super) struct Attempt<'a> {
    client: &'a Client<'a>,
    cancel: &'a Cancel,
    asker: Asker<'a>,
    bytes_max: u64,
    pub(super) partial: Partial,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(client: &'a Client<'a>, cancel: &'a Cancel, bytes_max: u64, partial: Partial) -> Self {
        Self { client, cancel, asker: Asker::new(client, cancel), bytes_max, partial }
    }

    /// Asks a place for what is missing, and takes what comes.
    pub(super) fn run(&mut self, url: &Url, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), Failure> {
        let have = self.partial.have;
        if have > 0 && self.partial.total == Some(have) {
            return Ok(());
        }
        let range = format!("bytes={have}-");
        let validator = self.partial.validator.clone().filter(|_| have > 0);
        let asked = match &validator {
            Some(validator) => self.asker.get(url, &[("Range", &range), ("If-Range", validator.as_str())]),
            None => self.asker.get(url, &[]),
        };
        let mut answer = asked?;
        let header = |name: &str| text(&answer, name);
        match (answer.response.status().as_u16(), &validator) {
            (200, _) => {
                let total = header("content-length").and_then(|length| length.parse::<u64>().ok());
                self.check_size(url, total)?;
                self.partial.begin(Validator::of(header), total)?;
            }
            (206, Some(validator)) => {
                let part = header("content-range").and_then(|range| content_range(&range));
                let same = part.is_some_and(|(first, total)| {
                    first == have
                        && (total.is_none() || self.partial.total.is_none_or(|known| total == Some(known)))
                });
                if !same || validator.is_contradicted(header) {
                    return Err(self.anew(url, 206)?);
                }
                let total = self.partial.total.or(part.and_then(|(_, total)| total));
                self.check_size(url, total)?;
                self.partial.total = total;
            }
            (416, Some(_)) => return Err(self.anew(url, 416)?),
            (status, _) => {
                let after = header("retry-after");
                let now = self.client.options.clock.unix_seconds();
                let after = after.and_then(|value| pace::retry_after(&value, now));
                let said = http::said(answer.response);
                let error = DownloadError::Status { url: url.clone(), status, said };
                return Err(match status {
                    429 | 503 => Failure::Passing(error, after),
                    408 | 500.. => Failure::Passing(error, None),
                    _ => Failure::Place(error),
                });
            }
        }
        self.take(url, &mut answer, progress)
    }

    fn take(
        &mut self,
        url: &Url,
        answer: &mut Answer<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let mut body = answer.response.body_mut().as_reader();
        let rate = self.client.rate.as_ref();
        let mut buffer = vec![0; rate.map_or(BUFFER_BYTES, |rate| rate.burst().min(BUFFER_BYTES))];
        loop {
            self.cancel.check()?;
            let read = body.read(&mut buffer);
            self.cancel.check()?;
            let broken = |source| DownloadError::Broken { url: url.clone(), source };
            let read = read.map_err(|error| broken(Broken::Read(error)))?;
            let (have, total) = (self.partial.have, self.partial.total);
            if read == 0 {
                return match total.filter(|total| have < *total) {
                    Some(total) => Err(broken(Broken::Short { have, total }).into()),
                    None => Ok(()),
                };
            }
            if have + read as u64 > total.unwrap_or(self.bytes_max).min(self.bytes_max) {
                self.partial.begin(None, None)?;
                let (url, max) = (url.clone(), self.bytes_max);
                return Err(DownloadError::TooLarge { url, said: None, max }.into());
            }
            self.partial.write(&buffer[..read])?;
            progress(Progress::Bytes { have: self.partial.have, total });
            if let Some(rate) = rate {
                let clock = &self.client.options.clock;
                let wait = rate.take(read as u64, clock.now());
                clock.wait(wait, self.cancel)?;
            }
        }
    }

    fn check_size(&self, url: &Url, total: Option<u64>) -> Result<(), Failure> {
        match total.filter(|total| *total > self.bytes_max) {
            Some(said) => {
                let (url, max) = (url.clone(), self.bytes_max);
                Err(DownloadError::TooLarge { url, said: Some(said), max }.into())
            }
            None => Ok(()),
        }
    }

    /// Drops what is there: the place does not go on with it.
    fn anew(&mut self, url: &Url, status: u16) -> Result<Failure, DownloadError> {
        self.partial.begin(None, None)?;
        let said = "it does not go on where it was asked to".to_owned();
        Ok(Failure::Anew(DownloadError::Status { url: url.clone(), status, said }))
    }
}

fn text(answer: &Answer<'_>, name: &str) -> Option<String> {
    answer.response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Reads where a part begins and of how many bytes it is, of `bytes 5-9/10`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (part, total) = value.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse::<u64>().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_says_where_it_begins_and_of_how_much_it_is() {
        for (value, part) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("lines 5-9/10", None),
            ("bytes 5-9", None),
            ("bytes -5-9/10", None),
            ("bytes 5-9/99999999999999999999", None),
            ("", None),
        ] {
            assert_eq!(content_range(value), part, "{value}");
        }
    }
}
