//! A server on loopback that answers as it is told to, and writes down what it was asked.

use kiln_source::download::Url;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// What was asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// How many were asked before.
    pub(crate) nth: usize,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) host: Option<String>,
    /// A form that was sent.
    pub(crate) form: Option<String>,
}

impl Request {
    /// Returns the first byte that is asked for.
    pub(crate) fn from(&self) -> usize {
        self.ends().0
    }

    /// Returns the first byte that is asked for, and the one after the last where it is said.
    pub(crate) fn ends(&self) -> (usize, Option<usize>) {
        let range = self.range.as_deref().unwrap_or("bytes=0-").strip_prefix("bytes=").unwrap();
        let (from, last) = range.split_once('-').unwrap();
        (from.parse().unwrap(), last.parse().ok().map(|last: usize| last + 1))
    }
}

/// How the body goes.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Whole,
    /// So many bytes, and an end.
    Cut(usize),
    /// So many bytes, and nothing more.
    Stall(usize),
    /// So many bytes, and the rest when the gate opens.
    Gate(usize, Gate),
    /// Byte for byte.
    Drip,
}

/// Something that opens once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(open, |open| !*open).unwrap());
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) act: Act,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: vec!["Content-Length: 0".to_owned()], body: Vec::new(), act: Act::Whole }
    }

    /// Answers as a good server does with a file of one version.
    pub(crate) fn file(request: &Request, bytes: &[u8], etag: &str) -> Self {
        let etagged = format!("ETag: {etag}");
        let fresh = request.if_range.as_deref().is_none_or(|asked| asked == etag);
        let (from, to) = if fresh { request.ends() } else { (0, None) };
        let to = to.unwrap_or(bytes.len()).min(bytes.len());
        if from >= bytes.len() && from > 0 {
            return Self::status(416).with(&format!("Content-Range: bytes */{}", bytes.len()));
        }
        let body = bytes[from..to].to_vec();
        let length = format!("Content-Length: {}", body.len());
        let mut headers = vec![etagged, length, "Accept-Ranges: bytes".to_owned()];
        let partial = request.range.is_some() && fresh;
        if partial {
            headers.push(format!("Content-Range: bytes {from}-{}/{}", to - 1, bytes.len()));
        }
        Self { status: if partial { 206 } else { 200 }, headers, body, act: Act::Whole }
    }

    pub(crate) fn with(mut self, header: &str) -> Self {
        self.headers.push(header.to_owned());
        self
    }

    /// Leaves out headers of a name.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|header| !header.starts_with(name));
        self
    }

    pub(crate) fn act(mut self, act: Act) -> Self {
        self.act = act;
        self
    }
}

type Streams = Arc<Mutex<Vec<TcpStream>>>;

/// The server. Dropping it ends it and all its connections.
pub(crate) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    streams: Streams,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop, streams) =
            (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)), Streams::default());
        let (log, ended, open, answer) =
            (Arc::clone(&seen), Arc::clone(&stop), Arc::clone(&streams), Arc::new(answer));
        let accepting = std::thread::spawn(move || {
            let mut serving = Vec::new();
            for stream in listener.incoming().flatten() {
                open.lock().unwrap().push(stream.try_clone().unwrap());
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                serving.push(std::thread::spawn(move || {
                    // A client that goes away is what many tests are about.
                    let _ = serve(&stream, &log, answer.as_ref());
                    let _ = stream.shutdown(Shutdown::Both);
                }));
            }
            for stream in open.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
            serving.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Self { address, seen, stop, streams, accepting: Some(accepting) }
    }

    /// Serves one file, well.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let bytes = bytes.to_vec();
        Self::start(move |request| Reply::file(request, &bytes, "\"1\""))
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns the first byte of each request.
    pub(crate) fn froms(&self) -> Vec<usize> {
        self.seen().iter().map(Request::from).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        for stream in self.streams.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn serve(
    mut stream: &TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines();
    let (mut request, mut length) = (Request::default(), None);
    let mut first = lines.next().transpose()?.unwrap_or_default();
    if first.starts_with("CONNECT ") {
        // As a proxy, it is every host itself.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        stream.write_all(b"HTTP/1.1 200 x\r\n\r\n")?;
        first = lines.next().transpose()?.unwrap_or_default();
    }
    request.path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    if request.path.is_empty() {
        return Ok(());
    }
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        let value = Some(value.to_owned());
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = value,
            "if-range" => request.if_range = value,
            "authorization" => request.authorization = value,
            "host" => request.host = value,
            "content-length" => length = value.and_then(|length| length.parse().ok()),
            _ => {}
        }
    }
    if let Some(length) = length {
        let mut form = vec![0; length];
        reader.read_exact(&mut form)?;
        request.form = String::from_utf8(form).ok();
    }
    {
        let mut log = log.lock().unwrap();
        request.nth = log.len();
        log.push(request.clone());
    }
    let reply = answer(&request);
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    for header in &reply.headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    let body = &reply.body;
    match reply.act {
        Act::Whole => stream.write_all(body),
        Act::Cut(at) => stream.write_all(&body[..at.min(body.len())]),
        Act::Stall(at) => {
            stream.write_all(&body[..at.min(body.len())])?;
            // Until the client has had enough.
            stream.read(&mut [0]).map(|_| ())
        }
        Act::Gate(at, gate) => {
            let (before, after) = body.split_at(at.min(body.len()));
            stream.write_all(before)?;
            gate.wait();
            stream.write_all(after)
        }
        Act::Drip => body.iter().try_for_each(|byte| stream.write_all(&[*byte])),
    }
}
