//! Certificates as they are read.

use super::fingerprint::fingerprint;
use super::{CERTIFICATES_MAX, Fingerprint, KEYRING_BYTES_MAX, KeyringError, armor};
use pgp::composed::{Deserializable as _, SignedPublicKey};
use pgp::packet::{Packet, PacketParser, PacketTrait as _, Signature, SignatureType};
use pgp::types::Tag;

/// The most packets of a keyring: each takes some hundred bytes of memory, however short it is.
const PACKETS_MAX: usize = 65_536;

/// Certificates: public keys with what their owners and others say of them. Being in a keyring makes no key trusted.
#[derive(Debug, Clone)]
pub struct Keyring {
    certificates: Vec<Certificate>,
}

/// A certificate of a version that is used here.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    pub(super) fingerprint: Fingerprint,
    pub(super) key: SignedPublicKey,
    /// All revocations of a key or a subkey in it, wherever they stand.
    pub(super) revocations: Vec<Signature>,
}

impl Keyring {
    /// Reads certificates, binary or in any number of armoured blocks. Those of versions before 4 are left out, since
    /// they cannot be pinned.
    ///
    /// # Errors
    ///
    /// [`KeyringError`], also when one certificate of many is not understood.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyringError> {
        if bytes.len() > KEYRING_BYTES_MAX {
            return Err(KeyringError::TooLong);
        }
        let packets = armor::decode(bytes, armor::PUBLIC_KEY)?;
        let mut groups: Vec<Vec<Packet>> = Vec::new();
        for (index, packet) in PacketParser::new(&packets[..]).enumerate() {
            let index = index + 1;
            if index > PACKETS_MAX {
                return Err(KeyringError::TooManyPackets { limit: PACKETS_MAX });
            }
            let packet = packet.map_err(|source| KeyringError::Packet { index, source: Box::new(source) })?;
            match (packet.tag(), groups.last_mut()) {
                (Tag::PublicKey, _) => {
                    if groups.len() == CERTIFICATES_MAX {
                        return Err(KeyringError::TooMany);
                    }
                    groups.push(vec![packet]);
                }
                // What GnuPG and others keep of their own in a keyring.
                (Tag::Trust | Tag::Marker | Tag::Padding, _) => {}
                (Tag::Signature | Tag::UserId | Tag::UserAttribute | Tag::PublicSubkey, Some(group)) => {
                    group.push(packet);
                }
                (tag, _) => return Err(KeyringError::OtherPacket { index, kind: format!("{tag:?}") }),
            }
        }
        let mut certificates: Vec<Certificate> = Vec::new();
        for (index, group) in groups.into_iter().enumerate() {
            let Some(certificate) = certificate(index + 1, group)? else { continue };
            let fingerprint = certificate.fingerprint;
            if certificates.iter().any(|known| known.fingerprint == fingerprint) {
                return Err(KeyringError::Twice { fingerprint });
            }
            certificates.push(certificate);
        }
        if certificates.is_empty() {
            return Err(KeyringError::Empty);
        }
        Ok(Self { certificates })
    }

    /// Returns the certificates of both.
    ///
    /// # Errors
    ///
    /// [`KeyringError`], when they are too many or one key is in both.
    pub fn joined(mut self, other: Self) -> Result<Self, KeyringError> {
        if self.certificates.len() + other.certificates.len() > CERTIFICATES_MAX {
            return Err(KeyringError::TooMany);
        }
        for certificate in other.certificates {
            let fingerprint = certificate.fingerprint;
            if self.fingerprints().any(|known| known == fingerprint) {
                return Err(KeyringError::Twice { fingerprint });
            }
            self.certificates.push(certificate);
        }
        Ok(self)
    }

    /// Returns the fingerprints of the primary keys, in their order.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.certificates.iter().map(|certificate| certificate.fingerprint)
    }

    /// Returns the certificates that are pinned.
    pub(super) fn pinned<'a>(&'a self, pins: &'a [Fingerprint]) -> impl Iterator<Item = &'a Certificate> {
        self.certificates.iter().filter(|known| pins.contains(&known.fingerprint))
    }
}

/// Makes a certificate of its packets; none when it is of a version that is not used here.
fn certificate(index: usize, packets: Vec<Packet>) -> Result<Option<Certificate>, KeyringError> {
    let revocations = packets.iter().filter_map(|packet| match packet {
        Packet::Signature(signature)
            if matches!(
                signature.typ(),
                Some(SignatureType::KeyRevocation | SignatureType::SubkeyRevocation)
            ) =>
        {
            Some(signature.clone())
        }
        _ => None,
    });
    let revocations = revocations.collect();
    let key = SignedPublicKey::from_packets(packets.into_iter().map(Ok).peekable()).next();
    let key = match key {
        Some(key) => key.map_err(|source| KeyringError::Certificate { index, source: Box::new(source) })?,
        None => return Ok(None),
    };
    let fingerprint = fingerprint(&key.primary_key);
    Ok(fingerprint.map(|fingerprint| Certificate { fingerprint, key, revocations }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::catalog::{Catalog, KeySource};
    use std::time::{Duration, SystemTime};

    /// The 22nd of November 2026, when the catalog was checked.
    const CHECKED: Duration = Duration::from_secs(1_795_305_600);

    #[test]
    fn the_keys_in_the_catalog_may_sign() {
        let now = SystemTime::UNIX_EPOCH + CHECKED;
        let catalog = Catalog::built_in();
        let images = catalog.distributions().flat_map(|it| &it.releases).flat_map(|it| it.images.values());
        for key in images.filter_map(|image| image.signature.as_ref()).flat_map(|it| &it.keys) {
            let KeySource::Armoured(text) = key else { continue };
            for certificate in Keyring::parse(text.as_bytes()).unwrap().certificates {
                let standings: Vec<_> = certificate.candidates().map(|key| key.standing(now)).collect();
                assert!(standings.iter().any(Result::is_ok), "{}: {standings:?}", certificate.fingerprint);
            }
        }
    }
}
