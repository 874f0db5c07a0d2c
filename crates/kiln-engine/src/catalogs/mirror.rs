//! Mirrors of the catalog's images: a directory that any server of files, or a disk that is carried, makes a place of a
//! catalog, or a bucket. `docs/formats/catalog.md` tells its layout.

use super::{CatalogsError, now, telling};
use crate::build::FETCHED;
use crate::images::refuse_older;
use crate::progress::{self, Progress, Reporter, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_build::FetchOptions;
use kiln_core::catalog::{
    CATALOG_BYTES_MAX, Catalog, CatalogPlace, Distribution, Image, ImageName, ImagePin, KEY_BYTES_MAX,
    NotListed, Release,
};
use kiln_core::{Arch, BucketPlace, ByteSize, Digest};
use kiln_source::bucket::{Bucket, BucketAccess};
use kiln_source::catalog::{Directory, LookUpError, MirrorImage, Mirrored, Over, Shelf, ShelfError, Text};
use kiln_source::download::Client;
use kiln_source::openpgp::SIGNATURE_BYTES_MAX;
use kiln_sys::commit::{self, Existing};
use kiln_sys::fs;
use kiln_sys::lock::{FileLock, Share};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The catalog of a mirror.
const CATALOG: &str = "catalog.toml";
/// The detached signature over it.
const SIGNATURE: &str = "catalog.toml.asc";
/// The public key by which that is checked, where whoever adds the catalog looks for it.
const KEY: &str = "catalog.toml.key";
/// What is being made of a mirror. Names of distributions begin with a letter or digit.
const WORK: &str = ".kiln-mirror";
/// The lock of whoever changes a mirror.
const LOCK: &str = ".kiln-mirror.lock";
/// The directory, among what is fetched, with what is being made of mirrors in buckets, and their locks.
const BUCKETS: &str = "mirrors";
/// The mode of the catalog before it is signed.
const FILE_MODE: u32 = 0o644;
/// How often a catalog is written that somebody else changes meanwhile.
const TRIES_MAX: u32 = 5;

/// Where a mirror is.
#[derive(Debug, Clone)]
pub enum MirrorPlace {
    /// A directory, which is made if need be.
    Directory(PathBuf),
    /// A bucket that is there.
    Bucket {
        /// The bucket and a prefix.
        place: BucketPlace,
        /// Who asks, and which server.
        access: BucketAccess,
    },
}

/// What is mirrored, and how.
#[derive(Debug, Clone, Default)]
pub struct MirrorOptions {
    /// The images.
    pub names: Vec<ImageName>,
    /// All of the catalog in place of them, but those that are not looked after any more.
    pub all: bool,
    /// For which architectures.
    pub arches: Vec<Arch>,
    /// How they are fetched. They are checked by signature where somebody signs, else by checksum.
    pub fetch: FetchOptions,
    /// Takes what was signed before that which is there, too.
    pub allow_older: bool,
    /// The key by which the host's `gpg` signs the catalog of the mirror; it is not signed otherwise.
    pub sign: Option<String>,
}

/// An image of a mirror.
#[derive(Debug)]
pub struct MirroredImage {
    /// Distribution and release.
    pub name: String,
    /// For which architecture.
    pub arch: Arch,
    /// What came of it.
    pub result: EngineResult<Mirrored>,
}

/// What came of a mirror.
#[derive(Debug)]
pub struct MirrorReport {
    /// The images.
    pub images: Vec<MirroredImage>,
    /// The file of the mirror's catalog, as a path or an address.
    pub catalog: String,
    /// Whether that is another than before.
    pub changed: bool,
    /// The releases it lists: those of earlier runs too.
    pub listed: usize,
    /// Whether the signature of the catalog before was removed.
    pub unsigned: bool,
}

/// A mirror that is being made.
struct Mirror<'a> {
    engine: &'a Engine,
    options: &'a MirrorOptions,
    shelf: &'a dyn Shelf,
    place: CatalogPlace,
    work: &'a Path,
    client: &'a Client<'a>,
    reporter: &'a dyn Reporter,
}

impl Engine {
    /// Copies images with their checksums, signatures and keys, as they are published, to a directory or a bucket, and
    /// writes a catalog of them there. What is there and right is not fetched again; images that it has besides stay in
    /// it.
    ///
    /// An image that cannot be had is left out, as its report says; the others are mirrored.
    ///
    /// # Errors
    /// When the catalog has no such image, and when the directory or the bucket cannot be used.
    pub fn mirror(
        &self,
        place: &MirrorPlace,
        options: &MirrorOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<MirrorReport> {
        let catalog = self.catalog()?;
        let chosen = choose(&catalog, options)?;
        let client = self.client(options.fetch);
        match place {
            MirrorPlace::Directory(directory) => {
                if !fs::exists(directory)? {
                    fs::create_dir_all(directory)?;
                    fs::set_mode(directory, 0o755)?;
                }
                let root = fs::canonicalize(directory)?;
                let work = Work { path: root.join(WORK), lock: root.join(LOCK) };
                self.mirror_to(&Directory::new(&root), &work, (options, &client), chosen, reporter)
            }
            MirrorPlace::Bucket { place, access } => {
                let bucket = Bucket::new(place, access, &client, &self.cancel);
                let bucket = bucket.map_err(|error| CatalogsError::from(ShelfError::from(error)))?;
                // Buckets of one name are several where their servers are.
                let name = format!("{}\n{place}", access.endpoint.as_deref().unwrap_or_default());
                let parent = self.store.cache_dir(FETCHED)?.join(BUCKETS);
                // A collection may remove what is fetched.
                let doing = format!("mirroring to {place}");
                let _store = self.store.lock(Share::Shared, &doing, &self.cancel, &mut waiting(reporter))?;
                fs::create_dir_all(&parent)?;
                let path = parent.join(Digest::of(name.as_bytes()).hex());
                let work = Work { lock: path.with_extension("lock"), path };
                self.mirror_to(&bucket, &work, (options, &client), chosen, reporter)
            }
        }
    }

    fn mirror_to(
        &self,
        shelf: &dyn Shelf,
        work: &Work,
        (options, client): (&MirrorOptions, &Client<'_>),
        chosen: Vec<(&Distribution, &Release, Vec<Arch>)>,
        reporter: &dyn Reporter,
    ) -> EngineResult<MirrorReport> {
        let doing = format!("mirroring to {}", shelf.shown(""));
        let held = FileLock::take(&work.lock, &doing, &self.cancel, &mut waiting(reporter));
        let _lock = held.map_err(|error| EngineError::from(CatalogsError::Lock(error)))?;
        // The paths of the files are those below this root.
        let place = CatalogPlace::File(Path::new("/").join(CATALOG));
        let mirror = Mirror { engine: self, options, shelf, place, work: &work.path, client, reporter };
        let report = mirror.run(chosen)?;
        if report.images.iter().all(|image| image.result.is_ok()) {
            fs::remove_tree(&work.path)?;
        }
        fs::remove_file(&work.lock)?;
        Ok(report)
    }
}

/// Where a mirror is being made.
struct Work {
    path: PathBuf,
    lock: PathBuf,
}

/// Returns what is to be mirrored, each release with its architectures.
fn choose<'c>(
    catalog: &'c Catalog,
    options: &MirrorOptions,
) -> EngineResult<Vec<(&'c Distribution, &'c Release, Vec<Arch>)>> {
    let mut chosen: Vec<(&Distribution, &Release, Vec<Arch>)> = Vec::new();
    if options.all {
        let today = kiln_core::Date::of_unix_seconds(kiln_sys::clock::now_unix_ms() / 1000);
        for distribution in catalog.distributions() {
            for release in distribution.releases.iter().filter(|release| !release.is_over(today)) {
                let there = |arch: &&Arch| release.images.contains_key(arch);
                let arches: Vec<Arch> = options.arches.iter().filter(there).copied().collect();
                if !arches.is_empty() {
                    chosen.push((distribution, release, arches));
                }
            }
        }
        return Ok(chosen);
    }
    for name in &options.names {
        let (distribution, release) = catalog.find(name)?;
        for arch in &options.arches {
            catalog.image(name, *arch).map_err(|error: NotListed| EngineError::from(error))?;
        }
        // Two names may be one image.
        if !chosen.iter().any(|(_, known, _)| std::ptr::eq(*known, release)) {
            chosen.push((distribution, release, options.arches.clone()));
        }
    }
    Ok(chosen)
}

impl Mirror<'_> {
    fn run(&self, chosen: Vec<(&Distribution, &Release, Vec<Arch>)>) -> EngineResult<MirrorReport> {
        // One that cannot be gone on with is told of before anything is fetched.
        self.read()?;
        fs::create_dir_all(self.work)?;
        let (mut images, mut listed) = (Vec::new(), Vec::new());
        for (distribution, release, arches) in chosen {
            let name = format!("{}:{}", distribution.name, release.name);
            let unfit = |source| EngineError::from(CatalogsError::Unfit { name: name.clone(), source });
            let whole = release.mirrored(distribution, &arches, &self.place).map_err(unfit)?;
            let mut done = Vec::new();
            for arch in arches {
                let (Some(image), Some(copy)) = (release.images.get(&arch), whole.images.get(&arch)) else {
                    continue;
                };
                let result = self.image(&name, arch, image, copy);
                match result {
                    Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                    result => {
                        done.extend(result.is_ok().then_some(arch));
                        images.push(MirroredImage { name: name.clone(), arch, result });
                    }
                }
            }
            if !done.is_empty() {
                let release = release.mirrored(distribution, &done, &self.place).map_err(unfit)?;
                listed.push((distribution, release));
            }
        }
        let mut tries = 1;
        let (changed, listed, unsigned) = loop {
            match self.list(&listed) {
                // What somebody else mirrored meanwhile stays.
                Err(EngineError::Catalogs(error)) if error.is_changed() && tries < TRIES_MAX => tries += 1,
                other => break other?,
            }
        };
        Ok(MirrorReport { images, catalog: self.shelf.shown(CATALOG), changed, listed, unsigned })
    }

    /// Reads the catalog of the mirror.
    fn read(&self) -> EngineResult<(Option<Text>, Catalog)> {
        let before = self.shelf.read(CATALOG, CATALOG_BYTES_MAX).map_err(CatalogsError::from)?;
        let path = || PathBuf::from(self.shelf.shown(CATALOG));
        let catalog = match &before {
            Some(text) => {
                let place = || self.shelf.shown(CATALOG);
                let text = std::str::from_utf8(&text.bytes)
                    .map_err(|_| CatalogsError::NotText { place: place() })?;
                Catalog::parse_from(text, &self.place)
                    .map_err(|source| EngineError::Catalog { path: path(), source })?
            }
            None => Catalog::default(),
        };
        Ok((before, catalog))
    }

    /// Has the catalog list these too. Returns whether it is another than before, how many releases it lists, and
    /// whether a signature was removed.
    fn list(&self, mirrored: &[(&Distribution, Release)]) -> EngineResult<(bool, usize, bool)> {
        let (before, there) = self.read()?;
        let whole = mirrored.iter().map(|(distribution, release)| {
            let release = release.clone();
            let release = match known(&there, &distribution.name, &release.name) {
                Some(known) => release.with_arches_of(known),
                None => release,
            };
            (*distribution, release)
        });
        let whole = Catalog::of(whole);
        let catalog = there.extended_by(whole);
        let listed = catalog.distributions().map(|it| it.releases.len()).sum();
        let text = catalog.text();
        // What is written is read by the rules for everybody, limits too.
        let path = || PathBuf::from(self.shelf.shown(CATALOG));
        Catalog::parse_from(&text, &self.place)
            .map_err(|source| EngineError::Catalog { path: path(), source })?;
        let changed = before.as_ref().is_none_or(|before| before.bytes != text.as_bytes());
        let mut unsigned = false;
        if listed > 0 {
            unsigned = self.write(&text, before.as_ref(), changed)?;
        }
        Ok((changed, listed, unsigned))
    }

    fn image(&self, image_name: &str, arch: Arch, image: &Image, copy: &Image) -> EngineResult<Mirrored> {
        let name = &format!("{image_name} for {arch}");
        let mirror = MirrorImage { image, copy, shelf: self.shelf, work: self.work, now: now() };
        let (client, cancel) = (self.client, &self.engine.cancel);
        progress::step(self.reporter, &format!("mirror {name}"), || {
            let tell = &mut telling(self.reporter);
            let failed = |error| Failed::LookUp(error).named(name);
            let before = mirror.there(client, tell, cancel).map_err(failed)?;
            let may = |now: &ImagePin| match before.as_ref().filter(|_| !self.options.allow_older) {
                Some(before) => refuse_older(image_name, before, now).map_err(Failed::Refused),
                None => Ok(()),
            };
            let mirrored = mirror.run(may, client, tell, cancel).map_err(|error| error.named(name))?;
            let result = match mirrored.fetched {
                0 => "there already".to_owned(),
                files => {
                    let size = ByteSize::from_bytes(mirrored.bytes).human();
                    format!("{}, {size}", kiln_core::text::count(files, "file"))
                }
            };
            Ok((mirrored, result))
        })
    }

    /// Writes the catalog, and its signature before it; says whether a signature of another text was removed.
    fn write(&self, text: &str, before: Option<&Text>, changed: bool) -> EngineResult<bool> {
        let failed = CatalogsError::from;
        let mut unsigned = false;
        if let Some(key) = &self.options.sign {
            let staged = self.work.join(CATALOG);
            commit::write_file(&staged, text.as_bytes(), FILE_MODE, Existing::Replace)?;
            let sign = ["--local-user", key, "--detach-sign"].map(OsStr::new);
            let signature =
                self.gpg(SIGNATURE, SIGNATURE_BYTES_MAX, &[&sign[..], &[staged.as_os_str()]].concat())?;
            let export = ["--export-options", "export-minimal", "--export", "--", key].map(OsStr::new);
            let public = self.gpg(KEY, KEY_BYTES_MAX, &export)?;
            self.shelf.keep(KEY, &public).map_err(failed)?;
            self.shelf.keep(SIGNATURE, &signature).map_err(failed)?;
        } else if changed {
            unsigned = match self.shelf.read(SIGNATURE, SIGNATURE_BYTES_MAX) {
                Err(error) if error.is_too_large() => true,
                there => there.map_err(failed)?.is_some(),
            };
            if unsigned {
                // It would be false.
                self.shelf.remove(SIGNATURE).map_err(failed)?;
            }
        }
        if changed {
            self.shelf.write(CATALOG, text.as_bytes(), Over::Read(before)).map_err(failed)?;
        }
        Ok(unsigned)
    }

    /// Runs the host's gpg and returns what it writes, armoured.
    fn gpg(&self, name: &str, bytes_max: usize, args: &[&OsStr]) -> EngineResult<Vec<u8>> {
        let output = self.work.join(name);
        let gpg = self.engine.settings.toolbox.find("gpg")?;
        let gpg = gpg.args(["--batch", "--no-tty", "--yes", "--armor", "--output"]).arg(&output);
        let mut said = |line: &str| self.reporter.progress(Progress::Said { line: line.to_owned() });
        gpg.args(args).run(&self.engine.cancel, &mut said)?;
        Ok(fs::read_limited(&output, bytes_max)?)
    }
}

fn known<'c>(catalog: &'c Catalog, distribution: &str, release: &str) -> Option<&'c Release> {
    let distribution = catalog.distributions().find(|known| known.name == distribution)?;
    distribution.releases.iter().find(|known| known.name == release)
}

/// Why an image was not mirrored.
enum Failed {
    LookUp(LookUpError),
    Refused(EngineError),
}

impl From<LookUpError> for Failed {
    fn from(error: LookUpError) -> Self {
        Self::LookUp(error)
    }
}

impl Failed {
    fn named(self, name: &str) -> EngineError {
        match self {
            Self::LookUp(LookUpError::Cancelled) => EngineError::Cancelled,
            Self::LookUp(source) => {
                CatalogsError::Image { name: name.to_owned(), source: Box::new(source) }.into()
            }
            Self::Refused(error) => error,
        }
    }
}
