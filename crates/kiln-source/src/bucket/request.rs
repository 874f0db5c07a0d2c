//! Requests to a bucket, signed anew for each try.

use super::{Bucket, BucketError};
use crate::download::{TRIES_MAX, Url, retry_after};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use rusty_s3::{Method, S3Action};
use std::io::Read as _;
use std::time::Duration;
use ureq::http::{self, HeaderMap, HeaderName};

/// How long a signed address is good. The time counts to the begin of a request.
const SIGNED: Duration = Duration::from_secs(15 * 60);
/// The most bytes of an answer that is no object.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What a request has besides its action.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    /// What it is about.
    pub(super) path: &'a str,
    /// What is sent.
    pub(super) body: Option<&'a [u8]>,
    /// A header that is a condition.
    pub(super) condition: Option<(&'static str, &'a str)>,
    /// A header that is a part of the action.
    pub(super) field: Option<(&'static str, &'a str)>,
    /// The most bytes of the answer.
    pub(super) bytes_max: usize,
}

impl<'a> Request<'a> {
    pub(super) fn of(path: &'a str) -> Self {
        Self { path, body: None, condition: None, field: None, bytes_max: ANSWER_BYTES_MAX }
    }
}

/// An answer: success, or that something is not there.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    pub(super) bytes: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &'static str) -> Option<String> {
        let value = self.headers.get(HeaderName::from_static(name))?;
        value.to_str().ok().map(str::to_owned)
    }

    /// Returns it where it is not that something is not there.
    pub(super) fn there(self) -> Option<Self> {
        (self.status != 404).then_some(self)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Returns an element of an answer in XML, if it is there and plain.
    fn element(&self, name: &str) -> Option<String> {
        let text = self.text();
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (value, _) = rest.split_once("</")?;
        Some(kiln_core::text::clip(value.trim()))
    }

    /// Returns the word that the server has for an error.
    pub(super) fn code(&self) -> String {
        self.element("Code").unwrap_or_default()
    }

    /// Returns what the server says of an error.
    pub(super) fn said(&self) -> String {
        match (self.code(), self.element("Message").unwrap_or_default()) {
            (code, message) if message.is_empty() => code,
            (code, message) if code.is_empty() => message,
            (code, message) => format!("{code}: {message}"),
        }
    }
}

/// Why there was no answer, and when another try may bring one.
struct Failed {
    error: BucketError,
    again: Option<Option<Duration>>,
}

impl<E: Into<BucketError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), again: None }
    }
}

impl Bucket<'_> {
    /// Asks until there is an answer that is not for now only.
    pub(super) fn ask<'b>(
        &self,
        action: &impl S3Action<'b>,
        request: &Request<'_>,
    ) -> Result<Answer, BucketError> {
        if self.client.is_offline() {
            return Err(BucketError::Offline { address: self.place.address(request.path) });
        }
        let mut tries = 1;
        loop {
            self.cancel.check()?;
            match self.ask_once(action, request) {
                Ok(answer) => return Ok(answer),
                Err(Failed { error, again: None }) => return Err(error),
                Err(Failed { error, .. }) if tries >= TRIES_MAX => return Err(error),
                Err(Failed { again: Some(after), .. }) => {
                    self.client.wait_before(tries, after, self.cancel)?;
                    tries += 1;
                }
            }
        }
    }

    fn ask_once<'b>(&self, action: &impl S3Action<'b>, request: &Request<'_>) -> Result<Answer, Failed> {
        let address = || self.place.address(request.path);
        let url: Url = action.sign(SIGNED).as_str().parse().map_err(|_| BucketError::Endpoint {
            endpoint: self.inner.base_url().origin().ascii_serialization(),
        })?;
        let agent = self.client.agent(&url, false, self.cancel)?;
        let builder = http::Request::builder().method(method(action)).uri(url.uri());
        let builder = request
            .condition
            .iter()
            .chain(&request.field)
            .fold(builder, |builder, (name, value)| builder.header(*name, *value));
        let refused = |_| BucketError::Answer { address: address() };
        let sent = match request.body {
            Some(body) => {
                let sum = STANDARD.encode(Md5::digest(body));
                agent.run(builder.header("Content-MD5", sum).body(body).map_err(refused)?)
            }
            None => agent.run(builder.body(()).map_err(refused)?),
        };
        let broken = |source: ureq::Error| -> Failed {
            let error = BucketError::Broken { address: address(), source: Box::new(source) };
            Failed { error, again: self.cancel.check().is_ok().then_some(None) }
        };
        let (parts, body) = sent
            .map_err(|error| {
                let cancelled = self.cancel.check().is_err();
                if cancelled { BucketError::Cancelled.into() } else { broken(error) }
            })?
            .into_parts();
        let bytes_max = if parts.status.is_success() { request.bytes_max } else { ANSWER_BYTES_MAX };
        let mut bytes = Vec::new();
        let mut limited = body.into_reader().take(bytes_max as u64 + 1);
        limited.read_to_end(&mut bytes).map_err(|error| broken(ureq::Error::Io(error)))?;
        if bytes.len() > bytes_max && parts.status.is_success() {
            return Err(BucketError::TooLarge { address: address(), max: bytes_max as u64 }.into());
        }
        self.judge(request.path, Answer { status: parts.status.as_u16(), headers: parts.headers, bytes })
    }

    fn judge(&self, path: &str, answer: Answer) -> Result<Answer, Failed> {
        let address = self.place.address(path);
        let bucket = || self.place.bucket().to_owned();
        let (status, said, code) = (answer.status, answer.said(), answer.code());
        let elsewhere = answer.header("x-amz-bucket-region").filter(|region| region != self.inner.region());
        let error = match (status, elsewhere) {
            (200..=299, _) => return Ok(answer),
            (404, _) if code == "NoSuchBucket" => BucketError::NoBucket { bucket: bucket() },
            (404, _) => return Ok(answer),
            // A part is being put together by somebody else, or was written since it was read.
            (409 | 412, _) => BucketError::Changed { address },
            (301 | 307 | 400, Some(region)) => BucketError::Region { bucket: bucket(), region },
            (401 | 403, _) => BucketError::Denied { address, said },
            (status, _) => BucketError::Status { address, status, said },
        };
        let passing = matches!(status, 408 | 429 | 500 | 502 | 503 | 504);
        let after = answer.header("retry-after");
        let after = after.and_then(|value| retry_after(&value, self.client.unix_seconds()));
        Err(Failed { error, again: passing.then_some(after) })
    }
}

fn method<'b, A: S3Action<'b>>(_: &A) -> http::Method {
    match A::METHOD {
        Method::Head => http::Method::HEAD,
        Method::Put => http::Method::PUT,
        Method::Post => http::Method::POST,
        Method::Delete => http::Method::DELETE,
        _ => http::Method::GET,
    }
}
