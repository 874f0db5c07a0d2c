//! Bytes of strangers: none of them ends in anything but a result.

use super::gpg::{DATA, Gpg, day, verify};
use kiln_source::openpgp::{Keyring, VerifyOptions, verify_clear_signed};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Changes to bytes: what is done, where (as a part of the length) and with which byte.
fn changes() -> impl Strategy<Value = Vec<(u8, prop::sample::Index, u8)>> {
    prop::collection::vec((0..5_u8, any::<prop::sample::Index>(), any::<u8>()), 1..4)
}

fn change(bytes: &[u8], changes: &[(u8, prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (kind, at, byte) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match kind {
            0 => bytes[at] = *byte,
            1 => bytes[at] ^= 1 << (byte & 7),
            2 => bytes.insert(at, *byte),
            3 => bytes.truncate(at),
            _ => _ = bytes.remove(at),
        }
    }
    bytes
}

#[test]
fn changed_signatures_are_refused_without_a_panic() {
    let gpg = Gpg::new();
    let ed = gpg.key("a", "ed25519", "sign", "never");
    let rsa = gpg.key("b", "rsa2048", "sign", "never");
    let keyring = gpg.keyring();
    let users = ["-u", &ed.to_string(), "-u", &rsa.to_string()];
    let binary = gpg.sign(1, &users);
    let armored = gpg.sign(1, &[&users[..], &["--armor"]].concat());
    let clear = gpg.run(1, &[&users[..], &["--batch", "--output", "-", "--clear-sign"]].concat(), DATA);
    let (_, body) = verify_clear_signed(&clear, &keyring, &[ed, rsa], &VerifyOptions::at(day(1))).unwrap();
    let mut runner = TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    let judged = runner.run(&changes(), |changes| {
        for original in [&binary, &armored] {
            let _ = verify(&keyring, &[ed, rsa], &change(original, &changes), 1);
        }
        let text = change(&clear, &changes);
        if let Ok((_, found)) = verify_clear_signed(&text, &keyring, &[ed, rsa], &VerifyOptions::at(day(1))) {
            prop_assert_eq!(&found, &body);
        }
        Ok(())
    });
    judged.unwrap();
}

#[test]
fn changed_keyrings_trust_no_other_key_and_end_without_a_panic() {
    let gpg = Gpg::new();
    let pin = gpg.key("a", "ed25519", "sign", "never");
    let key = gpg.subkey(pin, "sign", "never");
    let (bytes, good) = (gpg.export(), gpg.sign(1, &[]));
    let armored = gpg.run(0, &["--armor", "--export"], b"");
    let mut runner = TestRunner::new(Config { cases: 1500, failure_persistence: None, ..Config::default() });
    let judged = runner.run(&changes(), |changes| {
        for original in [&bytes, &armored] {
            let Ok(keyring) = Keyring::parse(&change(original, &changes)) else { continue };
            if let Ok(verified) = verify(&keyring, &[pin], &good, 1) {
                prop_assert_eq!((verified.signer, verified.key), (pin, key));
            }
        }
        Ok(())
    });
    judged.unwrap();
}

#[test]
fn any_bytes_are_a_keyring_or_an_error() {
    let mut runner = TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    let any = (0x80..=0xff_u8, prop::collection::vec(any::<u8>(), 0..300));
    let judged = runner.run(&any, |(first, rest)| {
        let _ = Keyring::parse(&[&[first], &rest[..]].concat());
        Ok(())
    });
    judged.unwrap();
}
