//! Somebody who publishes images: a server on loopback, a key, and a catalog that tells of both.

use kiln_sys::tool::ScratchDir;
use kiln_testing::TestContext;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// 2024-01-01, in seconds.
const MADE: u64 = 1_704_067_200;

#[derive(Default)]
struct Shared {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    ended: AtomicBool,
}

pub(super) struct Publisher {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
    gpg: ScratchDir,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.serving.take().map(JoinHandle::join);
        for what in [&["--kill", "all"][..], &["--remove-socketdir"]] {
            let mut gpgconf = Command::new("gpgconf");
            let _ = gpgconf.arg("--homedir").arg(self.gpg.path()).args(what).stderr(Stdio::null()).status();
        }
    }
}

fn answer(stream: TcpStream, shared: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line).ok()?;
    }
    let body = shared.files.lock().unwrap().get(&path).cloned();
    shared.asked.lock().unwrap().push(path);
    let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
    let body = body.unwrap_or_default();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let mut stream = reader.into_inner();
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body).ok()
}

impl Publisher {
    /// Begins to serve, and adds a catalog: `demo`, which is signed, and `plain`, which is not and has its kernel outside.
    pub(super) fn new(context: &TestContext) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::new(Shared::default()));
        let of_server = Arc::clone(&shared);
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_server.ended.load(Ordering::SeqCst) {
                    break;
                }
                let _ = stream.ok().and_then(|stream| answer(stream, &of_server));
            }
        });
        let gpg = ScratchDir::new(&std::env::temp_dir()).unwrap();
        std::fs::set_permissions(gpg.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let publisher = Self { address, shared, serving: Some(serving), gpg };
        publisher.gpg(0, &["--batch", "--quick-generate-key", "demo", "ed25519", "sign", "never"]);
        let list = publisher.gpg(0, &["--with-colons", "--list-keys", "demo"]);
        let signer = list.lines().find(|line| line.starts_with("fpr:")).unwrap().split(':').nth(9).unwrap();
        let key = publisher.gpg(0, &["--armor", "--export"]);
        let catalog = format!(
            "version = 1\n[[distribution]]\nname = \"demo\"\ntitle = \"Demo\"\nuser = \"demo\"\n\
             arch = {{ x86_64 = \"amd64\", aarch64 = \"arm64\" }}\nformat = \"qcow2\"\nurl = \"http://{address}\"\n\
             disk = \"demo-{{release}}.img\"\nchecksums = \"SHA256SUMS\"\nsignature = \"SHA256SUMS.sig\"\n\
             signers = [\"{signer}\"]\nkeys = [\"\"\"{key}\"\"\"]\n\
             [[distribution.release]]\nname = \"1\"\naliases = [\"one\"]\n[[distribution.release]]\nname = \"2\"\n\
             [[distribution]]\nname = \"plain\"\ntitle = \"Plain\"\nuser = \"plain\"\n\
             arch = {{ x86_64 = \"amd64\", aarch64 = \"arm64\" }}\nformat = \"qcow2\"\nurl = \"http://{address}\"\n\
             disk = \"plain.img\"\nkernel = \"plain-kernel\"\nchecksums = \"SHA512SUMS\"\n\
             [[distribution.release]]\nname = \"1\"\n"
        );
        context.kiln(["ls"]).ok();
        let catalogs = context.home().join("catalogs");
        std::fs::create_dir_all(&catalogs).unwrap();
        std::fs::write(catalogs.join("test.toml"), catalog).unwrap();
        publisher
    }

    /// Runs `gpg` so many days after [`MADE`] and returns what it printed.
    fn gpg(&self, days: u64, args: &[&str]) -> String {
        let output = Command::new("gpg")
            .arg("--homedir")
            .arg(self.gpg.path())
            .args(["--no-tty", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""])
            .arg(format!("--faked-system-time={}!", MADE + days * 86_400))
            .args(args)
            .current_dir(self.gpg.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "gpg {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn put(&self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.shared.files.lock().unwrap().insert(format!("/{name}"), bytes.into());
    }

    /// Publishes the checksums of disks of `demo`, by release, signed on a day. The disks cannot be fetched.
    pub(super) fn demo(&self, day: u64, disks: &[(&str, &Path)]) {
        let lines =
            disks.iter().map(|(release, path)| format!("{}  demo-{release}.img\n", sum("sha256sum", path)));
        let text: String = lines.collect();
        std::fs::write(self.gpg.path().join("sums"), &text).unwrap();
        let signature = self.gpg(day, &["--armor", "--output", "-", "--detach-sign", "sums"]);
        self.put("SHA256SUMS", text);
        self.put("SHA256SUMS.sig", signature);
    }

    /// Publishes the checksums of `plain`.
    pub(super) fn plain(&self, disk: &Path, kernel: &Path) {
        let (disk, kernel) = (sum("sha512sum", disk), sum("sha512sum", kernel));
        self.put("SHA512SUMS", format!("{disk}  plain.img\n{kernel}  plain-kernel\n"));
    }

    /// Returns what was asked for since this was asked last.
    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }
}

pub(super) fn sum(program: &str, path: &Path) -> String {
    let output = Command::new(program).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {}", path.display());
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}
