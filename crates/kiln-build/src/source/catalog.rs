//! Disk images that distributions publish: looked up in the catalog, pinned, fetched, and taken in as disk images are.

use super::disk::{DiskPlan, How};
use crate::error::BuildError;
use crate::kernel;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{BuildEvent, Reporter, Running, Step};
use crate::run::{BuildContext, BuildOutput};
use crate::steps::need_space_in;
use kiln_core::Date;
use kiln_core::catalog::{Image, ImageBoot, ImagePin, Serial};
use kiln_core::lock::PinKind;
use kiln_core::recipe::{CatalogSource, DiskBoot, Recipe};
use kiln_core::seed::{Seed, SeedKind};
use kiln_core::size::ByteSize;
use kiln_source::catalog::{self, LookUp, LookUpError, Verify, Word};
use kiln_source::download::{self, Client, ClientOptions};
use kiln_sys::{Toolbox, clock, fs};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How images of the catalog are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchOptions {
    /// How much is checked of what they are.
    pub verify: Verify,
    /// The most bytes in a second.
    pub rate_max: Option<NonZeroU64>,
    /// Whether the image as it was published stays in the cache once it was taken in.
    pub keep: bool,
}

/// An image of the catalog that is pinned.
#[derive(Debug, Clone)]
pub(crate) struct CatalogPlan {
    /// Distribution and release, as the catalog has them.
    name: String,
    image: Image,
    user: String,
    end_of_life: Option<Date>,
    pin: ImagePin,
    /// By whose word; none where it was pinned before.
    word: Option<Word>,
    bytes: Option<u64>,
    fetch: FetchOptions,
    how: How,
}

/// Returns the present time.
pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(clock::now_unix_ms())
}

pub(super) fn client(toolbox: &Toolbox, offline: bool, fetch: FetchOptions) -> Client<'_> {
    let mut options = ClientOptions::new(toolbox);
    options.offline = offline;
    options.rate_max = fetch.rate_max;
    Client::new(options)
}

/// Adds an image to a key. The same bytes, signed again or had from elsewhere, are the same image.
pub(super) fn key_parts(name: &str, pin: &ImagePin, user: Option<&str>, parts: &mut Parts) {
    parts.add("image_digest", (&pin.disk, &pin.kernel));
    parts.pins.set(PinKind::Image, name, &pin.to_string());
    parts.ask("source", "catalog");
    parts.ask("image", name);
    parts.add_record("image_user", user);
}

/// Returns the seed of an image: as what was built has it, for the user that the catalog names.
pub(super) fn seed_for(built: Option<Seed>, image: Option<SeedKind>, user: Option<&str>) -> Option<Seed> {
    image?;
    // A name that nobody can log in by is nobody's.
    let user = user.and_then(|user| user.parse().ok());
    built.map(|seed| Seed { user, ..seed })
}

/// Settles how an image is booted.
pub(super) fn how(
    boot: ImageBoot,
    recipe: &Recipe,
    cx: &PlanContext<'_>,
    parts: &mut Parts,
) -> Result<How, BuildError> {
    let boot = match boot {
        ImageBoot::Auto => DiskBoot::Auto,
        ImageBoot::Direct => DiskBoot::Direct,
        ImageBoot::Firmware => DiskBoot::Firmware,
    };
    How::plan(boot, recipe, cx, parts)
}

/// Tells how a download goes.
pub(super) fn telling<'a>(reporter: &'a dyn Reporter) -> impl FnMut(download::Progress<'_>) + use<'a> {
    move |progress| match progress {
        download::Progress::Bytes { have, total } => {
            reporter.event(BuildEvent::Bytes { have, total });
        }
        download::Progress::Waiting(holder) => {
            reporter.event(BuildEvent::Note { text: format!("waiting for {}", holder.text) });
        }
        download::Progress::Again { error, wait } => {
            let error = kiln_core::text::chain(error);
            let when = match wait {
                Duration::ZERO => "trying again".to_owned(),
                wait => format!("trying again in {:.1} s", wait.as_secs_f64()),
            };
            reporter.event(BuildEvent::Note { text: format!("{error}; {when}") });
        }
        _ => {}
    }
}

impl CatalogPlan {
    pub(super) fn plan(
        source: &CatalogSource,
        recipe: &Recipe,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        let arch = cx.host.arch;
        let (distribution, release) = cx.catalog.find(&source.image)?;
        let image = cx.catalog.image(&source.image, arch)?.clone();
        let name = format!("{}:{}", distribution.name, release.name);
        // A pin that is none is as good as missing.
        let pinned = cx.pins.get(PinKind::Image, &name).and_then(|pin| pin.parse::<ImagePin>().ok());
        let (pin, word, bytes) = match pinned {
            Some(pin) => (pin, None, None),
            None if cx.offline => return Err(BuildError::ImageNotPinned { name }),
            None => {
                let look_up = LookUp { image: &image, verify: cx.fetch.verify, cache: cx.cache, now: now() };
                let client = client(cx.toolbox, cx.offline, cx.fetch);
                let found = look_up.run(&client, &mut telling(cx.reporter), cx.cancel);
                let found = found.map_err(|error| BuildError::catalog(&name, error))?;
                (found.pin, Some(found.word), found.disk_bytes)
            }
        };
        key_parts(&name, &pin, Some(&release.user), parts);
        let how = how(image.boot, recipe, cx, parts)?;
        Ok(Self {
            user: release.user.clone(),
            end_of_life: release.end_of_life,
            name,
            image,
            pin,
            word,
            bytes,
            fetch: cx.fetch,
            how,
        })
    }

    pub(super) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        let today = Date::of_unix_seconds(clock::now_unix_ms() / 1000);
        if let Some(end) = self.end_of_life.filter(|end| today > *end) {
            let text = format!("{} has not been looked after since {end}", self.name);
            cx.reporter.event(BuildEvent::Note { text });
        }
        let refuse = |error| BuildError::catalog(&self.name, error);
        let client = client(cx.toolbox, cx.offline, self.fetch);
        let path = catalog::cached_path(cx.cache, &self.pin.disk);
        // What is there already takes no more room, and of what has no known length the disk tells.
        if let Some(bytes) = self.bytes.filter(|_| !fs::exists(&path).unwrap_or(false)) {
            need_space_in(cx.cache, bytes)?;
        }
        let step = Running::start(cx.reporter, Step::Fetch, self.name.clone());
        let (urls, bytes) = (&self.image.urls, self.bytes);
        let tell = &mut telling(cx.reporter);
        let fetched = catalog::fetch(urls, &self.pin.disk, bytes, cx.cache, &client, tell, cx.cancel);
        let fetched = fetched.map_err(|error| match error {
            LookUpError::Download(error) if self.word.is_none() => BuildError::PinnedImage {
                name: self.name.clone(),
                digest: self.pin.disk.clone(),
                source: error,
            },
            error => refuse(error),
        })?;
        let look_up = LookUp { image: &self.image, verify: self.fetch.verify, cache: cx.cache, now: now() };
        let kernel = self.kernel(&client, cx)?;
        let signed = match &self.word {
            Some(_) => catalog::check_image_signature(&look_up, &path, &client, tell, cx.cancel),
            None => Ok(None),
        };
        let signed = signed.map_err(refuse)?;
        let from = fetched.from.as_ref().map_or_else(|| "the cache".to_owned(), ToString::to_string);
        step.done(format!("{} from {from}", ByteSize::from_bytes(fetched.bytes).human()));
        let disk = DiskPlan::of_image(path.clone(), self.image.format, kernel.clone(), self.how.clone());
        let mut output = disk.run(plan, cx)?;
        output.seed = seed_for(output.seed, self.image.seed, Some(&self.user));
        let mut fact = |name: &str, value: String| output.facts.push((name.to_owned(), value));
        fact("image", self.name.clone());
        fact("image_digest", self.pin.disk.to_string());
        if let Some(kernel) = &self.pin.kernel {
            fact("image_kernel_digest", kernel.to_string());
        }
        if let Some(url) = fetched.from.map(|url| url.to_string()).or_else(|| urls.first().cloned()) {
            fact("image_url", url);
        }
        fact("image_user", self.user.clone());
        let word = signed.map(Word::Signed).or_else(|| self.word.clone());
        word_facts(word.as_ref(), &self.pin, &mut fact);
        if !self.fetch.keep {
            remove(&path)?;
            kernel.as_deref().map(remove).transpose()?;
        }
        Ok(output)
    }

    /// Fetches the kernel that lies beside the image, if one does.
    fn kernel(&self, client: &Client<'_>, cx: &BuildContext<'_>) -> Result<Option<PathBuf>, BuildError> {
        let (Some(digest), Some(urls)) = (&self.pin.kernel, &self.image.kernel) else { return Ok(None) };
        let step = Running::start(cx.reporter, Step::Fetch, format!("the kernel of {}", self.name));
        let max = kernel::FILE_BYTES_MAX as u64;
        let tell = &mut telling(cx.reporter);
        let fetched = catalog::fetch(urls, digest, Some(max), cx.cache, client, tell, cx.cancel);
        let fetched = fetched.map_err(|error| BuildError::catalog(&self.name, error))?;
        step.done(ByteSize::from_bytes(fetched.bytes).human());
        Ok(Some(catalog::cached_path(cx.cache, digest)))
    }
}

/// Tells by whose word the image is what it should be.
pub(super) fn word_facts(word: Option<&Word>, pin: &ImagePin, fact: &mut impl FnMut(&str, String)) {
    let (mut serial, mut signer) = (pin.serial, pin.signer);
    let verified = match word {
        Some(Word::Signed(verified)) => {
            let since = verified.signed_at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
            serial = Some(Serial::of_unix_seconds(since.as_secs()));
            signer = Some(verified.signer);
            if let Some(user) = &verified.user {
                fact("image_signer_name", user.clone());
            }
            "signature"
        }
        Some(Word::Checksum) => "checksum",
        Some(_) => "nothing",
        None => "lock",
    };
    fact("image_verified", verified.to_owned());
    if let Some(serial) = serial {
        fact("image_serial", serial.to_string());
    }
    if let Some(signer) = signer {
        fact("image_signer", signer.to_string());
    }
}

/// Removes what another build may have removed before.
fn remove(path: &Path) -> Result<(), BuildError> {
    fs::optional(fs::remove_file(path))?;
    Ok(())
}
