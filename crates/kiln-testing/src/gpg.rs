//! GnuPG with a home of its own and at times of its own, and its agent ended with it.

use kiln_core::catalog::Fingerprint;
use kiln_sys::tool::ScratchDir;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 2024-01-01: when keys are made, unless a test says otherwise.
const MADE: u64 = 1_704_067_200;

/// A day, in seconds.
const DAY: u64 = 86_400;

/// Returns the time so many days after 2024-01-01.
pub fn gpg_day(days: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(MADE + days * DAY)
}

/// GnuPG. Its agent ends with this.
#[derive(Debug)]
pub struct Gpg {
    home: ScratchDir,
}

impl Drop for Gpg {
    fn drop(&mut self) {
        for what in [&["--kill", "all"][..], &["--remove-socketdir"]] {
            let mut gpgconf = Command::new("gpgconf");
            let _ = gpgconf.arg("--homedir").arg(self.home.path()).args(what).stderr(Stdio::null()).status();
        }
    }
}

impl Gpg {
    /// Makes one without keys.
    #[expect(clippy::new_without_default, reason = "it starts a program's home")]
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let home = ScratchDir::new(&std::env::temp_dir()).unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { home }
    }

    /// Runs `gpg` so many days after 2024-01-01 and returns what it printed.
    pub fn run(&self, days: u64, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("gpg")
            .arg("--homedir")
            .arg(self.home.path())
            .args(["--no-tty", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""])
            .arg(format!("--faked-system-time={}!", MADE + days * DAY))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // What is written is shorter than a pipe holds.
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "gpg {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Makes a key without a passphrase and returns its pin. `expires` is as GnuPG takes it: `never`, `1y`.
    pub fn key(&self, name: &str, algorithm: &str, usage: &str, expires: &str) -> Fingerprint {
        self.run(0, &["--batch", "--quick-generate-key", name, algorithm, usage, expires], b"");
        self.fingerprints(name)[0]
    }

    /// Returns the fingerprints of a key and of its subkeys, as pins.
    pub fn fingerprints(&self, name: &str) -> Vec<Fingerprint> {
        let list = String::from_utf8(self.run(0, &["--with-colons", "--list-keys", name], b"")).unwrap();
        let lines = list.lines().filter(|line| line.starts_with("fpr:"));
        lines.map(|line| line.split(':').nth(9).unwrap().parse().unwrap()).collect()
    }

    /// Adds a subkey that signs and returns its fingerprint.
    pub fn subkey(&self, pin: Fingerprint, usage: &str, expires: &str) -> Fingerprint {
        self.run(0, &["--batch", "--quick-add-key", &pin.to_string(), "ed25519", usage, expires], b"");
        *self.fingerprints(&pin.to_string()).last().unwrap()
    }

    /// Returns all public keys.
    pub fn export(&self) -> Vec<u8> {
        self.run(0, &["--export"], b"")
    }

    /// Returns its home.
    pub fn home(&self) -> PathBuf {
        self.home.path().to_owned()
    }
}
