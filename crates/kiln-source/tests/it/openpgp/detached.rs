//! Detached signatures.

use super::gpg::{DATA, Gpg, day, verify};
use kiln_source::openpgp::{
    Keyring, KeyringError, SIGNATURE_BYTES_MAX, SIGNATURES_MAX, SignatureError, Unusable, VerifyOptions,
    verify_detached,
};
use std::io::{self, Cursor, Read, Seek, SeekFrom};

#[test]
fn signatures_by_pinned_keys_are_good_in_every_form() {
    let gpg = Gpg::new();
    let ed = gpg.key("Edward <ed@example.org>", "ed25519", "sign", "never");
    let rsa = gpg.key("Rita <rita@example.org>", "rsa3072", "sign", "never");
    let keyring = gpg.keyring();
    let armored = Keyring::parse(&gpg.run(0, &["--armor", "--export"], b"")).unwrap();
    assert_eq!(armored.fingerprints().collect::<Vec<_>>(), [ed, rsa]);
    for (pin, user) in [(ed, "Edward <ed@example.org>"), (rsa, "Rita <rita@example.org>")] {
        let name = pin.to_string();
        for keyring in [&keyring, &armored] {
            for args in
                [&["-u", &name][..], &["-u", &name, "--armor"], &["-u", &name, "--digest-algo", "SHA256"]]
            {
                let verified = verify(keyring, &[pin], &gpg.sign(3, args), 3).unwrap();
                assert_eq!((verified.signer, verified.key), (pin, pin));
                assert_eq!((verified.user.as_deref(), verified.signed_at), (Some(user), day(3)));
            }
        }
    }
    let by_ed = gpg.sign(3, &["-u", &ed.to_string()]);
    let error = verify(&keyring, &[rsa], &by_ed, 3).unwrap_err();
    assert!(
        matches!(&error, SignatureError::UnknownSigner { found } if *found == [ed.to_string()]),
        "{error:?}"
    );
    let none = "0".repeat(40).parse().unwrap();
    assert!(matches!(verify(&keyring, &[none], &by_ed, 3), Err(SignatureError::NoPinnedKey)));
    assert!(matches!(verify(&keyring, &[], &by_ed, 3), Err(SignatureError::NoPinnedKey)));
}

#[test]
fn changed_data_and_changed_signatures_are_false() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "never");
    let (keyring, good) = (gpg.keyring(), gpg.sign(1, &[]));
    let options = VerifyOptions::at(day(1));
    for data in [&DATA[1..], &DATA[..DATA.len() - 1], &[DATA, b"x"].concat(), b"", &DATA.to_ascii_uppercase()]
    {
        let error = verify_detached(Cursor::new(data), &good, &keyring, &[pin], &options).unwrap_err();
        assert!(matches!(error, SignatureError::False { key } if key == pin), "{error:?}");
    }
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    assert!(matches!(verify(&keyring, &[pin], &changed, 1), Err(SignatureError::False { .. })));
    // A good one beside a false one that claims the same key does not help it.
    let both = [good.clone(), changed].concat();
    assert!(matches!(verify(&keyring, &[pin], &both, 1), Err(SignatureError::False { .. })));
    assert!(verify(&keyring, &[pin], &good[..good.len() - 1], 1).is_err());
}

#[test]
fn one_good_signature_of_several_is_enough() {
    let gpg = Gpg::new();
    let (a, b) = (gpg.key("a", "ed25519", "sign", "never"), gpg.key("b", "rsa2048", "sign", "1y"));
    let keyring = gpg.keyring();
    let both = gpg.sign(1, &["-u", &a.to_string(), "-u", &b.to_string()]);
    for pins in [&[a][..], &[b], &[a, b]] {
        assert!(pins.iter().any(|pin| verify(&keyring, pins, &both, 1).unwrap().signer == *pin));
    }
    // The second has expired since: the first still counts, and alone the second does not.
    assert_eq!(verify(&keyring, &[a, b], &both, 400).unwrap().signer, a);
    assert!(matches!(verify(&keyring, &[b], &both, 400), Err(SignatureError::KeyExpired { .. })));
    // A false one by a key that is not pinned is nobody's concern.
    let mut other = gpg.sign(1, &["-u", &b.to_string()]);
    *other.last_mut().unwrap() ^= 1;
    let mixed = [other, gpg.sign(1, &["-u", &a.to_string()])].concat();
    assert_eq!(verify(&keyring, &[a], &mixed, 1).unwrap().signer, a);
    assert!(matches!(verify(&keyring, &[a, b], &mixed, 1), Err(SignatureError::False { .. })));
    let armored =
        [gpg.sign(1, &["-u", &b.to_string(), "--armor"]), gpg.sign(1, &["-u", &a.to_string(), "--armor"])];
    assert_eq!(verify(&keyring, &[a], &armored.concat(), 1).unwrap().signer, a);
}

#[test]
fn weak_hashes_and_signatures_of_text_are_refused_by_name() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "rsa2048", "sign", "never");
    let keyring = gpg.keyring();
    for hash in ["SHA1", "RIPEMD160", "SHA224"] {
        let error = verify(&keyring, &[pin], &gpg.sign(1, &["--digest-algo", hash]), 1).unwrap_err();
        assert!(
            matches!(&error, SignatureError::Unusable { problem: Unusable::Hash(name), .. } if name == hash),
            "{error:?}"
        );
    }
    // GnuPG makes none with MD5: the algorithm's number in a real one says it.
    let mut md5 = gpg.sign(1, &["--digest-algo", "SHA256"]);
    let at = md5.windows(4).position(|bytes| bytes == [4, 0, 1, 8]).unwrap();
    md5[at + 3] = 1;
    let error = verify(&keyring, &[pin], &md5, 1).unwrap_err();
    assert!(
        matches!(&error, SignatureError::Unusable { problem: Unusable::Hash(name), .. } if name == "MD5"),
        "{error:?}"
    );
    let error = verify(&keyring, &[pin], &gpg.sign(1, &["--textmode"]), 1).unwrap_err();
    assert!(matches!(error, SignatureError::Unusable { problem: Unusable::Kind(_), .. }), "{error:?}");
}

#[test]
fn signatures_from_the_future_and_past_their_end_are_refused() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "never");
    let keyring = gpg.keyring();
    let late = gpg.sign(10, &[]);
    assert!(verify(&keyring, &[pin], &late, 9).is_ok());
    assert!(
        matches!(verify(&keyring, &[pin], &late, 8), Err(SignatureError::Future { signed_at, .. }) if signed_at == day(10))
    );
    let ends = gpg.sign(10, &["--default-sig-expire", "5d"]);
    assert!(verify(&keyring, &[pin], &ends, 14).is_ok());
    assert!(
        matches!(verify(&keyring, &[pin], &ends, 15), Err(SignatureError::Expired { expired_at, .. }) if expired_at == day(15))
    );
}

#[test]
fn signatures_and_keyrings_have_a_largest_size_and_number() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "never");
    let (keyring, good) = (gpg.keyring(), gpg.sign(1, &[]));
    assert!(verify(&keyring, &[pin], &good.repeat(SIGNATURES_MAX), 1).is_ok());
    assert!(matches!(
        verify(&keyring, &[pin], &good.repeat(SIGNATURES_MAX + 1), 1),
        Err(SignatureError::TooMany)
    ));
    let long = vec![0x88; SIGNATURE_BYTES_MAX + 1];
    assert!(matches!(verify(&keyring, &[pin], &long, 1), Err(SignatureError::TooLong { .. })));
    assert!(matches!(verify(&keyring, &[pin], b"", 1), Err(SignatureError::Armor(_))));
    assert!(matches!(
        verify(&keyring, &[pin], &gpg.export(), 1),
        Err(SignatureError::OtherPacket { index: 1 })
    ));
    let long = vec![0x99; kiln_source::openpgp::KEYRING_BYTES_MAX + 1];
    assert!(matches!(Keyring::parse(&long), Err(KeyringError::TooLong)));
    assert!(matches!(Keyring::parse(&gpg.export().repeat(2)), Err(KeyringError::Twice { .. })));
    let many = kiln_source::openpgp::CERTIFICATES_MAX + 1;
    assert!(matches!(Keyring::parse(&gpg.export().repeat(many)), Err(KeyringError::TooMany)));
    // Trust packets, as GnuPG keeps them: short ones take as much memory as any.
    let packets = [0xb0, 0].repeat(65_537);
    assert!(matches!(Keyring::parse(&packets), Err(KeyringError::TooManyPackets { .. })));
    assert!(matches!(Keyring::parse(&good), Err(KeyringError::OtherPacket { index: 1, .. })));
    let secret = gpg.run(0, &["--batch", "--export-secret-keys"], b"");
    assert!(matches!(Keyring::parse(&secret), Err(KeyringError::OtherPacket { index: 1, .. })));
}

/// Data that cannot be read.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

impl Seek for Broken {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Ok(0)
    }
}

#[test]
fn data_that_cannot_be_read_is_not_called_changed() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "never");
    let error =
        verify_detached(Broken, &gpg.sign(1, &[]), &gpg.keyring(), &[pin], &VerifyOptions::at(day(1)))
            .unwrap_err();
    assert!(
        matches!(&error, SignatureError::Read(error) if error.to_string() == "the disk is gone"),
        "{error:?}"
    );
}
