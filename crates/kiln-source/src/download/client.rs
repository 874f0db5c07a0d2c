//! Who asks: one client for all downloads of a command, which share its connections' limits.

use super::error::{Broken, DownloadError, Refusal};
use super::pace::{Clock, HostClock, Hosts, Permit, Rate};
use super::segments::RANGES_BYTES_MIN;
use super::url::Url;
use super::{pace, redirect, wire};
use crate::http;
use kiln_sys::{Cancel, Toolbox};
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use ureq::http::Response;
use ureq::tls::RootCerts;
use ureq::{Agent, Body, Proxy};

/// The longest time a connection may take.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The longest wait for an answer, and for each further byte of one.
pub const STALL_MAX: Duration = Duration::from_secs(30);
/// The longest note that is kept of a redirection that is not followed.
const LOCATION_BYTES_MAX: usize = 256;

/// How downloads are made.
#[derive(Debug)]
pub struct ClientOptions<'a> {
    /// Its environment says what proxies and certificates there are (`https_proxy`, `http_proxy`, `no_proxy`,
    /// `SSL_CERT_FILE`).
    pub toolbox: &'a Toolbox,
    /// Whether nobody may be asked.
    pub offline: bool,
    /// The most bytes in a second, of all downloads together.
    pub rate_max: Option<NonZeroU64>,
    /// The longest wait for an answer, and for each further byte of one.
    pub stall_max: Duration,
    /// From how many missing bytes on a file comes by several connections, where its origin lets it.
    pub ranges_bytes_min: u64,
    /// The time.
    pub clock: Box<dyn Clock>,
}

impl<'a> ClientOptions<'a> {
    /// Returns the usual ones: as fast as it goes, by the host's clock.
    pub fn new(toolbox: &'a Toolbox) -> Self {
        let clock = Box::new(HostClock::new());
        let (stall_max, ranges_bytes_min) = (STALL_MAX, RANGES_BYTES_MIN);
        Self { toolbox, offline: false, rate_max: None, stall_max, ranges_bytes_min, clock }
    }
}

/// Who asks. Downloads in several threads share one.
#[derive(Debug)]
pub struct Client<'a> {
    pub(super) options: ClientOptions<'a>,
    pub(super) hosts: Hosts,
    pub(super) rate: Option<Rate>,
    /// Read when first somebody is asked.
    roots: Mutex<Option<RootCerts>>,
}

/// How a host is come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way<'a> {
    Direct,
    /// Public addresses only.
    Guarded,
    Proxy(&'a str),
}

impl<'a> Client<'a> {
    /// Makes a client.
    pub fn new(options: ClientOptions<'a>) -> Self {
        let rate = options.rate_max.map(Rate::new);
        Self { options, hosts: Hosts::default(), rate, roots: Mutex::new(None) }
    }

    /// Returns whether nobody may be asked.
    pub(crate) fn is_offline(&self) -> bool {
        self.options.offline
    }

    /// Returns the seconds since 1970 (UTC).
    pub(crate) fn unix_seconds(&self) -> u64 {
        self.options.clock.unix_seconds()
    }

    /// Waits before another try, after so many in a row that brought nothing: as long as was asked for, or else by chance.
    pub(crate) fn wait_before(
        &self,
        tries: u32,
        after: Option<Duration>,
        cancel: &Cancel,
    ) -> Result<(), DownloadError> {
        let clock = &self.options.clock;
        let wait = after.unwrap_or_else(|| pace::backoff(tries, clock.random()));
        Ok(clock.wait(wait, cancel)?)
    }

    /// Returns who asks an address that a user named. Redirections are not followed.
    pub(crate) fn agent_of(&self, url: &Url, cancel: &Cancel) -> Result<Agent, DownloadError> {
        self.agent(url, self.way(url, false), cancel)
    }

    fn way(&self, url: &Url, guarded: bool) -> Way<'a> {
        let toolbox = self.options.toolbox;
        let own = url.host() == "localhost" || url.literal().is_some_and(|address| address.is_loopback());
        let direct = own || http::without_proxy(http::no_proxy(toolbox), url.host());
        let proxy = if url.is_clear() { http::http_proxy(toolbox) } else { http::https_proxy(toolbox) };
        match proxy.filter(|_| !direct) {
            Some(proxy) => Way::Proxy(proxy),
            None if guarded => Way::Guarded,
            None => Way::Direct,
        }
    }

    fn agent(&self, url: &Url, way: Way<'_>, cancel: &Cancel) -> Result<Agent, DownloadError> {
        let proxy = match way {
            Way::Proxy(proxy) => Some(Proxy::new(proxy)).transpose(),
            _ => Ok(None),
        };
        let proxy =
            proxy.map_err(|source| DownloadError::Proxy { url: url.clone(), source: Box::new(source) })?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_response_header_size(http::HEADERS_BYTES_MAX)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(self.options.stall_max))
            .timeout_per_read(Some(self.options.stall_max))
            .timeout_per_write(Some(self.options.stall_max))
            .user_agent("kiln")
            .proxy(proxy)
            .tls_config(http::tls(self.roots()?))
            .build();
        Ok(wire::agent(config, cancel, way == Way::Guarded))
    }

    fn roots(&self) -> Result<RootCerts, DownloadError> {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        match &*roots {
            Some(roots) => Ok(roots.clone()),
            None => Ok(roots.insert(http::roots(self.options.toolbox)?).clone()),
        }
    }
}

/// What one download asks with.
#[derive(Clone)]
pub(super) struct Asker<'a> {
    client: &'a Client<'a>,
    cancel: &'a Cancel,
    agents: Vec<(Way<'a>, Agent)>,
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
    pub(super) fn new(client: &'a Client<'a>, cancel: &'a Cancel) -> Self {
        Self { client, cancel, agents: Vec::new() }
    }

    fn agent(&mut self, url: &Url, guarded: bool) -> Result<Agent, DownloadError> {
        let way = self.client.way(url, guarded);
        if let Some((_, agent)) = self.agents.iter().find(|(known, _)| *known == way) {
            return Ok(agent.clone());
        }
        let agent = self.client.agent(url, way, self.cancel)?;
        self.agents.push((way, agent.clone()));
        Ok(agent)
    }

    /// Asks, following redirections; whatever else is answered is returned.
    pub(super) fn get(&mut self, url: &Url, headers: &[(&str, &str)]) -> Result<Answer<'a>, DownloadError> {
        let (hosts, cancel) = (&self.client.hosts, self.cancel);
        self.ask(url, headers, |host| hosts.connect(host, cancel))
    }

    /// Asks as [`Asker::get`] does, but does not wait for another connection to end.
    pub(super) fn try_get(&mut self, url: &Url, headers: &[(&str, &str)]) -> Result<Answer<'a>, Unasked> {
        let hosts = &self.client.hosts;
        self.ask(url, headers, |host| hosts.try_connect(host).ok_or(Unasked::Busy))
    }

    fn ask<E: From<DownloadError>>(
        &mut self,
        url: &Url,
        headers: &[(&str, &str)],
        connect: impl Fn(&str) -> Result<Permit<'a>, E>,
    ) -> Result<Answer<'a>, E> {
        let mut target = url.clone();
        let mut guarded = false;
        for _ in 0..=http::REDIRECTIONS_MAX {
            let permit = connect(target.host())?;
            let mut request =
                self.agent(&target, guarded)?.get(target.uri()).header("Accept-Encoding", "identity");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(authorization) = target.authorization() {
                request = request.header("Authorization", authorization);
            }
            let response = match request.call() {
                Ok(response) => response,
                Err(error) if wire::is_guarded(&error) => {
                    let (from, to, why) = (url.clone(), target.to_string(), Refusal::Private);
                    return Err(DownloadError::RedirectRefused { from, to, why }.into());
                }
                Err(error) => {
                    self.cancel.check().map_err(DownloadError::from)?;
                    let source = Broken::Http(Box::new(error));
                    return Err(DownloadError::Broken { url: url.clone(), source }.into());
                }
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, _permit: permit });
            }
            let location =
                response.headers().get("location").map(|value| value.as_bytes()).unwrap_or_default();
            let location = String::from_utf8_lossy(location);
            let refused = |to, why| Err(DownloadError::RedirectRefused { from: url.clone(), to, why }.into());
            let Ok(next) = target.join(&location) else { return refused(shown(&location), Refusal::NotHttp) };
            guarded = guarded || redirect::is_public_host(&target);
            if let Err(why) = redirect::check(&target, &next, guarded) {
                return refused(next.to_string(), why);
            }
            target = next;
        }
        Err(DownloadError::TooManyRedirects { url: url.clone(), max: http::REDIRECTIONS_MAX }.into())
    }
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
    fn the_guard_refuses_a_name_of_this_host_and_only_then() {
        let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
        let client = Client::new(ClientOptions::new(&toolbox));
        // Nobody listens on port 1: an open agent goes on to find that out.
        let url: Url = "http://localhost:1/".parse().unwrap();
        for guarded in [false, true] {
            let agent = client.agent(&url, client.way(&url, guarded), &cancel).unwrap();
            let error = agent.get(url.uri()).call().unwrap_err();
            assert_eq!(wire::is_guarded(&error), guarded, "{error:?}");
        }
    }

    #[test]
    fn proxies_are_those_of_the_scheme_and_never_of_this_host() {
        let env = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.into(), v.into())).collect();
        let toolbox = Toolbox::new(
            Vec::new(),
            env(&[("https_proxy", "http://p:1"), ("http_proxy", "http://q:1"), ("no_proxy", "in.example")]),
        );
        let client = Client::new(ClientOptions::new(&toolbox));
        for (url, way) in [
            ("https://e.org/", Way::Proxy("http://p:1")),
            ("http://e.org/", Way::Proxy("http://q:1")),
            ("https://a.in.example/", Way::Guarded),
            ("http://127.0.0.1:5000/", Way::Guarded),
        ] {
            assert_eq!(client.way(&url.parse().unwrap(), true), way, "{url}");
        }
    }

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
