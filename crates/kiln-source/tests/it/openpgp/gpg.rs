//! What is signed here, and by whom.

use kiln_core::catalog::Fingerprint;
use kiln_source::openpgp::{Keyring, SignatureError, Verified, VerifyOptions, verify_detached};
use std::io::Cursor;
use std::ops::Deref;

pub(super) use kiln_testing::gpg_day as day;

pub(super) struct Gpg(kiln_testing::Gpg);

impl Deref for Gpg {
    type Target = kiln_testing::Gpg;

    fn deref(&self) -> &kiln_testing::Gpg {
        &self.0
    }
}

impl Gpg {
    pub(super) fn new() -> Self {
        Self(kiln_testing::Gpg::new())
    }

    pub(super) fn keyring(&self) -> Keyring {
        Keyring::parse(&self.export()).unwrap()
    }

    /// Signs [`DATA`] on a day, binary, with more arguments for GnuPG.
    pub(super) fn sign(&self, days: u64, args: &[&str]) -> Vec<u8> {
        self.run(days, &[args, &["--batch", "--output", "-", "--detach-sign"]].concat(), DATA)
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
