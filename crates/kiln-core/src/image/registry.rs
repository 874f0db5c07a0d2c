//! References to images of registries, read as docker reads them.

use super::ContentDigest;
use std::fmt;
use std::str::FromStr;

/// The registry of names without a host.
pub const DOCKER_HUB: &str = "docker.io";

/// The tag of names without one.
const TAG_DEFAULT: &str = "latest";
/// The longest repository, in bytes.
const REPOSITORY_BYTES_MAX: usize = 255;
/// The longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

/// An image of a registry. Host, repository, tag and digest are told apart once, here: two registries never share a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<ContentDigest>,
}

/// A text that is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the name of an image: {reason}")]
pub struct InvalidRegistryReference {
    text: String,
    reason: &'static str,
}

impl RegistryReference {
    /// Returns the registry's host, with its port where one is given. Docker Hub is [`DOCKER_HUB`].
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; none where a digest alone is given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest of the manifest, where one is given. It goes before the tag.
    pub fn digest(&self) -> Option<&ContentDigest> {
        self.digest.as_ref()
    }

    /// Returns whether the registry is this host itself, by a loopback address.
    pub fn is_loopback(&self) -> bool {
        let name = match self.host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => self.host.split(':').next().unwrap_or_default(),
        };
        name == "localhost" || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

/// Whether the first part of a name is a host: docker's rule.
fn is_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                ("v6", port.strip_prefix(':'))
            }
            _ => return false,
        },
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let port =
        port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    name.len() <= 253 && name.split('.').all(label) && port
}

/// Lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn valid_component(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let plain = part.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'_' | b'-'));
    let ends = part.bytes().next().is_some_and(word) && part.bytes().next_back().is_some_and(word);
    let separators = part.split(|c: char| c.is_ascii_alphanumeric());
    plain
        && ends
        && separators
            .into_iter()
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

fn valid_tag(tag: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_BYTES_MAX
        && tag.starts_with(first)
        && tag.chars().all(|c| first(c) || matches!(c, '.' | '-'))
}

impl FromStr for RegistryReference {
    type Err = InvalidRegistryReference;

    fn from_str(text: &str) -> Result<Self, InvalidRegistryReference> {
        let invalid = |reason| InvalidRegistryReference { text: crate::text::clip(text), reason };
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        let digest = digest
            .map(|digest| {
                digest.parse().map_err(|_| invalid("what follows `@` is no sha256 or sha512 digest"))
            })
            .transpose()?;
        let (host, rest) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => (DOCKER_HUB, name),
        };
        // A colon in the host's part was dealt with; the last one of the rest begins the tag.
        let (path, tag) = rest.rsplit_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
        if !valid_host(host) {
            return Err(invalid("its host is none"));
        }
        if path.len() > REPOSITORY_BYTES_MAX || !path.split('/').all(valid_component) {
            return Err(invalid(
                "the repository has parts of a-z and 0-9, with `.`, `_`, `__` or dashes between them, up to 255 bytes",
            ));
        }
        if !tag.is_none_or(valid_tag) {
            return Err(invalid("the tag has letters, digits, `_`, `.` and `-`, up to 128 bytes"));
        }
        let host =
            if host == "index.docker.io" || host == "registry-1.docker.io" { DOCKER_HUB } else { host };
        let repository = if host == DOCKER_HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        let tag = tag.or_else(|| digest.is_none().then_some(TAG_DEFAULT)).map(str::to_owned);
        Ok(Self { host: host.to_ascii_lowercase(), repository, tag, digest })
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}
