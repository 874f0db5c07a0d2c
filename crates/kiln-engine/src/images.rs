//! Images of the catalog as templates: `ubuntu:24.04` is the template `ubuntu` with the tag `24.04`. What a name stands for
//! is settled when it is first pulled, and moved by whoever asks for that.

use crate::build::{BuildOptions, FoundRecipe, elapsed_ms};
use crate::progress::{Reporter, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_build::{FetchOptions, HostFacts};
use kiln_core::catalog::{Catalog, ImageName, ImagePin, NotListed, Serial};
use kiln_core::lock::{PinKind, Pins};
use kiln_core::recipe;
use kiln_core::reference::RevisionSelector;
use kiln_core::{Digest, Reference, Tag, TemplateName};
use kiln_store::{BuildRecord, StoreError};
use kiln_sys::lock::Share;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// The fact of a revision's build that says which image it is of, as distribution and release.
const IMAGE: &str = "image";
/// The fact that says what was taken in.
const IMAGE_DIGEST: &str = "image_digest";
/// The fact that says which kernel was, where it is no part of the image.
const IMAGE_KERNEL_DIGEST: &str = "image_kernel_digest";
/// The fact that says when that was signed.
const IMAGE_SERIAL: &str = "image_serial";
/// The fact that says by whom.
const IMAGE_SIGNER: &str = "image_signer";
/// The fact of how it was found that it is what its maker gave.
pub(crate) const IMAGE_VERIFIED: &str = "image_verified";

/// How an image is pulled.
#[derive(Debug, Clone, Copy, Default)]
pub struct PullOptions {
    /// How it is fetched.
    pub fetch: FetchOptions,
    /// Asks nothing of the network.
    pub offline: bool,
    /// Looks up anew what the name stands for.
    pub update: bool,
    /// Takes what was signed before that which is there, too.
    pub allow_older: bool,
}

/// What came of a pull.
#[derive(Debug, Clone)]
pub struct PullReport {
    /// Distribution and release, as the catalog has them.
    pub name: String,
    /// The revision.
    pub revision: Digest,
    /// What the name stands for now.
    pub pin: Option<ImagePin>,
    /// What it stood for before, where something was there.
    pub before: Option<ImagePin>,
    /// Whether nothing was left to do.
    pub there: bool,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// Distribution and release.
    pub name: String,
    /// The revision.
    pub revision: Digest,
    /// What the name stands for.
    pub pin: ImagePin,
}

/// An image of the catalog that is, or would be, a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) image: ImageName,
    pub(crate) template: TemplateName,
    pub(crate) tag: Tag,
}

/// What a reference means.
pub(crate) enum Located {
    /// A revision that is here.
    Here(Reference),
    /// An image that nobody pulled.
    Listed(Listed),
}

impl Listed {
    fn find(catalog: &Catalog, name: &ImageName) -> EngineResult<Self> {
        let (distribution, release) = catalog.find(name)?;
        Self::of(&distribution.name, &release.name)
            .ok_or_else(|| EngineError::ImageName { name: name.to_string() })
    }

    /// Returns what a release of a distribution would be; none where a template or a tag cannot have the name.
    pub(crate) fn of(distribution: &str, release: &str) -> Option<Self> {
        let image = ImageName::of(distribution, Some(release))?;
        Some(Self { image, template: distribution.parse().ok()?, tag: release.parse().ok()? })
    }

    fn reference(&self, like: &Reference) -> Reference {
        let (template, tag) = (self.template.clone(), self.tag.clone());
        let revision = RevisionSelector::Tagged { template, tag, digest: None };
        Reference { revision, variant: like.variant.clone() }
    }

    /// Returns the recipe of the template.
    pub(crate) fn recipe(&self) -> EngineResult<FoundRecipe> {
        let (name, image) = (&self.template, &self.image);
        let text = format!(
            "name = \"{name}\"\n\n[source]\ntype = \"catalog\"\nimage = \"{image}\"\n\n[machine]\nmemory = \"1G\"\n"
        );
        let path = PathBuf::new();
        let recipe =
            recipe::parse(&text).map_err(|source| EngineError::Recipe { path: path.clone(), source })?;
        Ok(FoundRecipe { recipe, text, path })
    }
}

/// Returns the image that a reference would name; none where it names a revision.
fn image_name(reference: &Reference) -> Option<ImageName> {
    let RevisionSelector::Tagged { template, tag, digest: None } = &reference.revision else { return None };
    // `latest` is what stands where nothing is written.
    let release = Some(tag.as_str()).filter(|tag| *tag != Tag::latest().as_str());
    ImageName::of(template.as_str(), release)
}

/// Returns what an image's name stood for when a revision was made of it.
pub(crate) fn pin_of(record: &BuildRecord, name: &str) -> Option<ImagePin> {
    let fact = |key: &str| record.facts.get(key);
    if fact(IMAGE).is_none_or(|image| image != name) {
        return None;
    }
    Some(ImagePin {
        disk: fact(IMAGE_DIGEST)?.parse().ok()?,
        kernel: fact(IMAGE_KERNEL_DIGEST).and_then(|digest| digest.parse().ok()),
        serial: fact(IMAGE_SERIAL).and_then(|serial| serial.parse::<Serial>().ok()),
        signer: fact(IMAGE_SIGNER).and_then(|signer| signer.parse().ok()),
    })
}

/// Orders what is known of an image by how much it is worth: how it was verified.
pub(crate) fn weight(verified: Option<&String>) -> u8 {
    match verified.map(String::as_str) {
        Some("signature") => 3,
        Some("checksum" | "lock") => 2,
        Some(_) => 1,
        None => 0,
    }
}

/// Keeps what is known of an image where the same files come again and less is known of them.
pub(crate) fn keep_what_is_known(before: &BTreeMap<String, String>, now: &mut BTreeMap<String, String>) {
    if weight(before.get(IMAGE_VERIFIED)) > weight(now.get(IMAGE_VERIFIED)) {
        let of_image = before.iter().filter(|(name, _)| *name == IMAGE || name.starts_with("image_"));
        now.extend(of_image.map(|(name, value)| (name.clone(), value.clone())));
    }
}

/// Refuses what was signed before that which is there: an old image with known holes is genuine too.
pub(crate) fn refuse_older(name: &str, before: &ImagePin, now: &ImagePin) -> EngineResult<()> {
    match (before.serial, now.serial) {
        (Some(have), Some(offered)) if offered < have && before.disk != now.disk => {
            Err(EngineError::OlderImage { name: name.to_owned(), have, offered })
        }
        // Who strips the signature hides the time.
        (Some(have), None) if before.disk != now.disk => {
            Err(EngineError::UnsignedImage { name: name.to_owned(), have })
        }
        _ => Ok(()),
    }
}

impl Engine {
    /// Returns a reference to a revision that is there: what was given, or an image of the catalog, which is pulled where
    /// it never was.
    ///
    /// # Errors
    /// When neither the store nor the catalog has the name, and when the image cannot be had.
    pub fn bring(
        &self,
        reference: &Reference,
        options: &PullOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<Reference> {
        match self.locate(reference)? {
            Located::Here(reference) => Ok(reference),
            Located::Listed(listed) => {
                self.pull_listed(&listed, options, reporter)?;
                Ok(listed.reference(reference))
            }
        }
    }

    /// Finds what a reference means: a revision that is here, or an image of the catalog that is not.
    ///
    /// # Errors
    /// When neither the store nor the catalog has the name.
    pub(crate) fn locate(&self, reference: &Reference) -> EngineResult<Located> {
        let error = match self.store.resolve(reference) {
            Ok(_) => return Ok(Located::Here(reference.clone())),
            Err(error @ StoreError::NotFound { kind: "template" | "tag", .. }) => error,
            Err(error) => return Err(error.into()),
        };
        let Some(name) = image_name(reference) else { return Err(error.into()) };
        let listed = match Listed::find(&self.catalog()?, &name) {
            Ok(listed) => listed,
            Err(EngineError::NotListed(NotListed::Distribution { .. })) => return Err(error.into()),
            Err(error) => return Err(error),
        };
        match self.store.tag(&listed.template, &listed.tag)? {
            Some(_) => Ok(Located::Here(listed.reference(reference))),
            None => Ok(Located::Listed(listed)),
        }
    }

    /// Makes an image of the catalog a template. What was pulled before stays what it is, unless it is to be looked up
    /// anew.
    ///
    /// # Errors
    /// When the catalog has no such image, when it cannot be had, and when it is not its publisher's.
    pub fn pull_image(
        &self,
        name: &ImageName,
        options: &PullOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<PullReport> {
        let catalog = self.catalog()?;
        let listed = Listed::find(&catalog, name)?;
        self.pull_listed(&listed, options, reporter)
    }

    fn pull_listed(
        &self,
        listed: &Listed,
        options: &PullOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<PullReport> {
        let begun = Instant::now();
        let (name, template, tag) = (listed.image.to_string(), &listed.template, &listed.tag);
        let work = format!("pulling {name}");
        let mut waiting = waiting(reporter);
        let _store = self.store.lock(Share::Shared, &work, &self.cancel, &mut waiting)?;
        let _template = self.store.lock_template(template, &work, &self.cancel, &mut waiting)?;
        let before = self.pulled(&name, template, tag)?;
        let whole = match &before {
            Some((id, _)) => self.store.whole_revision(id, &self.cancel)?.is_some(),
            None => false,
        };
        let pin = before.as_ref().map(|(_, pin)| pin.clone());
        if let Some((id, pin)) = before.as_ref().filter(|_| whole && !options.update) {
            return Ok(PullReport {
                name,
                revision: *id,
                pin: Some(pin.clone()),
                before: Some(pin.clone()),
                there: true,
                elapsed_ms: elapsed_ms(begun),
            });
        }
        self.sweep();
        let mut pins = Pins::default();
        if let Some(pin) = pin.as_ref().filter(|_| !options.update) {
            pins.set(PinKind::Image, &name, &pin.to_string());
        }
        let found = listed.recipe()?;
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let build =
            BuildOptions { offline: options.offline, fetch: options.fetch, ..BuildOptions::default() };
        let plan = self.plan_with(&found, &host, &pins, build, reporter)?;
        let now = plan.pins.get(PinKind::Image, &name).and_then(|pin| pin.parse::<ImagePin>().ok());
        if let (Some(before), Some(now)) = (&pin, &now)
            && !options.allow_older
        {
            refuse_older(&name, before, now)?;
        }
        let known = self.store.cached_build(&plan.key, &self.cancel)?.map(|revision| revision.id);
        let there = known.is_some() && known == before.as_ref().map(|(id, _)| *id);
        let revision = match known {
            Some(id) => id,
            None => self.bake(&found, &plan, &host, build, begun, reporter)?,
        };
        self.store.set_tag(template, tag, &revision, "pull")?;
        Ok(PullReport { name, revision, pin: now, before: pin, there, elapsed_ms: elapsed_ms(begun) })
    }

    /// Returns the images that were pulled, by distribution and release, with what they stand for.
    ///
    /// # Errors
    /// When tags or records of builds cannot be read. A tag of something else is passed over.
    pub fn pulled_images(&self) -> EngineResult<Vec<PulledImage>> {
        let mut pulled = Vec::new();
        for entry in self.store.tags()? {
            let Ok(record) = entry.record else { continue };
            let name = format!("{}:{}", entry.template, entry.tag);
            let Some(build) = self.store.build_record(&record.revision)? else { continue };
            if let Some(pin) = pin_of(&build, &name) {
                pulled.push(PulledImage { name, revision: record.revision, pin });
            }
        }
        Ok(pulled)
    }

    /// Looks up what an image stands for at present, and changes nothing.
    ///
    /// # Errors
    /// As a pull.
    pub fn look_up_image(
        &self,
        name: &ImageName,
        fetch: FetchOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<Option<ImagePin>> {
        let listed = Listed::find(&self.catalog()?, name)?;
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let build = BuildOptions { fetch, ..BuildOptions::default() };
        let plan = self.plan_with(&listed.recipe()?, &host, &Pins::default(), build, reporter)?;
        Ok(plan.pins.get(PinKind::Image, &listed.image.to_string()).and_then(|pin| pin.parse().ok()))
    }

    /// Returns the revision that a tag of an image points to and what it was made of; none where nobody pulled it.
    ///
    /// # Errors
    /// [`EngineError::NotAnImage`] when the tag is of something else.
    fn pulled(
        &self,
        name: &str,
        template: &TemplateName,
        tag: &Tag,
    ) -> EngineResult<Option<(Digest, ImagePin)>> {
        let Some(record) = self.store.tag(template, tag)? else { return Ok(None) };
        let build = self.store.build_record(&record.revision)?;
        match build.and_then(|build| pin_of(&build, name)) {
            Some(pin) => Ok(Some((record.revision, pin))),
            None => Err(EngineError::NotAnImage { name: name.to_owned(), revision: record.revision }),
        }
    }
}
