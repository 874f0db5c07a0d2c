//! One repository of a registry: where it is asked, its documents, and what is wrong when there is no answer.

use super::super::error::{OciError, Unreachable};
use super::auth::{Authority, DockerConfig};
use crate::download::{Broken, Client, Document, DownloadError, InvalidUrl, Progress, Url};
use kiln_core::image::{DOCKER_HUB, RegistryReference};
use kiln_sys::Cancel;

/// The documents that are understood.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// How registries are asked.
#[derive(Clone, Copy)]
pub struct RegistryOptions<'a> {
    /// Who asks. The programs of its toolbox are those that keep credentials.
    pub client: &'a Client<'a>,
    /// What docker's configuration says of credentials.
    pub docker: &'a DockerConfig,
    /// Ends the work early.
    pub cancel: &'a Cancel,
}

impl std::fmt::Debug for RegistryOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryOptions").field("client", &self.client).finish_non_exhaustive()
    }
}

/// A repository that is asked.
pub(super) struct Repository<'a> {
    base: String,
    pub(super) authority: Authority<'a>,
    reference: &'a RegistryReference,
    pub(super) options: RegistryOptions<'a>,
}

impl<'a> Repository<'a> {
    pub(super) fn new(reference: &'a RegistryReference, options: &RegistryOptions<'a>) -> Self {
        let host = if reference.host() == DOCKER_HUB { "registry-1.docker.io" } else { reference.host() };
        let scheme = if reference.is_loopback() { "http" } else { "https" };
        Self {
            base: format!("{scheme}://{host}/v2/{}", reference.repository()),
            authority: Authority::new(reference, *options),
            reference,
            options: *options,
        }
    }

    /// Returns where a part of it is.
    pub(super) fn url(&self, path: &str) -> Result<Url, OciError> {
        let url = format!("{}/{path}", self.base);
        url.parse().map_err(|error: InvalidUrl| OciError::Registry { url, source: error.into() })
    }

    /// Asks for a document and reads it whole.
    pub(super) fn document(
        &self,
        path: &str,
        what: &'static str,
        bytes_max: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<u8>, OciError> {
        let RegistryOptions { client, cancel, .. } = self.options;
        if client.is_offline() {
            return Err(OciError::Offline { reference: self.reference.to_string() });
        }
        let (url, headers) = (self.url(path)?, [("Accept", ACCEPT)]);
        let authorize = Some(&self.authority as _);
        let document = Document { url: &url, headers: &headers, form: None, bytes_max, authorize };
        document.fetch(client, progress, cancel).map_err(|error| match error {
            DownloadError::TooLarge { max, .. } if what == "configuration" => {
                OciError::TooLarge { what: "bytes of configuration", max }
            }
            DownloadError::TooLarge { max, .. } => OciError::TooLarge { what: "bytes of manifest", max },
            error => self.refusal(error),
        })
    }

    /// Returns what it means for the image that something of it was not fetched.
    pub(super) fn refusal(&self, error: DownloadError) -> OciError {
        let reference = self.reference.to_string();
        let (url, source) = match error {
            DownloadError::Cancelled => return OciError::Cancelled,
            DownloadError::Io(error) => return OciError::Io(error),
            DownloadError::Lock(error) => return OciError::Lock(error),
            DownloadError::Offline { .. } => return OciError::Offline { reference },
            DownloadError::Status { status: 401 | 403, .. } => return OciError::Denied { reference },
            DownloadError::Status { status: 404, .. } => return OciError::NotFound { reference },
            DownloadError::Untold { source } => match source.downcast() {
                Ok(error) => return *error,
                Err(source) => (reference, Unreachable::Download(Box::new(DownloadError::Untold { source }))),
            },
            DownloadError::Status { url, status, said } => {
                (url.to_string(), Unreachable::Status { status, said })
            }
            DownloadError::Proxy { url, source } => (url.to_string(), Unreachable::Http(source)),
            DownloadError::Broken { url, source } => {
                let source = match source {
                    Broken::Http(error) => Unreachable::Http(error),
                    Broken::Read(error) => Unreachable::Read(error),
                    Broken::Short { have, total } => Unreachable::Short { have, size: total },
                };
                (url.to_string(), source)
            }
            error => (reference, Unreachable::Download(Box::new(error))),
        };
        OciError::Registry { url, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::download::ClientOptions;
    use kiln_sys::Toolbox;

    #[test]
    fn each_host_is_asked_where_it_answers() {
        let (docker, toolbox, cancel) = (DockerConfig::default(), Toolbox::default(), Cancel::new().unwrap());
        let client = Client::new(ClientOptions::new(&toolbox));
        let options = RegistryOptions { client: &client, docker: &docker, cancel: &cancel };
        for (name, base) in [
            ("docker.io/library/x", "https://registry-1.docker.io/v2/library/x"),
            ("x", "https://registry-1.docker.io/v2/library/x"),
            ("ghcr.io/a/b:v1", "https://ghcr.io/v2/a/b"),
            ("quay.io/a/b:v1", "https://quay.io/v2/a/b"),
            ("localhost/x", "http://localhost/v2/x"),
        ] {
            assert_eq!(Repository::new(&name.parse().unwrap(), &options).base, base);
        }
        // A port that nothing can listen on.
        let reference = "localhost:0/x".parse().unwrap();
        let error = Repository::new(&reference, &options).url("manifests/v1").unwrap_err();
        assert_eq!(error.to_string(), "http://localhost:0/v2/x/manifests/v1 cannot be had");
    }
}
