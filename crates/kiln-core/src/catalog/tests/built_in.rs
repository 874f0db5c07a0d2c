//! The catalog that comes with kiln.

use super::*;
use std::fmt::Write as _;

#[test]
fn what_comes_with_kiln_is_a_catalog() {
    for (name, text) in BUILT_IN {
        let catalog = Catalog::parse(text).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(catalog.distributions().map(|it| it.name.as_str()).collect::<Vec<_>>(), [name]);
    }
    assert_eq!(Catalog::built_in().distributions().count(), BUILT_IN.len());
}

#[test]
fn what_comes_with_kiln_is_fetched_over_https() {
    for image in images(&Catalog::built_in()) {
        let signature = image.signature.iter().flat_map(|signature| match &signature.place {
            SignaturePlace::Inline => None,
            SignaturePlace::OfChecksums(url) | SignaturePlace::OfImage(url) => Some(url),
        });
        let keys = image.signature.iter().flat_map(|signature| &signature.keys);
        let keys = keys.filter_map(|key| match key {
            KeySource::Address(url) => Some(url),
            KeySource::Armoured(_) => None,
        });
        let beside = image.kernel.iter().chain(&image.initrd).flatten();
        for url in image.urls.iter().chain(beside).chain([&image.checksums]).chain(signature).chain(keys) {
            assert!(url.starts_with("https://"), "{url}");
        }
    }
}

/// So that a change of a pattern is seen with all that it changes.
#[test]
fn what_comes_with_kiln_expands_to_known_addresses() {
    insta::assert_snapshot!(expanded(&Catalog::built_in()).unwrap());
}

fn images(catalog: &Catalog) -> impl Iterator<Item = &Image> {
    catalog.distributions().flat_map(|it| &it.releases).flat_map(|release| release.images.values())
}

fn expanded(catalog: &Catalog) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for distribution in catalog.distributions() {
        writeln!(text, "{} \"{}\" {:?}", distribution.name, distribution.title, distribution.aliases)?;
        for release in &distribution.releases {
            let end = release.end_of_life.map_or_else(|| "-".to_owned(), |day| day.to_string());
            writeln!(text, "  {} {:?} until {end}, user {}", release.name, release.aliases, release.user)?;
            for (arch, image) in &release.images {
                expand(&mut text, *arch, image)?;
            }
        }
    }
    Ok(text)
}

fn expand(text: &mut String, arch: Arch, image: &Image) -> fmt::Result {
    let seed = image.seed.map_or("none", SeedKind::as_str);
    writeln!(text, "    {arch} {}, boot {}, seed {seed}", image.format.as_str(), image.boot.as_str())?;
    for (what, urls) in
        [("disk", Some(&image.urls)), ("kernel", image.kernel.as_ref()), ("initrd", image.initrd.as_ref())]
    {
        for url in urls.into_iter().flatten() {
            writeln!(text, "      {what} {url}")?;
        }
    }
    writeln!(text, "      checksums {}", image.checksums)?;
    let Some(signature) = &image.signature else { return writeln!(text, "      not signed") };
    match &signature.place {
        SignaturePlace::Inline => writeln!(text, "      signed inline")?,
        SignaturePlace::OfChecksums(url) => writeln!(text, "      signature of checksums {url}")?,
        SignaturePlace::OfImage(url) => writeln!(text, "      signature of image {url}")?,
    }
    for signer in &signature.signers {
        writeln!(text, "      signer {signer}")?;
    }
    for key in &signature.keys {
        match key {
            KeySource::Address(url) => writeln!(text, "      key {url}")?,
            KeySource::Armoured(key) => writeln!(text, "      key of {} bytes", key.len())?,
        }
    }
    Ok(())
}
