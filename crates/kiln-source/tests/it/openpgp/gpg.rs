//! GnuPG with a home of its own and at times of its own, and its agent ended with it.

use kiln_core::catalog::Fingerprint;
use kiln_source::openpgp::{Keyring, SignatureError, Verified, VerifyOptions, verify_detached};
use kiln_sys::tool::ScratchDir;
use std::io::{Cursor, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 2024-01-01: when keys are made, unless a test says otherwise.
pub(super) const MADE: u64 = 1_704_067_200;

/// A day, in seconds.
pub(super) const DAY: u64 = 86_400;

/// Returns the time so many days after [`MADE`].
pub(super) fn day(days: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(MADE + days * DAY)
}

pub(super) struct Gpg {
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
    pub(super) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let home = ScratchDir::new(&std::env::temp_dir()).unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { home }
    }

    /// Runs `gpg` so many days after [`MADE`] and returns what it printed.
    pub(super) fn run(&self, days: u64, args: &[&str], input: &[u8]) -> Vec<u8> {
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
    pub(super) fn key(&self, name: &str, algorithm: &str, usage: &str, expires: &str) -> Fingerprint {
        self.run(0, &["--batch", "--quick-generate-key", name, algorithm, usage, expires], b"");
        self.fingerprints(name)[0]
    }

    /// Returns the fingerprints of a key and of its subkeys, as pins.
    pub(super) fn fingerprints(&self, name: &str) -> Vec<Fingerprint> {
        let list = String::from_utf8(self.run(0, &["--with-colons", "--list-keys", name], b"")).unwrap();
        let lines = list.lines().filter(|line| line.starts_with("fpr:"));
        lines.map(|line| line.split(':').nth(9).unwrap().parse().unwrap()).collect()
    }

    /// Adds a subkey that signs and returns its fingerprint.
    pub(super) fn subkey(&self, pin: Fingerprint, usage: &str, expires: &str) -> Fingerprint {
        self.run(0, &["--batch", "--quick-add-key", &pin.to_string(), "ed25519", usage, expires], b"");
        *self.fingerprints(&pin.to_string()).last().unwrap()
    }

    pub(super) fn export(&self) -> Vec<u8> {
        self.run(0, &["--export"], b"")
    }

    pub(super) fn keyring(&self) -> Keyring {
        Keyring::parse(&self.export()).unwrap()
    }

    /// Signs [`DATA`] on a day, binary, with more arguments for GnuPG.
    pub(super) fn sign(&self, days: u64, args: &[&str]) -> Vec<u8> {
        self.run(days, &[args, &["--batch", "--output", "-", "--detach-sign"]].concat(), DATA)
    }

    pub(super) fn home(&self) -> PathBuf {
        self.home.path().to_owned()
    }
}

/// What the tests sign.
pub(super) const DATA: &[u8] = b"0123  image.qcow2\nline two \n";

/// Checks a signature over [`DATA`] on a day.
pub(super) fn verify(
    keyring: &Keyring,
    pins: &[Fingerprint],
    signature: &[u8],
    days: u64,
) -> Result<Verified, SignatureError> {
    verify_detached(Cursor::new(DATA), signature, keyring, pins, &VerifyOptions::at(day(days)))
}
