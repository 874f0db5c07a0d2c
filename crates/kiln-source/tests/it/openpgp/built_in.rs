//! Keys that come with kiln's catalog.

use kiln_core::catalog::{Catalog, KeySource, Signature};
use kiln_source::openpgp::Keyring;

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
