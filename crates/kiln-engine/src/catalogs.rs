//! Catalogs that were added over the one that comes with kiln: `catalogs/NAME.toml` in the store is the text, and counts;
//! `catalogs/NAME.json` says where it is from. A record is written before its text and removed after it, so that a text
//! is never there with a record of less than it: one without its text is nothing, and one of a newer text is what an
//! update that was killed left, which the next one finishes.

mod error;
mod mirror;
mod record;

pub use error::CatalogsError;
pub use kiln_source::bucket::{AccessKey, BucketAccess, BucketError};
pub use kiln_source::catalog::ShelfError;
pub use mirror::{MirrorOptions, MirrorPlace, MirrorReport, MirroredImage};

use crate::build::FETCHED;
use crate::progress::{Progress, Reporter, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::Digest;
use kiln_core::catalog::{
    CATALOG_BYTES_MAX, Catalog, CatalogName, CatalogPlace, Fingerprint, KeySource, SIGNERS_MAX, Serial,
};
use kiln_source::catalog::{FetchedCatalog, RemoteCatalog};
use kiln_source::download::{self, Client, ClientOptions};
use kiln_sys::commit::{self, Existing};
use kiln_sys::lock::{FileLock, Share};
use kiln_sys::{clock, fs};
use record::Record;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The directory of a store with catalogs over the one that comes with kiln. They count in the order of their names.
const CATALOGS: &str = "catalogs";
/// The lock in it, of whoever changes something there.
const LOCK: &str = ".lock";
/// The most such catalogs.
pub const CATALOGS_MAX: usize = 64;

/// A catalog that is to be added.
#[derive(Debug, Clone)]
pub struct NewCatalog {
    /// What it is to be called.
    pub name: CatalogName,
    /// Where it is. Of a local file the path is absolute.
    pub place: CatalogPlace,
    /// Who may sign it; nobody has to where this is empty.
    pub signers: Vec<Fingerprint>,
    /// Where their keys are; beside it, with `.key` added to its name, where this is empty.
    pub keys: Vec<KeySource>,
    /// Whether one of the web is taken that nobody has to sign.
    pub unsigned: bool,
}

/// What came of an addition.
#[derive(Debug, Clone)]
pub struct AddedCatalog {
    /// What is there now.
    pub entry: CatalogEntry,
    /// Names that mean something else now, and what.
    pub overridden: Vec<(String, String)>,
}

/// A catalog that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its name.
    pub name: CatalogName,
    /// Where it is from; none where somebody put the file there.
    pub place: Option<CatalogPlace>,
    /// Who may sign it.
    pub signers: Vec<Fingerprint>,
    /// Who signed it.
    pub signer: Option<Fingerprint>,
    /// When it was signed.
    pub serial: Option<Serial>,
    /// When it came here, in milliseconds since 1970.
    pub fetched_unix_ms: Option<u64>,
    /// The images it lists: releases of distributions.
    pub images: usize,
}

/// What came of looking at where a catalog is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshedCatalog {
    /// What is there now.
    pub entry: CatalogEntry,
    /// When that was signed which was there before.
    pub before: Option<Serial>,
    /// Whether the text is another.
    pub changed: bool,
}

/// Returns the present time.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(clock::now_unix_ms())
}

/// Tells how a download goes.
fn telling(reporter: &dyn Reporter) -> impl FnMut(download::Progress<'_>) {
    |progress| match progress {
        download::Progress::Bytes { have, total } => reporter.progress(Progress::Bytes { have, total }),
        download::Progress::Waiting(holder) => {
            reporter.progress(Progress::Waiting { holder: holder.text.clone() });
        }
        download::Progress::Again { error, wait } => {
            let error = kiln_core::text::chain(error);
            let text = format!("{error}; trying again in {:.1} s", wait.as_secs_f64());
            reporter.progress(Progress::Note { text });
        }
        _ => {}
    }
}

impl Engine {
    fn catalog_path(&self, name: &CatalogName, ending: &str) -> PathBuf {
        self.store.root().join(CATALOGS).join(format!("{name}.{ending}"))
    }

    /// Returns the names of the catalogs that were added, in the order in which they count.
    fn catalog_names(&self) -> EngineResult<Vec<CatalogName>> {
        let names = fs::list_dir_where(&self.store.root().join(CATALOGS), |name| {
            name.to_str()?.strip_suffix(".toml")?.parse::<CatalogName>().ok()
        })?;
        if names.len() > CATALOGS_MAX {
            return Err(CatalogsError::TooMany.into());
        }
        Ok(names)
    }

    /// Reads a catalog that was added; none where there is none of the name.
    fn added_catalog(&self, name: &CatalogName) -> EngineResult<Option<(Catalog, CatalogEntry, String)>> {
        let path = self.catalog_path(name, "toml");
        let record = Record::read(&self.catalog_path(name, "json"))?;
        let Some(text) = fs::optional(fs::read_text_limited(&path, CATALOG_BYTES_MAX))? else {
            return Ok(None);
        };
        let parsed = match record.as_ref().map(|record| &record.place) {
            Some(place) => Catalog::parse_from(&text, place),
            None => Catalog::parse(&text),
        };
        let catalog = parsed.map_err(|source| EngineError::Catalog { path, source })?.named(name);
        // What a record says of another text does not count.
        let own = record.as_ref().filter(|record| record.sha256 == Digest::of(text.as_bytes()));
        let entry = CatalogEntry {
            name: name.clone(),
            place: record.as_ref().map(|record| record.place.clone()),
            signers: record.as_ref().map(|record| record.signers.clone()).unwrap_or_default(),
            signer: own.and_then(|record| record.signer),
            serial: own.and_then(|record| record.serial),
            fetched_unix_ms: own.map(|record| record.fetched_unix_ms),
            images: catalog.distributions().map(|it| it.releases.len()).sum(),
        };
        Ok(Some((catalog, entry, text)))
    }

    /// Returns the catalog: that which comes with kiln, and those that were added over it.
    ///
    /// # Errors
    /// When one that was added is none.
    pub fn catalog(&self) -> EngineResult<Catalog> {
        let mut catalog = Catalog::built_in();
        for name in self.catalog_names()? {
            if let Some((next, ..)) = self.added_catalog(&name)? {
                catalog = catalog.extended_by(next);
            }
        }
        Ok(catalog)
    }

    /// Returns the catalogs that were added, in the order in which they count: a later one goes over an earlier.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn catalogs(&self) -> EngineResult<Vec<CatalogEntry>> {
        let mut entries = Vec::new();
        for name in self.catalog_names()? {
            entries.extend(self.added_catalog(&name)?.map(|(_, entry, _)| entry));
        }
        Ok(entries)
    }

    /// Locks the catalogs, and what is fetched of them against a collection.
    fn lock_catalogs(
        &self,
        work: &str,
        reporter: &dyn Reporter,
    ) -> EngineResult<(kiln_store::StoreLock, FileLock)> {
        let store = self.store.lock(Share::Shared, work, &self.cancel, &mut waiting(reporter))?;
        let directory = self.store.root().join(CATALOGS);
        fs::create_dir_all(&directory)?;
        let lock = FileLock::take(&directory.join(LOCK), work, &self.cancel, &mut waiting(reporter));
        Ok((store, lock.map_err(CatalogsError::Lock)?))
    }

    fn client(&self, fetch: kiln_build::FetchOptions) -> Client<'_> {
        let mut options = ClientOptions::new(&self.settings.toolbox);
        options.rate_max = fetch.rate_max;
        Client::new(options)
    }

    fn fetch_catalog(
        &self,
        place: &CatalogPlace,
        signers: &[Fingerprint],
        keys: &[KeySource],
        reporter: &dyn Reporter,
    ) -> EngineResult<(FetchedCatalog, Catalog)> {
        let cache = self.store.cache_dir(FETCHED)?;
        let remote = RemoteCatalog { place, signers, keys, cache: &cache, now: now() };
        let client = self.client(kiln_build::FetchOptions::default());
        let fetched = remote.run(&client, &mut telling(reporter), &self.cancel);
        let fetched = fetched.map_err(|source| CatalogsError::fetch(place, source))?;
        let catalog = Catalog::parse_from(&fetched.text, place)
            .map_err(|source| CatalogsError::NotACatalog { place: place.address(), source })?;
        Ok((fetched, catalog))
    }

    /// Writes a catalog with where it is from.
    fn keep_catalog(&self, name: &CatalogName, record: &Record, text: &str) -> EngineResult<()> {
        let write = |ending: &str, bytes: &[u8]| {
            commit::write_file(&self.catalog_path(name, ending), bytes, 0o600, Existing::Replace)
        };
        write("json", &record.to_json()?)?;
        Ok(write("toml", text.as_bytes())?)
    }

    /// Takes a catalog over those that are there. Nothing is written before all of it was checked.
    ///
    /// # Errors
    /// When it cannot be had or is none, when it is of the web and not signed as it has to be, and when there is one of
    /// the name.
    pub fn add_catalog(&self, new: &NewCatalog, reporter: &dyn Reporter) -> EngineResult<AddedCatalog> {
        let name = &new.name;
        if new.place.is_web() && new.signers.is_empty() && !new.unsigned {
            return Err(CatalogsError::NoSigner { place: new.place.address() }.into());
        }
        if new.signers.len() > SIGNERS_MAX || new.keys.len() > SIGNERS_MAX {
            return Err(CatalogsError::TooManySigners.into());
        }
        let _lock = self.lock_catalogs(&format!("adding the catalog {name}"), reporter)?;
        let names = self.catalog_names()?;
        if names.contains(name) {
            return Err(CatalogsError::Exists { name: name.clone() }.into());
        }
        if names.len() == CATALOGS_MAX {
            return Err(CatalogsError::TooMany.into());
        }
        let (mut before, mut after) = (Catalog::built_in(), Vec::new());
        for known in &names {
            let Some((next, ..)) = self.added_catalog(known)? else { continue };
            if known < name {
                before = before.extended_by(next);
            } else {
                after.push(next);
            }
        }
        let (fetched, catalog) = self.fetch_catalog(&new.place, &new.signers, &new.keys, reporter)?;
        let over = |base: Catalog| after.into_iter().fold(base, Catalog::extended_by);
        // What a catalog of a later name says counts before this one, too.
        let mine = catalog.named(name);
        let now = over.clone()(before.clone().extended_by(mine));
        let overridden = over(before).overridden_by(&now);
        let record = Record::of(new, &fetched);
        self.keep_catalog(name, &record, &fetched.text)?;
        let (_, entry, _) = self.added_catalog(name)?.ok_or_else(|| self.no_catalog(name))?;
        Ok(AddedCatalog { entry, overridden })
    }

    fn no_catalog(&self, name: &CatalogName) -> EngineError {
        match self.catalog_names() {
            Ok(known) => CatalogsError::NotFound { name: name.clone(), known }.into(),
            Err(error) => error,
        }
    }

    /// Looks whether there is a newer text where a catalog is from, and takes it; none of a catalog that is from no
    /// place of the web.
    ///
    /// # Errors
    /// As an addition, and [`CatalogsError::Older`] for one that was signed before that which is here.
    pub fn refresh_catalog(
        &self,
        name: &CatalogName,
        reporter: &dyn Reporter,
    ) -> EngineResult<Option<RefreshedCatalog>> {
        let _lock = self.lock_catalogs(&format!("updating the catalog {name}"), reporter)?;
        let (_, before, text) = self.added_catalog(name)?.ok_or_else(|| self.no_catalog(name))?;
        let Some(record) = Record::read(&self.catalog_path(name, "json"))? else { return Ok(None) };
        if !record.place.is_web() {
            return Ok(None);
        }
        let (fetched, _) = self.fetch_catalog(&record.place, &record.signers, &record.keys(), reporter)?;
        // The record's serial counts although its text may not have been written any more.
        if let (Some(have), Some(offered)) = (record.serial, fetched.serial())
            && offered < have
        {
            return Err(CatalogsError::Older { name: name.clone(), have, offered }.into());
        }
        let changed = fetched.text != text;
        if changed || record.serial != fetched.serial() {
            self.keep_catalog(name, &record.renewed(&fetched), &fetched.text)?;
        }
        let (_, entry, _) = self.added_catalog(name)?.ok_or_else(|| self.no_catalog(name))?;
        Ok(Some(RefreshedCatalog { entry, before: before.serial, changed }))
    }

    /// Removes a catalog that was added. What was pulled of its images stays.
    ///
    /// # Errors
    /// [`CatalogsError::NotFound`] when there is none of the name.
    pub fn remove_catalog(&self, name: &CatalogName, reporter: &dyn Reporter) -> EngineResult<()> {
        let _lock = self.lock_catalogs(&format!("removing the catalog {name}"), reporter)?;
        let path = self.catalog_path(name, "toml");
        if !fs::exists(&path)? {
            return Err(self.no_catalog(name));
        }
        fs::remove_file(&path)?;
        fs::remove_file(&self.catalog_path(name, "json"))?;
        Ok(fs::sync_dir(&self.store.root().join(CATALOGS))?)
    }
}
