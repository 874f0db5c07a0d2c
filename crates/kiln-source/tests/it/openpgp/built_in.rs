//! Keys that come with kiln's catalog.

use kiln_core::arch::Arch;
use kiln_core::catalog::{Catalog, Fingerprint, KeySource, Signature};
use kiln_source::checksum::Checksums;
use kiln_source::openpgp::{Keyring, SignatureError, VerifyOptions, verify_clear_signed, verify_detached};
use std::io::Cursor;
use std::time::{Duration, SystemTime};

fn signatures(catalog: &Catalog) -> impl Iterator<Item = (String, &Signature)> {
    let releases =
        catalog.distributions().flat_map(|it| it.releases.iter().map(|release| (&it.name, release)));
    releases.flat_map(|(name, release)| {
        let signatures = release.images.values().filter_map(|image| image.signature.as_ref());
        signatures.map(move |signature| (format!("{name}:{}", release.name), signature))
    })
}

#[test]
fn the_keys_in_the_catalog_are_those_of_the_signers_and_no_others() {
    let catalog = Catalog::built_in();
    let mut checked = 0;
    for (image, signature) in signatures(&catalog) {
        let mut known = Vec::new();
        for key in &signature.keys {
            let KeySource::Armoured(text) = key else { continue };
            let keyring =
                Keyring::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{image}: {error:?}"));
            known.extend(keyring.fingerprints());
        }
        known.sort_unstable();
        let mut signers = signature.signers.clone();
        signers.sort_unstable();
        assert_eq!(known, signers, "{image}: each signer's key is there, once");
        checked += 1;
    }
    assert!(checked > 0);
}

/// Returns the signers of the image that a name means, and their keys as the catalog has them.
fn signers(image: &str) -> (Vec<Fingerprint>, Keyring) {
    let catalog = Catalog::built_in();
    let image = catalog.image(&image.parse().unwrap(), Arch::Aarch64).unwrap();
    let signature = image.signature.as_ref().unwrap();
    let [KeySource::Armoured(key)] = &signature.keys[..] else { panic!("{:?}", signature.keys) };
    (signature.signers.clone(), Keyring::parse(key.as_bytes()).unwrap())
}

/// The first of July 2026: the signatures here were made before it.
fn then() -> VerifyOptions {
    VerifyOptions::at(at(1_782_864_000))
}

/// Returns the time so many seconds after 1970.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn what_fedora_signed_is_good_by_the_key_in_the_catalog() {
    let (pins, keyring) = signers("fedora:44");
    let text = include_bytes!("built_in/fedora-44-CHECKSUM");
    let (verified, list) = verify_clear_signed(text, &keyring, &pins, &then()).unwrap();
    assert_eq!(verified.signer, pins[0]);
    let checksums = Checksums::parse(&list).unwrap();
    let name = "Fedora-Cloud-Base-Generic-44-1.7.aarch64.qcow2";
    checksums.digest(name).unwrap();
    let catalog = Catalog::built_in();
    let image = catalog.image(&"fedora:44".parse().unwrap(), Arch::Aarch64).unwrap();
    assert!(image.urls[0].ends_with(&format!("/{name}")), "{:?}", image.urls);
}

/// Signatures of openSUSE are of version 3.
#[test]
fn what_opensuse_signed_is_good_by_the_key_in_the_catalog() {
    let (pins, keyring) = signers("opensuse:16.0");
    let list = include_bytes!("built_in/leap-16.0.sha256");
    let signature = include_bytes!("built_in/leap-16.0.sha256.asc");
    let check = |list: &[u8]| verify_detached(Cursor::new(list), signature, &keyring, &pins, &then());
    let verified = check(list).unwrap();
    assert_eq!((verified.signer, verified.signed_at), (pins[0], at(1_781_847_072)));
    for index in [0, 63, list.len() - 1] {
        let mut changed = list.to_vec();
        changed[index] ^= 1;
        assert!(matches!(check(&changed), Err(SignatureError::False { .. })), "{index}");
    }
    // Its time is signed too.
    let text = std::str::from_utf8(signature).unwrap();
    let body: String = text.lines().skip(3).take_while(|line| !line.starts_with('=')).collect();
    let mut packet = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap();
    assert_eq!(packet[3..6], [3, 5, 0], "version 3, which signs 5 bytes, of the kind Binary");
    packet[9] ^= 1;
    let changed = verify_detached(Cursor::new(list), &packet, &keyring, &pins, &then());
    assert!(matches!(changed, Err(SignatureError::False { .. })), "{changed:?}");
}
