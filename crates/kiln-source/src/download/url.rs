//! Addresses of the web: http or https, a host, and who asks, which is never shown.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use iri_string::types::{UriAbsoluteStr, UriReferenceStr};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use ureq::http::Uri;

/// The most bytes of an address, the target of a redirection among them.
pub const URL_BYTES_MAX: usize = 8 << 10;

/// An address that is fetched from. It is shown without a name, a password or a query, which may hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// Without a name and password.
    uri: Uri,
    /// What is sent as who asks.
    authorization: Option<String>,
}

/// A text that is no address to fetch from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an address to fetch from: `http://` or `https://`, a host and a path, in at most {URL_BYTES_MAX} bytes"
)]
pub struct InvalidUrl;

impl Url {
    /// Returns whether it is fetched in clear.
    pub fn is_clear(&self) -> bool {
        self.uri.scheme_str() == Some("http")
    }

    /// Returns the host: a name, or an IP address, one of version 6 without its brackets.
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns the port that is connected to.
    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(if self.is_clear() { 80 } else { 443 })
    }

    /// Returns the address that the host is, where it is one.
    pub(super) fn literal(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }

    /// Returns whether it is of this host itself, by the name or an address of its own.
    pub(crate) fn is_of_this_host(&self) -> bool {
        self.host() == "localhost" || self.literal().is_some_and(|address| address.is_loopback())
    }

    /// Adds who asks, as a header says it.
    pub(crate) fn authorized(self, authorization: Option<String>) -> Self {
        Self { authorization, ..self }
    }

    /// Returns what is asked for.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Returns the whole address but who asks: for names of files.
    pub(super) fn secret_text(&self) -> String {
        self.uri.to_string()
    }

    /// Returns the header that says who asks.
    pub(super) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// Returns where a redirection from here leads. Who asks is told there only where scheme, host and port are these.
    pub(super) fn join(&self, location: &str) -> Result<Self, InvalidUrl> {
        let location = location.split('#').next().unwrap_or_default();
        if location.is_empty() || location.len() > URL_BYTES_MAX {
            return Err(InvalidUrl);
        }
        let base = self.uri.to_string();
        let base = UriAbsoluteStr::new(&base).map_err(|_| InvalidUrl)?;
        let location = UriReferenceStr::new(location).map_err(|_| InvalidUrl)?;
        let text = location.resolve_against(base).to_string();
        let mut url: Self = text.parse()?;
        if url.authorization.is_none() && self.is_same_origin(&url) {
            url.authorization.clone_from(&self.authorization);
        }
        Ok(url)
    }

    /// Returns whether scheme, host and port are the same.
    pub(super) fn is_same_origin(&self, other: &Self) -> bool {
        self.is_clear() == other.is_clear()
            && self.host().eq_ignore_ascii_case(other.host())
            && self.port() == other.port()
    }
}

/// Undoes `%40` and the like.
fn decoded(text: &str) -> Vec<u8> {
    let (mut rest, mut out) = (text.as_bytes(), Vec::new());
    while let [byte, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let meant = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *byte == b'%');
        out.push(meant.unwrap_or(*byte));
        rest = if meant.is_some() { &after[2..] } else { after };
    }
    out
}

impl FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        if text.len() > URL_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidUrl);
        }
        let mut parts = text.parse::<Uri>().map_err(|_| InvalidUrl)?.into_parts();
        if !parts.scheme.as_ref().is_some_and(|scheme| ["http", "https"].contains(&scheme.as_str())) {
            return Err(InvalidUrl);
        }
        let mut authorization = None;
        let authority = parts.authority.take().ok_or(InvalidUrl)?;
        let host = match authority.as_str().rsplit_once('@') {
            Some((who, host)) => {
                let (name, password) = who.split_once(':').unwrap_or((who, ""));
                let plain = [decoded(name), b":".to_vec(), decoded(password)].concat();
                authorization = Some(format!("Basic {}", STANDARD.encode(plain)));
                host
            }
            None => authority.as_str(),
        };
        parts.authority = Some(host.parse().map_err(|_| InvalidUrl)?);
        let uri = Uri::from_parts(parts).map_err(|_| InvalidUrl)?;
        let url = Self { uri, authorization };
        // A port that is no number of 16 bits is no port.
        let colon = host.rfind(':').filter(|colon| !host[*colon..].contains(']'));
        let port = colon.is_none() || url.uri.port_u16().is_some_and(|port| port > 0);
        if url.host().is_empty() || !port { Err(InvalidUrl) } else { Ok(url) }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let query = if self.uri.query().is_some() { "?…" } else { "" };
        write!(f, "{}://{authority}{}{query}", self.uri.scheme_str().unwrap_or_default(), self.uri.path())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_what_may_be_secret() {
        let url: Url = "https://me:p%40ss@example.org:8443/a/b.img?sig=abc#x".parse().unwrap();
        assert_eq!(url.to_string(), "https://example.org:8443/a/b.img?…");
        assert_eq!(format!("{url:?}"), url.to_string());
        assert_eq!(url.authorization(), Some("Basic bWU6cEBzcw=="));
        assert_eq!(url.uri().to_string(), "https://example.org:8443/a/b.img?sig=abc");
        let six: Url = "http://[::1]:80/x".parse().unwrap();
        assert_eq!((six.host(), six.port(), six.literal()), ("::1", 80, "::1".parse().ok()));
    }

    #[test]
    fn what_is_no_address_of_the_web_is_refused() {
        let long = format!("https://e/{}", "a".repeat(URL_BYTES_MAX));
        for text in [
            "",
            "a",
            "/a",
            "file:///etc/passwd",
            "ftp://e/a",
            "https:///a",
            "https://e/a b",
            "https://e/\u{e4}",
            "http://e:99999/",
            "http://e:0/",
            "http://e:/",
            "http://a@/x",
            &long,
        ] {
            assert_eq!(text.parse::<Url>(), Err(InvalidUrl), "{text}");
        }
    }

    #[test]
    fn a_redirection_is_resolved_and_tells_no_other_host_who_asks() {
        let url: Url = "https://me:x@e.org/a/b?c".parse().unwrap();
        for (location, target) in [
            ("/x?y", "https://e.org/x?y"),
            ("x", "https://e.org/a/x"),
            ("../x/./y/..", "https://e.org/x/"),
            ("?z", "https://e.org/a/b?z"),
            ("//o.org/x", "https://o.org/x"),
            ("http://o.org#f", "http://o.org/"),
            ("HTTPS://E.org/q", "https://E.org/q"),
        ] {
            let joined = url.join(location).unwrap();
            assert_eq!(joined.uri().to_string(), target, "{location}");
            assert_eq!(joined.authorization().is_some(), !location.contains("o.org"), "{location}");
        }
        for location in ["", "file:///etc/passwd", "javascript:x", "#x", "https://"] {
            assert_eq!(url.join(location), Err(InvalidUrl), "{location}");
        }
    }
}
