//! A server of buckets on loopback: s3s-fs, which checks signatures, conditions and sums as Amazon's does, before which a
//! test may put a fault.

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// What the server asks for.
const KEY: [&str; 2] = ["AKID", "SECRET"];

/// A request that is answered otherwise than by the server: method, a part of its path and query.
#[derive(Debug, Clone)]
struct Fault {
    method: &'static str,
    part: String,
    status: u16,
    header: Option<(&'static str, &'static str)>,
    body: &'static str,
    /// Whether the server does what it is asked all the same.
    done: bool,
}

#[derive(Debug, Default)]
struct Log {
    asked: Vec<String>,
    faults: Vec<Fault>,
}

/// The server. Dropping it ends it.
#[derive(Debug)]
pub struct BucketServer {
    address: SocketAddr,
    root: PathBuf,
    log: Arc<Mutex<Log>>,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
}

impl BucketServer {
    /// Starts one on a free port, whose buckets are in a directory: each is a directory there.
    pub fn start(root: &Path, buckets: &[&str]) -> Self {
        for bucket in buckets {
            std::fs::create_dir_all(root.join(bucket)).unwrap();
        }
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY[0], KEY[1]));
        let service = builder.build();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::<Mutex<Log>>::default();
        let (stop, stopped) = oneshot::channel();
        let told = Arc::clone(&log);
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(listener, service, told, stopped));
        });
        Self { address, root: root.to_owned(), log, stop: Some(stop), running: Some(running) }
    }

    /// Returns the address of the server.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the public and the secret key.
    pub fn key(&self) -> [&'static str; 2] {
        KEY
    }

    /// Returns where the bytes of an object are.
    pub fn object(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }

    /// Returns what was asked for since this was last called: method, path and query without a signature.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap().asked)
    }

    /// Has the next request of a method, with this in its path or query, be answered with a status and not done.
    pub fn refuse(&self, method: &'static str, part: &str, status: u16) {
        self.say(method, part, status, None, "");
    }

    /// Has the next such request be done, and its answer be lost behind a status.
    pub fn lose(&self, method: &'static str, part: &str, status: u16) {
        let part = part.to_owned();
        self.fault(Fault { method, part, status, header: None, body: "", done: true });
    }

    /// Has the next such request be answered so, and not done.
    pub fn say(
        &self,
        method: &'static str,
        part: &str,
        status: u16,
        header: Option<(&'static str, &'static str)>,
        body: &'static str,
    ) {
        self.fault(Fault { method, part: part.to_owned(), status, header, body, done: false });
    }

    fn fault(&self, fault: Fault) {
        self.log.lock().unwrap().faults.push(fault);
    }
}

impl Drop for BucketServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(running) = self.running.take() {
            let _ = running.join();
        }
    }
}

async fn run(
    listener: std::net::TcpListener,
    service: S3Service,
    log: Arc<Mutex<Log>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let stream = tokio::select! {
            _ = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = stream else { continue };
        let (service, log) = (service.clone(), Arc::clone(&log));
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(&service, &log, request));
            // A client that goes away is none of the server's business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(
    service: &S3Service,
    log: &Mutex<Log>,
    request: Request<Incoming>,
) -> Result<HttpResponse, HttpError> {
    let uri = request.uri();
    let own = |pair: &&str| !pair.starts_with("X-Amz-");
    let query: Vec<&str> = uri.query().unwrap_or_default().split('&').filter(own).collect();
    let asked = format!("{} {}?{}", request.method(), uri.path(), query.join("&"));
    let asked = asked.trim_end_matches('?').to_owned();
    let fault = {
        let mut log = log.lock().unwrap();
        log.asked.push(asked.clone());
        let meant = |fault: &Fault| {
            asked
                .split_once(' ')
                .is_some_and(|(method, rest)| method == fault.method && rest.contains(&fault.part))
        };
        let found = log.faults.iter().position(meant);
        found.map(|at| log.faults.remove(at))
    };
    let answer = match &fault {
        Some(fault) if !fault.done => Ok(HttpResponse::new(Body::empty())),
        _ => service.call(request.map(Body::from)).await,
    };
    match (fault, answer) {
        (Some(fault), _) => {
            let mut answer = HttpResponse::new(Body::from(fault.body.to_owned()));
            *answer.status_mut() = fault.status.try_into().unwrap();
            if let Some((name, value)) = fault.header {
                answer.headers_mut().insert(name, value.try_into().unwrap());
            }
            Ok(answer)
        }
        (None, answer) => answer,
    }
}
