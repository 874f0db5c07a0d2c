//! Debian's `nginx` on loopback, which ends with the test.

use kiln_sys::tool::ScratchDir;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Free ports that are tried: another process may take one first.
const PORTS_TRIED: usize = 10;

/// The server. It ends with this.
#[derive(Debug)]
pub struct Nginx {
    dir: ScratchDir,
    child: Option<Child>,
    port: u16,
}

impl Nginx {
    /// Starts one that serves `www` of a directory of its own.
    pub fn start(tls: bool) -> Self {
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

    /// Serves these bytes under a path.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.file(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Returns the file that is served under a path.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("www").join(name)
    }

    /// Returns the address of a path that begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The same over TLS.
    pub fn url_tls(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// Returns the certificate of who signed the server's.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Ends it.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on its port.
    pub fn start_again(&mut self) {
        self.child = spawn(self.dir.path(), self.port);
        assert!(self.child.is_some(), "nginx does not start again");
    }

    /// Ends it, and returns what it answered: status, range and condition of each request.
    pub fn answered(mut self) -> Vec<String> {
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
