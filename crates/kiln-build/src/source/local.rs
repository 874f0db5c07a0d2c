//! Images of distributions that another program fetched and keeps in files: compared with what is published at present,
//! and taken in as those that kiln fetches. The files stay as they are.

use super::catalog::{client, how, key_parts, now, seed_for, telling, word_facts};
use super::disk::{DiskPlan, How};
use crate::error::BuildError;
use crate::kernel;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{BuildEvent, Running, Step};
use crate::run::{BuildContext, BuildOutput};
use kiln_core::catalog::{Image, ImageBoot, ImagePin, Serial};
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_core::name::ArtifactRole;
use kiln_core::recipe::{BackingFiles, DiskFormat, Recipe};
use kiln_core::seed::SeedKind;
use kiln_core::size::ByteSize;
use kiln_source::catalog::{self, IMAGE_BYTES_MAX, LookUp, Verify, Word};
use kiln_source::disk;
use kiln_sys::fs;
use kiln_sys::stamp::Stamp;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// The files of an image.
#[derive(Debug, Clone, Copy)]
pub struct LocalFiles<'a> {
    /// Distribution and release.
    pub name: &'a str,
    /// The disk image.
    pub disk: &'a Path,
    /// The kernel beside it.
    pub kernel: Option<&'a Path>,
    /// Whether the kernel inside the disk image is taken whatever lies beside it.
    pub kernel_inside: bool,
    /// The program that keeps them.
    pub program: &'static str,
}

/// An image in files, and by whose word it is what it should be.
#[derive(Debug, Clone)]
pub struct LocalImage {
    name: String,
    /// The user whom its cloud-init makes, of an image of the catalog.
    user: Option<String>,
    /// How the catalog says that it boots.
    boot: ImageBoot,
    /// What its cloud-init reads; none where the catalog says that it has none.
    seed: Option<SeedKind>,
    disk: PathBuf,
    program: &'static str,
    found: Found,
    /// What the files were when they were looked at.
    stamps: Vec<(PathBuf, Stamp)>,
}

/// An image in files, and how it is booted.
#[derive(Debug, Clone)]
pub(crate) struct LocalPlan {
    image: LocalImage,
    how: How,
}

/// What was found of the files.
#[derive(Debug, Clone)]
struct Found {
    format: DiskFormat,
    /// The kernel that is taken; none for that inside the disk image.
    kernel: Option<PathBuf>,
    /// A kernel that is not taken, since nothing published tells of it.
    unknown: Option<PathBuf>,
    /// The digests of what is taken.
    pin: ImagePin,
    word: Word,
}

/// Looks at the files of an image and compares them with what is published of it. `image` is the catalog's with its user;
/// nothing is asked where there is none, or where nothing is to be checked.
///
/// # Errors
/// When it cannot be found what is published, and when the files are something else.
pub fn look_at(
    files: &LocalFiles<'_>,
    image: Option<(&Image, &str)>,
    cx: &PlanContext<'_>,
) -> Result<LocalImage, BuildError> {
    let both = [Some(files.disk), files.kernel].into_iter().flatten();
    let stamps = both.map(|path| Ok((path.to_owned(), stamp(path)?))).collect::<Result<_, BuildError>>()?;
    let step = Running::start(cx.reporter, Step::Check, files.name.to_owned());
    let found = match image.filter(|_| cx.fetch.verify != Verify::Nothing) {
        Some((image, _)) => files.compare(image, cx)?,
        None => files.as_they_are(cx)?,
    };
    step.done(ByteSize::from_bytes(fs::metadata(files.disk)?.len()).human());
    let user = image.map(|(_, user)| user.to_owned());
    let (name, disk) = (files.name.to_owned(), files.disk.to_owned());
    let boot = image.map(|(image, _)| image.boot).unwrap_or_default();
    let seed = image.map_or(Some(SeedKind::NoCloud), |(image, _)| image.seed);
    Ok(LocalImage { name, user, boot, seed, disk, program: files.program, found, stamps })
}

impl LocalFiles<'_> {
    /// Takes the files as they are.
    fn as_they_are(&self, cx: &PlanContext<'_>) -> Result<Found, BuildError> {
        let kernel = self.kernel.filter(|_| !self.kernel_inside);
        let digest = |path: &Path| self.digest(path, Algorithm::Sha256, cx);
        let pin = ImagePin {
            disk: digest(self.disk)?,
            kernel: kernel.map(digest).transpose()?,
            serial: None,
            signer: None,
        };
        let format = disk::Image::open(self.disk, None, BackingFiles::Refuse)?.format();
        Ok(Found { format, kernel: kernel.map(Path::to_owned), unknown: None, pin, word: Word::Nobody })
    }

    /// Compares the files with what is published.
    fn compare(&self, image: &Image, cx: &PlanContext<'_>) -> Result<Found, BuildError> {
        let refuse = |error| BuildError::catalog(self.name, error);
        let look_up = LookUp { image, verify: cx.fetch.verify, cache: cx.cache, now: now() };
        let (client, tell) = (client(cx.toolbox, cx.offline, cx.fetch), &mut telling(cx.reporter));
        let published = look_up.run(&client, tell, cx.cancel).map_err(refuse)?;
        let mut pin = published.pin;
        self.compare_file(self.disk, &pin.disk, pin.serial, cx)?;
        // A kernel inside the disk image is as good as that is, and always of its build.
        let beside = self.kernel.filter(|_| !self.kernel_inside);
        let kernel = beside.filter(|_| pin.kernel.is_some());
        match (kernel, &pin.kernel) {
            (Some(path), Some(digest)) => self.compare_file(path, digest, pin.serial, cx)?,
            _ => pin.kernel = None,
        }
        let signed = catalog::check_image_signature(&look_up, self.disk, &client, tell, cx.cancel);
        let word = signed.map_err(refuse)?.map_or(published.word, Word::Signed);
        if let Word::Signed(verified) = &word {
            let since = verified.signed_at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            pin.serial = Some(Serial::of_unix_seconds(since.as_secs()));
            pin.signer = Some(verified.signer);
        }
        let unknown = beside.filter(|_| kernel.is_none()).map(Path::to_owned);
        Ok(Found { format: image.format, kernel: kernel.map(Path::to_owned), unknown, pin, word })
    }

    fn compare_file(
        &self,
        path: &Path,
        published: &ContentDigest,
        serial: Option<Serial>,
        cx: &PlanContext<'_>,
    ) -> Result<(), BuildError> {
        let digest = self.digest(path, published.algorithm(), cx)?;
        if digest == *published {
            return Ok(());
        }
        let (name, path, published) = (self.name.to_owned(), path.to_owned(), published.clone());
        Err(BuildError::NotPublished { name, path, digest, published, serial })
    }

    fn digest(
        &self,
        path: &Path,
        algorithm: Algorithm,
        cx: &PlanContext<'_>,
    ) -> Result<ContentDigest, BuildError> {
        let digest = catalog::digest_of(path, algorithm, IMAGE_BYTES_MAX, cx.cancel);
        digest.map_err(|error| BuildError::catalog(self.name, error))
    }
}

impl LocalImage {
    /// Returns the digests of what is taken, and when and by whom they were signed.
    pub fn pin(&self) -> &ImagePin {
        &self.found.pin
    }

    /// Returns whether the kernel beside the disk image is taken, and not that inside.
    pub fn takes_kernel_beside(&self) -> bool {
        self.found.kernel.is_some()
    }

    /// Returns it with the kernel inside the disk image.
    #[must_use]
    pub fn with_kernel_inside(mut self) -> Self {
        self.found.kernel = None;
        self.found.pin.kernel = None;
        self
    }

    /// Returns what is known of it, to stand beside its revision: names and values.
    pub fn facts(&self) -> Vec<(String, String)> {
        let mut facts = Vec::new();
        let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
        let pin = self.pin();
        fact("imported", self.program.to_owned());
        if let Some(user) = &self.user {
            // By this it is the catalog's image.
            fact("image", self.name.clone());
            fact("image_user", user.clone());
        }
        fact("image_digest", pin.disk.to_string());
        if let Some(kernel) = &pin.kernel {
            fact("image_kernel_digest", kernel.to_string());
        }
        word_facts(Some(&self.found.word), pin, &mut fact);
        facts
    }

    pub(crate) fn plan(
        &self,
        recipe: &Recipe,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<LocalPlan, BuildError> {
        key_parts(&self.name, self.pin(), self.user.as_deref(), parts);
        let how = how(self.boot, recipe, cx, parts)?;
        Ok(LocalPlan { image: self.clone(), how })
    }

    fn run(&self, how: &How, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        let found = &self.found;
        let kernel = found.kernel.clone();
        let disk = DiskPlan::of_image(self.disk.clone(), found.format, kernel, how.clone());
        let built = disk.run(plan, cx);
        // What was compared was what the files were then.
        for (path, before) in &self.stamps {
            if stamp(path)? != *before {
                return Err(BuildError::InputChanged { path: path.clone() });
            }
        }
        let mut output = match (built, &found.unknown) {
            (Err(BuildError::NoKernel { path: disk }), Some(path)) => {
                let (name, path) = (self.name.clone(), path.clone());
                return Err(BuildError::UnknownKernel { name, path, disk });
            }
            (built, _) => built?,
        };
        output.facts.extend(self.facts());
        output.seed = seed_for(output.seed, self.seed, self.user.as_deref());
        if let Some(path) = &found.unknown
            && !is_kernel_of(path, &output)?
        {
            let text = format!(
                "{} is not the kernel inside the disk image, and nothing published tells of it: the one inside is taken",
                path.display()
            );
            cx.reporter.event(BuildEvent::Note { text });
        }
        Ok(output)
    }
}

impl LocalPlan {
    pub(super) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        self.image.run(&self.how, plan, cx)
    }
}

/// Whether a kernel is the one that was taken.
fn is_kernel_of(path: &Path, output: &BuildOutput) -> Result<bool, BuildError> {
    let taken = output.artifacts.iter().find(|file| file.role == ArtifactRole::kernel());
    let (Some(taken), Ok(kernel)) = (taken, kernel::load(path)) else { return Ok(false) };
    let max = usize::try_from(kernel::KERNEL_BYTES_MAX).unwrap_or(usize::MAX);
    Ok(fs::read_limited(&taken.path, max)? == kernel.bytes)
}

/// Returns what a regular file is at present; a link is none.
fn stamp(path: &Path) -> Result<Stamp, BuildError> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_file() {
        return Err(BuildError::InputChanged { path: path.to_owned() });
    }
    Ok(Stamp::of(&meta))
}
