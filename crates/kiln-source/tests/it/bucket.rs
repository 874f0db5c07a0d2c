//! Buckets, on a server that checks signatures, conditions and sums.

use crate::download::{Waits, content, sha256};
use kiln_core::bucket::BucketPlace;
use kiln_source::bucket::{AccessKey, Bucket, BucketAccess, BucketError, PART_BYTES, When};
use kiln_source::download::{Client, ClientOptions};
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox};
use kiln_testing::BucketServer;
use std::time::Duration;

/// A server with a bucket `site`, and who asks it.
pub(crate) struct Site {
    pub(crate) scratch: ScratchDir,
    pub(crate) server: BucketServer,
    pub(crate) access: BucketAccess,
    waits: Waits,
    toolbox: Toolbox,
    cancel: Cancel,
}

impl Site {
    pub(crate) fn new() -> Self {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let server = BucketServer::start(&scratch.path().join("buckets"), &["site"]);
        let [id, secret] = server.key().map(str::to_owned);
        let key = AccessKey { id, secret, token: None };
        let access = BucketAccess { endpoint: Some(server.endpoint()), region: None, key };
        let (waits, toolbox, cancel) = (Waits::default(), Toolbox::default(), Cancel::new().unwrap());
        Self { scratch, server, access, waits, toolbox, cancel }
    }

    /// Does something with what is below `s3://site/kiln`.
    pub(crate) fn with<T>(&self, what: impl FnOnce(&Bucket<'_>) -> T) -> T {
        self.at("s3://site/kiln", &self.access, what)
    }

    fn at<T>(&self, place: &str, access: &BucketAccess, what: impl FnOnce(&Bucket<'_>) -> T) -> T {
        let clock = Box::new(self.waits.clone());
        let client = Client::new(ClientOptions { clock, ..ClientOptions::new(&self.toolbox) });
        let place: BucketPlace = place.parse().unwrap();
        what(&Bucket::new(&place, access, &client, &self.cancel).unwrap())
    }
}

#[test]
fn an_object_is_written_read_and_removed() {
    let site = Site::new();
    site.with(|bucket| {
        assert_eq!(bucket.head("a/b").unwrap(), None);
        assert_eq!(bucket.get("a/b", 9).unwrap(), None);
        bucket.put("a/b", b"text", When::Always).unwrap();
        assert_eq!(std::fs::read(site.server.object("site", "kiln/a/b")).unwrap(), b"text");
        let object = bucket.get("a/b", 4).unwrap().unwrap();
        assert_eq!(object.bytes, b"text");
        assert!(matches!(bucket.get("a/b", 3), Err(BucketError::TooLarge { max: 3, .. })));
        bucket.remove("a/b").unwrap();
        bucket.remove("a/b").unwrap();
        assert_eq!(bucket.get("a/b", 9).unwrap(), None);
    });
}

#[test]
fn a_condition_that_is_not_met_writes_nothing() {
    let site = Site::new();
    site.with(|bucket| {
        bucket.put("it", b"first", When::New).unwrap();
        let changed = |result| matches!(result, Err(BucketError::Changed { .. }));
        assert!(changed(bucket.put("it", b"other", When::New)));
        let first = bucket.get("it", 9).unwrap().unwrap().version.unwrap();
        bucket.put("it", b"second", When::Same(&first)).unwrap();
        assert!(changed(bucket.put("it", b"third", When::Same(&first))));
        assert_eq!(bucket.get("it", 9).unwrap().unwrap().bytes, b"second");
        // A server that says that it knows no conditions writes.
        site.server.refuse("PUT", "/it", 501);
        bucket.put("it", b"fourth", When::Same(&first)).unwrap();
        assert_eq!(bucket.get("it", 9).unwrap().unwrap().bytes, b"fourth");
    });
}

#[test]
fn a_file_is_there_whole_whatever_its_length() {
    let site = Site::new();
    let from = site.scratch.path().join("file");
    for length in [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 5] {
        let bytes = content(length);
        std::fs::write(&from, &bytes).unwrap();
        let (digest, mut told) = (sha256(&bytes), Vec::new());
        site.with(|bucket| {
            bucket.put_file("disk.img", &from, &digest, &mut |have, all| told.push((have, all))).unwrap();
            let head = bucket.head("disk.img").unwrap().unwrap();
            assert_eq!((head.bytes, head.digest), (Some(length as u64), Some(digest.clone())));
        });
        assert!(std::fs::read(site.server.object("site", "kiln/disk.img")).unwrap() == bytes);
        let length = length as u64;
        assert_eq!((told[0], *told.last().unwrap()), ((0, length), (length, length)));
    }
}

#[test]
fn what_fails_for_now_is_asked_again() {
    let site = Site::new();
    let (from, bytes) = (site.scratch.path().join("file"), content(PART_BYTES + 1));
    std::fs::write(&from, &bytes).unwrap();
    site.with(|bucket| {
        site.server.refuse("PUT", "/text", 503);
        site.server.refuse("PUT", "/text", 429);
        bucket.put("text", b"text", When::Always).unwrap();
        assert_eq!(site.waits.seen().len(), 2);
        assert!(site.waits.seen().iter().all(|wait| *wait < Duration::from_secs(2)));
        // Each step of an upload, the answer to the last lost.
        site.server.refuse("POST", "uploads", 500);
        site.server.refuse("PUT", "partNumber=2", 502);
        site.server.lose("POST", "uploadId", 504);
        bucket.put_file("disk.img", &from, &sha256(&bytes), &mut |_, _| ()).unwrap();
        assert!(std::fs::read(site.server.object("site", "kiln/disk.img")).unwrap() == bytes);
    });
}

#[test]
fn an_upload_that_fails_leaves_nothing() {
    let site = Site::new();
    let (from, bytes) = (site.scratch.path().join("file"), content(PART_BYTES + 1));
    std::fs::write(&from, &bytes).unwrap();
    site.with(|bucket| {
        site.server.refuse("PUT", "partNumber=2", 403);
        let failed = bucket.put_file("disk.img", &from, &sha256(&bytes), &mut |_, _| ());
        assert!(matches!(&failed, Err(BucketError::Denied { .. })), "{failed:?}");
        assert_eq!(bucket.head("disk.img").unwrap(), None);
        site.server.say("POST", "uploadId", 200, None, "<Error><Code>InternalError</Code></Error>");
        let failed = bucket.put_file("disk.img", &from, &sha256(&bytes), &mut |_, _| ());
        let told = failed.unwrap_err().to_string();
        assert_eq!(told, "s3://site/kiln/disk.img was answered with status 200: InternalError");
        assert_eq!(bucket.head("disk.img").unwrap(), None);
        let asked = site.server.asked();
        assert!(
            asked.iter().any(|asked| asked.starts_with("DELETE") && asked.contains("uploadId")),
            "{asked:?}"
        );
        for _ in 0..5 {
            site.server.refuse("PUT", "/text", 503);
        }
        let failed = bucket.put("text", b"text", When::Always);
        assert!(matches!(&failed, Err(BucketError::Status { status: 503, .. })), "{failed:?}");
    });
}

#[test]
fn who_may_not_and_what_is_not_there_is_told() {
    let site = Site::new();
    let key = AccessKey { id: "AKID".into(), secret: "wrong".into(), token: None };
    let stranger = BucketAccess { key, ..site.access.clone() };
    site.at("s3://site/kiln", &stranger, |bucket| {
        let error = bucket.put("it", b"text", When::Always).unwrap_err();
        assert!(matches!(&error, BucketError::Denied { .. }), "{error}");
        let told = error.to_string();
        assert!(told.starts_with("s3://site/kiln/it may not be used: SignatureDoesNotMatch"), "{told}");
    });
    site.with(|bucket| {
        let missing = "<Error><Code>NoSuchBucket</Code><Message>The bucket does not exist</Message></Error>";
        site.server.say("GET", "/it", 404, None, missing);
        site.server.say("PUT", "/it", 404, None, missing);
        for error in [bucket.get("it", 9).unwrap_err(), bucket.put("it", b"", When::Always).unwrap_err()] {
            assert_eq!(error.to_string(), "there is no bucket `site`");
        }
        let far = Some(("x-amz-bucket-region", "eu-west-1"));
        site.server.say("HEAD", "/it", 301, far, "");
        site.server.say("GET", "/it", 400, far, "<Error><Code>AuthorizationHeaderMalformed</Code></Error>");
        for error in [bucket.head("it").unwrap_err(), bucket.get("it", 9).unwrap_err()] {
            assert_eq!(error.to_string(), "the bucket `site` is in the region eu-west-1");
        }
        site.server.say("GET", "/it", 418, None, "a teapot");
        let told = bucket.get("it", 9).unwrap_err().to_string();
        assert_eq!(told, "s3://site/kiln/it was answered with status 418");
        // No more is read of an error than says what it is, nor of an answer than there can be.
        let long: &'static str = " ".repeat(1 << 20).leak();
        site.server.say("GET", "/it", 418, None, long);
        assert!(matches!(bucket.get("it", 9), Err(BucketError::Status { status: 418, .. })));
        site.server.say("DELETE", "/it", 200, None, long);
        assert!(matches!(bucket.remove("it"), Err(BucketError::TooLarge { max: 65_536, .. })));
    });
    // Nobody listens on port 1.
    let nobody = BucketAccess { endpoint: Some("http://127.0.0.1:1".to_owned()), ..site.access.clone() };
    site.at("s3://site", &nobody, |bucket| {
        let error = bucket.head("it").unwrap_err();
        assert!(matches!(&error, BucketError::Broken { .. }), "{error}");
        let shown = kiln_core::text::chain(&error);
        assert!(!shown.contains("Signature") && shown.contains("s3://site/it"), "{shown}");
    });
    site.cancel.cancel();
    site.with(|bucket| assert!(matches!(bucket.head("it"), Err(BucketError::Cancelled))));
}
