//! What certificates say of the keys that sign.

use super::gpg::{DATA, Gpg, day, verify};
use kiln_core::catalog::Fingerprint;
use kiln_source::openpgp::{Keyring, SignatureError, Unusable, VerifyOptions, verify_detached};
use pgp::composed::{Deserializable as _, SignedPublicKey, SignedPublicSubKey, SignedSecretKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{
    KeyFlags, Notation, PacketTrait as _, SignatureConfig, SignatureType, Subpacket, SubpacketData,
};
use pgp::ser::Serialize as _;
use pgp::types::{Password, Timestamp};

#[test]
fn a_bound_subkey_signs_for_its_primary_key() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "rsa3072", "cert", "never");
    let key = gpg.subkey(pin, "sign", "1y");
    let (keyring, good) = (gpg.keyring(), gpg.sign(1, &[]));
    let verified = verify(&keyring, &[pin], &good, 1).unwrap();
    assert_eq!((verified.signer, verified.key), (pin, key));
    // A pin is of a primary key: one of the subkey leads nowhere.
    let wrong: Fingerprint = key.to_string().parse().unwrap();
    assert!(matches!(verify(&keyring, &[wrong], &good, 1), Err(SignatureError::NoPinnedKey)));
    let error = verify(&keyring, &[pin], &good, 400).unwrap_err();
    assert!(
        matches!(error, SignatureError::KeyExpired { key: found, signed_before: true, .. } if found == key)
    );
}

#[test]
fn an_expired_key_counts_only_where_that_is_allowed() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "10d");
    let (keyring, good) = (gpg.keyring(), gpg.sign(1, &[]));
    assert!(verify(&keyring, &[pin], &good, 9).is_ok());
    let error = verify(&keyring, &[pin], &good, 10).unwrap_err();
    assert!(
        matches!(error, SignatureError::KeyExpired { expired_at, .. } if expired_at == day(10)),
        "{error:?}"
    );
    assert!(error.to_string().ends_with("expired on 2024-01-11"), "{error}");
    let mut options = VerifyOptions::at(day(100));
    options.expired_keys = true;
    let check = |keyring: &Keyring, signature: &[u8]| {
        verify_detached(std::io::Cursor::new(DATA), signature, keyring, &[pin], &options)
    };
    assert_eq!(check(&keyring, &good).unwrap().key_expired_at, Some(day(10)));
    // Made shorter by its owner, it had expired before it signed; made longer after that, it is valid again.
    let (late, name) = (gpg.sign(9, &[]), pin.to_string());
    gpg.run(3, &["--batch", "--quick-set-expire", &name, "1d"], b"");
    let error = check(&gpg.keyring(), &late).unwrap_err();
    assert!(matches!(error, SignatureError::KeyExpired { signed_before: false, .. }), "{error:?}");
    assert_eq!(check(&gpg.keyring(), &good).unwrap().key_expired_at, Some(day(4)));
    gpg.run(5, &["--batch", "--quick-set-expire", &name, "1y"], b"");
    for signature in [&good, &late] {
        assert_eq!(check(&gpg.keyring(), signature).unwrap().key_expired_at, None);
    }
}

#[test]
fn a_revoked_key_signs_nothing_whenever_it_did() {
    let gpg = Gpg::new();
    let (pin, other) = (gpg.key("a", "ed25519", "sign", "never"), gpg.key("b", "ed25519", "cert", "never"));
    let sub = gpg.subkey(other, "sign", "never");
    let good = gpg.sign(1, &["-u", &pin.to_string()]);
    let by_sub = gpg.sign(1, &["-u", &format!("{sub}!")]);
    assert!(verify(&gpg.keyring(), &[other], &by_sub, 1).is_ok());
    let file = gpg.home().join(format!("openpgp-revocs.d/{pin}.rev"));
    let revocation = std::fs::read_to_string(file).unwrap().replace(":-----BEGIN", "-----BEGIN");
    gpg.run(2, &["--batch", "--import"], revocation.as_bytes());
    let words = b"key 1\nrevkey\ny\n1\nit was copied\n\ny\nsave\n";
    gpg.run(2, &["--command-fd", "0", "--edit-key", &other.to_string()], words);
    let keyring = gpg.keyring();
    for days in [1, 2, 100] {
        let error = verify(&keyring, &[pin], &good, days).unwrap_err();
        assert!(matches!(error, SignatureError::KeyRevoked { key, .. } if key == pin), "{error:?}");
        let error = verify(&keyring, &[other], &by_sub, days).unwrap_err();
        let SignatureError::KeyRevoked { key, reason } = error else { panic!("{error:?}") };
        assert_eq!((key, reason.as_deref()), (sub, Some("it was copied")));
    }
}

#[test]
fn a_revocation_counts_wherever_it_stands() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "never");
    let (good, before) = (gpg.sign(1, &[]), gpg.export());
    let file = gpg.home().join(format!("openpgp-revocs.d/{pin}.rev"));
    let text = std::fs::read_to_string(file).unwrap().replace(":-----BEGIN", "-----BEGIN");
    let packet = gpg.run(2, &["--batch", "--dearmor"], &text.as_bytes()[text.find("-----BEGIN").unwrap()..]);
    let keyring = Keyring::parse(&[before, packet].concat()).unwrap();
    assert!(matches!(verify(&keyring, &[pin], &good, 1), Err(SignatureError::KeyRevoked { .. })));
}

/// Returns the secret key of a pin, for what GnuPG does not do.
fn secret(gpg: &Gpg, pin: Fingerprint) -> SignedSecretKey {
    let bytes = gpg.run(0, &["--batch", "--export-secret-keys", &pin.to_string()], b"");
    SignedSecretKey::from_bytes(&bytes[..]).unwrap()
}

fn public(gpg: &Gpg, pin: Fingerprint) -> SignedPublicKey {
    SignedPublicKey::from_bytes(&gpg.run(0, &["--export", &pin.to_string()], b"")[..]).unwrap()
}

/// Returns the parts of a signature that says it was made a day after the keys.
fn parts(
    kind: SignatureType,
    signer: &impl pgp::types::SigningKey,
    more: Vec<SubpacketData>,
) -> SignatureConfig {
    let mut config = SignatureConfig::v4(kind, signer.algorithm(), HashAlgorithm::Sha256);
    let at = Timestamp::try_from(day(1)).unwrap();
    let mut data = vec![
        SubpacketData::SignatureCreationTime(at),
        SubpacketData::IssuerFingerprint(signer.fingerprint()),
    ];
    data.extend(more);
    config.hashed_subpackets = data.into_iter().map(|data| Subpacket::regular(data).unwrap()).collect();
    config
}

#[test]
fn a_subkey_is_bound_by_the_primary_key_and_claims_it_in_turn() {
    let gpg = Gpg::new();
    let (victim, thief) =
        (gpg.key("a", "ed25519", "cert", "never"), gpg.key("b", "ed25519", "cert", "never"));
    let sub = gpg.subkey(victim, "sign", "never");
    let good = gpg.sign(1, &["-u", &format!("{sub}!")]);
    let (owner, mut taker) = (public(&gpg, victim), public(&gpg, thief));
    let check = |taker: &SignedPublicKey| {
        let keyring = Keyring::parse(&taker.to_bytes().unwrap()).unwrap();
        match verify(&keyring, &[thief], &good, 1) {
            Err(SignatureError::Unusable { key, problem }) if key == sub => problem,
            other => panic!("{other:?}"),
        }
    };
    // The subkey with the binding of its own primary key, under another primary key.
    taker.public_subkeys = owner.public_subkeys.clone();
    assert_eq!(check(&taker), Unusable::NotBound);
    // Bound by a primary key that it never claimed: with no claim, with its claim of another, and not for signing.
    let key = secret(&gpg, thief).primary_key;
    let stolen = owner.public_subkeys[0].key.clone();
    let bind = |sign: bool, back: Option<SubpacketData>| {
        let mut flags = KeyFlags::default();
        flags.set_sign(sign);
        flags.set_encrypt_comms(!sign);
        let more = std::iter::once(SubpacketData::KeyFlags(flags)).chain(back).collect();
        let config = parts(SignatureType::SubkeyBinding, &key, more);
        let binding =
            config.sign_subkey_binding(&key, key.public_key(), &Password::empty(), &stolen).unwrap();
        SignedPublicSubKey::new(stolen.clone(), vec![binding])
    };
    let back = owner.public_subkeys[0].signatures[0].embedded_signature().unwrap().clone();
    taker.public_subkeys = vec![bind(true, None)];
    assert_eq!(check(&taker), Unusable::NoBackSignature);
    taker.public_subkeys = vec![bind(true, Some(SubpacketData::EmbeddedSignature(Box::new(back))))];
    assert_eq!(check(&taker), Unusable::NoBackSignature);
    taker.public_subkeys = vec![bind(false, None)];
    assert_eq!(check(&taker), Unusable::NotForSigning);
}

#[test]
fn a_primary_key_signs_only_when_it_says_so_itself() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "cert", "never");
    let key = secret(&gpg, pin).primary_key;
    let signed = parts(SignatureType::Binary, &key, vec![]).sign(&key, &Password::empty(), DATA).unwrap();
    let mut signature = Vec::new();
    signed.to_writer_with_header(&mut signature).unwrap();
    let problem = |bytes: &[u8]| match verify(&Keyring::parse(bytes).unwrap(), &[pin], &signature, 1) {
        Err(SignatureError::Unusable { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    let whole = gpg.export();
    assert_eq!(problem(&whole), Unusable::NotForSigning);
    // The key alone, and with a self-signature that is not its own.
    let mut bare = public(&gpg, pin);
    let user = bare.details.users[0].clone();
    bare.details.users.clear();
    assert_eq!(problem(&bare.to_bytes().unwrap()), Unusable::NoSelfSignature);
    let other = gpg.key("b", "ed25519", "sign", "never");
    let mut lent = user;
    lent.signatures = public(&gpg, other).details.users[0].signatures.clone();
    bare.details.users = vec![lent];
    assert_eq!(problem(&bare.to_bytes().unwrap()), Unusable::NoSelfSignature);
}

#[test]
fn what_a_signature_says_of_itself_is_signed_too_and_understood() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "never");
    let (key, keyring) = (secret(&gpg, pin).primary_key, gpg.keyring());
    let check = |change: &dyn Fn(&mut SignatureConfig)| {
        let mut config = parts(SignatureType::Binary, &key, vec![]);
        change(&mut config);
        let mut signature = Vec::new();
        let signed = config.sign(&key, &Password::empty(), DATA).unwrap();
        signed.to_writer_with_header(&mut signature).unwrap();
        match verify(&keyring, &[pin], &signature, 1) {
            Err(SignatureError::Unusable { problem, .. }) => Err(problem),
            other => Ok(other.unwrap()),
        }
    };
    assert!(check(&|_| {}).is_ok());
    let early = Timestamp::try_from(day(0) - std::time::Duration::from_secs(1)).unwrap();
    let time = |at| Subpacket::regular(SubpacketData::SignatureCreationTime(at)).unwrap();
    assert_eq!(check(&|config| config.hashed_subpackets[0] = time(early)), Err(Unusable::OlderThanKey));
    // A time that is not signed is none.
    assert_eq!(
        check(&|config| {
            let time = config.hashed_subpackets.remove(0);
            config.unhashed_subpackets.push(time);
        }),
        Err(Unusable::NoTime)
    );
    let notation = |critical| {
        let notation =
            Notation { readable: true, name: "for@example.org".into(), value: "tests only".into() };
        let data = SubpacketData::Notation(notation);
        if critical { Subpacket::critical(data).unwrap() } else { Subpacket::regular(data).unwrap() }
    };
    assert!(check(&|config| config.hashed_subpackets.push(notation(false))).is_ok());
    assert_eq!(check(&|config| config.hashed_subpackets.push(notation(true))), Err(Unusable::Critical));
}

#[test]
fn keys_of_debian_are_read() {
    let bytes = std::fs::read("/usr/share/keyrings/debian-archive-keyring.gpg").unwrap();
    let keyring = Keyring::parse(&bytes).unwrap();
    assert!(keyring.fingerprints().count() >= 3);
    for name in ["debian-archive-removed-keys.gpg", "debian-archive-bookworm-stable.gpg"] {
        if let Ok(bytes) = std::fs::read(std::path::Path::new("/usr/share/keyrings").join(name)) {
            Keyring::parse(&bytes).unwrap();
        }
    }
}
