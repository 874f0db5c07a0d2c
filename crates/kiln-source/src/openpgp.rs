//! Signatures of OpenPGP, checked against pinned signers.
//!
//! A [`Keyring`] holds certificates, pinned [`Fingerprint`]s say which of them are believed: each is the whole fingerprint of a
//! primary key, and nothing else about a certificate makes it trusted. [`verify_detached`] checks a file beside its
//! data, [`verify_clear_signed`] a text with its signature in it, and gives the text that was signed and nothing more.
//!
//! A signature is good when
//!
//! - it was made by a pinned primary key or by a subkey that the primary key binds and that claims the primary key in
//!   turn, and the newest valid self-signature of that key allows it to sign;
//! - it is of version 4 or 6, or of version 3, which openSUSE's are: those differ in having neither the whole fingerprint
//!   of their key nor conditions;
//! - its hash is SHA-256, SHA-384, SHA-512 or SHA-3 (a self-signature in a certificate may use SHA-1: there the key's
//!   owner chose every byte);
//! - neither it nor the key had expired when it was made, it is not older than its key, has not expired since, and is
//!   not more than [`CLOCK_SKEW`] ahead of the clock;
//! - neither the key nor its primary key is revoked: a revocation in the keyring counts whatever its reason and
//!   whatever its date, for signatures from before it too;
//! - the key has not expired since, unless [`VerifyOptions::expired_keys`] allows it, as it may for a release that is no
//!   longer maintained. Whoever has an expired key can date a signature back, so allowing it trusts the key for ever.
//!
//! A file may hold several signatures. Those by keys that no pin leads to are passed over; one good one is enough; but
//! one that claims a pinned key and is not that key's is an error whatever else there is.

mod armor;
mod certificate;
mod clear;
mod error;
mod fingerprint;
mod keyring;
mod signature;

pub use error::{ArmorError, ClearSignedError, KeyringError, SignatureError, Unusable};
pub use keyring::Keyring;

use kiln_core::catalog::Fingerprint;
use std::io::{Read, Seek};
use std::time::{Duration, SystemTime};

/// The largest keyring, in bytes as it is read.
pub const KEYRING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The most certificates of a keyring.
pub const CERTIFICATES_MAX: usize = 1024;

/// The largest file of signatures, in bytes as it is read.
pub const SIGNATURE_BYTES_MAX: usize = 64 * 1024;

/// The most signatures of one file.
pub const SIGNATURES_MAX: usize = 32;

/// The longest clear-signed text, in bytes with its armour: a manifest of the longest form and its signatures.
pub const CLEAR_SIGNED_BYTES_MAX: usize = crate::checksum::MANIFEST_BYTES_MAX + SIGNATURE_BYTES_MAX;

/// How far ahead of the clock the time of a signature may be.
pub const CLOCK_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// What a signature is judged by beside keys and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyOptions {
    /// The present time.
    pub now: SystemTime,
    /// Whether a signature counts whose key has expired since it was made.
    pub expired_keys: bool,
}

impl VerifyOptions {
    /// Judges by the time `now`, without keys that have expired.
    pub fn at(now: SystemTime) -> Self {
        Self { now, expired_keys: false }
    }
}

/// A good signature by a pinned signer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// The primary key of the signer: a pinned one.
    pub signer: Fingerprint,
    /// The key that made the signature: the primary key or a subkey of it.
    pub key: Fingerprint,
    /// The name that the signer's certificate gives first, clipped and fit for a message. It proves nothing.
    pub user: Option<String>,
    /// The time the signature says it was made at.
    pub signed_at: SystemTime,
    /// When the key expired, where that was allowed.
    pub key_expired_at: Option<SystemTime>,
}

/// Returns keys, binary or armoured, as one armoured block.
///
/// # Errors
///
/// [`KeyringError`] for what is no keyring.
pub fn armoured_keys(keys: &[u8]) -> Result<String, KeyringError> {
    Keyring::parse(keys)?;
    Ok(armor::encode(&armor::decode(keys, armor::PUBLIC_KEY)?, armor::PUBLIC_KEY))
}

/// Checks `signatures`, binary or armoured, over all bytes of `data`, which is read once from its start for each signature
/// that claims a pinned key.
///
/// # Errors
///
/// [`SignatureError`], when no signature by a pinned signer is good, and when one is false.
pub fn verify_detached(
    mut data: impl Read + Seek,
    signatures: &[u8],
    keyring: &Keyring,
    pins: &[Fingerprint],
    options: &VerifyOptions,
) -> Result<Verified, SignatureError> {
    if signatures.len() > SIGNATURE_BYTES_MAX {
        return Err(SignatureError::TooLong { limit: SIGNATURE_BYTES_MAX });
    }
    let signatures = signature::parse(&armor::decode(signatures, armor::SIGNATURE)?)?;
    signature::check(&signatures, pgp::packet::SignatureType::Binary, &mut data, keyring, pins, options)
}

/// Checks a clear-signed text and returns with its signer what was signed: the lines without their dashes, without
/// blanks at their ends, each but the last ended by a line feed.
///
/// # Errors
///
/// As [`verify_detached`], and [`SignatureError::ClearSigned`] for a text of another form: one that is not
/// clear-signed, or has anything but white space before or behind the signed part.
pub fn verify_clear_signed(
    text: &[u8],
    keyring: &Keyring,
    pins: &[Fingerprint],
    options: &VerifyOptions,
) -> Result<(Verified, Vec<u8>), SignatureError> {
    if text.len() > CLEAR_SIGNED_BYTES_MAX {
        return Err(SignatureError::TooLong { limit: CLEAR_SIGNED_BYTES_MAX });
    }
    let parts = clear::parse(text)?;
    let signatures = signature::parse(&armor::decode(parts.signatures, armor::SIGNATURE)?)?;
    let mut canonical = std::io::Cursor::new(parts.canonical());
    let kind = pgp::packet::SignatureType::Text;
    let verified = signature::check(&signatures, kind, &mut canonical, keyring, pins, options)?;
    Ok((verified, parts.body()))
}

/// Returns what a clear-signed text says, whoever signed it: the lines as [`verify_clear_signed`] returns them.
///
/// # Errors
///
/// [`ClearSignedError`] for a text of another form.
pub fn clear_signed_text(text: &[u8]) -> Result<Vec<u8>, ClearSignedError> {
    Ok(clear::parse(text)?.body())
}
