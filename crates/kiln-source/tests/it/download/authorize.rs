//! Who asks, told by other means than the address.

use super::server::{Reply, Server};
use super::{Fetcher, content, sha256};
use kiln_source::download::{Authorize, CONNECTIONS_MAX, Client, Download, DownloadError, Origin, Url};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Asks the same host for whatever it tells, at the same time as all others do.
#[derive(Debug)]
struct Teller<'a> {
    fetcher: &'a Fetcher,
    client: &'a Client<'a>,
    token: Url,
    all: Barrier,
    fetched: AtomicUsize,
    told: AtomicBool,
}

impl Teller<'_> {
    fn fetch(&self) {
        self.all.wait();
        let nth = self.fetched.fetch_add(1, Ordering::SeqCst).to_string();
        let dir = self.fetcher.dir.path().join(nth);
        run(self.client, self.fetcher, &self.token, &dir, Origin::Web).unwrap();
    }
}

impl Authorize for Teller<'_> {
    fn header(&self) -> Option<String> {
        self.fetch();
        self.told.load(Ordering::SeqCst).then(|| "Bearer good".to_owned())
    }

    fn answer(&self, sent: Option<&str>, challenges: &[String]) -> Result<bool, DownloadError> {
        assert_eq!((sent, challenges), (None, &["Own a=b".to_owned()][..]));
        self.fetch();
        self.told.store(true, Ordering::SeqCst);
        Ok(true)
    }
}

fn run(
    client: &Client<'_>,
    fetcher: &Fetcher,
    url: &Url,
    dir: &Path,
    origin: Origin<'_>,
) -> Result<(), DownloadError> {
    std::fs::create_dir(dir).unwrap();
    let (target, digest) = (dir.join("file"), sha256(&content(1000)));
    let download = Download {
        urls: std::slice::from_ref(url),
        digest: Some(&digest),
        bytes_max: 1000,
        cache: dir,
        target: &target,
        durable: false,
        origin,
    };
    download.run(client, &mut |_| (), &fetcher.cancel).map(|_| ())
}

#[test]
fn who_tells_may_ask_the_same_host_when_all_its_connections_would_be_open() {
    let bytes = content(1000);
    let server = Server::start(move |request| match request.authorization.as_deref() {
        None if request.path == "/file" => Reply::status(401).with("WWW-Authenticate: Own a=b"),
        _ => Reply::file(request, &bytes, "\"1\""),
    });
    let fetcher = Fetcher::new();
    let client = fetcher.client();
    let teller = Teller {
        fetcher: &fetcher,
        client: &client,
        token: server.url("/token"),
        all: Barrier::new(CONNECTIONS_MAX),
        fetched: AtomicUsize::new(0),
        told: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        for nth in 0..CONNECTIONS_MAX {
            let (client, fetcher, teller, url) = (&client, &fetcher, &teller, server.url("/file"));
            scope.spawn(move || {
                let dir = fetcher.dir.path().join(format!("file-{nth}"));
                run(client, fetcher, &url, &dir, Origin::Registry(teller)).unwrap();
            });
        }
    });
    // For the header, for the challenge, and for the header again.
    assert_eq!(teller.fetched.load(Ordering::SeqCst), 3 * CONNECTIONS_MAX);
}
