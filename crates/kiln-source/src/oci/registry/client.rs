//! Requests to one repository of a registry.

use super::super::error::{OciError, Unreachable};
use super::auth::{Authority, DockerConfig};
use crate::http;
use kiln_core::image::{DOCKER_HUB, RegistryReference};
use kiln_sys::{Cancel, Toolbox};
use std::io::Read as _;
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, Proxy};

/// The time a connection may take, and each answer, and each wait for more of a body.
const PATIENCE: Duration = Duration::from_secs(30);
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
                    Unreachable::Status { status: status.as_u16(), said: http::said(response) },
                )),
            };
        }
    }

    pub(super) fn unreachable(&self, path: &str, source: Unreachable) -> OciError {
        OciError::Registry { url: format!("{}/{path}", self.base), source }
    }
}

fn agent(reference: &RegistryReference, options: &RegistryOptions<'_>) -> Result<Agent, OciError> {
    let loopback = reference.is_loopback();
    let unreachable =
        |source| OciError::Registry { url: reference.host().to_owned(), source: Unreachable::Http(source) };
    let direct = loopback || http::without_proxy(http::no_proxy(options.toolbox), reference.host());
    let proxy = http::https_proxy(options.toolbox).filter(|_| !direct);
    let proxy = proxy.map(Proxy::new).transpose().map_err(Box::new).map_err(unreachable)?;
    let config = Agent::config_builder()
        .https_only(!loopback)
        .http_status_as_error(false)
        .max_redirects(http::REDIRECTIONS_MAX)
        .max_response_header_size(http::HEADERS_BYTES_MAX)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .user_agent("kiln")
        .proxy(proxy);
    // A registry of this host may lead to others, too.
    let tls = http::tls(http::roots(options.toolbox)?);
    Ok(config.tls_config(tls).build().new_agent())
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
