//! What a certificate says of its keys, by valid self-signatures only.

use super::error::Unusable;
use super::fingerprint::fingerprint;
use super::keyring::Certificate;
use super::{CLOCK_SKEW, Fingerprint, SignatureError};
use kiln_core::text::clip;
use pgp::composed::SignedPublicSubKey;
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{KeyFlags, Signature, SignatureType, SignatureVersion, SubpacketData};
use pgp::types::{KeyDetails as _, SignedUser, Tag, Timestamp};
use std::time::{Duration, SystemTime};

/// A key of a certificate that may have made a signature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) certificate: &'a Certificate,
    pub(super) fingerprint: Fingerprint,
    /// The subkey; none when it is the primary key.
    subkey: Option<&'a SignedPublicSubKey>,
}

/// What holds of a key that may sign.
#[derive(Debug)]
pub(super) struct Standing {
    /// When the key, or its primary key if that is younger, was made.
    pub(super) created_at: SystemTime,
    /// When the first of the key and its primary key expires.
    pub(super) expires_at: Option<SystemTime>,
}

impl Certificate {
    /// Returns all keys of the certificate.
    pub(super) fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        let primary = Candidate { certificate: self, fingerprint: self.fingerprint, subkey: None };
        let subkeys = self.key.public_subkeys.iter().filter_map(|subkey| {
            let fingerprint = fingerprint(&subkey.key)?;
            Some(Candidate { certificate: self, fingerprint, subkey: Some(subkey) })
        });
        std::iter::once(primary).chain(subkeys)
    }

    /// Returns the first name that a valid self-signature binds.
    pub(super) fn user(&self, now: SystemTime) -> Option<String> {
        let bound = |user: &&SignedUser| {
            certifications(self, user)
                .any(|signature| acceptable(signature, now) && certifies(self, user, signature))
        };
        let user = self.key.details.users.iter().find(bound)?;
        Some(clip(&String::from_utf8_lossy(user.id.id())))
    }

    /// Returns the newest valid self-signature over the primary key.
    fn self_signature(&self, now: SystemTime) -> Option<&Signature> {
        let direct = self.key.details.direct_signatures.iter();
        let direct = direct.filter(|signature| signature.typ() == Some(SignatureType::Key));
        let users = self.key.details.users.iter();
        let users =
            users.flat_map(|user| certifications(self, user).map(move |signature| (signature, Some(user))));
        newest(direct.map(|signature| (signature, None)).chain(users), now, |signature, user| match user {
            Some(user) => certifies(self, user, signature),
            None => signature.verify_key(&self.key.primary_key).is_ok(),
        })
    }

    /// Returns the revocation of the primary key, or of a subkey of it, if there is one.
    fn revocation(&self, subkey: Option<&SignedPublicSubKey>) -> Option<&Signature> {
        let primary = &self.key.primary_key;
        self.revocations.iter().find(|signature| match (subkey, signature.typ()) {
            (None, Some(SignatureType::KeyRevocation)) => signature.verify_key(primary).is_ok(),
            (Some(subkey), Some(SignatureType::SubkeyRevocation)) => {
                signature.verify_subkey_binding(primary, &subkey.key).is_ok()
            }
            _ => false,
        })
    }
}

impl Candidate<'_> {
    /// Tells whether the key made `signature` over `data`.
    pub(super) fn made(&self, signature: &Signature, data: impl std::io::Read) -> bool {
        match self.subkey {
            Some(subkey) => signature.verify(&subkey.key, data).is_ok(),
            None => signature.verify(&self.certificate.key.primary_key, data).is_ok(),
        }
    }

    /// Tells whether `signature` says it is by this key.
    pub(super) fn claimed_by(&self, signature: &Signature) -> bool {
        let (fingerprint, id) = match self.subkey {
            Some(subkey) => (subkey.key.fingerprint(), subkey.key.legacy_key_id()),
            None => {
                let primary = &self.certificate.key.primary_key;
                (primary.fingerprint(), primary.legacy_key_id())
            }
        };
        signature.issuer_fingerprint().contains(&&fingerprint) || signature.issuer_key_id().contains(&&id)
    }

    /// Returns what holds of the key.
    pub(super) fn standing(&self, now: SystemTime) -> Result<Standing, SignatureError> {
        let unusable = |problem| SignatureError::Unusable { key: self.fingerprint, problem };
        let certificate = self.certificate;
        let revoked = certificate.revocation(None).map(|signature| (certificate.fingerprint, signature));
        let revoked = revoked.or_else(|| {
            let signature = certificate.revocation(Some(self.subkey?))?;
            Some((self.fingerprint, signature))
        });
        if let Some((key, signature)) = revoked {
            let reason = signature.revocation_reason_string().filter(|reason| !reason.is_empty());
            let reason = reason.map(|reason| clip(&String::from_utf8_lossy(reason)));
            return Err(SignatureError::KeyRevoked { key, reason });
        }
        let primary = &certificate.key.primary_key;
        let own = certificate.self_signature(now).ok_or_else(|| unusable(Unusable::NoSelfSignature))?;
        let created = primary.created_at();
        let expires = expiry(created, own);
        let Some(subkey) = self.subkey else {
            // Certificates from before there were flags say nothing: their primary keys signed.
            if flags(own).is_some_and(|flags| !flags.sign()) {
                return Err(unusable(Unusable::NotForSigning));
            }
            return Ok(Standing { created_at: created.into(), expires_at: expires });
        };
        let bindings =
            subkey.signatures.iter().filter(|found| found.typ() == Some(SignatureType::SubkeyBinding));
        let binding = newest(bindings.map(|signature| (signature, ())), now, |signature, ()| {
            signature.verify_subkey_binding(primary, &subkey.key).is_ok()
        });
        let binding = binding.ok_or_else(|| unusable(Unusable::NotBound))?;
        if !flags(binding).is_some_and(|flags| flags.sign()) {
            return Err(unusable(Unusable::NotForSigning));
        }
        let back = binding.embedded_signature().filter(|back| acceptable(back, now));
        if back.is_none_or(|back| back.verify_primary_key_binding(&subkey.key, primary).is_err()) {
            return Err(unusable(Unusable::NoBackSignature));
        }
        let ends = [expires, expiry(subkey.key.created_at(), binding)];
        Ok(Standing {
            created_at: created.max(subkey.key.created_at()).into(),
            expires_at: ends.into_iter().flatten().min(),
        })
    }
}

/// Returns the self-certifications of a user id, of which there are none when it is revoked.
fn certifications<'a>(
    certificate: &'a Certificate,
    user: &'a SignedUser,
) -> impl Iterator<Item = &'a Signature> {
    let revoked = user.signatures.iter().any(|signature| {
        signature.typ() == Some(SignatureType::CertRevocation) && certifies(certificate, user, signature)
    });
    let all = user.signatures.iter().filter(move |_| !revoked);
    all.filter(|signature| {
        signature.is_certification() && signature.typ() != Some(SignatureType::CertRevocation)
    })
}

fn certifies(certificate: &Certificate, user: &SignedUser, signature: &Signature) -> bool {
    signature.verify_certification(&certificate.key.primary_key, Tag::UserId, &user.id).is_ok()
}

/// Returns the newest acceptable signature that `valid` says is one.
fn newest<'a, T>(
    signatures: impl Iterator<Item = (&'a Signature, T)>,
    now: SystemTime,
    valid: impl Fn(&Signature, &T) -> bool,
) -> Option<&'a Signature> {
    let mut all: Vec<_> = signatures.filter(|(signature, _)| acceptable(signature, now)).collect();
    all.sort_by_key(|(signature, _)| std::cmp::Reverse(signature.created()));
    all.into_iter().find(|(signature, of)| valid(signature, of)).map(|(signature, _)| signature)
}

/// Tells whether a self-signature counts at all, if it is true.
fn acceptable(signature: &Signature, now: SystemTime) -> bool {
    let versions = matches!(signature.version(), SignatureVersion::V4 | SignatureVersion::V6);
    let hash = signature.hash_alg();
    let hash = hash.is_some_and(|hash| is_strong(hash) || hash == HashAlgorithm::Sha1);
    let Some(created) = signature.created() else { return false };
    let expired = expires_at(created, signature).is_some_and(|end| end <= now);
    versions
        && hash
        && SystemTime::from(created) <= now + CLOCK_SKEW
        && !expired
        && !has_unknown_condition(signature)
}

/// Tells whether a hash withstands all known ways to make two texts of one digest.
pub(super) fn is_strong(hash: HashAlgorithm) -> bool {
    use HashAlgorithm::{Sha3_256, Sha3_512, Sha256, Sha384, Sha512};
    matches!(hash, Sha256 | Sha384 | Sha512 | Sha3_256 | Sha3_512)
}

/// Tells whether a signature has a notation that must be understood: none is here.
pub(super) fn has_unknown_condition(signature: &Signature) -> bool {
    let mut parts = signature.config().into_iter().flat_map(|config| config.hashed_subpackets());
    parts.any(|part| part.is_critical && matches!(part.data, SubpacketData::Notation(_)))
}

/// Returns when a signature that was made at `created` expires.
pub(super) fn expires_at(created: Timestamp, signature: &Signature) -> Option<SystemTime> {
    end(created, signature.signature_expiration_time()?.into())
}

/// Returns when a key that was made at `created` expires, as `signature` says.
fn expiry(created: Timestamp, signature: &Signature) -> Option<SystemTime> {
    end(created, signature.key_expiration_time()?.into())
}

/// No time at all stands for no end.
fn end(created: Timestamp, time: Duration) -> Option<SystemTime> {
    (!time.is_zero()).then(|| SystemTime::from(created) + time)
}

fn flags(signature: &Signature) -> Option<&KeyFlags> {
    signature.config()?.hashed_subpackets().find_map(|part| match &part.data {
        SubpacketData::KeyFlags(flags) => Some(flags),
        _ => None,
    })
}
