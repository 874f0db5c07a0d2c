//! One request and its answer: redirections are followed as far as the rules let, and an origin that wants to know who
//! asks is told, it alone.

use super::authorize::Authorize;
use super::client::Client;
use super::error::{Broken, DownloadError, Refusal};
use super::pace::Permit;
use super::url::Url;
use super::{redirect, wire};
use crate::http;
use kiln_sys::Cancel;
use ureq::http::{Response, header};
use ureq::{Body, RequestBuilder};

/// The status of who has to say who asks.
const UNAUTHORIZED: u16 = 401;
/// The longest note that is kept of a redirection that is not followed.
const LOCATION_BYTES_MAX: usize = 256;

/// What one download asks with.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    client: &'a Client<'a>,
    pub(super) cancel: &'a Cancel,
    authorize: Option<&'a dyn Authorize>,
}

/// Why nothing was answered to who does not wait.
pub(super) enum Unasked {
    /// The host has as many connections as it may.
    Busy,
    Failed(DownloadError),
}

impl From<DownloadError> for Unasked {
    fn from(error: DownloadError) -> Self {
        Self::Failed(error)
    }
}

/// An answer, and the connection it comes by.
pub(super) struct Answer<'a> {
    pub(super) response: Response<Body>,
    _permit: Permit<'a>,
}

impl Answer<'_> {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Returns a header, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    }

    /// Returns which part it says it is.
    pub(super) fn part(&self) -> Option<Part> {
        self.header("content-range").and_then(|range| Part::parse(&range))
    }
}

/// Which part of a file an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Its first byte.
    pub(super) from: u64,
    /// The one after its last.
    pub(super) to: u64,
    /// The bytes of the file, where the origin says.
    pub(super) total: Option<u64>,
}

impl Part {
    /// Reads `bytes 5-9/10`.
    fn parse(value: &str) -> Option<Self> {
        let (part, total) = value.strip_prefix("bytes ")?.trim().split_once('/')?;
        let (first, last) = part.split_once('-')?;
        let (from, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        let total = match total {
            "*" => None,
            total => Some(total.parse::<u64>().ok()?),
        };
        let fits = from <= last && total.is_none_or(|total| last < total);
        fits.then_some(Self { from, to: last.checked_add(1)?, total })
    }
}

impl<'a> Asker<'a> {
    pub(super) fn new(
        client: &'a Client<'a>,
        cancel: &'a Cancel,
        authorize: Option<&'a dyn Authorize>,
    ) -> Self {
        Self { client, cancel, authorize }
    }

    /// Asks, following redirections; whatever else is answered is returned.
    pub(super) fn get(&self, url: &Url, headers: &[(&str, &str)]) -> Result<Answer<'a>, DownloadError> {
        self.send(url, headers, None)
    }

    /// Asks as [`Asker::get`] does, but does not wait for another connection to end.
    pub(super) fn try_get(&self, url: &Url, headers: &[(&str, &str)]) -> Result<Answer<'a>, Unasked> {
        let hosts = &self.client.hosts;
        self.ask(url, headers, None, |host| hosts.try_connect(host).ok_or(Unasked::Busy))
    }

    /// Asks as [`Asker::get`] does, or sends a form where there is one, which no redirection is followed with.
    pub(super) fn send(
        &self,
        url: &Url,
        headers: &[(&str, &str)],
        form: Option<&str>,
    ) -> Result<Answer<'a>, DownloadError> {
        let (hosts, cancel) = (&self.client.hosts, self.cancel);
        self.ask(url, headers, form, |host| hosts.connect(host, cancel))
    }

    fn ask<E: From<DownloadError>>(
        &self,
        url: &Url,
        headers: &[(&str, &str)],
        form: Option<&str>,
        connect: impl Fn(&str) -> Result<Permit<'a>, E>,
    ) -> Result<Answer<'a>, E> {
        let mut target = url.clone();
        let (mut guarded, mut told, mut redirections) = (false, false, 0);
        loop {
            let authorize = self.authorize.filter(|_| url.is_same_origin(&target));
            // Before there is a connection: whoever renews it may need one to the same host.
            let sent = authorize.and_then(Authorize::header);
            let permit = connect(target.host())?;
            let authorization = target.authorization().or(sent.as_deref());
            let response = self.once(url, &target, guarded, headers, authorization, form)?;
            let status = response.status().as_u16();
            if let Some(authorize) = authorize.filter(|_| status == UNAUTHORIZED && !told) {
                told = true;
                let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
                let challenges: Vec<String> =
                    challenges.filter_map(|value| Some(value.to_str().ok()?.to_owned())).collect();
                let said = http::said(response);
                drop(permit);
                if authorize.answer(sent.as_deref(), &challenges)? {
                    continue;
                }
                return Err(DownloadError::Status { url: url.clone(), status, said }.into());
            }
            if form.is_some() || !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, _permit: permit });
            }
            if redirections == http::REDIRECTIONS_MAX {
                let max = http::REDIRECTIONS_MAX;
                return Err(DownloadError::TooManyRedirects { url: url.clone(), max }.into());
            }
            redirections += 1;
            guarded = guarded || redirect::is_public_host(&target);
            target = next(url, &target, &response, guarded)?;
        }
    }

    /// Asks one place; `url` is what errors name.
    fn once(
        &self,
        url: &Url,
        target: &Url,
        guarded: bool,
        headers: &[(&str, &str)],
        authorization: Option<&str>,
        form: Option<&str>,
    ) -> Result<Response<Body>, DownloadError> {
        let agent = self.client.agent(target, guarded, self.cancel)?;
        let result = match form {
            None => with(agent.get(target.uri()), headers, authorization).call(),
            Some(form) => {
                let request = with(agent.post(target.uri()), headers, authorization);
                request.content_type("application/x-www-form-urlencoded").send(form)
            }
        };
        match result {
            Err(error) if wire::is_guarded(&error) => {
                let (from, to, why) = (url.clone(), target.to_string(), Refusal::Private);
                Err(DownloadError::RedirectRefused { from, to, why })
            }
            Err(error) => {
                self.cancel.check()?;
                Err(DownloadError::Broken { url: url.clone(), source: Broken::Http(Box::new(error)) })
            }
            Ok(response) => Ok(response),
        }
    }
}

fn with<Any>(
    request: RequestBuilder<Any>,
    headers: &[(&str, &str)],
    authorization: Option<&str>,
) -> RequestBuilder<Any> {
    let authorization = authorization.map(|value| ("Authorization", value));
    let all =
        [("Accept-Encoding", "identity")].into_iter().chain(headers.iter().copied()).chain(authorization);
    all.fold(request, |request, (name, value)| request.header(name, value))
}

/// Returns where an answer leads, if it may.
fn next(url: &Url, from: &Url, response: &Response<Body>, guarded: bool) -> Result<Url, DownloadError> {
    let location = response.headers().get(header::LOCATION).map(|value| value.as_bytes());
    let location = String::from_utf8_lossy(location.unwrap_or_default());
    let refused = |to, why| DownloadError::RedirectRefused { from: url.clone(), to, why };
    let next = from.join(&location).map_err(|_| refused(shown(&location), Refusal::NotHttp))?;
    redirect::check(from, &next, guarded).map_err(|why| refused(next.to_string(), why))?;
    Ok(next)
}

/// Returns what may be shown of a text that is no address: neither a query nor what may be a name and password.
fn shown(location: &str) -> String {
    let plain = location.split(['?', '#']).next().unwrap_or_default();
    let end = plain.char_indices().nth(LOCATION_BYTES_MAX).map_or(plain.len(), |(at, _)| at);
    match plain[..end].split_once('@') {
        Some(_) => "an address with a name in it".to_owned(),
        None => kiln_core::text::clip(&plain[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_says_where_it_is_and_of_how_much() {
        let part = |from, to, total| Some(Part { from, to, total });
        for (value, wanted) in [
            ("bytes 5-9/10", part(5, 10, Some(10))),
            ("bytes 5-9/*", part(5, 10, None)),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("lines 5-9/10", None),
            ("bytes 5-9", None),
            ("bytes -5-9/10", None),
            ("bytes 5-9/99999999999999999999", None),
            ("bytes 5-18446744073709551615/*", None),
            ("", None),
        ] {
            assert_eq!(Part::parse(value), wanted, "{value}");
        }
    }

    #[test]
    fn what_may_be_secret_of_a_refused_redirection_is_not_shown() {
        assert_eq!(shown("file:///etc/passwd?x"), "file:///etc/passwd");
        assert!(!shown("ftp://me:secret@e/").contains("secret"));
        assert!(shown(&"a".repeat(1000)).len() <= 300);
    }
}
