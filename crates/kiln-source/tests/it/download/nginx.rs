//! Files of a real server: Debian's `nginx`, on loopback.

use super::{Fetcher, content, sha256};
use kiln_source::download::{Broken, DownloadError, Progress, Url};
use kiln_sys::Toolbox;
use kiln_sys::tool::ScratchDir;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Free ports that are tried: another process may take one first.
const PORTS_TRIED: usize = 10;

/// The server. It ends with this.
struct Nginx {
    dir: ScratchDir,
    child: Option<Child>,
    port: u16,
}

impl Nginx {
    /// Starts one that serves `www` of a directory of its own.
    fn start(tls: bool) -> Self {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        std::fs::create_dir(dir.path().join("www")).unwrap();
        if tls {
            certificates(dir.path());
        }
        for _ in 0..PORTS_TRIED {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            write_config(dir.path(), port, tls);
            if let Some(child) = spawn(dir.path(), port) {
                return Self { dir, child: Some(child), port };
            }
        }
        panic!("nginx does not start: {}", std::fs::read_to_string(dir.path().join("error.log")).unwrap())
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join("www").join(name), bytes).unwrap();
    }

    fn url(&self, path: &str) -> Url {
        format!("http://127.0.0.1:{}{path}", self.port).parse().unwrap()
    }

    fn url_tls(&self, path: &str) -> Url {
        format!("https://127.0.0.1:{}{path}", self.port).parse().unwrap()
    }

    /// Returns the certificate of who signed the server's.
    fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn start_again(&mut self) {
        self.child = spawn(self.dir.path(), self.port);
        assert!(self.child.is_some(), "nginx does not start again");
    }

    /// Ends it, and returns what it answered: status, range and condition of each request.
    fn answered(mut self) -> Vec<String> {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        // It writes down what was asked before it ends.
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
        child.wait().unwrap();
        let log = std::fs::read_to_string(self.dir.path().join("access.log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.end();
    }
}

fn write_config(dir: &Path, port: u16, tls: bool) {
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let aside: String = kinds.iter().map(|kind| format!("{kind}_temp_path tmp;\n")).collect();
    let secure = if tls { " ssl" } else { "" };
    let keys = if tls { "ssl_certificate cert.pem; ssl_certificate_key key.pem;" } else { "" };
    let text = format!(
        "daemon off; master_process off; pid pid; error_log error.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{\n\
         log_format asked '$status $http_range $http_if_range';\n\
         access_log access.log asked;\n\
         {aside}server {{ listen 127.0.0.1:{port}{secure}; root www; {keys} }}\n\
         }}\n"
    );
    std::fs::write(dir.join("nginx.conf"), text).unwrap();
}

/// Starts nginx and waits until it takes connections; none when it ends instead.
fn spawn(dir: &Path, port: u16) -> Option<Child> {
    let program = ["/usr/sbin/nginx", "nginx"].into_iter().find(|path| Path::new(path).exists());
    let mut child = Command::new(program.unwrap_or("nginx"))
        .args(["-c", "nginx.conf", "-e", "error.log", "-p"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx is installed");
    loop {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(child);
        }
        std::thread::yield_now();
    }
}

/// Makes an authority, and a certificate of it for this host.
fn certificates(dir: &Path) {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let own = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
    let leaf = ["-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca.pem", "-CAkey", "ca.key"];
    let runs: [&[&[&str]]; 2] = [
        &[&key, &["-subj", "/CN=an authority", "-keyout", "ca.key", "-out", "ca.pem"]],
        &[&key, &own, &leaf, &["-keyout", "key.pem", "-out", "cert.pem"]],
    ];
    for run in runs {
        let mut command = Command::new("openssl");
        let output = command.current_dir(dir).args(["req", "-x509"]).args(run.concat()).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
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
    let have = fetch_some(&mut fetcher, &nginx.url("/file"), &bytes, 1_000_000);
    let fetched = fetcher.fetch(&[nginx.url("/file")], Some(&sha256(&bytes))).unwrap();
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
    let (url, mut tries) = (nginx.url("/file"), 0);
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
    let have = fetch_some(&mut fetcher, &nginx.url("/file"), &new, 1_000_000);
    // Its name of a version is the second it was changed in, and the length.
    nginx.put("file", &new);
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
    let file = std::fs::File::options().append(true).open(nginx.dir.path().join("www/file")).unwrap();
    file.set_modified(later).unwrap();
    fetcher.fetch(&[nginx.url("/file")], Some(&sha256(&new))).unwrap();
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
    let urls = [empty.url("/file"), full.url("/file")];
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
    fetcher.fetch(&[nginx.url_tls("/file")], Some(&digest)).unwrap();
    assert!(std::fs::read(fetcher.target()).unwrap() == bytes);
    // Another authority of the same name is not the one.
    let other = ScratchDir::new(&std::env::temp_dir()).unwrap();
    certificates(other.path());
    let fetcher = trusting(&other.path().join("ca.pem"));
    let error = fetcher.fetch(&[nginx.url_tls("/file")], Some(&digest)).unwrap_err();
    let DownloadError::Broken { source: Broken::Http(source), .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("invalid peer certificate"), "{source}");
    // It does not become trusted by asking again.
    assert!(fetcher.waits.seen().is_empty());
    assert!(!fetcher.target().exists() && fetcher.left().is_empty());
    assert_eq!(nginx.answered(), ["200 - -"]);
}
