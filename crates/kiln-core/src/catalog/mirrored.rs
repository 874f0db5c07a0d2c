//! Catalogs of mirrors: the same releases, with all their files below the catalog's own directory.

use super::key::Item;
use super::wire::{self, File, Table, Urls, is_web};
use super::{CATALOG_VERSION, Catalog, CatalogError, CatalogPlace, Distribution, Release};
use crate::arch::Arch;
use std::collections::BTreeMap;

impl Release {
    /// Returns this release of a distribution as the catalog of a mirror at `place` has it, for these architectures:
    /// files are in `DISTRIBUTION/RELEASE/ARCH/`, by the names they have below their first `url`; those that are
    /// elsewhere are in `checksums/`, `signature/` or `keys/` there.
    ///
    /// # Errors
    /// When an address of it has no name that a file could have.
    pub fn mirrored(
        &self,
        distribution: &Distribution,
        arches: &[Arch],
        place: &CatalogPlace,
    ) -> Result<Self, CatalogError> {
        let mut said = (*self.said).clone();
        said.url = Some(Urls::One(format!("{}/{}/{{arch}}", distribution.name, self.name)));
        let wanted = |arch: &str| arch.parse().is_ok_and(|arch| arches.contains(&arch));
        if let Some(words) = &mut said.arch {
            words.retain(|arch, _| wanted(arch));
        }
        for (field, text) in [
            ("checksums", &mut said.checksums),
            ("signature", &mut said.signature),
            ("signature", &mut said.image_signature),
        ] {
            if let Some(text) = text {
                bring_below(text, field);
            }
        }
        for (index, key) in said.keys.iter_mut().flatten().enumerate() {
            if let Item::Place(text) = key {
                // Keys of several places are often called the same.
                bring_below(text, &format!("keys/{}", index + 1));
            }
        }
        wire::release(said, &distribution.table(), Some(place))
    }

    /// Returns this release with the architectures that another has of it too, where its files are called alike.
    #[must_use]
    pub fn with_arches_of(mut self, other: &Self) -> Self {
        let bare = |said: &Table| Table {
            aliases: Vec::new(),
            end_of_life: None,
            user: None,
            arch: None,
            ..said.clone()
        };
        if bare(&self.said) == bare(&other.said) {
            for (arch, image) in &other.images {
                self.images.entry(*arch).or_insert_with(|| image.clone());
            }
            let mut words = other.said.arch.clone().unwrap_or_default();
            words.extend(self.said.arch.take().unwrap_or_default());
            self.said.arch = Some(words);
        }
        self
    }
}

/// Has a file that is elsewhere be in a directory below.
fn bring_below(text: &mut String, directory: &str) {
    if is_web(text) || text.starts_with("file:") {
        // What a server is asked behind its path is no part of a file's name.
        let path = text.split(['?', '#']).next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        *text = format!("{directory}/{name}");
    }
}

impl Distribution {
    /// Returns what is its own to say.
    fn table(&self) -> Table {
        Table {
            name: self.name.clone(),
            aliases: self.aliases.clone(),
            title: Some(self.title.clone()),
            ..Table::default()
        }
    }
}

impl Catalog {
    /// Returns a catalog of these releases, each of a distribution.
    pub fn of<'a>(releases: impl IntoIterator<Item = (&'a Distribution, Release)>) -> Self {
        let mut distributions: BTreeMap<String, Distribution> = BTreeMap::new();
        for (distribution, release) in releases {
            let entry = distributions.entry(distribution.name.clone());
            let known =
                entry.or_insert_with(|| Distribution { releases: Vec::new(), ..distribution.clone() });
            known.releases.push(release);
        }
        Self { distributions }
    }

    /// Returns the text that says all this, in the form that is read.
    pub fn text(&self) -> String {
        let distribution = self.distributions.values().map(|distribution| {
            let mut table = distribution.table();
            table.release = distribution.releases.iter().map(|release| (*release.said).clone()).collect();
            // Armoured keys are long, and all releases have them alike.
            let keys = table.release.first().and_then(|first| first.keys.clone());
            if keys.is_some() && table.release.iter().all(|release| release.keys == keys) {
                table.release.iter_mut().for_each(|release| release.keys = None);
                table.keys = keys;
            }
            table
        });
        let file = File { version: CATALOG_VERSION, distribution: distribution.collect() };
        #[expect(clippy::expect_used, reason = "what was read from this form is written in it")]
        toml::to_string(&file).expect("a catalog is TOML")
    }
}
