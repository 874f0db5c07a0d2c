//! What goes well, what is there already, and what is more than there may be.

use super::server::{Act, Gate, Reply, Server};
use super::{Fetcher, content, sha256};
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_source::download::{DownloadError, Progress};
use sha2::Digest as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

#[test]
fn a_file_is_fetched_once_and_is_there_then() {
    let bytes = content(300_000);
    let server = Server::of(&bytes);
    let fetcher = Fetcher::new();
    assert!(fetcher.fetch_ok(&server, &bytes).from.is_some());
    assert!(fetcher.fetch_ok(&server, &bytes).from.is_none());
    assert_eq!(server.froms(), [0]);
    assert_eq!(std::fs::metadata(fetcher.target()).unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn a_sha512_is_checked_too_and_an_empty_file_is_one() {
    let server = Server::start(|_| Reply::status(200));
    let digest = ContentDigest::from_bytes(Algorithm::Sha512, &sha2::Sha512::digest(b"")).unwrap();
    let fetched = Fetcher::new().fetch(&[server.url("/file")], Some(&digest)).unwrap();
    assert_eq!((fetched.digest, fetched.bytes), (digest, 0));
}

#[test]
fn a_file_that_fails_its_check_is_fetched_again_and_offline_is_an_error() {
    let bytes = content(1000);
    let server = Server::of(&bytes);
    let mut fetcher = Fetcher::new();
    std::fs::write(fetcher.target(), &bytes[1..]).unwrap();
    fetcher.offline = true;
    let urls = ["http://me:secret@127.0.0.1:1/file".parse().unwrap()];
    let error = fetcher.fetch(&urls, Some(&sha256(&bytes))).unwrap_err();
    assert!(matches!(error, DownloadError::Offline { .. }));
    assert_eq!(error.to_string(), "http://127.0.0.1:1/file is not in the cache, and kiln is offline");
    fetcher.offline = false;
    assert!(fetcher.fetch_ok(&server, &bytes).from.is_some());
    fetcher.offline = true;
    assert!(fetcher.fetch_ok(&server, &bytes).from.is_none());
}

#[test]
fn what_nothing_is_known_of_is_fetched_each_time_and_used_offline() {
    let server =
        Server::start(|request| Reply::file(request, format!("{}", request.nth).as_bytes(), "\"1\""));
    let mut fetcher = Fetcher::new();
    let urls = [server.url("/file")];
    for text in ["0", "1"] {
        assert_eq!(fetcher.fetch(&urls, None).unwrap().digest, sha256(text.as_bytes()));
    }
    fetcher.offline = true;
    assert_eq!(fetcher.fetch(&urls, None).unwrap().digest, sha256(b"1"));
}

#[test]
fn a_file_has_a_largest_size_announced_or_not() {
    let bytes = content(100_000);
    let announced = Server::of(&bytes);
    let body = bytes.clone();
    let endless =
        Server::start(move |request| Reply::file(request, &body, "\"1\"").without("Content-Length"));
    let mut fetcher = Fetcher::new();
    fetcher.bytes_max = 99_999;
    let mut told = 0;
    let digest = sha256(&bytes);
    let fetch = |server: &Server, told: &mut u64| {
        fetcher.fetch_told(&[server.url("/file")], Some(&digest), &mut |progress| {
            if let Progress::Bytes { have, .. } = progress {
                *told = have;
            }
        })
    };
    let error = fetch(&announced, &mut told).unwrap_err();
    assert!(matches!(error, DownloadError::TooLarge { said: Some(100_000), max: 99_999, .. }), "{error}");
    assert_eq!(told, 0);
    let error = fetch(&endless, &mut told).unwrap_err();
    assert!(matches!(error, DownloadError::TooLarge { said: None, max: 99_999, .. }), "{error}");
    assert!(told <= 99_999);
    assert!(!fetcher.target().exists());
    fetcher.bytes_max = 100_000;
    fetcher.fetch_ok(&endless, &bytes);
}

#[test]
fn byte_for_byte_and_without_a_length_is_fine() {
    let bytes = content(500);
    let body = bytes.clone();
    let server = Server::start(move |request| {
        Reply::file(request, &body, "\"1\"").without("Content-L").act(Act::Drip)
    });
    Fetcher::new().fetch_ok(&server, &bytes);
}

#[test]
fn a_rate_is_kept_by_waiting_for_what_came() {
    let bytes = content(100_000);
    let mut fetcher = Fetcher::new();
    fetcher.rate = Some(20_000);
    fetcher.fetch_ok(&Server::of(&bytes), &bytes);
    let waits = fetcher.waits.seen();
    let sum: Duration = waits.iter().sum();
    assert!(sum >= Duration::from_millis(4999) && sum < Duration::from_secs(6), "{sum:?}");
    assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(250)), "{waits:?}");
}

#[test]
fn a_cancelled_download_ends_while_nothing_comes_and_what_came_is_kept() {
    let bytes = content(400_000);
    let body = bytes.clone();
    let server = Server::start(move |request| {
        let reply = Reply::file(request, &body, "\"1\"");
        if request.nth == 0 { reply.act(Act::Stall(50_000)) } else { reply }
    });
    let mut fetcher = Fetcher::new();
    let cancel = fetcher.cancel.clone();
    let result = fetcher.fetch_told(&[server.url("/file")], Some(&sha256(&bytes)), &mut |progress| {
        if matches!(progress, Progress::Bytes { have: 50_000, .. }) {
            cancel.cancel();
        }
    });
    assert!(matches!(result, Err(DownloadError::Cancelled)));
    assert_eq!(fetcher.left(), ["json", "lock", "part"]);
    fetcher.cancel = kiln_sys::Cancel::new().unwrap();
    fetcher.fetch_ok(&server, &bytes);
    assert_eq!(server.froms(), [0, 50_000]);
}

#[test]
fn two_at_once_fetch_once() {
    let bytes = content(200_000);
    let (gate, asked) = (Gate::default(), Gate::default());
    let (body, held, told) = (bytes.clone(), gate.clone(), asked.clone());
    let server = Server::start(move |request| {
        told.open();
        Reply::file(request, &body, "\"1\"").act(Act::Gate(1000, held.clone()))
    });
    let fetcher = Fetcher::new();
    let (urls, digest) = ([server.url("/file")], sha256(&bytes));
    let from = std::thread::scope(|scope| {
        let first = scope.spawn(|| fetcher.fetch(&urls, Some(&digest)).unwrap());
        asked.wait();
        let second = fetcher.fetch_told(&urls, Some(&digest), &mut |progress| {
            if let Progress::Waiting(holder) = progress {
                assert!(holder.text.contains("fetching http://127.0.0.1"), "{}", holder.text);
                gate.open();
            }
        });
        (first.join().unwrap().from, second.unwrap().from)
    });
    assert!(from.0.is_some() && from.1.is_none());
    assert_eq!(server.froms(), [0]);
    assert_eq!(fetcher.left(), Vec::<String>::new());
}
