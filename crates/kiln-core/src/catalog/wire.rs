//! The catalog as written: what a release leaves out is the distribution's, and words in braces stand for its names.

use super::{
    CATALOG_VERSION, Catalog, CatalogError, CatalogPlace, DISTRIBUTIONS_MAX, Distribution, Image, ImageBoot,
    KeySource, MIRRORS_MAX, RELEASES_MAX, Release, SIGNERS_MAX, Signature, SignaturePlace, URL_BYTES_MAX,
    WORD_BYTES_MAX, is_word, key, local_path,
};
use crate::arch::Arch;
use crate::date::Date;
use crate::recipe::DiskFormat;
use crate::seed::SeedKind;
use crate::text::clip;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The word for clear-signed checksums.
const INLINE: &str = "inline";

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) version: u32,
    #[serde(default)]
    pub(super) distribution: Vec<Table>,
}

/// A distribution or a release: both may say nearly the same.
#[derive(Debug, Deserialize, Serialize, Clone, PartialEq, Eq, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) aliases: Vec<String>,
    /// A distribution's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) title: Option<String>,
    /// A release's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end_of_life: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) codename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<Urls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initrd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) boot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checksums: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signature: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_signature: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<Vec<key::Item>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) arch: Option<BTreeMap<String, String>>,
    /// A distribution's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) release: Vec<Table>,
}

#[derive(Debug, Deserialize, Serialize, Clone, PartialEq, Eq)]
#[serde(untagged, expecting = "`url` is an address, or a list of addresses")]
pub(super) enum Urls {
    One(String),
    Many(Vec<String>),
}

impl Table {
    /// Returns what a release says, and for the rest what its distribution does.
    fn over(self, distribution: &Self) -> Self {
        let common = distribution.clone();
        Self {
            codename: self.codename.or(common.codename),
            user: self.user.or(common.user),
            arch: self.arch.or(common.arch),
            format: self.format.or(common.format),
            url: self.url.or(common.url),
            disk: self.disk.or(common.disk),
            kernel: self.kernel.or(common.kernel),
            initrd: self.initrd.or(common.initrd),
            boot: self.boot.or(common.boot),
            seed: self.seed.or(common.seed),
            checksums: self.checksums.or(common.checksums),
            signature: self.signature.or(common.signature),
            image_signature: self.image_signature.or(common.image_signature),
            signers: self.signers.or(common.signers),
            keys: self.keys.or(common.keys),
            ..self
        }
    }
}

/// Where a value stands, for errors.
struct At<'a>(&'a str);

impl At<'_> {
    fn bad(&self, field: &'static str, reason: impl ToString) -> CatalogError {
        CatalogError::Value { at: clip(self.0), field, reason: reason.to_string() }
    }

    fn word(&self, field: &'static str, text: String) -> Result<String, CatalogError> {
        if is_word(&text) {
            return Ok(text);
        }
        let reason = format!(
            "`{}` is not 1 to {WORD_BYTES_MAX} of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit",
            clip(&text)
        );
        Err(self.bad(field, reason))
    }

    fn words(&self, field: &'static str, texts: Vec<String>) -> Result<Vec<String>, CatalogError> {
        texts.into_iter().map(|text| self.word(field, text)).collect()
    }

    fn needed<T>(&self, field: &'static str, value: Option<T>) -> Result<T, CatalogError> {
        value.ok_or_else(|| self.bad(field, "is wanted, here or in the distribution"))
    }

    fn at_most(&self, field: &'static str, count: usize, max: usize) -> Result<(), CatalogError> {
        if count > max { Err(self.bad(field, format!("{count}, more than {max}"))) } else { Ok(()) }
    }
}

pub(super) fn parse(text: &str, place: Option<&CatalogPlace>) -> Result<Catalog, CatalogError> {
    let syntax = |error| CatalogError::Syntax(Box::new(error));
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    // First the version: what is unknown here may be known to a newer kiln.
    let Version { version } = toml::from_str(text).map_err(syntax)?;
    if version != CATALOG_VERSION {
        return Err(CatalogError::Version(version));
    }
    let file: File = toml::from_str(text).map_err(syntax)?;
    At("the catalog").at_most("distribution", file.distribution.len(), DISTRIBUTIONS_MAX)?;
    let mut distributions = BTreeMap::new();
    for table in file.distribution {
        let distribution = distribution(table, place)?;
        let name = distribution.name.clone();
        if distributions.insert(name.clone(), distribution).is_some() {
            return Err(At(&name).bad("name", "is given twice"));
        }
    }
    Ok(Catalog { distributions })
}

fn distribution(mut table: Table, place: Option<&CatalogPlace>) -> Result<Distribution, CatalogError> {
    let releases = std::mem::take(&mut table.release);
    let at = At(&table.name);
    let name = at.word("name", table.name.clone())?;
    let title = at.needed("title", table.title.clone())?;
    if title.is_empty() || title.len() > WORD_BYTES_MAX || title.chars().any(char::is_control) {
        return Err(at.bad("title", format!("1 to {WORD_BYTES_MAX} bytes are wanted")));
    }
    if table.end_of_life.is_some() {
        return Err(at.bad("end_of_life", "each release has its own"));
    }
    at.at_most("release", releases.len(), RELEASES_MAX)?;
    let releases: Vec<Release> =
        releases.into_iter().map(|it| release(it, &table, place)).collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    for name in releases.iter().flat_map(|release| std::iter::once(&release.name).chain(&release.aliases)) {
        if !names.insert(name) {
            return Err(at.bad("release", format!("`{name}` means two releases")));
        }
    }
    if releases.is_empty() {
        return Err(at.bad("release", "one is wanted"));
    }
    let aliases = at.words("aliases", table.aliases.clone())?;
    Ok(Distribution { name, title, aliases, releases })
}

pub(super) fn release(
    table: Table,
    distribution: &Table,
    from: Option<&CatalogPlace>,
) -> Result<Release, CatalogError> {
    let place = format!("{}:{}", distribution.name, table.name);
    let at = At(&place);
    for (field, said) in [("title", table.title.is_some()), ("release", !table.release.is_empty())] {
        if said {
            return Err(at.bad(field, "is a distribution's to say"));
        }
    }
    let said = table.over(distribution);
    let name = at.word("name", said.name.clone())?;
    let end_of_life = said.end_of_life.as_deref().map(str::parse::<Date>).transpose();
    let architectures = at.needed("arch", said.arch.as_ref())?;
    let mut images = BTreeMap::new();
    for (arch, word) in architectures {
        let arch: Arch = arch.parse().map_err(|error| at.bad("arch", error))?;
        if images.insert(arch, image(&at, &name, word, &said, from)?).is_some() {
            return Err(at.bad("arch", format!("{arch} is given twice")));
        }
    }
    if images.is_empty() {
        return Err(at.bad("arch", "one is wanted"));
    }
    Ok(Release {
        aliases: at.words("aliases", said.aliases.clone())?,
        end_of_life: end_of_life.map_err(|error| at.bad("end_of_life", error))?,
        user: at.word("user", at.needed("user", said.user.clone())?)?,
        name,
        images,
        catalog: None,
        said: Box::new(said),
    })
}

fn image(
    at: &At<'_>,
    release: &str,
    arch: &str,
    said: &Table,
    place: Option<&CatalogPlace>,
) -> Result<Image, CatalogError> {
    let names = Names { at, release, arch, codename: said.codename.as_deref(), place };
    let format = at.needed("format", said.format.as_deref())?;
    let format = DiskFormat::ALL.into_iter().find(|known| known.as_str() == format);
    let bases = match at.needed("url", said.url.clone())? {
        Urls::One(url) => vec![url],
        Urls::Many(urls) => urls,
    };
    at.at_most("url", bases.len(), MIRRORS_MAX)?;
    let bases: Vec<String> = bases.iter().map(|url| names.base(url)).collect::<Result<_, _>>()?;
    let Some(first) = bases.first() else { return Err(at.bad("url", "one is wanted")) };
    let checksums = at.needed("checksums", said.checksums.as_deref())?;
    let beside = |field, name: &Option<String>| {
        name.as_deref().map(|name| names.mirrored(field, &bases, name)).transpose()
    };
    let boot = boot(at, said)?;
    Ok(Image {
        urls: names.mirrored("disk", &bases, at.needed("disk", said.disk.as_deref())?)?,
        kernel: beside("kernel", &said.kernel)?,
        initrd: beside("initrd", &said.initrd)?,
        boot,
        seed: seed(at, said)?,
        format: format.ok_or_else(|| at.bad("format", "raw, qcow2, vmdk or vhdx is wanted"))?,
        checksums: names.beside("checksums", first, checksums)?,
        signature: signature(&names, first, said)?,
    })
}

/// Returns how an image starts, which the files beside it have to allow.
fn boot(at: &At<'_>, said: &Table) -> Result<ImageBoot, CatalogError> {
    let boot = match said.boot.as_deref() {
        None => ImageBoot::default(),
        Some(word) => ImageBoot::ALL
            .into_iter()
            .find(|known| known.as_str() == word)
            .ok_or_else(|| at.bad("boot", "auto, direct or firmware is wanted"))?,
    };
    if said.initrd.is_some() && said.kernel.is_none() {
        return Err(at.bad("initrd", "it belongs to a kernel: `kernel` is wanted"));
    }
    if said.kernel.is_some() && boot == ImageBoot::Firmware {
        return Err(at.bad("kernel", "firmware starts none from outside the image"));
    }
    if said.kernel.is_some() && said.image_signature.is_some() {
        return Err(at.bad("kernel", "`image_signature` says nothing of it, `signature` is wanted"));
    }
    Ok(boot)
}

fn seed(at: &At<'_>, said: &Table) -> Result<Option<SeedKind>, CatalogError> {
    match said.seed.as_deref() {
        None => Ok(Some(SeedKind::NoCloud)),
        Some("none") => Ok(None),
        Some(word) if word == SeedKind::NoCloud.as_str() => Ok(Some(SeedKind::NoCloud)),
        Some(_) => Err(at.bad("seed", "nocloud or none is wanted")),
    }
}

fn signature(names: &Names<'_>, base: &str, said: &Table) -> Result<Option<Signature>, CatalogError> {
    let at = names.at;
    let place = match (said.signature.as_deref(), said.image_signature.as_deref()) {
        (None, None) => {
            return match &said.signers {
                Some(_) => {
                    Err(at.bad("signers", "they sign nothing: `signature` or `image_signature` is wanted"))
                }
                None => Ok(None),
            };
        }
        (Some(_), Some(_)) => return Err(at.bad("image_signature", "it and `signature` exclude each other")),
        (Some(INLINE), None) => SignaturePlace::Inline,
        (Some(name), None) => SignaturePlace::OfChecksums(names.beside("signature", base, name)?),
        (None, Some(name)) => SignaturePlace::OfImage(names.beside("image_signature", base, name)?),
    };
    let signers = said.signers.clone().unwrap_or_default();
    at.at_most("signers", signers.len(), SIGNERS_MAX)?;
    let signers: Vec<_> = signers
        .iter()
        .map(|text| text.parse().map_err(|error| at.bad("signers", error)))
        .collect::<Result<_, _>>()?;
    if signers.is_empty() {
        return Err(at.bad("signers", "the fingerprint of a key is wanted"));
    }
    let keys = said.keys.clone().unwrap_or_default();
    at.at_most("keys", keys.len(), SIGNERS_MAX)?;
    let keys = keys.into_iter().map(|key| names.key(base, key)).collect::<Result<_, _>>()?;
    Ok(Some(Signature { place, signers, keys }))
}

/// What words in braces stand for.
struct Names<'a> {
    at: &'a At<'a>,
    release: &'a str,
    arch: &'a str,
    codename: Option<&'a str>,
    place: Option<&'a CatalogPlace>,
}

impl Names<'_> {
    fn fill(&self, field: &'static str, pattern: &str) -> Result<String, CatalogError> {
        let mut filled = String::new();
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once('{') {
            let (word, after) =
                after.split_once('}').ok_or_else(|| self.at.bad(field, "a brace is not closed"))?;
            filled.push_str(before);
            filled.push_str(match word {
                "release" => self.release,
                "arch" => self.arch,
                "codename" => self.at.needed("codename", self.codename)?,
                other => {
                    let reason =
                        format!("{{{}}} is none of {{release}}, {{codename}}, {{arch}}", clip(other));
                    return Err(self.at.bad(field, reason));
                }
            });
            rest = after;
        }
        filled.push_str(rest);
        if filled.is_empty() || filled.len() > URL_BYTES_MAX || !filled.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(self
                .at
                .bad(field, format!("1 to {URL_BYTES_MAX} visible ASCII characters are wanted")));
        }
        Ok(filled)
    }

    /// Returns the address of a directory.
    fn base(&self, pattern: &str) -> Result<String, CatalogError> {
        let url = self.fill("url", pattern)?;
        let local = url.starts_with("file:");
        let url = match self.place {
            _ if is_web(&url) => url,
            Some(CatalogPlace::File(_)) if local && local_path(&url).is_some() => url,
            Some(_) if local => {
                let reason = "only a catalog that was added from a local file sends to local files";
                return Err(self.at.bad("url", reason));
            }
            Some(place) => self.url("url", &place.directory(), url.trim_end_matches('/'))?,
            None => {
                let reason = format!("`{}` does not begin with https:// or http://", clip(&url));
                return Err(self.at.bad("url", reason));
            }
        };
        Ok(format!("{}/", url.trim_end_matches('/')))
    }

    /// Returns the address of what an address or a name in a directory means.
    fn beside(&self, field: &'static str, base: &str, pattern: &str) -> Result<String, CatalogError> {
        let name = self.fill(field, pattern)?;
        if is_web(&name) { Ok(name) } else { self.url(field, base, &name) }
    }

    /// Returns the addresses of a file below each directory.
    fn mirrored(
        &self,
        field: &'static str,
        bases: &[String],
        pattern: &str,
    ) -> Result<Vec<String>, CatalogError> {
        let name = self.fill(field, pattern)?;
        bases.iter().map(|base| self.url(field, base, &name)).collect()
    }

    fn key(&self, base: &str, item: key::Item) -> Result<KeySource, CatalogError> {
        match item {
            key::Item::Place(pattern) => Ok(KeySource::Address(self.beside("keys", base, &pattern)?)),
            key::Item::Armoured(text) => match key::wrong(&text) {
                Some(reason) => Err(self.at.bad("keys", reason)),
                None => Ok(KeySource::Armoured(text)),
            },
        }
    }

    fn url(&self, field: &'static str, base: &str, name: &str) -> Result<String, CatalogError> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if name.contains(['?', '#', '\\', ':']) || !name.split('/').all(plain) {
            return Err(self.at.bad(field, format!("`{}` is not a file below `url`", clip(name))));
        }
        Ok(format!("{base}{name}"))
    }
}

pub(super) fn is_web(url: &str) -> bool {
    ["https://", "http://"].iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
}
