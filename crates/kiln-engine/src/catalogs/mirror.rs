//! Mirrors of the catalog's images: a directory that any server of files, or a disk that is carried, makes a place of a
//! catalog. `docs/formats/catalog.md` tells its layout.

use super::{CatalogsError, now, telling};
use crate::images::refuse_older;
use crate::progress::{self, Progress, Reporter, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_build::FetchOptions;
use kiln_core::catalog::{
    CATALOG_BYTES_MAX, Catalog, CatalogPlace, Distribution, Image, ImageName, ImagePin, NotListed, Release,
};
use kiln_core::{Arch, ByteSize};
use kiln_source::catalog::{LookUpError, MirrorImage, Mirrored};
use kiln_source::download::Client;
use kiln_sys::commit::{self, Existing};
use kiln_sys::fs;
use kiln_sys::lock::FileLock;
use std::path::{Path, PathBuf};

/// The catalog of a mirror.
const CATALOG: &str = "catalog.toml";
/// The detached signature over it.
const SIGNATURE: &str = "catalog.toml.asc";
/// What is being made of a mirror. Names of distributions begin with a letter or digit.
const WORK: &str = ".kiln-mirror";
/// The lock of whoever changes a mirror.
const LOCK: &str = ".kiln-mirror.lock";
/// The mode of the files of a mirror.
const FILE_MODE: u32 = 0o644;

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
    /// The file of the mirror's catalog.
    pub catalog: PathBuf,
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
    root: &'a Path,
    place: CatalogPlace,
    work: PathBuf,
    client: Client<'a>,
    reporter: &'a dyn Reporter,
}

impl Engine {
    /// Copies images with their checksums, signatures and keys, as they are published, to a directory, and writes a
    /// catalog of them there. What is there and right is not fetched again; images that it has besides stay in it.
    ///
    /// An image that cannot be had is left out, as its report says; the others are mirrored.
    ///
    /// # Errors
    /// When the catalog has no such image, and when the directory cannot be used.
    pub fn mirror(
        &self,
        directory: &Path,
        options: &MirrorOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<MirrorReport> {
        let catalog = self.catalog()?;
        let chosen = choose(&catalog, options)?;
        if !fs::exists(directory)? {
            fs::create_dir_all(directory)?;
            fs::set_mode(directory, 0o755)?;
        }
        let root = fs::canonicalize(directory)?;
        let lock = root.join(LOCK);
        let work = format!("mirroring to {}", root.display());
        let held = FileLock::take(&lock, &work, &self.cancel, &mut waiting(reporter));
        let _lock = held.map_err(|error| EngineError::from(CatalogsError::Lock(error)))?;
        let mirror = Mirror {
            engine: self,
            options,
            root: &root,
            place: CatalogPlace::File(root.join(CATALOG)),
            work: root.join(WORK),
            client: self.client(options.fetch),
            reporter,
        };
        let report = mirror.run(chosen)?;
        if report.images.iter().all(|image| image.result.is_ok()) {
            fs::remove_tree(&mirror.work)?;
        }
        fs::remove_file(&lock)?;
        Ok(report)
    }
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
        let path = self.root.join(CATALOG);
        let before = fs::optional(fs::read_text_limited(&path, CATALOG_BYTES_MAX))?;
        let there = match &before {
            Some(text) => Catalog::parse_from(text, &self.place)
                .map_err(|source| EngineError::Catalog { path: path.clone(), source })?,
            None => Catalog::default(),
        };
        fs::create_dir_all(&self.work)?;
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
                let mut release = release.mirrored(distribution, &done, &self.place).map_err(unfit)?;
                if let Some(known) = known(&there, &distribution.name, &release.name) {
                    release = release.with_arches_of(known);
                }
                listed.push((distribution, release));
            }
        }
        let catalog = there.extended_by(Catalog::of(listed));
        let listed = catalog.distributions().map(|it| it.releases.len()).sum();
        let text = catalog.text();
        // What is written is read by the rules for everybody, limits too.
        Catalog::parse_from(&text, &self.place)
            .map_err(|source| EngineError::Catalog { path: path.clone(), source })?;
        let changed = before.as_deref() != Some(&text);
        let mut unsigned = false;
        if listed > 0 {
            unsigned = self.write(&path, &text, changed)?;
        }
        Ok(MirrorReport { images, catalog: path, changed, listed, unsigned })
    }

    fn image(&self, image_name: &str, arch: Arch, image: &Image, copy: &Image) -> EngineResult<Mirrored> {
        let name = &format!("{image_name} for {arch}");
        let mirror = MirrorImage { image, copy, work: &self.work, now: now() };
        let (client, cancel) = (&self.client, &self.engine.cancel);
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
    fn write(&self, path: &Path, text: &str, changed: bool) -> EngineResult<bool> {
        let signature = self.root.join(SIGNATURE);
        let mut unsigned = false;
        if let Some(key) = &self.options.sign {
            let (staged, signed) = (self.work.join(CATALOG), self.work.join(SIGNATURE));
            commit::write_file(&staged, text.as_bytes(), FILE_MODE, Existing::Replace)?;
            let gpg = self.engine.settings.toolbox.find("gpg")?;
            let gpg = gpg.args(["--batch", "--no-tty", "--yes", "--armor", "--local-user", key]);
            let gpg = gpg.arg("--output").arg(&signed).arg("--detach-sign").arg(&staged);
            let mut said = |line: &str| self.reporter.progress(Progress::Said { line: line.to_owned() });
            gpg.run(&self.engine.cancel, &mut said)?;
            commit::commit_file(&fs::open(&signed)?, &signed, &signature, FILE_MODE, Existing::Replace)?;
        } else if changed && fs::exists(&signature)? {
            // It would be false.
            fs::remove_file(&signature)?;
            unsigned = true;
        }
        if changed {
            commit::write_file(path, text.as_bytes(), FILE_MODE, Existing::Replace)?;
        }
        Ok(unsigned)
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
