//! Where things lie in a store, and who may work in it.

use crate::error::{StoreError, StoreResult};
use crate::migrate::{self, MIGRATIONS};
use crate::protect::Protect;
use kiln_core::{Digest, DiskOwner, MachineId, TemplateName};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::lock::{FileLock, Holder, Share};
use kiln_sys::{Cancel, IoResultExt as _, fail, fs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The version of the store's format that this program writes.
pub const STORE_VERSION: u32 = 1;
/// The largest `meta.json` that is read, in bytes.
pub(crate) const META_BYTES_MAX: usize = 64 << 10;
const FORMAT: &str = "kiln.store";
/// The feature, which a reader may ignore, that says what is to protect artifacts.
const PROTECT_FEATURE: &str = "protect";
const DIRECTORIES: [&str; 10] = [
    "artifacts",
    "indexes",
    "revisions",
    "snapshots",
    "templates",
    "leases",
    "machines",
    "clones",
    "staging",
    "cache/v1/builds",
];

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    format: String,
    version: u32,
    /// Absent in version 0 only.
    features: Option<Features>,
}

/// Features beyond the version: compatible ones may be ignored, read-only ones when nothing is written, incompatible
/// ones never.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Features {
    #[serde(default)]
    compatible: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    read_only_compatible: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    incompatible: BTreeMap<String, serde_json::Value>,
}

/// An open store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    pub(crate) protect: Protect,
}

/// A hold on the store: shared by those who add, alone for those who remove.
#[derive(Debug)]
pub struct StoreLock {
    _lock: FileLock,
}

impl Store {
    /// Opens the store at `root`, making it when the directory is new or empty, and migrating it when it is of an older
    /// version: then it waits for whoever works in it.
    pub fn open(root: &Path) -> StoreResult<Self> {
        Self::open_with(root, &Cancel::new().at("make", "an event")?, &mut |_| ())
    }

    /// Like [`Store::open`]. `cancel` ends a wait, and `waiting` is told for whom.
    ///
    /// # Errors
    /// [`StoreError::NewerStore`] and [`StoreError::UnknownFeature`] for a store of a newer kiln;
    /// [`StoreError::NotAStore`] for anything else.
    pub fn open_with(root: &Path, cancel: &Cancel, waiting: &mut dyn FnMut(&Holder)) -> StoreResult<Self> {
        let meta = root.join("meta.json");
        let mut store = Self { root: root.to_owned(), protect: Protect::default() };
        let bytes = match fs::read_optional(&meta, META_BYTES_MAX)? {
            Some(bytes) => Some(bytes),
            None => match store.create(&meta) {
                Err(error) if is_overtaken(&error) => match fs::read_optional(&meta, META_BYTES_MAX)? {
                    Some(bytes) => Some(bytes),
                    None => return Err(error),
                },
                made => made.map(|()| None)?,
            },
        };
        let Some(bytes) = bytes else { return Ok(store) };
        let mut found = store.check(&bytes)?;
        if found.version < STORE_VERSION {
            migrate::run(&store, &MIGRATIONS, cancel, waiting)?;
            found = store.check(&fs::read_limited(&meta, META_BYTES_MAX)?)?;
        }
        // A word that a newer kiln knows is ignored, as the whole feature is by an older.
        let word = found.features.unwrap_or_default().compatible.remove(PROTECT_FEATURE);
        store.protect = word.and_then(|word| word.as_str()?.parse().ok()).unwrap_or_default();
        Ok(store)
    }

    /// Writes down what is to protect the artifacts. The caller holds the store's lock alone.
    pub(crate) fn write_protect(&self, protect: Protect) -> StoreResult<()> {
        let mut meta = migrate::read_meta(self)?;
        let compatible = meta.get_mut("features").and_then(|features| features.get_mut("compatible"));
        if let Some(features) = compatible.and_then(serde_json::Value::as_object_mut) {
            features.insert(PROTECT_FEATURE.to_owned(), protect.as_str().into());
        }
        migrate::write_meta(self, &meta)
    }

    fn create(&self, meta: &Path) -> StoreResult<()> {
        fail::point("open.look", meta)?;
        if let Some(stranger) = self.stranger()? {
            let reason = format!("it has no meta.json, but holds `{stranger}`");
            return Err(StoreError::NotAStore { path: self.root.clone(), reason });
        }
        for directory in DIRECTORIES {
            fail::point("open.directory", &self.root.join(directory))?;
            fs::create_dir_all(&self.root.join(directory))?;
        }
        let content =
            Meta { format: FORMAT.to_owned(), version: STORE_VERSION, features: Some(Features::default()) };
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec_pretty(&content).unwrap();
        fail::point("open.meta", meta)?;
        write_file(meta, &bytes, 0o644, Existing::Keep)?;
        Ok(())
    }

    /// Returns a name in the root that no interrupted creation of a store leaves.
    fn stranger(&self) -> StoreResult<Option<String>> {
        let known = |name: &std::ffi::OsStr| {
            kiln_sys::commit::is_aside(name)
                || DIRECTORIES.iter().any(|directory| directory.split('/').next() == name.to_str())
        };
        let names = fs::list_dir(&self.root)?;
        Ok(names.iter().find(|name| !known(name)).map(|name| name.to_string_lossy().into_owned()))
    }

    /// Checks that what `meta.json` says is a store that this kiln may use, or migrate.
    fn check(&self, bytes: &[u8]) -> StoreResult<Meta> {
        let path = || self.root.clone();
        let meta: Meta = serde_json::from_slice(bytes)
            .map_err(|error| StoreError::NotAStore { path: path(), reason: format!("meta.json: {error}") })?;
        if meta.format != FORMAT {
            let reason = format!("meta.json names the format `{}`", kiln_core::text::clip(&meta.format));
            return Err(StoreError::NotAStore { path: path(), reason });
        }
        if meta.version > STORE_VERSION {
            return Err(StoreError::NewerStore { path: path(), found: meta.version, known: STORE_VERSION });
        }
        if meta.version > 0 && meta.features.is_none() {
            let reason = "meta.json: missing field `features`".to_owned();
            return Err(StoreError::NotAStore { path: path(), reason });
        }
        let named = meta.features.iter();
        let unknown =
            named.flat_map(|all| all.incompatible.keys().chain(all.read_only_compatible.keys())).next();
        match unknown {
            Some(feature) => {
                Err(StoreError::UnknownFeature { path: path(), feature: kiln_core::text::clip(feature) })
            }
            None => Ok(meta),
        }
    }

    /// Takes the store's lock. `waiting` is told when somebody else has it.
    pub fn lock(
        &self,
        share: Share,
        work: &str,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(&Holder),
    ) -> StoreResult<StoreLock> {
        let lock = FileLock::take_as(share, &self.root.join("store.lock"), work, cancel, waiting)?;
        Ok(StoreLock { _lock: lock })
    }

    /// Takes the lock of one template, for builds and moves of its tags.
    pub fn lock_template(
        &self,
        name: &TemplateName,
        work: &str,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(&Holder),
    ) -> StoreResult<FileLock> {
        fail::point("template.directory", &self.template_dir(name))?;
        fs::create_dir_all(&self.template_dir(name))?;
        Ok(FileLock::take(&self.template_dir(name).join("lock"), work, cancel, waiting)?)
    }

    /// Returns the store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the file of an artifact, there or not.
    pub fn artifact_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("artifacts").join(digest.hex())
    }

    pub(crate) fn index_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("indexes").join(digest.hex())
    }

    pub(crate) fn block_table_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("indexes").join(format!("{}.blocks", digest.hex()))
    }

    pub(crate) fn revision_path(&self, id: &Digest) -> PathBuf {
        self.root.join("revisions").join(format!("{}.json", id.hex()))
    }

    pub(crate) fn build_record_path(&self, id: &Digest) -> PathBuf {
        self.root.join("revisions").join(format!("{}.build.json", id.hex()))
    }

    pub(crate) fn template_dir(&self, name: &TemplateName) -> PathBuf {
        self.root.join("templates").join(name.as_str())
    }

    pub(crate) fn cache_path(&self, key: &Digest) -> PathBuf {
        self.root.join("cache/v1/builds").join(key.hex())
    }

    /// Returns a directory of the cache, which is made if it is not there. Whatever is in it may be deleted at any time.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn cache_dir(&self, name: &'static str) -> StoreResult<PathBuf> {
        let dir = self.root.join("cache/v1").join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    pub(crate) fn disk_dir(&self, owner: &DiskOwner) -> PathBuf {
        self.root.join("clones").join(owner.as_str())
    }

    /// Returns the directory of a machine, there or not.
    pub fn machine_dir(&self, id: &MachineId) -> PathBuf {
        self.root.join("machines").join(id.as_str())
    }
}

/// Whether making a store ended so because somebody else had made it meanwhile: files of theirs are there, or what was
/// written aside was swept away.
fn is_overtaken(error: &StoreError) -> bool {
    match error {
        StoreError::NotAStore { .. } => true,
        StoreError::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}
