//! A file by several connections.

use super::server::{Act, Gate, Reply, Request, Server};
use super::{Fetcher, content, sha256};
use kiln_source::download::{CONNECTIONS_MAX, DownloadError, Progress};
use std::path::PathBuf;

const LENGTH: usize = 2_000_000;

/// Returns a fetcher that takes all but the smallest files by several connections.
fn fetcher() -> Fetcher {
    let mut fetcher = Fetcher::new();
    fetcher.ranges_bytes_min = 100_000;
    fetcher
}

/// Serves a file with answers spoilt.
fn spoilt(bytes: &[u8], spoil: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let bytes = bytes.to_vec();
    Server::start(move |request| spoil(request, Reply::file(request, &bytes, "\"1\"")))
}

#[test]
fn a_server_that_is_slow_for_each_connection_is_asked_by_several() {
    let bytes = content(LENGTH);
    let gate = Gate::default();
    // None goes on before as many have come as there may be: one alone would never end.
    let server = spoilt(&bytes, move |request, reply| {
        if request.nth + 1 == CONNECTIONS_MAX {
            gate.open();
        }
        reply.act(Act::Gate(1000, gate.clone()))
    });
    let fetcher = fetcher();
    fetcher.fetch_ok(&server, &bytes);
    assert!(fetcher.waits.seen().is_empty());
    let seen = server.seen();
    assert_eq!((seen[0].range.as_deref(), seen[0].if_range.as_deref()), (None, None));
    assert!(seen[1..].iter().all(|request| request.ends().1.is_some()), "{seen:?}");
    assert!(seen[1..].iter().all(|request| request.if_range.as_deref() == Some("\"1\"")), "{seen:?}");
    // Each byte was asked for once.
    let mut asked: Vec<_> = seen[1..].iter().map(Request::ends).collect();
    asked.sort_unstable();
    assert!(asked.windows(2).all(|two| two[0].1.unwrap() <= two[1].0), "{asked:?}");
}

#[test]
fn one_connection_is_enough_for_what_is_small_or_has_no_parts_or_no_strong_name() {
    let bytes = content(LENGTH);
    for (header, least, several) in [
        ("X: y", 1, true),
        ("X: y", LENGTH as u64, true),
        ("X: y", LENGTH as u64 + 1, false),
        ("Accept-Ranges: none", 1, false),
        ("ETag: W/\"1\"", 1, false),
        ("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", 1, false),
    ] {
        let gate = Gate::default();
        if !several {
            gate.open();
        }
        let server = spoilt(&bytes, move |request, reply| {
            if request.nth > 0 {
                gate.open();
            }
            let name = header.split_once(':').unwrap().0;
            let reply = if name == "Last-Modified" { reply.without("ETag") } else { reply.without(name) };
            reply.with(header).act(Act::Gate(0, gate.clone()))
        });
        let mut fetcher = Fetcher::new();
        fetcher.ranges_bytes_min = least;
        fetcher.fetch_ok(&server, &bytes);
        assert_eq!(server.seen().len() > 1, several, "{header} {least}");
    }
}

#[test]
fn what_refuses_parts_gives_the_whole_by_one_connection() {
    let bytes = content(LENGTH);
    for status in [200, 403, 404, 416, 429, 503] {
        // From the second connection on, or only far on, when the first answer may be over.
        for refused in [1, LENGTH * 3 / 4] {
            let body = bytes.clone();
            let server = spoilt(&bytes, move |request, reply| match request.ends() {
                (from, Some(_)) if from >= refused => match status {
                    200 => Reply::file(&Request::default(), &body, "\"1\""),
                    status => Reply::status(status),
                },
                _ => reply,
            });
            let fetcher = fetcher();
            let mut told = Vec::new();
            let urls = [server.url("/file")];
            let fetched = fetcher.fetch_told(&urls, Some(&sha256(&bytes)), &mut |progress| {
                if let Progress::Again { error, wait } = progress {
                    told.push(format!("{error}: {wait:?}"));
                }
            });
            assert_eq!(fetched.unwrap().bytes, LENGTH as u64);
            assert!(std::fs::read(fetcher.target()).unwrap() == bytes);
            assert!(fetcher.waits.seen().iter().all(std::time::Duration::is_zero), "{status}: {told:?}");
            let whole = server.seen().iter().filter(|request| request.range.is_none()).count();
            assert!(whole <= 2, "{status} {refused}");
        }
    }
}

#[test]
fn a_part_of_another_version_or_place_is_never_mixed_in() {
    let (old, new) = (content(LENGTH), content(LENGTH + 1)[1..].to_vec());
    for (etag, changed) in [("\"2\"", 1), ("\"2\"", 3)] {
        let (before, after) = (old.clone(), new.clone());
        let gate = Gate::default();
        // None of the old version is whole before the new one is asked for.
        let server = Server::start(move |request| {
            if request.nth < changed {
                return Reply::file(request, &before, "\"1\"").act(Act::Gate(1000, gate.clone()));
            }
            gate.open();
            // One that does not look at the condition.
            let mut asked = request.clone();
            asked.if_range = asked.if_range.filter(|_| request.nth % 2 == 0);
            Reply::file(&asked, &after, etag)
        });
        fetcher().fetch_ok(&server, &new);
    }
    for lie in ["bytes 0-9/2000000", "bytes 250000-499999/2000001", "bytes 250000-1999999/2000000", "x"] {
        let server = spoilt(&old, move |request, reply| match request.nth {
            1 => reply.without("Content-Range").with(&format!("Content-Range: {lie}")),
            _ => reply,
        });
        fetcher().fetch_ok(&server, &old);
    }
}

#[test]
fn connections_that_break_off_are_gone_on_with() {
    let bytes = content(LENGTH);
    let server = spoilt(&bytes, |_, reply| reply.act(Act::Cut(90_000)));
    fetcher().fetch_ok(&server, &bytes);
    let server = spoilt(&bytes, |request, reply| match request.nth {
        0 => reply.act(Act::Cut(90_000)),
        _ => reply,
    });
    fetcher().fetch_ok(&server, &bytes);
}

/// Fetches until half is there; returns the part and what its note says is there.
fn fetch_half(fetcher: &mut Fetcher, server: &Server, bytes: &[u8]) -> (PathBuf, Vec<(usize, usize)>) {
    let cancel = fetcher.cancel.clone();
    let result = fetcher.fetch_told(&[server.url("/file")], Some(&sha256(bytes)), &mut |progress| {
        if matches!(progress, Progress::Bytes { have, .. } if have >= LENGTH as u64 / 2) {
            cancel.cancel();
        }
    });
    assert!(matches!(result, Err(DownloadError::Cancelled)));
    fetcher.cancel = kiln_sys::Cancel::new().unwrap();
    let cache = std::fs::read_dir(fetcher.dir.path().join("cache")).unwrap();
    let mut paths = cache.map(|entry| entry.unwrap().path());
    let note = paths.find(|path| path.extension() == Some("json".as_ref())).unwrap();
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    let there = serde_json::from_value(text["there"].clone()).unwrap();
    (note.with_extension("part"), there)
}

#[test]
fn what_is_there_is_not_fetched_again_and_only_the_digest_is_trusted() {
    const HELD: usize = LENGTH * 3 / 4;
    let bytes = content(LENGTH);
    for damaged in [false, true] {
        let gate = Gate::default();
        let held = gate.clone();
        // The end is not there before the half is.
        let server = spoilt(&bytes, move |request, reply| match request.ends() {
            (from, None) => reply.act(Act::Gate(HELD.saturating_sub(from), held.clone())),
            (from, Some(_)) if from >= HELD => reply.act(Act::Gate(0, held.clone())),
            _ => reply,
        });
        let mut fetcher = fetcher();
        let (part, there) = fetch_half(&mut fetcher, &server, &bytes);
        gate.open();
        assert_eq!(std::fs::metadata(&part).unwrap().len(), LENGTH as u64);
        assert!(there.iter().map(|(from, to)| to - from).sum::<usize>() >= LENGTH / 2, "{there:?}");
        let before = server.seen().len();
        if damaged {
            // As a loss of power may leave it: noted, but not written.
            std::fs::write(&part, vec![0; LENGTH]).unwrap();
        }
        fetcher.fetch_ok(&server, &bytes);
        let asked: Vec<_> = server.seen()[before..].iter().map(Request::ends).collect();
        assert_eq!(asked[0].0, there[0].1, "{asked:?}");
        let again = asked[1..]
            .iter()
            .any(|(from, to)| there.iter().any(|part| part.0 < to.unwrap_or(LENGTH) && *from < part.1));
        assert_eq!(again, damaged, "{asked:?} {there:?}");
    }
}
