//! Requests to one repository of a registry.

use super::super::error::{OciError, Unreachable};
use super::auth::{Authority, DockerConfig};
use kiln_core::image::{DOCKER_HUB, RegistryReference};
use kiln_sys::{Cancel, Toolbox, fs};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, Proxy};

/// The time a connection may take, and each answer, and each wait for more of a body.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most redirections of a request.
const REDIRECTIONS_MAX: u32 = 5;
/// The most bytes of the headers of an answer.
const HEADERS_BYTES_MAX: usize = 64 << 10;
/// The most bytes that are read of an answer that is an error.
const PROBLEM_BYTES_MAX: u64 = 4096;
/// The most bytes of the host's certificates.
const CERTIFICATES_BYTES_MAX: usize = 8 << 20;

/// Where distributions keep the certificates they trust.
const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The documents that are understood.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// How registries are asked.
#[derive(Clone, Copy)]
pub struct RegistryOptions<'a> {
    /// Whether none may be asked.
    pub offline: bool,
    /// What docker's configuration says of credentials.
    pub docker: &'a DockerConfig,
    /// The programs that keep credentials, and in its environment proxies and certificates (`https_proxy`, `no_proxy`,
    /// `SSL_CERT_FILE`).
    pub toolbox: &'a Toolbox,
    /// Ends the work early.
    pub cancel: &'a Cancel,
}

impl std::fmt::Debug for RegistryOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryOptions").field("offline", &self.offline).finish_non_exhaustive()
    }
}

/// A repository that is asked.
pub(super) struct Client<'a> {
    agent: Option<Agent>,
    base: String,
    authority: Authority<'a>,
    pub(super) reference: &'a RegistryReference,
    pub(super) options: RegistryOptions<'a>,
}

impl<'a> Client<'a> {
    pub(super) fn new(reference: &'a RegistryReference, options: &RegistryOptions<'a>) -> Self {
        let host = if reference.host() == DOCKER_HUB { "registry-1.docker.io" } else { reference.host() };
        let scheme = if reference.is_loopback() { "http" } else { "https" };
        Self {
            agent: None,
            base: format!("{scheme}://{host}/v2/{}", reference.repository()),
            authority: Authority::new(reference, *options),
            reference,
            options: *options,
        }
    }

    fn agent(&mut self) -> Result<Agent, OciError> {
        if self.options.offline {
            return Err(OciError::Offline { reference: self.reference.to_string() });
        }
        match &self.agent {
            Some(agent) => Ok(agent.clone()),
            None => Ok(self.agent.insert(agent(self.reference, &self.options)?).clone()),
        }
    }

    /// Asks for a document and reads it whole.
    pub(super) fn document(&mut self, path: &str, what: &'static str, max: u64) -> Result<Vec<u8>, OciError> {
        let mut response = self.get(path, None)?;
        let mut bytes = Vec::new();
        let limited = response.body_mut().as_reader().take(max + 1).read_to_end(&mut bytes);
        limited.map_err(|error| self.unreachable(path, Unreachable::Read(error)))?;
        match bytes.len() as u64 > max {
            true if what == "configuration" => {
                Err(OciError::TooLarge { what: "bytes of configuration", max })
            }
            true => Err(OciError::TooLarge { what: "bytes of manifest", max }),
            false => Ok(bytes),
        }
    }

    /// Asks for a part of the repository, from a byte on where one is given; answers other than success are errors.
    pub(super) fn get(&mut self, path: &str, from: Option<u64>) -> Result<Response<Body>, OciError> {
        let agent = self.agent()?;
        let url = format!("{}/{path}", self.base);
        let mut tried = false;
        loop {
            self.options.cancel.check()?;
            let mut request = agent.get(&url).header("Accept", ACCEPT);
            if let Some(from) = from {
                request = request.header("Range", format!("bytes={from}-"));
            }
            if let Some(header) = self.authority.header() {
                request = request.header("Authorization", header);
            }
            let response =
                request.call().map_err(|error| self.unreachable(path, Unreachable::Http(Box::new(error))))?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !tried {
                tried = true;
                let challenges = response.headers().get_all("www-authenticate");
                let challenges: Vec<&str> =
                    challenges.iter().filter_map(|value| value.to_str().ok()).collect();
                if self.authority.answer(&agent, &challenges)? {
                    continue;
                }
            }
            let reference = || self.reference.to_string();
            return match status {
                status if status.is_success() => Ok(response),
                StatusCode::RANGE_NOT_SATISFIABLE if from.is_some() => Ok(response),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    Err(OciError::Denied { reference: reference() })
                }
                StatusCode::NOT_FOUND => Err(OciError::NotFound { reference: reference() }),
                status => Err(self.unreachable(
                    path,
                    Unreachable::Status { status: status.as_u16(), said: said(response) },
                )),
            };
        }
    }

    pub(super) fn unreachable(&self, path: &str, source: Unreachable) -> OciError {
        OciError::Registry { url: format!("{}/{path}", self.base), source }
    }
}

/// What a registry says of a refusal, on one line.
fn said(mut response: Response<Body>) -> String {
    let mut text = Vec::new();
    // What cannot be read is not told.
    let _ = response.body_mut().as_reader().take(PROBLEM_BYTES_MAX).read_to_end(&mut text);
    kiln_core::text::clip(String::from_utf8_lossy(&text).trim())
}

fn variable<'a>(toolbox: &'a Toolbox, names: &[&str]) -> Option<&'a str> {
    let env = toolbox.env();
    let found = names.iter().find_map(|name| env.iter().find(|(key, _)| key == *name));
    found.and_then(|(_, value)| value.to_str()).filter(|value| !value.is_empty())
}

fn agent(reference: &RegistryReference, options: &RegistryOptions<'_>) -> Result<Agent, OciError> {
    let loopback = reference.is_loopback();
    let unreachable =
        |source| OciError::Registry { url: reference.host().to_owned(), source: Unreachable::Http(source) };
    let direct = loopback || without_proxy(options.toolbox, reference.host());
    let proxy = variable(options.toolbox, &["https_proxy", "HTTPS_PROXY"]).filter(|_| !direct);
    let proxy = proxy.map(Proxy::new).transpose().map_err(Box::new).map_err(unreachable)?;
    let config = Agent::config_builder()
        .https_only(!loopback)
        .http_status_as_error(false)
        .max_redirects(REDIRECTIONS_MAX)
        .max_response_header_size(HEADERS_BYTES_MAX)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .user_agent("kiln")
        .proxy(proxy);
    // A registry of this host may lead to others, too.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder().provider(TlsProvider::Rustls).unversioned_rustls_crypto_provider(provider);
    let tls = tls.root_certs(roots(options.toolbox)?).build();
    Ok(config.tls_config(tls).build().new_agent())
}

/// Whether `no_proxy` names the host or a domain above it.
fn without_proxy(toolbox: &Toolbox, host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    variable(toolbox, &["no_proxy", "NO_PROXY"]).is_some_and(|list| {
        list.split(',').map(|item| item.trim().trim_start_matches("*").trim_start_matches('.')).any(|item| {
            !item.is_empty()
                && (name == item || name.strip_suffix(item).is_some_and(|above| above.ends_with('.')))
        }) || list.trim() == "*"
    })
}

fn roots(toolbox: &Toolbox) -> Result<RootCerts, OciError> {
    let named = variable(toolbox, &["SSL_CERT_FILE"]);
    for path in named.into_iter().chain(CERTIFICATES).map(Path::new) {
        if let Some(pem) = fs::read_optional(path, CERTIFICATES_BYTES_MAX)? {
            let items = ureq::tls::parse_pem(&pem).filter_map(Result::ok);
            let certificates: Vec<Certificate<'static>> = items
                .filter_map(|item| match item {
                    PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                })
                .collect();
            return Ok(RootCerts::Specific(Arc::new(certificates)));
        }
    }
    Ok(RootCerts::Specific(Arc::new(Vec::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_is_asked_where_it_answers() {
        let (docker, toolbox, cancel) = (DockerConfig::default(), Toolbox::default(), Cancel::new().unwrap());
        let options = RegistryOptions { offline: true, docker: &docker, toolbox: &toolbox, cancel: &cancel };
        for (name, base) in [
            ("docker.io/library/x", "https://registry-1.docker.io/v2/library/x"),
            ("x", "https://registry-1.docker.io/v2/library/x"),
            ("ghcr.io/a/b:v1", "https://ghcr.io/v2/a/b"),
            ("quay.io/a/b:v1", "https://quay.io/v2/a/b"),
            ("localhost/x", "http://localhost/v2/x"),
        ] {
            assert_eq!(Client::new(&name.parse().unwrap(), &options).base, base);
        }
    }
}
