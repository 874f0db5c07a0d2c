//! Keys that come with kiln's catalog.

use kiln_core::arch::Arch;
use kiln_core::catalog::{Catalog, Fingerprint, KeySource, Signature};
use kiln_source::checksum::Checksums;
use kiln_source::openpgp::{Keyring, VerifyOptions, verify_clear_signed};
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
