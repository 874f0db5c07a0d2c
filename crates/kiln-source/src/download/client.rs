//! Who asks: one client for all downloads of a command, which share its connections' limits.

use super::error::DownloadError;
use super::pace::{Clock, HostClock, Hosts, Rate};
use super::segments::RANGES_BYTES_MIN;
use super::url::Url;
use super::{pace, wire};
use crate::http;
use kiln_sys::{Cancel, Toolbox};
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use ureq::tls::RootCerts;
use ureq::{Agent, Proxy};

/// The longest time a connection may take.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The longest wait for an answer, and for each further byte of one.
pub const STALL_MAX: Duration = Duration::from_secs(30);

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
    /// Kept, so that their connections are used again: those that end with the last cancellation that was asked with.
    agents: Mutex<Vec<(Cancel, Way, Agent)>>,
}

/// How a host is come by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Direct,
    /// Public addresses only.
    Guarded,
    Proxy(String),
}

impl<'a> Client<'a> {
    /// Makes a client.
    pub fn new(options: ClientOptions<'a>) -> Self {
        let rate = options.rate_max.map(Rate::new);
        let (roots, agents) = (Mutex::new(None), Mutex::new(Vec::new()));
        Self { options, hosts: Hosts::default(), rate, roots, agents }
    }

    /// Returns the programs of the host, and their environment.
    pub(crate) fn toolbox(&self) -> &'a Toolbox {
        self.options.toolbox
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

    fn way(&self, url: &Url, guarded: bool) -> Way {
        let toolbox = self.options.toolbox;
        let direct = url.is_of_this_host() || http::without_proxy(http::no_proxy(toolbox), url.host());
        let proxy = if url.is_clear() { http::http_proxy(toolbox) } else { http::https_proxy(toolbox) };
        match proxy.filter(|_| !direct) {
            Some(proxy) => Way::Proxy(proxy.to_owned()),
            None if guarded => Way::Guarded,
            None => Way::Direct,
        }
    }

    /// Returns what connects to a host, until it is cancelled. It follows no redirections.
    pub(crate) fn agent(&self, url: &Url, guarded: bool, cancel: &Cancel) -> Result<Agent, DownloadError> {
        let way = self.way(url, guarded);
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.retain(|(known, _, _)| known.is_same(cancel));
        if let Some((_, _, agent)) = agents.iter().find(|(_, known, _)| *known == way) {
            return Ok(agent.clone());
        }
        let agent = self.agent_of(url, &way, cancel)?;
        agents.push((cancel.clone(), way, agent.clone()));
        Ok(agent)
    }

    fn agent_of(&self, url: &Url, way: &Way, cancel: &Cancel) -> Result<Agent, DownloadError> {
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
        Ok(wire::agent(config, cancel, *way == Way::Guarded))
    }

    fn roots(&self) -> Result<RootCerts, DownloadError> {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        match &*roots {
            Some(roots) => Ok(roots.clone()),
            None => Ok(roots.insert(http::roots(self.options.toolbox)?).clone()),
        }
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
            let agent = client.agent(&url, guarded, &cancel).unwrap();
            let error = agent.get(url.uri()).call().unwrap_err();
            assert_eq!(wire::is_guarded(&error), guarded, "{error:?}");
        }
        // Those of one cancellation are kept.
        let kept = || client.agents.lock().unwrap().len();
        assert_eq!(kept(), 2);
        client.agent(&url, true, &cancel.clone()).unwrap();
        assert_eq!(kept(), 2);
        client.agent(&url, true, &Cancel::new().unwrap()).unwrap();
        assert_eq!(kept(), 1);
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
            ("https://e.org/", Way::Proxy("http://p:1".to_owned())),
            ("http://e.org/", Way::Proxy("http://q:1".to_owned())),
            ("https://a.in.example/", Way::Guarded),
            ("http://127.0.0.1:5000/", Way::Guarded),
        ] {
            assert_eq!(client.way(&url.parse().unwrap(), true), way, "{url}");
        }
    }
}
