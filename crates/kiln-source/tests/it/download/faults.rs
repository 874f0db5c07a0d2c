//! What goes wrong on the way.

use super::server::{Act, Reply, Request, Server};
use super::{Fetcher, content, sha256};
use kiln_source::download::{Broken, DownloadError, Progress, TRIES_MAX};
use std::time::Duration;

/// Serves a file with its first answers spoilt.
fn spoilt(bytes: &[u8], spoil: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let bytes = bytes.to_vec();
    Server::start(move |request| spoil(request, Reply::file(request, &bytes, "\"1\"")))
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off() {
    let bytes = content(700_000);
    for at in [1, 4096, 262_144, 262_145, 699_999] {
        let server = spoilt(&bytes, move |request, reply| match request.nth {
            0 => reply.act(Act::Cut(at)),
            _ => reply,
        });
        let fetcher = Fetcher::new();
        fetcher.fetch_ok(&server, &bytes);
        assert_eq!(server.froms(), [0, at]);
        assert_eq!(server.seen()[1].if_range.as_deref(), Some("\"1\""));
        assert_eq!(fetcher.waits.seen(), [Duration::from_millis(100)]);
    }
}

#[test]
fn a_download_goes_on_as_long_as_something_comes() {
    let bytes = content(100_000);
    let server = spoilt(&bytes, |_, reply| reply.act(Act::Cut(5_000)));
    Fetcher::new().fetch_ok(&server, &bytes);
    assert_eq!(server.froms(), (0..100_000).step_by(5_000).collect::<Vec<_>>());
}

#[test]
fn without_a_strong_name_of_the_version_it_begins_anew() {
    let bytes = content(100_000);
    for (header, goes_on) in
        [("ETag: W/\"1\"", false), ("X: y", false), ("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", true)]
    {
        let body = bytes.clone();
        let server = Server::start(move |request| {
            let mut asked = request.clone();
            asked.if_range = None;
            let reply = Reply::file(&asked, &body, "").without("ETag").with(header);
            if request.nth == 0 { reply.act(Act::Cut(50_000)) } else { reply }
        });
        Fetcher::new().fetch_ok(&server, &bytes);
        assert_eq!(server.froms(), [0, if goes_on { 50_000 } else { 0 }], "{header}");
    }
}

#[test]
fn a_server_that_stalls_is_asked_again() {
    let bytes = content(100_000);
    let server = spoilt(&bytes, |request, reply| match request.nth {
        0 => reply.act(Act::Stall(30_000)),
        _ => reply,
    });
    let mut fetcher = Fetcher::new();
    fetcher.stall = Duration::from_millis(120);
    fetcher.fetch_ok(&server, &bytes);
    assert_eq!(server.froms(), [0, 30_000]);
}

#[test]
fn what_one_place_lacks_comes_from_the_next() {
    let bytes = content(1000);
    let none = Server::start(|_| Reply::status(404));
    let good = Server::of(&bytes);
    let fetcher = Fetcher::new();
    let urls = [none.url("/file"), good.url("/file")];
    let fetched = fetcher.fetch(&urls, Some(&sha256(&bytes))).unwrap();
    assert_eq!(fetched.from, Some(urls[1].clone()));
    assert_eq!(none.seen().len(), 1);
    assert!(fetcher.waits.seen().is_empty());
    let error = Fetcher::new().fetch(&urls[..1], Some(&sha256(&bytes))).unwrap_err();
    assert!(matches!(error, DownloadError::Status { status: 404, .. }), "{error}");
    assert_eq!(none.seen().len(), 2);
    assert!(matches!(Fetcher::new().fetch(&[], None), Err(DownloadError::NoUrl)));
}

#[test]
fn a_busy_server_says_when_to_come_again() {
    let bytes = content(1000);
    for (after, wait) in [
        ("7", Duration::from_secs(7)),
        ("3600", Duration::from_secs(300)),
        ("Sun, 06 Nov 1994 08:50:07 GMT", Duration::from_secs(30)),
        ("soon", Duration::from_millis(100)),
    ] {
        for status in [429, 503] {
            let server = spoilt(&bytes, move |request, reply| match request.nth {
                0 => Reply::status(status).with(&format!("Retry-After: {after}")),
                _ => reply,
            });
            let fetcher = Fetcher::new();
            fetcher.fetch_ok(&server, &bytes);
            assert_eq!(fetcher.waits.seen(), [wait], "{after}");
        }
    }
}

#[test]
fn a_failing_server_is_asked_again_but_not_for_ever() {
    let bytes = content(1000);
    let server = spoilt(&bytes, |request, reply| if request.nth < 2 { Reply::status(500) } else { reply });
    let fetcher = Fetcher::new();
    fetcher.fetch_ok(&server, &bytes);
    assert_eq!(fetcher.waits.seen().len(), 2);
    let server = spoilt(&bytes, |_, _| Reply::status(502));
    let error = Fetcher::new().fetch(&[server.url("/file")], None).unwrap_err();
    assert!(matches!(error, DownloadError::Status { status: 502, .. }));
    assert_eq!(server.seen().len(), TRIES_MAX as usize);
    // Breaking off at one byte each time, without going on, brings nothing either.
    let server = spoilt(&bytes, |_, reply| reply.without("ETag").act(Act::Cut(1)));
    let error = Fetcher::new().fetch(&[server.url("/file")], None).unwrap_err();
    assert!(matches!(error, DownloadError::Broken { source: Broken::Read(_) | Broken::Short { .. }, .. }));
    assert_eq!(server.seen().len(), TRIES_MAX as usize);
}

#[test]
fn a_server_that_nobody_is_at_is_an_error_that_names_it() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://me:secret@{address}/file?token=secret").parse().unwrap();
    let error = Fetcher::new().fetch(&[url], None).unwrap_err();
    assert_eq!(error.to_string(), format!("http://{address}/file?… cannot be fetched"));
}

#[test]
fn wrong_content_is_tried_once_more_and_never_kept() {
    let (bytes, other) = (content(1000), vec![1; 1000]);
    let (wrong, good) = (Server::of(&other), Server::of(&bytes));
    let fetcher = Fetcher::new();
    let urls = [wrong.url("/file"), good.url("/file")];
    assert_eq!(fetcher.fetch(&urls, Some(&sha256(&bytes))).unwrap().from, Some(urls[1].clone()));
    let fetcher = Fetcher::new();
    let error = fetcher.fetch(&urls[..1], Some(&sha256(&bytes))).unwrap_err();
    let message = format!("{} is {}; {} was expected", urls[0], sha256(&other), sha256(&bytes));
    assert_eq!(error.to_string(), message);
    assert_eq!(wrong.froms(), [0, 0, 0]);
    assert_eq!(fetcher.left(), Vec::<String>::new());
    assert!(!fetcher.target().exists());
}

#[test]
fn a_body_shorter_than_it_says_is_not_whole() {
    let bytes = content(1000);
    // It says nothing is missing after half, then gives the rest.
    let body = bytes.clone();
    let server = Server::start(move |request| {
        let reply = Reply::file(request, &body, "\"1\"");
        if request.nth == 0 { reply.act(Act::Cut(500)) } else { reply }
    });
    let mut told = Vec::new();
    let fetcher = Fetcher::new();
    let urls = [server.url("/file")];
    fetcher
        .fetch_told(&urls, None, &mut |progress| {
            if let Progress::Again { error, wait } = progress {
                told.push((error.to_string(), wait));
            }
        })
        .unwrap();
    assert_eq!(told, [(format!("{} cannot be fetched", urls[0]), Duration::from_millis(100))]);
    assert_eq!(std::fs::read(fetcher.target()).unwrap(), bytes);
}

#[test]
fn a_body_of_another_length_than_it_says_is_not_kept() {
    let bytes = content(100_000);
    // One byte too few is said, so that the last never comes; then one too many, so that the end is a break.
    for said in [99_999, 100_001] {
        let server = spoilt(&bytes, move |request, reply| match request.nth {
            0 => reply.without("Content-Length").with(&format!("Content-Length: {said}")),
            _ => reply,
        });
        let fetcher = Fetcher::new();
        let mut told = 0;
        let urls = [server.url("/file")];
        fetcher
            .fetch_told(&urls, Some(&sha256(&bytes)), &mut |progress| {
                if let Progress::Again { .. } = progress {
                    told += 1;
                    assert!(!fetcher.target().exists());
                }
            })
            .unwrap();
        assert!(std::fs::read(fetcher.target()).unwrap() == bytes, "{said}");
        assert!(told > 0 && fetcher.left().is_empty(), "{said}");
        // Where it never says otherwise there is one clear error.
        let server = spoilt(&bytes, move |_, reply| {
            reply.without("Content-").with(&format!("Content-Length: {said}"))
        });
        let fetcher = Fetcher::new();
        let error = fetcher.fetch(&[server.url("/file")], Some(&sha256(&bytes))).unwrap_err();
        let short = matches!(error, DownloadError::Digest { .. }) && said < bytes.len();
        let long = matches!(error, DownloadError::Broken { .. }) && said > bytes.len();
        assert!(short || long, "{said}: {error:?}");
        assert!(!fetcher.target().exists(), "{said}");
    }
}

#[test]
fn a_server_that_ignores_the_range_gives_it_from_the_start() {
    let bytes = content(100_000);
    let body = bytes.clone();
    let server = Server::start(move |request| {
        let reply = Reply::file(&Request::default(), &body, "\"1\"");
        if request.nth == 0 { reply.act(Act::Cut(60_000)) } else { reply }
    });
    Fetcher::new().fetch_ok(&server, &bytes);
    assert_eq!(server.froms(), [0, 60_000]);
}

#[test]
fn a_part_that_is_not_the_one_asked_for_begins_it_anew() {
    let bytes = content(100_000);
    for lie in ["bytes 59999-99999/100000", "bytes 60000-99999/100001", "bytes */100000", "x"] {
        let server = spoilt(&bytes, move |request, reply| match request.nth {
            0 => reply.act(Act::Cut(60_000)),
            1 => reply.without("Content-Range").with(&format!("Content-Range: {lie}")),
            _ => reply,
        });
        Fetcher::new().fetch_ok(&server, &bytes);
        assert_eq!(server.froms(), [0, 60_000, 0], "{lie}");
    }
    let server = spoilt(&bytes, |request, reply| match request.nth {
        0 => reply.act(Act::Cut(60_000)),
        1 => Reply::status(416),
        _ => reply,
    });
    Fetcher::new().fetch_ok(&server, &bytes);
    assert_eq!(server.froms(), [0, 60_000, 0]);
}

#[test]
fn a_file_that_changes_between_the_halves_is_never_mixed() {
    let (old, new) = (content(100_000), content(100_001)[1..].to_vec());
    // One server says that it changed, another gives the rest of the new one with its new name.
    for honest in [true, false] {
        let (first, then) = (old.clone(), new.clone());
        let server = Server::start(move |request| {
            if request.nth == 0 {
                return Reply::file(request, &first, "\"1\"").act(Act::Cut(60_000));
            }
            let mut asked = request.clone();
            asked.if_range = asked.if_range.filter(|_| honest);
            Reply::file(&asked, &then, "\"2\"")
        });
        Fetcher::new().fetch_ok(&server, &new);
        let froms: &[usize] = if honest { &[0, 60_000] } else { &[0, 60_000, 0] };
        assert_eq!(server.froms(), froms);
    }
}

#[test]
fn a_note_that_is_not_understood_begins_it_anew() {
    let bytes = content(100_000);
    for note in ["", "{", r#"{"version":3,"validator":{"etag":"\"1\""}}"#, r#"{"version":1}"#] {
        let server = spoilt(&bytes, |request, reply| match request.nth {
            0 => reply.act(Act::Cut(60_000)),
            1 => Reply::status(404),
            _ => reply,
        });
        let fetcher = Fetcher::new();
        fetcher.fetch(&[server.url("/file")], Some(&sha256(&bytes))).unwrap_err();
        let cache = std::fs::read_dir(fetcher.dir.path().join("cache")).unwrap();
        let kept =
            cache.map(|entry| entry.unwrap().path()).find(|path| path.extension() == Some("json".as_ref()));
        std::fs::write(kept.unwrap(), note).unwrap();
        fetcher.fetch_ok(&server, &bytes);
        assert_eq!(server.froms(), [0, 60_000, 0], "{note}");
    }
}

#[test]
fn bytes_that_were_damaged_in_the_cache_are_found_and_fetched_anew() {
    let bytes = content(100_000);
    let server = spoilt(&bytes, |request, reply| match request.nth {
        0 => reply.act(Act::Cut(60_000)),
        1 => Reply::status(404),
        _ => reply,
    });
    let fetcher = Fetcher::new();
    fetcher.fetch(&[server.url("/file")], Some(&sha256(&bytes))).unwrap_err();
    let mut cache = std::fs::read_dir(fetcher.dir.path().join("cache")).unwrap();
    let part = cache
        .find_map(|entry| Some(entry.unwrap().path()).filter(|path| path.extension().unwrap() == "part"));
    std::fs::write(part.unwrap(), vec![0; 60_000]).unwrap();
    fetcher.fetch_ok(&server, &bytes);
    assert_eq!(server.froms(), [0, 60_000, 60_000, 0]);
}

#[test]
fn two_places_are_only_mixed_where_a_digest_tells() {
    let (bytes, other) = (content(100_000), content(100_001)[1..].to_vec());
    let broken = spoilt(&bytes, |_, reply| reply.act(Act::Cut(60_000)));
    for (second, digest, froms) in [(&bytes, Some(sha256(&bytes)), [60_000]), (&other, None, [0])] {
        let server = Server::of(second);
        let fetcher = Fetcher::new();
        fetcher.fetch(&[broken.url("/file"), server.url("/file")], digest.as_ref()).unwrap();
        assert!(std::fs::read(fetcher.target()).unwrap() == *second);
        assert_eq!(server.froms(), froms);
    }
}
