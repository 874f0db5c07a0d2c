//! Locks beside recipes: made, moved and kept to.

use crate::build::{BuildOptions, FETCHED, Forward, FoundRecipe};
use crate::images::refuse_older;
use crate::progress::{Reporter, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_build::{BuildContext, BuildError, BuildPlan, HostFacts};
use kiln_core::catalog::ImagePin;
use kiln_core::lock::{LOCK_BYTES_MAX, Lock, Moved, PinKind, Pins};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::fs;
use kiln_sys::lock::Share;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How a lock is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LockRequest {
    /// Looks everything up anew. Otherwise a lock that fits its recipe stays, and what it pins of images and flakes does
    /// where the recipe changed.
    pub update: bool,
    /// Writes nothing.
    pub dry_run: bool,
    /// Pins an image of the catalog also where it was signed before the one that is pinned.
    pub allow_older: bool,
}

/// What became of a lock.
#[derive(Debug, Clone)]
pub struct LockReport {
    /// The file.
    pub path: PathBuf,
    /// Whether there was none for this architecture before.
    pub new: bool,
    /// Whether it was written, or would have been.
    pub changed: bool,
    /// What is not as it was.
    pub moved: Vec<Moved>,
    /// How many names are pinned.
    pub pins: usize,
}

/// Returns where the lock of a recipe lies: beside it, under its name.
pub fn lock_path(found: &FoundRecipe) -> PathBuf {
    found.path.with_extension("lock")
}

/// Checks a plan against the lock it was made with.
///
/// # Errors
/// [`EngineError::LockStale`] when the recipe asks for something else than it did; [`EngineError::LockArch`] when the lock
/// has nothing for this architecture. With `locked`: [`EngineError::LockMissing`] when there is something to pin and no
/// lock, and [`EngineError::Build`] when kiln or its tools are of another version.
pub(crate) fn keep_to_lock(
    found: &FoundRecipe,
    plan: &BuildPlan,
    lock: Option<&Lock>,
    host: &HostFacts,
    locked: bool,
) -> EngineResult<()> {
    let path = lock_path(found);
    let Some(lock) = lock else {
        return if locked && plan.looks_outside() { Err(EngineError::LockMissing { path }) } else { Ok(()) };
    };
    let changed: Vec<String> = lock.changed_inputs(&inputs(plan)).into_iter().map(str::to_owned).collect();
    if !changed.is_empty() {
        return Err(EngineError::LockStale { path, changed });
    }
    let Some(pins) = lock.pins(host.arch) else {
        return Err(EngineError::LockArch { path, arch: host.arch });
    };
    let builder = kiln_build::builder_pins(host);
    let moved: Vec<Moved> = of_kind(pins, PinKind::Builder).moved(&builder);
    if locked && !moved.is_empty() {
        return Err(BuildError::LockMoved { kind: PinKind::Builder, moved }.into());
    }
    Ok(())
}

/// Returns what the recipe says of its source, as a lock holds it.
fn inputs(plan: &BuildPlan) -> BTreeMap<String, String> {
    let asked = plan.explanation.iter().filter(|part| part.shapes_pins);
    asked.map(|part| (part.name.clone(), part.value.clone())).collect()
}

/// Leaves images as they were pinned that are the same, signed again.
fn keep_equal_images(known: &Pins, now: &mut Pins) {
    for (name, before) in known.of(PinKind::Image) {
        let pin = |text: &str| text.parse::<ImagePin>().ok().map(|pin| (pin.disk, pin.kernel));
        if now.get(PinKind::Image, name).is_some_and(|now| pin(now).is_some() && pin(now) == pin(before)) {
            now.set(PinKind::Image, name, before);
        }
    }
}

/// Refuses images that were signed before those that were pinned.
fn refuse_older_images(known: &Pins, now: &Pins) -> EngineResult<()> {
    for (name, to) in now.of(PinKind::Image) {
        let before = known.get(PinKind::Image, name).and_then(|pin| pin.parse().ok());
        if let (Some(before), Ok(now)) = (before, to.parse()) {
            refuse_older(name, &before, &now)?;
        }
    }
    Ok(())
}

fn of_kind(pins: &Pins, kind: PinKind) -> Pins {
    let mut some = Pins::default();
    pins.of(kind).for_each(|(name, to)| {
        some.set(kind, name, to);
    });
    some
}

impl Engine {
    /// Reads the lock beside a recipe, where there is one.
    pub(crate) fn read_lock(&self, found: &FoundRecipe) -> EngineResult<Option<Lock>> {
        let path = lock_path(found);
        let Some(text) = fs::optional(fs::read_text_limited(&path, LOCK_BYTES_MAX))? else { return Ok(None) };
        Lock::parse(&text).map(Some).map_err(|source| EngineError::Lock { path, source })
    }

    /// Makes or moves the lock beside a recipe.
    ///
    /// # Errors
    /// When a name cannot be looked up, or the file cannot be written; it is then as it was.
    pub fn lock(
        &self,
        found: &FoundRecipe,
        request: LockRequest,
        reporter: &dyn Reporter,
    ) -> EngineResult<LockReport> {
        self.sweep();
        let work = format!("locking {}", found.recipe.name);
        let _store = self.store.lock(Share::Shared, &work, &self.cancel, &mut waiting(reporter))?;
        let path = lock_path(found);
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let before = self.read_lock(found)?;
        let known = before.as_ref().and_then(|lock| lock.pins(host.arch)).cloned().unwrap_or_default();
        let mut kept = Pins::default();
        if !request.update {
            // What a package archive had once, it has no more: only these can be had again.
            for (kind, name, to) in known.iter() {
                if matches!(kind, PinKind::Oci | PinKind::Nix | PinKind::Image | PinKind::Template) {
                    kept.set(kind, name, to);
                }
            }
        }
        let plan = self.plan_with(found, &host, &kept, BuildOptions::default(), reporter)?;
        let inputs = inputs(&plan);
        let fits = before
            .as_ref()
            .is_some_and(|lock| lock.changed_inputs(&inputs).is_empty() && lock.pins(host.arch).is_some());
        if fits && !request.update {
            let pins = known.iter().count();
            return Ok(LockReport { path, new: false, changed: false, moved: Vec::new(), pins });
        }
        let staging = self.store.stage(&format!("locking {}", found.recipe.name))?;
        let scratch = staging.path().join("lock");
        fs::create_dir(&scratch)?;
        let context = BuildContext {
            toolbox: &self.settings.toolbox,
            scratch: &scratch,
            cache: &self.store.cache_dir(FETCHED)?,
            offline: false,
            reporter: &Forward(reporter),
            cancel: &self.cancel,
            host: &host,
        };
        let mut pins = kiln_build::resolve(&plan, &context)?;
        keep_equal_images(&known, &mut pins);
        if !request.allow_older {
            refuse_older_images(&known, &pins)?;
        }
        // Dates of archives say where to look for versions, and change every day.
        let moved: Vec<Moved> =
            known.moved(&pins).into_iter().filter(|moved| moved.kind != PinKind::Archive).collect();
        let changed = !fits || !moved.is_empty();
        let count = pins.iter().count();
        if changed && !request.dry_run {
            // What it pins for other architectures holds as long as the recipe asks for the same.
            let kept = before.filter(|old| old.changed_inputs(&inputs).is_empty());
            let mut lock = kept.unwrap_or_default();
            lock.inputs = inputs;
            lock.set_pins(host.arch, pins);
            self.cancel.check()?;
            write_file(&path, lock.to_text().as_bytes(), 0o644, Existing::Replace)?;
        }
        Ok(LockReport { path, new: known.is_empty(), changed, moved, pins: count })
    }
}
