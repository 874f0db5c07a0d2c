//! A key of the tests, and what it signs.

use std::path::PathBuf;

pub(super) struct Gpg {
    gpg: kiln_testing::Gpg,
    pub(super) fingerprint: String,
}

impl Gpg {
    /// Makes a key.
    pub(super) fn new() -> Self {
        let gpg = kiln_testing::Gpg::new();
        let fingerprint = gpg.key("Demo", "ed25519", "sign", "never").to_string();
        Self { gpg, fingerprint }
    }

    pub(super) fn home(&self) -> PathBuf {
        self.gpg.home()
    }

    pub(super) fn key(&self) -> Vec<u8> {
        self.gpg.run(0, &["--armor", "--export"], b"")
    }

    pub(super) fn detached(&self, days: u64, text: &[u8]) -> Vec<u8> {
        self.gpg.run(days, &["--batch", "--armor", "--output", "-", "--detach-sign"], text)
    }

    pub(super) fn clear(&self, days: u64, text: &[u8]) -> Vec<u8> {
        self.gpg.run(days, &["--batch", "--output", "-", "--clear-sign"], text)
    }
}
