//! The catalog: which images distributions publish, where, who signs them, and how long they are looked after.
//! `docs/formats/catalog.md` describes the file. Nothing is fetched here.

mod fingerprint;
mod key;
mod mirrored;
mod pin;
mod place;
mod wire;

pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use key::{KEY_BYTES_MAX, KeySource};
pub use pin::{ImagePin, InvalidImagePin, InvalidSerial, Serial};
pub use place::{
    BUILT_IN_NAME, CatalogName, CatalogPlace, InvalidCatalogName, InvalidCatalogPlace, local_address,
    local_path,
};

use crate::arch::Arch;
use crate::date::Date;
use crate::recipe::DiskFormat;
use crate::seed::SeedKind;
use crate::text::{clip, nearest};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The version of the file that this program reads.
pub const CATALOG_VERSION: u32 = 1;
/// The largest catalog that is read, in bytes: some hundred distributions with their keys.
pub const CATALOG_BYTES_MAX: usize = 4 << 20;
/// The most distributions of a catalog.
pub const DISTRIBUTIONS_MAX: usize = 256;
/// The most releases of a distribution.
pub const RELEASES_MAX: usize = 256;
/// The most places an image may be at.
pub const MIRRORS_MAX: usize = 16;
/// The longest address, in bytes.
pub const URL_BYTES_MAX: usize = 2048;
/// The longest word: a name, an alias, a code name, in bytes.
pub const WORD_BYTES_MAX: usize = 63;
/// The most keys that may sign, and the most items that say where keys are.
pub const SIGNERS_MAX: usize = 16;

/// The catalog that comes with kiln.
const BUILT_IN: [(&str, &str); 8] = [
    ("almalinux", include_str!("../catalog/almalinux.toml")),
    ("alpine", include_str!("../catalog/alpine.toml")),
    ("arch", include_str!("../catalog/arch.toml")),
    ("debian", include_str!("../catalog/debian.toml")),
    ("fedora", include_str!("../catalog/fedora.toml")),
    ("opensuse", include_str!("../catalog/opensuse.toml")),
    ("rocky", include_str!("../catalog/rocky.toml")),
    ("ubuntu", include_str!("../catalog/ubuntu.toml")),
];

/// Distributions and their releases.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog {
    distributions: BTreeMap<String, Distribution>,
}

/// A distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Its name: 1 to [`WORD_BYTES_MAX`] of `a-z`, `0-9` and `-`, beginning with a letter.
    pub name: String,
    /// Its name as it writes it.
    pub title: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Its releases, in the order of the catalog: the first is meant where none is named.
    pub releases: Vec<Release>,
}

/// A release of a distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its name, such as `24.04`.
    pub name: String,
    /// Other names for it, such as `lts`.
    pub aliases: Vec<String>,
    /// The day after which nobody mends it; none where no day is known.
    pub end_of_life: Option<Date>,
    /// The user whom cloud-init makes.
    pub user: String,
    /// Its images.
    pub images: BTreeMap<Arch, Image>,
    /// The added catalog that says so; none where the one that comes with kiln does.
    pub catalog: Option<CatalogName>,
    /// What the catalog says of it, its distribution's part filled in.
    said: Box<wire::Table>,
}

/// An image as it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is, in the order in which they are tried.
    pub urls: Vec<String>,
    /// What its bytes are.
    pub format: DiskFormat,
    /// Where the kernel outside it is, in the order of `urls`; none where it is inside.
    pub kernel: Option<Vec<String>>,
    /// Where the initial file system of that kernel is, likewise.
    pub initrd: Option<Vec<String>>,
    /// Where its digest is told, and those of the files beside it: by its own names, all are of one build.
    pub checksums: String,
    /// Who says so; none where nobody signs.
    pub signature: Option<Signature>,
    /// How a machine of it starts.
    pub boot: ImageBoot,
    /// What its cloud-init reads at its first start; none where it has no cloud-init.
    pub seed: Option<SeedKind>,
}

/// How a machine of an image starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageBoot {
    /// As what is in the image allows.
    #[default]
    Auto,
    /// The kernel is given to the machine, with its initial file system.
    Direct,
    /// Firmware starts the loader that is on the disk.
    Firmware,
}

/// A signature over an image or its checksums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What is signed, and where the signature is.
    pub place: SignaturePlace,
    /// Whose it may be: primary keys.
    pub signers: Vec<Fingerprint>,
    /// Where the keys are; that a key is one of `signers` is what counts.
    pub keys: Vec<KeySource>,
}

/// Where a signature is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignaturePlace {
    /// The checksums are clear-signed.
    Inline,
    /// Beside the checksums, at this address.
    OfChecksums(String),
    /// Beside the image, at this address.
    OfImage(String),
}

/// An image as somebody names it: `ubuntu`, `ubuntu:24.04`, `Ubuntu:noble`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    distribution: String,
    release: Option<String>,
}

/// A text that is no image's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an image: NAME or NAME:RELEASE, each 1 to {WORD_BYTES_MAX} of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit"
)]
pub struct InvalidImageName(String);

/// Why the catalog has no such image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotListed {
    /// No distribution of the name.
    #[error("no distribution `{name}`{}; there are {}", suggest(suggestion.as_deref()), known.join(", "))]
    Distribution {
        /// The name.
        name: String,
        /// The known one nearest to it.
        suggestion: Option<String>,
        /// Those there are.
        known: Vec<String>,
    },
    /// No release of the name.
    #[error("{distribution} has no release `{name}`; there are {}", known.join(", "))]
    Release {
        /// The distribution.
        distribution: String,
        /// The name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// No image for the architecture.
    #[error("{image} has no image for {arch}; there are images for {}", known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Arch {
        /// Distribution and release.
        image: String,
        /// The architecture.
        arch: Arch,
        /// Those there are.
        known: Vec<Arch>,
    },
}

fn suggest(name: Option<&str>) -> String {
    name.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

/// Why a text is no catalog.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// Larger than [`CATALOG_BYTES_MAX`].
    #[error("catalog has {0} bytes, more than {CATALOG_BYTES_MAX}")]
    TooLarge(usize),
    /// Not TOML of a catalog's shape.
    #[error("catalog does not parse")]
    Syntax(#[source] Box<toml::de::Error>),
    /// Written for another kiln.
    #[error("catalog has version {0}, this kiln reads {CATALOG_VERSION}")]
    Version(u32),
    /// A value that cannot be.
    #[error("{at}: `{field}`: {reason}")]
    Value {
        /// Distribution and release.
        at: String,
        /// The key.
        field: &'static str,
        /// Why it cannot be.
        reason: String,
    },
}

impl Catalog {
    /// Returns the catalog that comes with kiln.
    pub fn built_in() -> Self {
        BUILT_IN.iter().fold(Self::default(), |catalog, (_, text)| {
            #[expect(clippy::unwrap_used, reason = "a test parses each")]
            let next = Self::parse(text).unwrap();
            catalog.extended_by(next)
        })
    }

    /// Parses and checks the text of a catalog of which nobody knows where it is from: it sends to the web alone.
    pub fn parse(text: &str) -> Result<Self, CatalogError> {
        Self::parse_at(text, None)
    }

    /// Parses and checks the text of a catalog that is from a place: a relative `url` counts from its directory, and one
    /// of a local file may send to local files.
    pub fn parse_from(text: &str, place: &CatalogPlace) -> Result<Self, CatalogError> {
        Self::parse_at(text, Some(place))
    }

    fn parse_at(text: &str, place: Option<&CatalogPlace>) -> Result<Self, CatalogError> {
        if text.len() > CATALOG_BYTES_MAX {
            return Err(CatalogError::TooLarge(text.len()));
        }
        wire::parse(text, place)
    }

    /// Returns this catalog with the name of the added one that says all of it.
    #[must_use]
    pub fn named(mut self, name: &CatalogName) -> Self {
        for release in self.distributions.values_mut().flat_map(|known| &mut known.releases) {
            release.catalog = Some(name.clone());
        }
        self
    }

    /// Returns the names that mean something here, and something else once a later catalog lies over this: each with
    /// what it means then.
    pub fn overridden_by(&self, later: &Self) -> Vec<(String, String)> {
        let merged = self.clone().extended_by(later.clone());
        let mut changed = Vec::new();
        for known in self.distributions.values() {
            for distribution in std::iter::once(&known.name).chain(&known.aliases) {
                let releases =
                    known.releases.iter().flat_map(|it| std::iter::once(&it.name).chain(&it.aliases));
                for release in std::iter::once(None).chain(releases.map(|it| Some(it.as_str()))) {
                    let name =
                        ImageName { distribution: distribution.clone(), release: release.map(str::to_owned) };
                    let (Ok((_, before)), Ok((then, after))) = (self.find(&name), merged.find(&name)) else {
                        continue;
                    };
                    if before != after {
                        changed.push((name.to_string(), format!("{}:{}", then.name, after.name)));
                    }
                }
            }
        }
        changed
    }

    /// Returns this catalog with what another says in place of its own: a distribution's title and aliases, and each
    /// release by its name. New releases come first, as in the other.
    #[must_use]
    pub fn extended_by(mut self, later: Self) -> Self {
        for (name, mut distribution) in later.distributions {
            if let Some(known) = self.distributions.remove(&name) {
                let said = |release: &Release| distribution.releases.iter().any(|it| it.name == release.name);
                let kept: Vec<Release> =
                    known.releases.into_iter().filter(|release| !said(release)).collect();
                distribution.releases.extend(kept);
            }
            self.distributions.insert(name, distribution);
        }
        self
    }

    /// Returns all distributions, sorted by name.
    pub fn distributions(&self) -> impl Iterator<Item = &Distribution> {
        self.distributions.values()
    }

    /// Returns the release that a name means.
    pub fn find(&self, name: &ImageName) -> Result<(&Distribution, &Release), NotListed> {
        let distribution = self
            .distributions
            .get(&name.distribution)
            .or_else(|| self.distributions.values().find(|it| it.aliases.contains(&name.distribution)))
            .ok_or_else(|| NotListed::Distribution {
                name: clip(&name.distribution),
                suggestion: nearest(&name.distribution, self.distributions.keys().map(String::as_str))
                    .map(str::to_owned),
                known: self.distributions.keys().cloned().collect(),
            })?;
        let releases = &distribution.releases;
        let found = match &name.release {
            None => releases.first(),
            Some(wanted) => releases
                .iter()
                .find(|release| release.name == *wanted)
                .or_else(|| releases.iter().find(|release| release.aliases.contains(wanted))),
        };
        let release = found.ok_or_else(|| NotListed::Release {
            distribution: distribution.name.clone(),
            name: name.release.as_deref().map(clip).unwrap_or_default(),
            known: releases.iter().map(|release| release.name.clone()).collect(),
        })?;
        Ok((distribution, release))
    }

    /// Returns the image that a name means on an architecture.
    pub fn image(&self, name: &ImageName, arch: Arch) -> Result<&Image, NotListed> {
        let (distribution, release) = self.find(name)?;
        release.images.get(&arch).ok_or_else(|| NotListed::Arch {
            image: format!("{}:{}", distribution.name, release.name),
            arch,
            known: release.images.keys().copied().collect(),
        })
    }
}

impl ImageBoot {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Direct, Self::Firmware];

    /// Returns the word used in catalogs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Firmware => "firmware",
        }
    }
}

impl Release {
    /// Returns whether its end of life is over on a day.
    pub fn is_over(&self, day: Date) -> bool {
        self.end_of_life.is_some_and(|end| day > end)
    }
}

/// Whether a text is a name of a distribution or a release, in lower case.
fn is_word(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= WORD_BYTES_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

impl FromStr for ImageName {
    type Err = InvalidImageName;

    /// Upper and lower case are the same.
    fn from_str(text: &str) -> Result<Self, InvalidImageName> {
        let lower = text.to_ascii_lowercase();
        let (distribution, release) = match lower.split_once(':') {
            Some((distribution, release)) => (distribution, Some(release)),
            None => (lower.as_str(), None),
        };
        if !is_word(distribution) || !release.is_none_or(is_word) {
            return Err(InvalidImageName(clip(text)));
        }
        Ok(Self { distribution: distribution.to_owned(), release: release.map(str::to_owned) })
    }
}

impl ImageName {
    /// Returns the name of a release of a distribution; none where one of the words is no such name.
    pub fn of(distribution: &str, release: Option<&str>) -> Option<Self> {
        let plain = is_word(distribution) && release.is_none_or(is_word);
        plain.then(|| Self { distribution: distribution.to_owned(), release: release.map(str::to_owned) })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.distribution)?;
        self.release.as_ref().map_or(Ok(()), |release| write!(f, ":{release}"))
    }
}

#[cfg(test)]
mod tests;
