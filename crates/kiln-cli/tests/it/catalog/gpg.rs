//! GnuPG with a home of its own, and its agent ended with it.

use kiln_sys::tool::ScratchDir;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// 2024-01-01: when keys are made, unless a test says otherwise.
const MADE: u64 = 1_704_067_200;

pub(super) struct Gpg {
    home: ScratchDir,
    pub(super) fingerprint: String,
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
    /// Makes a key.
    pub(super) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let home = ScratchDir::new(&std::env::temp_dir()).unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut gpg = Self { home, fingerprint: String::new() };
        gpg.run(0, &["--batch", "--quick-generate-key", "Demo", "ed25519", "sign", "never"], b"");
        let list = String::from_utf8(gpg.run(0, &["--with-colons", "--list-keys"], b"")).unwrap();
        let line = list.lines().find(|line| line.starts_with("fpr:")).unwrap();
        gpg.fingerprint = line.split(':').nth(9).unwrap().to_owned();
        gpg
    }

    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs `gpg` so many days after the key was made and returns what it printed.
    fn run(&self, days: u64, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("gpg")
            .arg("--homedir")
            .arg(self.home.path())
            .args(["--no-tty", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""])
            .arg(format!("--faked-system-time={}!", MADE + days * 86_400))
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

    pub(super) fn key(&self) -> Vec<u8> {
        self.run(0, &["--armor", "--export"], b"")
    }

    pub(super) fn detached(&self, days: u64, text: &[u8]) -> Vec<u8> {
        self.run(days, &["--batch", "--armor", "--output", "-", "--detach-sign"], text)
    }

    pub(super) fn clear(&self, days: u64, text: &[u8]) -> Vec<u8> {
        self.run(days, &["--batch", "--output", "-", "--clear-sign"], text)
    }
}
