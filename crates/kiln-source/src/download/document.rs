//! A small document, read whole: nothing of it is kept, and another try begins anew.

use super::Progress;
use super::asker::Asker;
use super::attempt::Failure;
use super::authorize::Authorize;
use super::client::Client;
use super::error::{Broken, DownloadError};
use super::pace::Tries;
use super::url::Url;
use kiln_sys::Cancel;
use std::io::Read as _;

/// A document to fetch.
pub(crate) struct Document<'a> {
    /// Where it is.
    pub(crate) url: &'a Url,
    /// What is said of what is wanted.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// What is sent, where something is.
    pub(crate) form: Option<&'a str>,
    /// The most bytes it may have.
    pub(crate) bytes_max: u64,
    /// How its origin is told who asks, where the address does not say.
    pub(crate) authorize: Option<&'a dyn Authorize>,
}

impl Document<'_> {
    /// Fetches it; what passes is waited for.
    pub(crate) fn fetch(
        &self,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Vec<u8>, DownloadError> {
        let asker = Asker::new(client, cancel, self.authorize);
        let (clock, mut tries) = (client.options.clock.as_ref(), Tries::default());
        loop {
            cancel.check()?;
            match self.attempt(client, &asker) {
                Ok(bytes) => return Ok(bytes),
                Err(Failure::Passing(error, after)) => tries.again(error, after, clock, progress, cancel)?,
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Asks for it once.
    pub(crate) fn once(&self, client: &Client<'_>, cancel: &Cancel) -> Result<Vec<u8>, DownloadError> {
        Ok(self.attempt(client, &Asker::new(client, cancel, self.authorize))?)
    }

    fn attempt(&self, client: &Client<'_>, asker: &Asker<'_>) -> Result<Vec<u8>, Failure> {
        let mut answer = asker.send(self.url, self.headers, self.form)?;
        if !answer.response.status().is_success() {
            return Err(Failure::of(self.url, answer, client.options.clock.as_ref()));
        }
        let (url, max) = (self.url, self.bytes_max);
        let said = answer.header("content-length").and_then(|length| length.parse::<u64>().ok());
        let too_large = |said| DownloadError::TooLarge { url: url.clone(), said, max };
        if said.is_some_and(|said| said > max) {
            return Err(too_large(said).into());
        }
        let broken = |source| DownloadError::Broken { url: url.clone(), source };
        let mut bytes = Vec::new();
        let read = answer.response.body_mut().as_reader().take(max + 1).read_to_end(&mut bytes);
        asker.cancel.check()?;
        read.map_err(|error| broken(Broken::Read(error)))?;
        let have = bytes.len() as u64;
        match said {
            _ if have > max => Err(too_large(None).into()),
            Some(total) if have < total => Err(broken(Broken::Short { have, total }).into()),
            _ => Ok(bytes),
        }
    }
}
