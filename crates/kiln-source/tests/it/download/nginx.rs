//! Files of a real server: Debian's `nginx`, on loopback.

use super::{Fetcher, content, sha256};
use kiln_source::download::{Broken, DownloadError, Progress, Url};
use kiln_sys::Toolbox;
use kiln_testing::Nginx;
use std::path::Path;

fn url(text: String) -> Url {
    text.parse().unwrap()
}

/// Returns a fetcher that trusts one authority.
fn trusting(authority: &Path) -> Fetcher {
    let mut fetcher = Fetcher::new();
    fetcher.toolbox = Toolbox::new(Vec::new(), vec![("SSL_CERT_FILE".into(), authority.into())]);
    fetcher
}

/// Fetches until so many bytes are there, and leaves it there.
fn fetch_some(fetcher: &mut Fetcher, url: &Url, bytes: &[u8], some: u64) -> u64 {
    let (cancel, mut last) = (fetcher.cancel.clone(), 0);
    let result = fetcher.fetch_told(std::slice::from_ref(url), Some(&sha256(bytes)), &mut |progress| {
        if let Progress::Bytes { have, .. } = progress {
            last = have;
            if have >= some {
                cancel.cancel();
            }
        }
    });
    assert!(matches!(result, Err(DownloadError::Cancelled)));
    fetcher.cancel = kiln_sys::Cancel::new().unwrap();
    last
}

#[test]
fn nginx_gives_a_file_whole_and_the_rest_of_one() {
    let nginx = Nginx::start(false);
    let bytes = content(3_000_000);
    nginx.put("file", &bytes);
    let mut fetcher = Fetcher::new();
    let have = fetch_some(&mut fetcher, &url(nginx.url("/file")), &bytes, 1_000_000);
    let fetched = fetcher.fetch(&[url(nginx.url("/file"))], Some(&sha256(&bytes))).unwrap();
    assert_eq!((fetched.bytes, fetcher.left().len()), (3_000_000, 0));
    assert!(std::fs::read(fetcher.target()).unwrap() == bytes);
    let answered = nginx.answered();
    assert!(answered[0].starts_with("200 - -"), "{answered:?}");
    assert!(answered[1].starts_with(&format!("206 bytes={have}- ")), "{answered:?}");
}

#[test]
fn an_nginx_that_ends_in_the_middle_is_gone_on_with_when_it_is_back() {
    let mut nginx = Nginx::start(false);
    // More than fits between the two: it cannot have sent all of it.
    let bytes = content(32 << 20);
    nginx.put("file", &bytes);
    let fetcher = Fetcher::new();
    let (url, mut tries) = (url(nginx.url("/file")), 0);
    let fetched = fetcher.fetch_told(&[url], Some(&sha256(&bytes)), &mut |progress| match progress {
        Progress::Bytes { have, .. } if have >= 1 << 20 && tries == 0 => {
            nginx.end();
            tries = 1;
        }
        Progress::Again { .. } => nginx.start_again(),
        _ => {}
    });
    assert_eq!(fetched.unwrap().bytes, 32 << 20);
    assert!(std::fs::read(fetcher.target()).unwrap() == bytes);
    let answered = nginx.answered();
    assert!(answered.last().unwrap().starts_with("206 bytes="), "{answered:?}");
}

#[test]
fn a_file_of_nginx_that_changes_between_the_halves_is_the_new_one() {
    let nginx = Nginx::start(false);
    let (old, new) = (content(3_000_000), content(3_000_001)[1..].to_vec());
    nginx.put("file", &old);
    let mut fetcher = Fetcher::new();
    // What comes first is of the old one: only its digest will tell.
    let have = fetch_some(&mut fetcher, &url(nginx.url("/file")), &new, 1_000_000);
    // Its name of a version is the second it was changed in, and the length.
    nginx.put("file", &new);
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
    let file = std::fs::File::options().append(true).open(nginx.file("file")).unwrap();
    file.set_modified(later).unwrap();
    fetcher.fetch(&[url(nginx.url("/file"))], Some(&sha256(&new))).unwrap();
    assert!(std::fs::read(fetcher.target()).unwrap() == new);
    let answered = nginx.answered();
    assert!(answered[1].starts_with(&format!("200 bytes={have}- ")), "{answered:?}");
    assert_eq!(answered.len(), 2);
}

#[test]
fn what_one_nginx_lacks_another_has() {
    let (empty, full) = (Nginx::start(false), Nginx::start(false));
    let bytes = content(100_000);
    full.put("file", &bytes);
    let fetcher = Fetcher::new();
    let urls = [url(empty.url("/file")), url(full.url("/file"))];
    assert_eq!(fetcher.fetch(&urls, Some(&sha256(&bytes))).unwrap().from, Some(urls[1].clone()));
    assert_eq!((empty.answered(), full.answered()), (vec!["404 - -".to_owned()], vec!["200 - -".to_owned()]));
}

#[test]
fn a_server_is_trusted_by_its_certificate_only() {
    let nginx = Nginx::start(true);
    let bytes = content(300_000);
    nginx.put("file", &bytes);
    let digest = sha256(&bytes);
    let fetcher = trusting(&nginx.authority());
    fetcher.fetch(&[url(nginx.url_tls("/file"))], Some(&digest)).unwrap();
    assert!(std::fs::read(fetcher.target()).unwrap() == bytes);
    // Another authority of the same name is not the one.
    let other = Nginx::start(true);
    let fetcher = trusting(&other.authority());
    let error = fetcher.fetch(&[url(nginx.url_tls("/file"))], Some(&digest)).unwrap_err();
    let DownloadError::Broken { source: Broken::Http(source), .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("invalid peer certificate"), "{source}");
    // It does not become trusted by asking again.
    assert!(fetcher.waits.seen().is_empty());
    assert!(!fetcher.target().exists() && fetcher.left().is_empty());
    assert_eq!(nginx.answered(), ["200 - -"]);
}
