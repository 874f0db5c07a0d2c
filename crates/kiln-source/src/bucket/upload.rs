//! Files written to a bucket, in parts where they are long.

use super::request::Request;
use super::{Bucket, BucketError, DIGEST_FIELD};
use kiln_core::image::ContentDigest;
use kiln_sys::{IoResultExt as _, fs};
use rusty_s3::S3Action as _;
use rusty_s3::actions::{CompleteMultipartUpload, CompleteMultipartUploadResponse, CreateMultipartUpload};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The bytes of a part, and the most of a file that is written at once. Ten thousand of them are more than the largest
/// image.
pub const PART_BYTES: usize = 16 << 20;

impl Bucket<'_> {
    /// Writes a file, and with it what its bytes are; `progress` is told how many of how many are there.
    ///
    /// Nothing is to be seen of it before it is whole. A server may keep parts of what was broken off, until its rules for
    /// those remove them; one that is still asked is told to forget them.
    ///
    /// # Errors
    /// When the file cannot be read, and as each request.
    pub fn put_file(
        &self,
        path: &str,
        from: &Path,
        digest: &ContentDigest,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), BucketError> {
        let mut file = fs::open(from)?;
        let length = file.metadata().at("inspect", from)?.len();
        progress(0, length);
        if length <= PART_BYTES as u64 {
            let bytes = part(&mut file, from)?;
            self.put_whole(path, &bytes, digest)?;
            progress(length, length);
            return Ok(());
        }
        let key = self.place.key(path);
        let id = self.begin(path, &key, digest)?;
        let done = self.put_parts(path, &key, &id, (&mut file, from), &mut |have| progress(have, length));
        let done = done.and_then(|parts| self.finish(path, &key, &id, &parts, digest));
        if done.is_err() {
            let action = self.inner.abort_multipart_upload(Some(&self.credentials), &key, &id);
            // The error that is returned says more than a failed clean-up would.
            let _ = self.ask(&action, &Request::of(path));
        }
        done
    }

    fn put_whole(&self, path: &str, bytes: &[u8], digest: &ContentDigest) -> Result<(), BucketError> {
        let (key, digest) = (self.place.key(path), digest.to_string());
        let mut action = self.inner.put_object(Some(&self.credentials), &key);
        action.headers_mut().insert(DIGEST_FIELD, digest.clone());
        let field = Some((DIGEST_FIELD, digest.as_str()));
        let request = Request { body: Some(bytes), field, ..Request::of(path) };
        self.written(path, self.ask(&action, &request)?).map(drop)
    }

    fn begin(&self, path: &str, key: &str, digest: &ContentDigest) -> Result<String, BucketError> {
        let digest = digest.to_string();
        let mut action = self.inner.create_multipart_upload(Some(&self.credentials), key);
        action.headers_mut().insert(DIGEST_FIELD, digest.clone());
        let field = Some((DIGEST_FIELD, digest.as_str()));
        let request = Request { body: Some(&[]), field, ..Request::of(path) };
        let answer = self.written(path, self.ask(&action, &request)?)?;
        let begun = CreateMultipartUpload::parse_response(&answer.text());
        let begun = begun.map_err(|_| BucketError::Answer { address: self.place.address(path) })?;
        Ok(begun.upload_id().to_owned())
    }

    /// Returns what the server calls each part.
    fn put_parts(
        &self,
        path: &str,
        key: &str,
        id: &str,
        (file, from): (&mut File, &Path),
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<String>, BucketError> {
        let (mut parts, mut have) = (Vec::new(), 0);
        for number in 1.. {
            let bytes = part(file, from)?;
            if bytes.is_empty() {
                break;
            }
            let action = self.inner.upload_part(Some(&self.credentials), key, number, id);
            let answer = self.ask(&action, &Request { body: Some(&bytes), ..Request::of(path) })?;
            let name = self.written(path, answer)?.header("etag");
            parts.push(name.ok_or_else(|| BucketError::Answer { address: self.place.address(path) })?);
            have += bytes.len() as u64;
            progress(have);
        }
        Ok(parts)
    }

    fn finish(
        &self,
        path: &str,
        key: &str,
        id: &str,
        parts: &[String],
        digest: &ContentDigest,
    ) -> Result<(), BucketError> {
        let names = || parts.iter().map(String::as_str);
        let action = CompleteMultipartUpload::new(&self.inner, Some(&self.credentials), key, id, names());
        let body = action.clone().body();
        let error = match self.ask(&action, &Request { body: Some(body.as_bytes()), ..Request::of(path) }) {
            // Success is in the body, not in the status.
            Ok(answer) if CompleteMultipartUploadResponse::parse(&answer.text()).is_ok() => return Ok(()),
            Ok(answer) => {
                let (address, status, said) = (self.place.address(path), answer.status, answer.said());
                BucketError::Status { address, status, said }
            }
            Err(error) => error,
        };
        // Where an answer was lost, the next try finds no parts any more.
        match self.head(path) {
            Ok(Some(head)) if head.digest.as_ref() == Some(digest) => Ok(()),
            _ => Err(error),
        }
    }
}

/// Reads the next part.
fn part(file: &mut File, path: &Path) -> Result<Vec<u8>, BucketError> {
    let mut bytes = Vec::new();
    file.take(PART_BYTES as u64).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}
