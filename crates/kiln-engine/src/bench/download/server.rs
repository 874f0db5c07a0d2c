//! One file, on loopback, for whoever asks: all of it, or one part.

use crate::EngineResult;
use kiln_sys::{IoResultExt as _, fs};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The most bytes of a request.
const REQUEST_BYTES_MAX: u64 = 16 << 10;
/// The bytes that the kernel is asked to send at a time.
const SENT_BYTES: u64 = 1 << 20;

/// The server. Dropping it ends it; whoever fetches from it has ended before.
pub(super) struct Server {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one on a free port.
    pub(super) fn start(path: &Path) -> EngineResult<Self> {
        let file = Arc::new(fs::open(path)?);
        let length = file.metadata().at("inspect", path)?.len();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).at("listen for", path)?;
        let address = listener.local_addr().at("listen for", path)?;
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let file = Arc::clone(&file);
                std::thread::spawn(move || {
                    // Whoever goes away early has what it wants.
                    let _ = serve(&stream, &file, length);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(Self { address, over, serving: Some(serving) })
    }

    /// Returns where the file is.
    pub(super) fn url(&self) -> String {
        format!("http://{}/file", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if TcpStream::connect(self.address).is_ok()
            && let Some(serving) = self.serving.take()
        {
            let _ = serving.join();
        }
    }
}

/// Answers requests of a connection until there is none.
fn serve(mut stream: &TcpStream, file: &File, length: u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut part = None;
        let mut lines = reader.by_ref().take(REQUEST_BYTES_MAX);
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        while !line.trim_end().is_empty() {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                part = ends(range.trim_end(), length);
            }
        }
        let (from, to) = part.unwrap_or((0, length));
        let mut head = format!(
            "HTTP/1.1 {}\r\nETag: \"1\"\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n",
            if part.is_some() { "206 Partial Content" } else { "200 OK" },
            to - from
        );
        if part.is_some() {
            head.push_str(&format!("Content-Range: bytes {from}-{}/{length}\r\n", to - 1));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        let mut at = from;
        while at < to {
            let most = usize::try_from((to - at).min(SENT_BYTES)).unwrap_or(usize::MAX);
            if rustix::fs::sendfile(stream, file, Some(&mut at), most)? == 0 {
                return Ok(());
            }
        }
    }
}

/// Reads `5-9`, or `5-` for all from there on.
fn ends(range: &str, length: u64) -> Option<(u64, u64)> {
    let (from, last) = range.split_once('-')?;
    let from = from.parse().ok()?;
    let to = if last.is_empty() { length } else { last.parse::<u64>().ok()?.checked_add(1)? };
    (from < to && to <= length).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_given_whole_or_in_part() {
        let scratch = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = scratch.path().join("file");
        kiln_sys::commit::write_staged(&path, b"0123456789", 0o600).unwrap();
        let server = Server::start(&path).unwrap();
        for (range, status, body) in [
            ("", "200", "0123456789"),
            ("Range: bytes=4-5\r\n", "206", "45"),
            ("Range: bytes=8-\r\n", "206", "89"),
        ] {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(format!("GET /file HTTP/1.1\r\n{range}\r\n").as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(
                text.starts_with(&format!("HTTP/1.1 {status} "))
                    && text.ends_with(&format!("\r\n\r\n{body}")),
                "{text}"
            );
        }
        assert_eq!(ends("4-10", 10), None);
    }
}
