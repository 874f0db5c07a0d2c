//! A process that is killed while it fetches, again and again.

use super::server::{Act, Reply, Server};
use super::{Fetcher, content, sha256};
use kiln_source::download::{Client, ClientOptions, Download};
use kiln_sys::{Cancel, Toolbox};
use kiln_testing::{Served, Worker};
use serde::{Deserialize, Serialize};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

#[derive(Serialize, Deserialize)]
struct Order {
    host: String,
    directory: PathBuf,
    digest: String,
}

#[test]
#[ignore = "a worker of the others: it serves orders from standard input"]
fn worker() {
    kiln_testing::serve(|line| {
        let order: Order = serde_json::from_str(line).unwrap();
        let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
        let (urls, digest) =
            ([format!("http://{}/file", order.host).parse().unwrap()], order.digest.parse().unwrap());
        let (cache, target) = (order.directory.join("cache"), order.directory.join("image"));
        let download = Download {
            urls: &urls,
            digest: Some(&digest),
            bytes_max: 1 << 30,
            cache: &cache,
            target: &target,
        };
        let fetched = download.run(&Client::new(ClientOptions::new(&toolbox)), &mut |_| (), &cancel).unwrap();
        // Whoever waits for this process to be asking is told that it is done.
        let mut stream = TcpStream::connect(&order.host).unwrap();
        stream.write_all(b"GET /done HTTP/1.1\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        fetched.digest.to_string()
    });
}

#[test]
fn a_process_killed_anywhere_leaves_what_the_next_goes_on_with() {
    const KILLS: usize = 20;
    let bytes = content(6_000_000);
    let digest = sha256(&bytes);
    let (reached, events) = mpsc::channel();
    let reached = Mutex::new(reached);
    let limit = Arc::new(AtomicUsize::new(0));
    let (body, most) = (bytes.clone(), Arc::clone(&limit));
    let server = Server::start(move |request| {
        let tell = || reached.lock().unwrap().send(()).unwrap();
        if request.path == "/done" {
            tell();
            return Reply::status(200);
        }
        tell();
        Reply::file(request, &body, "\"1\"").act(Act::Stall(most.load(Ordering::SeqCst)))
    });
    let fetcher = Fetcher::new();
    let order = Order {
        host: server.address().to_string(),
        directory: fetcher.dir.path().to_owned(),
        digest: digest.to_string(),
    };
    let order = serde_json::to_string(&order).unwrap();
    let part = || {
        let cache = std::fs::read_dir(fetcher.dir.path().join("cache")).into_iter().flatten();
        let mut paths = cache.map(|entry| entry.unwrap().path());
        paths.find(|path| path.extension() == Some("part".as_ref()))
    };
    let mut ends = 0;
    for kill in 0..KILLS {
        let random = u64::from_le_bytes(kiln_sys::clock::random());
        // Some are killed about where they finish.
        let stall = if kill % 5 == 4 { bytes.len() } else { usize::try_from(random % 400_000).unwrap() };
        limit.store(stall, Ordering::SeqCst);
        let before = part().map_or(0, |part| part.metadata().unwrap().len());
        let mut worker = Worker::spawn("download::processes::worker");
        worker.order(&order);
        events.recv().unwrap();
        // Looked at, not waited for: somewhere on its way to where the server stalls.
        let aim = random % (stall as u64 + 1);
        while !fetcher.target().exists() {
            let have = part().and_then(|part| part.metadata().ok()).map_or(0, |meta| meta.len());
            if have < before || have >= (before + aim).min(bytes.len() as u64) {
                break;
            }
            std::thread::yield_now();
        }
        drop(worker);
        while events.try_recv().is_ok() {}
        if fetcher.target().exists() {
            ends += 1;
            assert!(std::fs::read(fetcher.target()).unwrap() == bytes, "kill {kill}");
            std::fs::remove_file(fetcher.target()).unwrap();
        } else if let Some(part) = part() {
            let have = std::fs::read(part).unwrap();
            assert!(bytes.starts_with(&have), "kill {kill}");
        }
    }
    assert!(server.froms().iter().any(|from| *from > 0), "{ends} ended");
    limit.store(bytes.len(), Ordering::SeqCst);
    let mut worker = Worker::spawn("download::processes::worker");
    worker.order(&order);
    assert_eq!(worker.served(), Served::Answer(digest.to_string()));
    assert!(std::fs::read(fetcher.target()).unwrap() == bytes);
}
