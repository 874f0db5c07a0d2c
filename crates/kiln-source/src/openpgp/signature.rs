//! Signatures over data.

use super::certificate::{Candidate, Standing, expires_at, has_unknown_condition, is_strong};
use super::error::Unusable;
use super::{CLOCK_SKEW, Fingerprint, Keyring, SIGNATURES_MAX, SignatureError, Verified, VerifyOptions};
use pgp::packet::{Packet, PacketParser, Signature, SignatureType, SignatureVersion};
use std::io::{self, Read, Seek};
use std::time::SystemTime;

/// Reads signatures from their packets.
pub(super) fn parse(packets: &[u8]) -> Result<Vec<Signature>, SignatureError> {
    let mut signatures = Vec::new();
    for (index, packet) in PacketParser::new(packets).enumerate() {
        let index = index + 1;
        if index > SIGNATURES_MAX {
            return Err(SignatureError::TooMany);
        }
        match packet {
            Ok(Packet::Signature(signature)) => signatures.push(signature),
            Ok(_) => return Err(SignatureError::OtherPacket { index }),
            Err(source) => return Err(SignatureError::Packet { index, source: Box::new(source) }),
        }
    }
    if signatures.is_empty() { Err(SignatureError::NoSignature) } else { Ok(signatures) }
}

/// Finds the first good signature by a pinned key, after all of them were looked at.
pub(super) fn check(
    signatures: &[Signature],
    kind: SignatureType,
    data: &mut (impl Read + Seek),
    keyring: &Keyring,
    pins: &[Fingerprint],
    options: &VerifyOptions,
) -> Result<Verified, SignatureError> {
    let keys: Vec<Candidate<'_>> =
        keyring.pinned(pins).flat_map(|certificate| certificate.candidates()).collect();
    if keys.is_empty() {
        return Err(SignatureError::NoPinnedKey);
    }
    let (mut good, mut refused, mut unknown) = (None, None, Vec::new());
    for signature in signatures {
        let claimed: Vec<_> = keys.iter().filter(|key| key.claimed_by(signature)).copied().collect();
        let Some(first) = claimed.first() else {
            unknown.push(claim(signature));
            continue;
        };
        if let Err(problem) = form(signature, kind) {
            refused.get_or_insert(SignatureError::Unusable { key: first.fingerprint, problem });
            continue;
        }
        let Some(key) = maker(signature, &claimed, data)? else {
            return Err(SignatureError::False { key: first.fingerprint });
        };
        match judge(signature, &key, options) {
            Ok(verified) => _ = good.get_or_insert(verified),
            Err(error) => _ = refused.get_or_insert(error),
        }
    }
    match (good, refused) {
        (Some(verified), _) => Ok(verified),
        (None, Some(error)) => Err(error),
        (None, None) => Err(SignatureError::UnknownSigner { found: unknown }),
    }
}

/// Returns what a signature says of its key.
fn claim(signature: &Signature) -> String {
    if let Some(fingerprint) = signature.issuer_fingerprint().first() {
        return fingerprint.to_string().to_uppercase();
    }
    signature
        .issuer_key_id()
        .first()
        .map_or_else(|| "a key without an id".to_owned(), |id| id.to_string().to_uppercase())
}

/// Checks what a signature is, before it is known whether it is true.
fn form(signature: &Signature, kind: SignatureType) -> Result<(), Unusable> {
    let (Some(found), Some(hash)) = (signature.typ(), signature.hash_alg()) else {
        return Err(Unusable::Version);
    };
    // What version 3 signs beside the data is its kind and its time. The last bytes that later versions sign there are 0xFF
    // and a length, which as version 3 would be no kind that is asked for: none is taken for the other.
    let known = [SignatureVersion::V3, SignatureVersion::V4, SignatureVersion::V6];
    if !known.contains(&signature.version()) {
        return Err(Unusable::Version);
    }
    if found != kind {
        return Err(Unusable::Kind(format!("{found:?}")));
    }
    if !is_strong(hash) {
        return Err(Unusable::Hash(hash.to_string()));
    }
    if has_unknown_condition(signature) {
        return Err(Unusable::Critical);
    }
    Ok(())
}

/// Returns the key that made a signature, of those it claims.
fn maker<'a>(
    signature: &Signature,
    claimed: &[Candidate<'a>],
    data: &mut (impl Read + Seek),
) -> Result<Option<Candidate<'a>>, SignatureError> {
    for key in claimed {
        data.rewind().map_err(SignatureError::Read)?;
        let mut reader = Noting { inner: &mut *data, failed: None };
        let made = key.made(signature, &mut reader);
        if let Some(error) = reader.failed {
            return Err(SignatureError::Read(error));
        }
        if made {
            return Ok(Some(*key));
        }
    }
    Ok(None)
}

/// Judges a signature that `key` made.
fn judge(
    signature: &Signature,
    key: &Candidate<'_>,
    options: &VerifyOptions,
) -> Result<Verified, SignatureError> {
    let unusable = |problem| SignatureError::Unusable { key: key.fingerprint, problem };
    let created = signature.created().ok_or_else(|| unusable(Unusable::NoTime))?;
    let signed_at = SystemTime::from(created);
    if signed_at > options.now + CLOCK_SKEW {
        return Err(SignatureError::Future { key: key.fingerprint, signed_at });
    }
    let Standing { created_at, expires_at: key_expires_at } = key.standing(options.now)?;
    if signed_at < created_at {
        return Err(unusable(Unusable::OlderThanKey));
    }
    if let Some(expired_at) = expires_at(created, signature).filter(|end| *end <= options.now) {
        return Err(SignatureError::Expired { key: key.fingerprint, expired_at });
    }
    let key_expired_at = key_expires_at.filter(|end| *end <= options.now || *end <= signed_at);
    if let Some(expired_at) = key_expired_at {
        let signed_before = signed_at < expired_at;
        if !signed_before || !options.expired_keys {
            return Err(SignatureError::KeyExpired { key: key.fingerprint, expired_at, signed_before });
        }
    }
    let signer: Fingerprint = key.certificate.fingerprint;
    let user = key.certificate.user(options.now);
    Ok(Verified { signer, key: key.fingerprint, user, signed_at, key_expired_at })
}

/// A reader that keeps the error it fails with, which the caller of the crate that reads it does not see as such.
struct Noting<R> {
    inner: R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Noting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        match result {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
            other => other,
        }
    }
}
