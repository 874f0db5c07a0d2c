//! Where a place leads to.

use super::server::{Reply, Server};
use super::{Fetcher, content, sha256};
use kiln_source::download::{DownloadError, Refusal, Url};
use kiln_sys::Toolbox;

fn to(location: &str) -> Reply {
    Reply::status(302).with(&format!("Location: {location}"))
}

#[test]
fn redirections_are_followed_so_far_and_no_further() {
    let bytes = content(1000);
    let body = bytes.clone();
    let server = Server::start(move |request| match request.path.trim_start_matches("/a").parse::<u32>() {
        Ok(0) => Reply::file(request, &body, "\"1\""),
        Ok(more) => to(&format!("a{}", more - 1)),
        Err(_) => to(&request.path),
    });
    let digest = sha256(&bytes);
    Fetcher::new().fetch(&[server.url("/a5")], Some(&digest)).unwrap();
    for path in ["/a6", "/loop"] {
        let error = Fetcher::new().fetch(&[server.url(path)], Some(&digest)).unwrap_err();
        assert!(matches!(error, DownloadError::TooManyRedirects { max: 5, .. }), "{error}");
    }
    assert_eq!(server.seen().len(), 6 + 6 + 6);
}

#[test]
fn a_redirection_out_of_the_web_is_refused() {
    for location in ["file:///etc/passwd", "ftp://127.0.0.1/x", "", "http://"] {
        let server = Server::start(move |_| to(location));
        let error = Fetcher::new().fetch(&[server.url("/file")], None).unwrap_err();
        let DownloadError::RedirectRefused { from, to, why } = error else { panic!("{error}") };
        assert_eq!((from, to.as_str(), why), (server.url("/file"), location, Refusal::NotHttp));
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn who_asks_is_told_to_the_first_host_only() {
    let bytes = content(1000);
    let other = Server::of(&bytes);
    let elsewhere = other.url("/file");
    let address = other.address();
    let server = Server::start(move |request| match request.path.as_str() {
        "/file" => to("/here"),
        _ => to(&format!("http://{address}/file?sig=secret")),
    });
    let url: Url = format!("http://me:secret@{}/file", server.address()).parse().unwrap();
    Fetcher::new().fetch(&[url], Some(&sha256(&bytes))).unwrap();
    assert!(
        server.seen().iter().all(|request| request.authorization.as_deref() == Some("Basic bWU6c2VjcmV0"))
    );
    assert_eq!(server.seen().len(), 2);
    assert_eq!(other.seen()[0].authorization, None);
    assert_eq!(elsewhere.host(), "127.0.0.1");
}

#[test]
fn a_public_host_does_not_lead_into_a_private_network() {
    for location in ["http://169.254.169.254/latest", "http://10.0.0.1/x", "https://[::1]/x", "//127.0.0.1/x"]
    {
        // A proxy stands for the public network.
        let server = Server::start(move |_| to(location));
        let mut fetcher = Fetcher::new();
        let proxy = format!("http://{}", server.address()).into();
        fetcher.toolbox = Toolbox::new(Vec::new(), vec![("http_proxy".into(), proxy)]);
        let error = fetcher.fetch(&["http://1.1.1.1/file".parse().unwrap()], None).unwrap_err();
        assert!(matches!(error, DownloadError::RedirectRefused { why: Refusal::Private, .. }), "{error:?}");
        assert_eq!(server.seen().len(), 1);
        assert!(!fetcher.target().exists() && fetcher.left().is_empty());
    }
}
