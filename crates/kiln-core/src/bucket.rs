//! Places in buckets of object stores: `s3://BUCKET/PREFIX`.

use crate::text::clip;
use std::fmt;
use std::str::FromStr;

/// What the address of a bucket begins with.
const SCHEME: &str = "s3://";
/// The fewest and the most bytes of a bucket's name, as Amazon's rules for general purpose buckets have it.
const NAME_BYTES: std::ops::RangeInclusive<usize> = 3..=63;
/// The most bytes of a prefix. Amazon's keys have at most 1,024, and those below a prefix are longer.
pub const PREFIX_BYTES_MAX: usize = 512;

/// A bucket, and a prefix of the keys of its objects, which may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BucketPlace {
    bucket: String,
    prefix: String,
}

/// A text that is no place in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no place in a bucket: `s3://BUCKET` or `s3://BUCKET/PREFIX` is wanted, the bucket 3 to 63 of a-z, 0-9, `.` and `-`, the prefix at most {PREFIX_BYTES_MAX} of A-Z, a-z, 0-9, `/`, `.`, `_`, `-`, `+` and `=`, no part of it empty, `.` or `..`"
)]
pub struct InvalidBucketPlace(String);

impl BucketPlace {
    /// Returns whether a text is meant as such a place, well-formed or not.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Returns the name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Returns the key of what is called `path` below this place.
    pub fn key(&self, path: &str) -> String {
        if self.prefix.is_empty() { path.to_owned() } else { format!("{}/{path}", self.prefix) }
    }

    /// Returns the address of what is called `path` below this place.
    pub fn address(&self, path: &str) -> String {
        format!("{SCHEME}{}/{}", self.bucket, self.key(path))
    }
}

impl fmt::Display for BucketPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl FromStr for BucketPlace {
    type Err = InvalidBucketPlace;

    /// One slash at the end is let go.
    fn from_str(text: &str) -> Result<Self, InvalidBucketPlace> {
        let invalid = || InvalidBucketPlace(clip(text));
        let rest = text.strip_prefix(SCHEME).ok_or_else(invalid)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        let name = NAME_BYTES.contains(&bucket.len())
            && bucket.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
            && is_end(bucket.bytes().next())
            && is_end(bucket.bytes().last());
        let plain = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-' | b'+' | b'=')
        };
        // A part of dots would lead out of the prefix once it is in an address.
        let parts = prefix.is_empty() || prefix.split('/').all(|part| !["", ".", ".."].contains(&part));
        if !name || !parts || prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(plain) {
            return Err(invalid());
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_bucket_and_a_prefix() {
        for (text, bucket, shown, key) in [
            ("s3://site-images", "site-images", "s3://site-images", "a/b"),
            ("s3://site-images/", "site-images", "s3://site-images", "a/b"),
            ("s3://a.b1/kiln/x=1/", "a.b1", "s3://a.b1/kiln/x=1", "kiln/x=1/a/b"),
        ] {
            let place: BucketPlace = text.parse().unwrap();
            assert_eq!((place.bucket(), place.to_string().as_str()), (bucket, shown));
            assert_eq!(place.key("a/b"), key);
            assert_eq!(place.address("a/b"), format!("s3://{bucket}/{key}"));
            assert_eq!(shown.parse(), Ok(place));
        }
        let long = format!("s3://abc/{}", "a".repeat(PREFIX_BYTES_MAX));
        long.parse::<BucketPlace>().unwrap();
        for text in [
            "",
            "s3://",
            "s3://ab",
            "s3://-abc",
            "s3://abc.",
            "s3://Abc",
            "s3://a_bc",
            "s3://abc//x",
            "s3://abc/x//",
            "s3://abc/../x",
            "s3://abc/.",
            "s3://abc/a b",
            "s3://abc/a?b",
            "s3://me@abc/x",
            "https://abc/x",
            "/srv/mirror",
            &format!("{long}a"),
            &format!("s3://{}", "a".repeat(64)),
        ] {
            assert!(text.parse::<BucketPlace>().is_err(), "{text}");
        }
        assert!(BucketPlace::is_meant("s3://x") && !BucketPlace::is_meant("/s3"));
    }
}
