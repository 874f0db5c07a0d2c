//! Reading the layout into the store: each image by itself, so that a damaged one keeps no other from coming.

use super::PROGRAM;
use super::find::{self, FoundImage, ImageFilesError};
use crate::build::{BuildOptions, FETCHED, Forward, FoundRecipe};
use crate::images::{IMAGE_VERIFIED, Listed, pin_of, refuse_older, weight};
use crate::progress::{Progress, Reporter, waiting};
use crate::{Engine, EngineError, EngineResult, RegistryProblem};
use kiln_build::{BuildError, FetchOptions, HostFacts, LocalFiles, LocalImage, PlanContext, catalog::Verify};
use kiln_core::catalog::{Catalog, Image, ImageName, ImagePin, NotListed};
use kiln_core::lock::Pins;
use kiln_core::{Arch, ByteSize, Digest};
use kiln_sys::fs;
use kiln_sys::lock::Share;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub struct ImportVmrs<'a> {
    /// The data directory of vm-rs, or the directory of images in it.
    pub dir: &'a Path,
    /// How images are compared with what is published. With [`Verify::Nothing`] nothing is asked of the network.
    pub fetch: FetchOptions,
    /// Whether the kernel inside each disk image is taken whatever lies beside it.
    pub kernel_inside: bool,
}

/// What an import brought, and what it did not.
#[derive(Debug, Default)]
pub struct ImportedVmrs {
    /// The images that came, by name.
    pub images: Vec<ImportedVmrsImage>,
    /// Those that did not, and why.
    pub failed: Vec<FailedVmrs>,
}

/// An image that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedVmrsImage {
    /// Distribution and release: template and tag.
    pub name: String,
    /// Its place in the layout.
    pub place: String,
    /// The revision.
    pub revision: Digest,
    /// The digests of its files.
    pub pin: ImagePin,
    /// By what it was found to be what is published: `signature`, `checksum` or `nothing`.
    pub verified: String,
    /// Whether its kernel is the one beside the disk image.
    pub kernel_beside: bool,
    /// The bytes of the disk image.
    pub size: ByteSize,
    /// Whether the tag moved.
    pub moved: bool,
}

/// An image that did not come.
#[derive(Debug)]
pub struct FailedVmrs {
    /// Its place in the layout.
    pub place: String,
    /// Why not.
    pub error: EngineError,
}

impl FailedVmrs {
    fn new(place: String, error: EngineError) -> Self {
        let (name, source) = (place.clone(), Box::new(error));
        Self { place, error: EngineError::NotImported { name, source } }
    }
}

/// An image with what it is going to be.
struct Named {
    found: FoundImage,
    listed: Listed,
    /// What is published of it and the user in it, or why the catalog does not say.
    image: Result<(Image, String), NotListed>,
}

/// What the work on all images shares.
struct Work<'a> {
    request: &'a ImportVmrs<'a>,
    host: &'a HostFacts,
    reporter: &'a dyn Reporter,
}

impl Engine {
    /// Reads images of vm-rs: each is compared with what is published of it and becomes a template of its distribution,
    /// with its release as a tag. One that is damaged or something else is told, and the others come. The files read
    /// stay as they are.
    ///
    /// # Errors
    /// [`EngineError::Registry`] when two directories are of one name and differ: then nothing is written.
    pub fn import_vmrs(
        &self,
        request: &ImportVmrs<'_>,
        reporter: &dyn Reporter,
    ) -> EngineResult<ImportedVmrs> {
        self.sweep();
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let root = find::root(request.dir)?;
        let found = find::images(&root, host.arch)?;
        let note = |text: String| reporter.progress(Progress::Note { text });
        for place in &found.foreign {
            note(format!("{place}: left out, it is not for {}", host.arch));
        }
        if found.images.is_empty() && found.failed.is_empty() {
            let file = match host.arch {
                Arch::Aarch64 => "DISTRIBUTION/RELEASE/aarch64/disk.img",
                _ => "DISTRIBUTION/RELEASE/x86_64/disk.img",
            };
            return Err(EngineError::RegistryEmpty { path: root, file });
        }
        let catalog = self.catalog()?;
        let images = self.one_of_each(found.images, &catalog, &root, host.arch, &note)?;
        let failed = found.failed.into_iter().map(|(place, error)| FailedVmrs::new(place, error));
        let mut imported = ImportedVmrs { images: Vec::new(), failed: failed.collect() };
        let mut waiting = waiting(reporter);
        let doing = "importing images of vm-rs";
        let _store = self.store.lock(Share::Shared, doing, &self.cancel, &mut waiting)?;
        let work = Work { request, host: &host, reporter };
        for image in images {
            self.cancel.check()?;
            match self.import_image(&work, &image) {
                Ok(image) => imported.images.push(image),
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(error) => imported.failed.push(FailedVmrs::new(image.found.place, error)),
            }
        }
        Ok(imported)
    }

    /// Names images, and leaves one of those with the same name and content.
    fn one_of_each(
        &self,
        found: Vec<FoundImage>,
        catalog: &Catalog,
        root: &Path,
        arch: Arch,
        note: &dyn Fn(String),
    ) -> EngineResult<Vec<Named>> {
        let mut groups: BTreeMap<String, Vec<Named>> = BTreeMap::new();
        for found in found {
            let named = name(found, catalog, arch)?;
            groups.entry(named.listed.image.to_string()).or_default().push(named);
        }
        let (mut images, mut problems) = (Vec::new(), Vec::new());
        for (name, mut group) in groups {
            let first = group.remove(0);
            if group.is_empty() {
                images.push(first);
                continue;
            }
            let content = self.content(&first.found)?;
            for other in group {
                if self.content(&other.found)? == content {
                    note(format!("{}: left out, {} is the same", other.found.place, first.found.place));
                } else {
                    let reason = format!("it is {name} as {} is, and differs from it", first.found.place);
                    problems.push(RegistryProblem { name: other.found.place, reason });
                }
            }
            images.push(first);
        }
        if !problems.is_empty() {
            return Err(EngineError::Registry { action: "imported", path: root.to_owned(), problems });
        }
        Ok(images)
    }

    /// Returns what tells the content of an image from another's.
    fn content(&self, image: &FoundImage) -> EngineResult<(Digest, Option<Digest>)> {
        let disks = self.store.disks(&self.cancel);
        let kernel = image.kernel.as_ref().map(|path| disks.hash(path)).transpose()?;
        Ok((disks.hash(&image.disk)?.sha256, kernel.map(|hash| hash.sha256)))
    }

    fn import_image(&self, work: &Work<'_>, named: &Named) -> EngineResult<ImportedVmrsImage> {
        let Named { found, listed, image } = named;
        let (name, begun) = (listed.image.to_string(), Instant::now());
        let request = work.request;
        if let (Err(error), false) = (image, request.fetch.verify == Verify::Nothing) {
            return Err(error.clone().into());
        }
        let doing = format!("importing {name}");
        let _template =
            self.store.lock_template(&listed.template, &doing, &self.cancel, &mut waiting(work.reporter))?;
        let recipe = listed.recipe()?;
        let (pins, catalog, cache) = (Pins::default(), Catalog::default(), self.store.cache_dir(FETCHED)?);
        let forward = Forward(work.reporter);
        let context = PlanContext {
            base: Path::new("/"),
            host: work.host,
            toolbox: &self.settings.toolbox,
            cancel: &self.cancel,
            cache: &cache,
            pins: &pins,
            offline: request.fetch.verify == Verify::Nothing,
            catalog: &catalog,
            fetch: request.fetch,
            reporter: &forward,
        };
        let files = LocalFiles {
            name: &name,
            disk: &found.disk,
            kernel: found.kernel.as_deref(),
            kernel_inside: request.kernel_inside,
            program: PROGRAM,
        };
        let image = image.as_ref().ok().map(|(image, user)| (image, user.as_str()));
        let local = kiln_build::look_at(&files, image, &context)?;
        self.may_be(listed, &name, local.pin())?;
        let size = ByteSize::from_bytes(fs::metadata(&found.disk)?.len());
        let (revision, local) = self.take_local(work, &recipe, local, &context, &found.place, begun)?;
        let facts = local.facts();
        self.know_better(&revision, &facts)?;
        let moved = self.store.set_tag(&listed.template, &listed.tag, &revision, "import")?;
        let verified = facts.into_iter().find(|(name, _)| name == IMAGE_VERIFIED).map(|(_, how)| how);
        Ok(ImportedVmrsImage {
            name,
            place: found.place.clone(),
            revision,
            pin: local.pin().clone(),
            verified: verified.unwrap_or_default(),
            kernel_beside: local.takes_kernel_beside(),
            size,
            moved,
        })
    }

    /// Makes the revision of an image, with the kernel inside where that beside has no modules there.
    fn take_local(
        &self,
        work: &Work<'_>,
        recipe: &FoundRecipe,
        local: LocalImage,
        context: &PlanContext<'_>,
        place: &str,
        begun: Instant,
    ) -> EngineResult<(Digest, LocalImage)> {
        let make = |local: &LocalImage| {
            let plan = kiln_build::plan_local(&recipe.recipe, local, context)?;
            if let Some(known) = self.store.cached_build(&plan.key, &self.cancel)? {
                return Ok(known.id);
            }
            self.bake(recipe, &plan, work.host, BuildOptions::default(), begun, work.reporter)
        };
        let (error, release, there) = match make(&local) {
            Err(EngineError::Build(BuildError::NoModules { path, release, there }))
                if local.takes_kernel_beside() =>
            {
                let parts = (release.clone(), there.clone());
                (EngineError::Build(BuildError::NoModules { path, release, there }), parts.0, parts.1)
            }
            made => return Ok((made?, local)),
        };
        let text = format!(
            "{place}: its vmlinuz is {release} and its disk has modules for {there}, so they are of different builds: the kernel inside the disk is taken"
        );
        work.reporter.progress(Progress::Note { text });
        let local = local.with_kernel_inside();
        match make(&local) {
            Ok(revision) => Ok((revision, local)),
            Err(EngineError::Build(BuildError::NoKernel { .. })) => Err(error),
            Err(error) => Err(error),
        }
    }

    /// Refuses to move a tag away from something else, and from what was signed later.
    fn may_be(&self, listed: &Listed, name: &str, now: &ImagePin) -> EngineResult<()> {
        let Some(record) = self.store.tag(&listed.template, &listed.tag)? else { return Ok(()) };
        let build = self.store.build_record(&record.revision)?;
        match build.as_ref().map(|build| (pin_of(build, name), build.facts.get(IMPORTED))) {
            Some((Some(before), _)) => match (before.serial, now.serial) {
                // Beside the disk that was signed, too.
                (Some(have), None) if before.kernel != now.kernel => {
                    Err(EngineError::UnsignedImage { name: name.to_owned(), have })
                }
                _ => refuse_older(name, &before, now),
            },
            Some((None, Some(program))) if program == PROGRAM => Ok(()),
            _ => {
                let (name, revision) = (name.to_owned(), record.revision);
                Err(ImageFilesError::Taken { name, revision }.into())
            }
        }
    }

    /// Writes beside a revision by whose word it is what it should be, where less was known of it.
    fn know_better(&self, id: &Digest, facts: &[(String, String)]) -> EngineResult<()> {
        let Some(mut record) = self.store.build_record(id)? else { return Ok(()) };
        let now = facts.iter().find(|(name, _)| name == IMAGE_VERIFIED).map(|(_, how)| how);
        if weight(record.facts.get(IMAGE_VERIFIED)) < weight(now) {
            record.facts.extend(facts.iter().cloned());
            let manifest = self.store.revision(id)?.manifest;
            self.store.commit_revision(&manifest, &record)?;
        }
        Ok(())
    }
}

/// The fact of which program a revision came from.
const IMPORTED: &str = "imported";

/// Finds out which image of the catalog one is; one that is not there keeps its name.
fn name(found: FoundImage, catalog: &Catalog, arch: Arch) -> EngineResult<Named> {
    let bad = || EngineError::ImageName { name: found.place.clone() };
    let asked = ImageName::of(&found.distribution, Some(&found.release)).ok_or_else(bad)?;
    let (listed, image) = match (catalog.find(&asked), catalog.image(&asked, arch)) {
        (Ok((distribution, release)), image) => {
            let image = image.map(|image| (image.clone(), release.user.clone()));
            (Listed::of(&distribution.name, &release.name), image)
        }
        (Err(error), _) => (Listed::of(&found.distribution, &found.release), Err(error)),
    };
    Ok(Named { listed: listed.ok_or_else(bad)?, image, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;
    use kiln_sys::{Cancel, Toolbox};
    use std::path::PathBuf;

    /// Writes a file anew once a step begins.
    struct Rewrite {
        step: &'static str,
        path: PathBuf,
    }

    impl Reporter for Rewrite {
        fn progress(&self, event: Progress) {
            if matches!(event, Progress::Started { step } if step.starts_with(self.step)) {
                write_file(&self.path, b"something else", 0o644, Existing::Replace).unwrap();
            }
        }
    }

    #[test]
    fn files_that_change_after_they_were_hashed_are_refused() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let settings = Settings {
            home: scratch.path().join("home"),
            toolbox: Toolbox::default(),
            own_program: PathBuf::from("/bin/false"),
        };
        let engine = Engine::open(settings, Cancel::new().unwrap()).unwrap();
        let arch = Arch::host().unwrap().as_str();
        let image = scratch.path().join("images/own/1").join(arch);
        fs::create_dir_all(&image).unwrap();
        let mut disk = vec![0; 64 << 10];
        disk[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
        let fetch = FetchOptions { verify: Verify::Nothing, ..FetchOptions::default() };
        let request = ImportVmrs { dir: scratch.path(), fetch, kernel_inside: false };
        for name in ["vmlinuz", "disk.img"] {
            write_file(&image.join("disk.img"), &disk, 0o644, Existing::Replace).unwrap();
            write_file(&image.join("vmlinuz"), b"kernel", 0o644, Existing::Replace).unwrap();
            let rewrite = Rewrite { step: "disk", path: image.join(name) };
            let imported = engine.import_vmrs(&request, &rewrite).unwrap();
            assert!(imported.images.is_empty());
            let EngineError::NotImported { source, .. } = &imported.failed[0].error else { panic!("{name}") };
            let told = source.to_string();
            assert!(told.contains(name) && told.contains("changed while it was read"), "{told}");
        }
        assert!(engine.store.tags().unwrap().is_empty());
    }
}
