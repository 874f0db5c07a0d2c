//! One request for what is missing, and what comes of it.

use super::asker::{Answer, Asker};
use super::client::Client;
use super::error::{Broken, DownloadError};
use super::pace::Clock;
use super::partial::{BUFFER_BYTES, Partial, Validator};
use super::segments::{self, Asked, Ended};
use super::url::Url;
use super::{Download, Origin, Progress, pace};
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
    /// What was there is of no use, or it has to be asked for otherwise: at once.
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
            error @ (DownloadError::Broken { .. }
            | DownloadError::Status { status: 408 | 429 | 500.., .. }) => Self::Passing(error, None),
            error @ (DownloadError::Status { .. }
            | DownloadError::TooLarge { .. }
            | DownloadError::RedirectRefused { .. }
            | DownloadError::TooManyRedirects { .. }) => Self::Place(error),
            error => Self::Final(error),
        }
    }
}

impl Failure {
    /// Returns what an answer that is an error says, and when to ask again.
    pub(super) fn of(url: &Url, answer: Answer<'_>, clock: &dyn Clock) -> Self {
        let after = answer.header("retry-after").filter(|_| matches!(answer.status(), 429 | 503));
        let after = after.and_then(|value| pace::retry_after(&value, clock.unix_seconds()));
        let (url, status, said) = (url.clone(), answer.status(), http::said(answer.response));
        match Self::from(DownloadError::Status { url, status, said }) {
            Self::Passing(error, _) => Self::Passing(error, after),
            other => other,
        }
    }
}

impl From<Failure> for DownloadError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Final(error)
            | Failure::Place(error)
            | Failure::Passing(error, _)
            | Failure::Anew(error) => error,
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
    origin: Origin<'a>,
    /// Whether it comes by one connection, as the origin gave no parts.
    single: bool,
    pub(super) partial: Partial,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        client: &'a Client<'a>,
        cancel: &'a Cancel,
        download: &Download<'a>,
        partial: Partial,
    ) -> Self {
        let (origin, bytes_max) = (download.origin, download.bytes_max);
        let asker = Asker::new(client, cancel, origin.authorize());
        Self { client, cancel, asker, bytes_max, origin, single: false, partial }
    }

    /// Asks a place for what is missing, and takes what comes.
    pub(super) fn run(&mut self, url: &Url, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), Failure> {
        let have = self.partial.have;
        if have > 0 && self.partial.total == Some(have) {
            return Ok(());
        }
        if self.single && self.partial.there().is_some() {
            self.partial.narrow()?;
        }
        let (have, from) = (self.partial.have, self.partial.missing());
        let range = format!("bytes={from}-");
        let validator = self.partial.validator.clone().filter(|_| have > 0);
        let headers = validator.as_ref().map(|validator| validator.of_part(&range)).unwrap_or_default();
        let mut answer = self.asker.get(url, &headers)?;
        match (answer.status(), &validator) {
            (200, _) => {
                let total = answer.header("content-length").and_then(|length| length.parse::<u64>().ok());
                self.check_size(url, total)?;
                let validator = match self.origin {
                    Origin::Web => Validator::of(|name| answer.header(name)),
                    Origin::Registry(_) => Some(Validator::Digest),
                };
                self.partial.begin(validator, total)?;
            }
            (206, Some(validator)) => {
                let part = answer.part();
                let same = part.is_some_and(|part| {
                    let known = self.partial.total;
                    part.from == from
                        && (part.total.is_none() || known.is_none_or(|known| part.total == Some(known)))
                });
                if !same || validator.is_contradicted(|name| answer.header(name)) {
                    return Err(self.anew(url, 206)?);
                }
                let total = self.partial.total.or(part.and_then(|part| part.total));
                self.check_size(url, total)?;
                self.partial.total = total;
            }
            (416, Some(_)) => return Err(self.anew(url, 416)?),
            _ => return Err(Failure::of(url, answer, self.client.options.clock.as_ref())),
        }
        match self.total_of_parts(&answer) {
            Some(total) => self.take_parts(url, answer, total, progress),
            None => self.take(url, &mut answer, progress),
        }
    }

    /// Returns the bytes of a file that is to come by several connections.
    fn total_of_parts(&self, answer: &Answer<'_>) -> Option<u64> {
        let gives =
            answer.status() == 206 || answer.header("accept-ranges").is_some_and(|unit| unit == "bytes");
        // The time of a change is too coarse a name for parts that come at once.
        let strong = matches!(self.partial.validator, Some(Validator::Etag(_) | Validator::Digest));
        let total = self.partial.total.filter(|_| gives && strong && !self.single)?;
        let much = total - self.partial.have.min(total) >= self.client.options.ranges_bytes_min;
        (much || self.partial.there().is_some()).then_some(total)
    }

    fn take_parts(
        &mut self,
        url: &Url,
        answer: Answer<'_>,
        total: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let Some(validator) = self.partial.validator.clone() else { return Err(self.anew(url, 206)?) };
        let asked = Asked { client: self.client, cancel: self.cancel, url, validator: &validator, total };
        match segments::take(&asked, &self.asker, answer, &mut self.partial, progress)? {
            Ended::Whole => Ok(()),
            Ended::Broken { failure, alone } => {
                self.single |= alone;
                Err(failure)
            }
            Ended::Changed => Err(self.anew(url, 206)?),
            Ended::Refused { status } => {
                self.single = true;
                let said = "it gives no parts".to_owned();
                Err(Failure::Anew(DownloadError::Status { url: url.clone(), status, said }))
            }
        }
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
