//! Buckets of object stores that speak S3: Amazon's, and servers like it.
//!
//! Requests are signed in their addresses (version 4 of Amazon's signatures), so that a secret never leaves this host.
//! What fails for now is asked again as downloads are; a body is checked by its MD5 where the server takes part in that.

mod error;
mod request;
mod upload;

pub use error::BucketError;
pub use upload::PART_BYTES;

use crate::download::Client;
use kiln_core::bucket::BucketPlace;
use kiln_core::image::ContentDigest;
use kiln_sys::Cancel;
use request::{Answer, Request};
use rusty_s3::{Credentials, UrlStyle};
use std::fmt;

/// Where buckets are that no server is named for; `{region}` is one of Amazon's.
const AMAZON: &str = "https://s3.{region}.amazonaws.com";
/// The region that is asked where none is named. Servers other than Amazon's rarely have another.
pub const REGION_DEFAULT: &str = "us-east-1";
/// The field of an object that says what its bytes are.
const DIGEST_FIELD: &str = "x-amz-meta-kiln-digest";

/// Who asks, and which server.
#[derive(Debug, Clone)]
pub struct BucketAccess {
    /// The address of the server; Amazon's of the region where there is none.
    pub endpoint: Option<String>,
    /// The region; [`REGION_DEFAULT`] where there is none.
    pub region: Option<String>,
    /// Who asks.
    pub key: AccessKey,
}

/// A pair of a public and a secret key.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The public one.
    pub id: String,
    /// The secret one.
    pub secret: String,
    /// What comes with a pair that is for a while only.
    pub token: Option<String>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its bytes.
    pub bytes: Option<u64>,
    /// What its bytes are, as whoever wrote it by [`Bucket::put_file`] said.
    pub digest: Option<ContentDigest>,
}

/// An object that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What its server calls this version of it.
    pub version: Option<String>,
}

/// When something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When<'a> {
    /// Whatever is there.
    Always,
    /// Where nothing is.
    New,
    /// Where this version still is.
    Same(&'a str),
}

/// A bucket, or what is below a prefix of it.
#[derive(Debug)]
pub struct Bucket<'a> {
    place: BucketPlace,
    inner: rusty_s3::Bucket,
    credentials: Credentials,
    client: &'a Client<'a>,
    cancel: &'a Cancel,
}

impl<'a> Bucket<'a> {
    /// Returns the bucket of a place; nobody is asked yet.
    ///
    /// A bucket of Amazon's is a part of the host's name, one of another server is a part of the path, which all of them
    /// understand.
    ///
    /// # Errors
    /// When the address of the server is none, or says more than where it is.
    pub fn new(
        place: &BucketPlace,
        access: &BucketAccess,
        client: &'a Client<'a>,
        cancel: &'a Cancel,
    ) -> Result<Self, BucketError> {
        let region = access.region.as_deref().unwrap_or(REGION_DEFAULT);
        let endpoint = access.endpoint.clone().unwrap_or_else(|| AMAZON.replace("{region}", region));
        // No certificate of Amazon's is for a name with a dot before the region's.
        let style = match access.endpoint {
            None if !place.bucket().contains('.') => UrlStyle::VirtualHost,
            _ => UrlStyle::Path,
        };
        let refused = || BucketError::Endpoint { endpoint: shown(&endpoint) };
        // Who asks is told by the signature alone, and what is asked for by a request.
        if endpoint.contains(['@', '?', '#']) {
            return Err(refused());
        }
        let url = endpoint.parse().map_err(|_| refused())?;
        let bucket = place.bucket().to_owned();
        let inner = rusty_s3::Bucket::new(url, style, bucket, region.to_owned()).map_err(|_| refused())?;
        let AccessKey { id, secret, token } = &access.key;
        let credentials = match token {
            Some(token) => Credentials::new_with_token(id, secret, token),
            None => Credentials::new(id, secret),
        };
        Ok(Self { place: place.clone(), inner, credentials, client, cancel })
    }

    /// Returns the place.
    pub fn place(&self) -> &BucketPlace {
        &self.place
    }

    /// Asks what is known of an object; none where there is no such.
    ///
    /// # Errors
    /// As each request: when nobody answers, or the answer is an error.
    pub fn head(&self, path: &str) -> Result<Option<Head>, BucketError> {
        let key = self.place.key(path);
        let action = self.inner.head_object(Some(&self.credentials), &key);
        let Some(answer) = self.ask(&action, &Request::of(path))?.there() else { return Ok(None) };
        let bytes = answer.header("content-length").and_then(|text| text.parse().ok());
        let digest = answer.header(DIGEST_FIELD).and_then(|text| text.parse().ok());
        Ok(Some(Head { bytes, digest }))
    }

    /// Reads an object; none where there is no such.
    ///
    /// # Errors
    /// When it has more than `bytes_max` bytes, and as each request.
    pub fn get(&self, path: &str, bytes_max: usize) -> Result<Option<Object>, BucketError> {
        let key = self.place.key(path);
        let action = self.inner.get_object(Some(&self.credentials), &key);
        let answer = self.ask(&action, &Request { bytes_max, ..Request::of(path) })?;
        Ok(answer.there().map(|answer| Object { version: answer.header("etag"), bytes: answer.bytes }))
    }

    /// Writes an object.
    ///
    /// Servers that do not know conditions write always.
    ///
    /// # Errors
    /// [`BucketError::Changed`] when the condition is not met, and as each request.
    pub fn put(&self, path: &str, bytes: &[u8], when: When<'_>) -> Result<(), BucketError> {
        let key = self.place.key(path);
        let action = self.inner.put_object(Some(&self.credentials), &key);
        let condition = match when {
            When::Always => None,
            When::New => Some(("If-None-Match", "*")),
            When::Same(version) => Some(("If-Match", version)),
        };
        let request = Request { body: Some(bytes), ..Request::of(path) };
        let answer = match self.ask(&action, &Request { condition, ..request.clone() }) {
            // It says that it does not know conditions.
            Err(BucketError::Status { status: 501, .. }) if condition.is_some() => {
                self.ask(&action, &request)
            }
            other => other,
        }?;
        self.written(path, answer).map(drop)
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// As each request.
    pub fn remove(&self, path: &str) -> Result<(), BucketError> {
        let key = self.place.key(path);
        let action = self.inner.delete_object(Some(&self.credentials), &key);
        self.ask(&action, &Request::of(path)).map(drop)
    }

    /// Returns the answer to something that was written: nowhere to write to is an error.
    fn written(&self, path: &str, answer: Answer) -> Result<Answer, BucketError> {
        let (status, said) = (answer.status, answer.said());
        let address = || self.place.address(path);
        answer.there().ok_or_else(|| BucketError::Status { address: address(), status, said })
    }
}

/// Returns what may be shown of the address of a server: no name and password.
fn shown(endpoint: &str) -> String {
    match endpoint.rsplit_once('@') {
        Some((_, host)) => kiln_core::text::clip(&format!("…@{host}")),
        None => kiln_core::text::clip(endpoint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::download::ClientOptions;
    use kiln_sys::Toolbox;

    fn access() -> BucketAccess {
        let key = AccessKey { id: "AKID".into(), secret: "hush".into(), token: Some("hush".into()) };
        BucketAccess { endpoint: None, region: None, key }
    }

    fn url(place: &str, access: &BucketAccess) -> Result<String, BucketError> {
        let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
        let client = Client::new(ClientOptions::new(&toolbox));
        let place: BucketPlace = place.parse().unwrap();
        let bucket = Bucket::new(&place, access, &client, &cancel)?;
        Ok(bucket.inner.object_url(&bucket.place.key("a/b")).to_string())
    }

    #[test]
    fn a_bucket_is_asked_where_it_is() {
        let own = |endpoint: &str| BucketAccess { endpoint: Some(endpoint.to_owned()), ..access() };
        let far = BucketAccess { region: Some("eu-west-1".to_owned()), ..access() };
        for (place, access, wanted) in [
            ("s3://site/p", &access(), "https://site.s3.us-east-1.amazonaws.com/p/a/b"),
            ("s3://site", &far, "https://site.s3.eu-west-1.amazonaws.com/a/b"),
            ("s3://a.site/p", &far, "https://s3.eu-west-1.amazonaws.com/a.site/p/a/b"),
            ("s3://site/p", &own("http://127.0.0.1:9000"), "http://127.0.0.1:9000/site/p/a/b"),
            ("s3://site/p", &own("https://e.org/s3/"), "https://e.org/s3/site/p/a/b"),
        ] {
            assert_eq!(url(place, access).unwrap(), wanted);
        }
        for endpoint in
            ["", "e.org", "ftp://e.org", "http://", "https://me:secret@e.org", "https://e.org/?a=b"]
        {
            let error = url("s3://site", &own(endpoint)).unwrap_err();
            assert!(matches!(&error, BucketError::Endpoint { .. }), "{endpoint}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let shown = format!("{:?}", access());
        assert!(shown.contains("AKID") && !shown.contains("hush"), "{shown}");
    }
}
