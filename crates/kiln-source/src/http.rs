//! What asking by HTTP needs of the host and of an answer: proxies, certificates, what a refusal says.

use kiln_sys::{IoResult, Toolbox, fs};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use ureq::Body;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};

/// The most bytes of the headers of an answer.
pub(crate) const HEADERS_BYTES_MAX: usize = 64 << 10;
/// The most redirections of a request.
pub(crate) const REDIRECTIONS_MAX: u32 = 5;
/// The most bytes that are read of an answer that is an error.
const PROBLEM_BYTES_MAX: u64 = 4096;
/// The most bytes of the host's certificates.
const CERTIFICATES_BYTES_MAX: usize = 8 << 20;

/// Where distributions keep the certificates they trust.
const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Returns what a refusal says, on one line.
pub(crate) fn said(mut response: Response<Body>) -> String {
    let mut text = Vec::new();
    // What cannot be read is not told.
    let _ = response.body_mut().as_reader().take(PROBLEM_BYTES_MAX).read_to_end(&mut text);
    kiln_core::text::clip(String::from_utf8_lossy(&text).trim())
}

/// Returns the first of these variables that says something.
pub(crate) fn variable<'a>(toolbox: &'a Toolbox, names: &[&str]) -> Option<&'a str> {
    let env = toolbox.env();
    let found = names.iter().find_map(|name| env.iter().find(|(key, _)| key == *name));
    found.and_then(|(_, value)| value.to_str()).filter(|value| !value.is_empty())
}

/// Returns the proxy of requests with https, if any.
pub(crate) fn https_proxy(toolbox: &Toolbox) -> Option<&str> {
    variable(toolbox, &["https_proxy", "HTTPS_PROXY"])
}

/// Returns the proxy of requests with http, if any: `HTTP_PROXY` may be a header of a request to a CGI program.
pub(crate) fn http_proxy(toolbox: &Toolbox) -> Option<&str> {
    variable(toolbox, &["http_proxy"])
}

/// Returns the hosts that are asked directly, as the variable lists them.
pub(crate) fn no_proxy(toolbox: &Toolbox) -> Option<&str> {
    variable(toolbox, &["no_proxy", "NO_PROXY"])
}

/// Whether a `no_proxy` list names the host or a domain above it.
pub(crate) fn without_proxy(list: Option<&str>, host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    list.is_some_and(|list| {
        list.split(',').map(|item| item.trim().trim_start_matches("*").trim_start_matches('.')).any(|item| {
            !item.is_empty()
                && (name == item || name.strip_suffix(item).is_some_and(|above| above.ends_with('.')))
        }) || list.trim() == "*"
    })
}

/// Returns how TLS is done with these roots.
pub(crate) fn tls(roots: RootCerts) -> TlsConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder().provider(TlsProvider::Rustls).unversioned_rustls_crypto_provider(provider);
    tls.root_certs(roots).build()
}

/// Reads the certificates that are trusted: those the environment names, or else the host's.
pub(crate) fn roots(toolbox: &Toolbox) -> IoResult<RootCerts> {
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
