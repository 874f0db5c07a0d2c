//! Who we are to a registry: credentials of docker's configuration, and the tokens that registries give for them.

use super::super::error::{OciError, Unreachable};
use super::super::wire::parse;
use super::repository::RegistryOptions;
use crate::download::{Authorize, Document, DownloadError, Url};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use iri_string::percent_encode::PercentEncodedForUri;
use kiln_core::image::{DOCKER_HUB, RegistryReference};
use kiln_sys::{Tool, ToolError, Toolbox, fs};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The most bytes of docker's configuration, of a helper's answer and of a token's.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The time a helper may take.
const HELPER_DEADLINE: Duration = Duration::from_secs(60);
/// What docker writes for Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The name of a user whose password is a token to get tokens with.
const TOKEN_USER: &str = "<token>";

/// What `config.json` of docker says of credentials.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerConfig").field("hosts", &self.auths.keys()).finish_non_exhaustive()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    identitytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Kept {
    username: String,
    secret: String,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// A user and its password. Never shown.
#[derive(Clone)]
struct Credentials {
    user: String,
    secret: String,
}

impl DockerConfig {
    /// Reads `config.json` of a directory; none is as good as an empty one.
    pub fn read(directory: &Path) -> Result<Self, OciError> {
        match fs::read_optional(&directory.join("config.json"), ANSWER_BYTES_MAX)? {
            Some(bytes) => parse("configuration of docker", &bytes),
            None => Ok(Self::default()),
        }
    }

    fn credentials(
        &self,
        host: &str,
        options: &RegistryOptions<'_>,
    ) -> Result<Option<Credentials>, OciError> {
        let keys = match host {
            DOCKER_HUB => vec![HUB_KEY.to_owned(), DOCKER_HUB.to_owned(), "index.docker.io".to_owned()],
            host => ["", "/", "/v1/", "/v2/"]
                .iter()
                .flat_map(|end| [format!("{host}{end}"), format!("https://{host}{end}")])
                .collect(),
        };
        let helper = keys.iter().find_map(|key| self.cred_helpers.get(key)).or(self.creds_store.as_ref());
        if let Some(helper) = helper.filter(|helper| !helper.is_empty())
            && let Some(kept) = ask(helper, if host == DOCKER_HUB { HUB_KEY } else { host }, options)?
        {
            return Ok(Some(kept));
        }
        let Some(auth) = keys.iter().find_map(|key| self.auths.get(key)) else { return Ok(None) };
        let text = STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        Ok(match pair {
            _ if !auth.identitytoken.is_empty() => {
                Some(Credentials { user: TOKEN_USER.to_owned(), secret: auth.identitytoken.clone() })
            }
            Some((user, secret)) => {
                let secret = secret.trim_end_matches('\0').to_owned();
                Some(Credentials { user: user.to_owned(), secret })
            }
            None => None,
        })
    }
}

/// Asks a program that keeps credentials.
fn ask(helper: &str, host: &str, options: &RegistryOptions<'_>) -> Result<Option<Credentials>, OciError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !helper.chars().all(plain) {
        return Err(OciError::Helper {
            name: kiln_core::text::clip(helper),
            problem: "has no name of a program",
        });
    }
    let name = format!("docker-credential-{helper}");
    let tool = getter(&name, options.client.toolbox()).map_err(|source| OciError::HelperFailed { source })?;
    let asked = host.to_owned();
    let output = tool.run_fed(
        options.cancel,
        &mut |_| (),
        Some(Box::new(move |stdin| stdin.write_all(asked.as_bytes()))),
    );
    match output {
        Ok(output) => {
            let problem = "gave an answer that is not understood";
            let kept: Kept =
                serde_json::from_slice(&output.stdout).map_err(|_| OciError::Helper { name, problem })?;
            Ok(Some(Credentials { user: kept.username, secret: kept.secret }))
        }
        Err(ToolError::Cancelled { .. }) => Err(OciError::Cancelled),
        // It says on standard output that it keeps none, and ends with an error.
        Err(ToolError::Failed { .. }) => Ok(None),
        Err(source) => Err(OciError::HelperFailed { source }),
    }
}

/// Returns a helper as it is asked for credentials.
fn getter(name: &str, toolbox: &Toolbox) -> Result<Tool, ToolError> {
    Ok(toolbox.find(name)?.arg("get").deadline(HELPER_DEADLINE).stdout_max(ANSWER_BYTES_MAX))
}

/// What a repository is asked with. Nothing of it is shown.
pub(super) struct Authority<'a> {
    reference: &'a RegistryReference,
    options: RegistryOptions<'a>,
    /// Held while another is asked for: who finds it expired at the same time waits for the new one.
    header: Mutex<Option<String>>,
}

impl fmt::Debug for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("reference", &self.reference).finish_non_exhaustive()
    }
}

impl Authorize for Authority<'_> {
    fn header(&self) -> Option<String> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn answer(&self, sent: Option<&str>, challenges: &[String]) -> Result<bool, DownloadError> {
        let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        if header.as_deref() == sent {
            *header = self.answered(challenges)?;
        }
        // What was refused already is not said again.
        Ok(header.is_some() && header.as_deref() != sent)
    }
}

impl<'a> Authority<'a> {
    pub(super) fn new(reference: &'a RegistryReference, options: RegistryOptions<'a>) -> Self {
        Self { reference, options, header: Mutex::new(None) }
    }

    /// Returns the header that a registry's challenges ask for; none where there is nothing to say.
    fn answered(&self, challenges: &[String]) -> Result<Option<String>, DownloadError> {
        let credentials = self.options.docker.credentials(self.reference.host(), &self.options);
        let credentials = credentials.map_err(untold)?;
        let scheme = |wanted: &str| {
            challenges.iter().find_map(|text| {
                let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
                scheme.eq_ignore_ascii_case(wanted).then_some(rest)
            })
        };
        if let Some(rest) = scheme("Bearer") {
            let token = self.token(&parameters(rest), credentials.as_ref())?;
            return Ok(Some(format!("Bearer {token}")));
        }
        Ok(credentials.filter(|_| scheme("Basic").is_some()).map(|credentials| basic(&credentials)))
    }

    fn token(
        &self,
        parameters: &BTreeMap<String, String>,
        credentials: Option<&Credentials>,
    ) -> Result<String, DownloadError> {
        let realm = parameters.get("realm").map_or("", String::as_str);
        let failed = |source| untold(OciError::Registry { url: kiln_core::text::clip(realm), source });
        let scope = format!("repository:{}:pull", self.reference.repository());
        let mut said: Vec<(&str, &str)> = vec![("scope", &scope)];
        if let Some(service) = parameters.get("service") {
            said.push(("service", service));
        }
        let refreshed = credentials.filter(|credentials| credentials.user == TOKEN_USER);
        let (url, form) = match refreshed {
            Some(Credentials { secret, .. }) => {
                said.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", secret),
                    ("client_id", "kiln"),
                ]);
                (token_server(realm).map_err(failed)?, Some(encoded(&said)))
            }
            None => {
                let begins = if realm.contains('?') { '&' } else { '?' };
                let url = token_server(&format!("{realm}{begins}{}", encoded(&said))).map_err(failed)?;
                (url.authorized(credentials.map(basic)), None)
            }
        };
        let RegistryOptions { client, cancel, .. } = self.options;
        let (form, bytes_max) = (form.as_deref(), ANSWER_BYTES_MAX as u64);
        let document = Document { url: &url, headers: &[], form, bytes_max, authorize: None };
        let bytes = document.once(client, cancel).map_err(|error| match error {
            DownloadError::TooLarge { max, .. } => {
                untold(OciError::TooLarge { what: "bytes in the answer of its token server", max })
            }
            // It is not the image that is not there.
            DownloadError::Status { status: 404, said, .. } => {
                failed(Unreachable::Status { status: 404, said })
            }
            error => error,
        })?;
        let token: Token = parse("answer of the token server", &bytes).map_err(untold)?;
        let token =
            token.token.or(token.access_token).filter(|token| token.bytes().all(|b| b.is_ascii_graphic()));
        token.ok_or_else(|| failed(Unreachable::NoToken))
    }
}

fn untold(error: OciError) -> DownloadError {
    DownloadError::Untold { source: Box::new(error) }
}

/// Reads the address of a token server. Credentials go over TLS, or stay on this host.
fn token_server(address: &str) -> Result<Url, Unreachable> {
    let url: Url = address.parse()?;
    if url.is_clear() && !url.is_of_this_host() { Err(Unreachable::InClear) } else { Ok(url) }
}

/// Returns what a form says.
fn encoded(said: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        said.iter().map(|(key, value)| format!("{key}={}", PercentEncodedForUri::unreserve(value))).collect();
    pairs.join("&")
}

fn basic(credentials: &Credentials) -> String {
    format!("Basic {}", STANDARD.encode(format!("{}:{}", credentials.user, credentials.secret)))
}

/// Reads `key="value",key=value`.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        rest = next.trim_start_matches([',', ' ']);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};

    #[test]
    fn dockers_configuration_and_a_helpers_answer_are_limited() {
        let scratch = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let put = |bytes: usize| {
            let text = format!("{{}}{}", " ".repeat(bytes - 2));
            let path = scratch.path().join("config.json");
            write_file(&path, text.as_bytes(), 0o600, Existing::Replace).unwrap();
            DockerConfig::read(scratch.path())
        };
        put(ANSWER_BYTES_MAX).unwrap();
        assert!(matches!(put(ANSWER_BYTES_MAX + 1), Err(OciError::Io(_))));
        // Any program stands for a helper.
        assert_eq!(getter("sh", &Toolbox::default()).unwrap().limits(), (Duration::from_secs(60), 1 << 20));
    }

    #[test]
    fn only_this_host_is_asked_in_clear() {
        for fine in [
            "http://127.0.0.1:5000/token",
            "http://localhost:80/t?a=b",
            "http://[::1]:1/",
            "https://auth.example/token",
        ] {
            token_server(fine).unwrap();
        }
        for other in ["http://example.org/token", "http://127.0.0.1@example.org/"] {
            assert!(matches!(token_server(other), Err(Unreachable::InClear)), "{other}");
        }
        for none in ["ftp://127.0.0.1:1/", "", "http://", "?scope=x"] {
            assert!(matches!(token_server(none), Err(Unreachable::Address(_))), "{none}");
        }
    }

    #[test]
    fn what_is_said_to_a_token_server_holds_any_text() {
        let said = encoded(&[("scope", "repository:a/b:pull"), ("service", "a b&c=\u{e4}")]);
        assert_eq!(said, "scope=repository%3Aa%2Fb%3Apull&service=a%20b%26c%3D%C3%A4");
    }

    #[test]
    fn challenges_are_taken_apart() {
        let found = parameters(r#"realm="https://auth.example/token",service="a b,c",scope=x"#);
        assert_eq!(found["realm"], "https://auth.example/token");
        assert_eq!((found["service"].as_str(), found["scope"].as_str()), ("a b,c", "x"));
        assert!(parameters("").is_empty() && parameters("realm").is_empty());
        assert_eq!(parameters("realm=\"open")["realm"], "open");
    }
}
