//! Building: recipe to revision, once for equal inputs.

use crate::explain::Reproduced;
use crate::images::{Located, PullOptions, keep_what_is_known};
use crate::lock::keep_to_lock;
use crate::progress::{Progress, Reporter, step, waiting};
use crate::steps::Derived;
use crate::verify::RECIPE_FACT;
use crate::{Engine, EngineError, EngineResult};
use kiln_build::{
    BuildContext, BuildEvent, BuildOutput, BuildPlan, FetchOptions, HostFacts, PlanContext, PlannedSeed,
};
use kiln_core::catalog::Catalog;
use kiln_core::lock::{PinKind, Pins};
use kiln_core::recipe::{self, RECIPE_BYTES_MAX, Recipe, Source, TemplateSource};
use kiln_core::revision::{Artifact, MANIFEST_VERSION, Manifest};
use kiln_core::seed::Seed;
use kiln_core::{Arch, ByteSize, Digest, Tag, TemplateName};
use kiln_store::{BuildRecord, IngestFrom, Staging, StoreError};
use kiln_sys::lock::Share;
use kiln_sys::{clock, fs};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The directory of the cache for what builds fetch.
pub(crate) const FETCHED: &str = "fetched";

/// How to build.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuildOptions {
    /// Builds although the cache knows the result, and compares the two.
    pub force: bool,
    /// Refuses to build without a lock, or with a builder that is not the lock's.
    pub locked: bool,
    /// Asks nothing of the network.
    pub offline: bool,
    /// Leaves the machine of a step that failed.
    pub keep_failed: bool,
    /// How images of the catalog are fetched.
    pub fetch: FetchOptions,
}

/// What a build came to.
#[derive(Debug, Clone)]
pub struct BuildReport {
    /// The revision.
    pub revision: Digest,
    /// The template.
    pub template: kiln_core::TemplateName,
    /// Whether the cache knew it.
    pub cached: bool,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Whether the tag moved.
    pub moved: bool,
    /// Of another result than `latest` was before: what of it is in blocks that `latest` had none of.
    pub new_blocks: Option<NewBlocks>,
    /// Of a forced build: how the result compares with the one of the same inputs before, where there is one.
    pub reproduced: Option<Reproduced>,
}

/// What an update of a revision consists of. A block has 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewBlocks {
    /// Bytes of the blocks that the revision before has none of, in artifacts of the same role.
    pub bytes: ByteSize,
    /// Bytes of all blocks with data.
    pub data: ByteSize,
}

/// A recipe with the file it came from.
#[derive(Debug, Clone)]
pub struct FoundRecipe {
    /// The recipe.
    pub recipe: Recipe,
    /// Its text.
    pub text: String,
    /// Its file; empty for a recipe that kiln wrote itself.
    pub path: PathBuf,
}

/// Finds the recipe for `path`: the file itself, or `kiln.toml` in the directory or the nearest one above it.
pub fn find_recipe(path: &Path) -> EngineResult<FoundRecipe> {
    let start = fs::canonicalize(path)?;
    let file = if fs::metadata(&start)?.is_dir() { walk_up(&start)? } else { start };
    let text = fs::read_text_limited(&file, RECIPE_BYTES_MAX)?;
    let recipe = recipe::parse(&text).map_err(|source| EngineError::Recipe { path: file.clone(), source })?;
    Ok(FoundRecipe { recipe, text, path: file })
}

fn walk_up(start: &Path) -> EngineResult<PathBuf> {
    for directory in start.ancestors() {
        let file = directory.join(recipe::FILE_NAME);
        if fs::exists(&file)? {
            return Ok(file);
        }
    }
    Err(EngineError::NoRecipe { from: start.to_owned() })
}

/// Hands a build's events on.
pub(crate) struct Forward<'a>(pub(crate) &'a dyn Reporter);

impl kiln_build::Reporter for Forward<'_> {
    fn event(&self, event: BuildEvent) {
        self.0.progress(match event {
            BuildEvent::StepStarted { step, detail } => Progress::Started { step: name(step, &detail) },
            BuildEvent::StepOutput { line, .. } => Progress::Said { line },
            BuildEvent::StepDone { step, elapsed_ms, detail } => {
                Progress::Done { step: step.as_str().to_owned(), elapsed_ms, result: detail }
            }
            BuildEvent::Bytes { have, total } => Progress::Bytes { have, total },
            BuildEvent::Note { text } => Progress::Note { text },
            _ => return,
        });
    }
}

fn name(step: kiln_build::Step, detail: &str) -> String {
    if detail.is_empty() { step.as_str().to_owned() } else { format!("{} {detail}", step.as_str()) }
}

impl Engine {
    /// Plans a build as its lock says.
    pub(crate) fn plan_on(
        &self,
        found: &FoundRecipe,
        host: &HostFacts,
        options: BuildOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<BuildPlan> {
        let lock = self.read_lock(found)?;
        let none = Pins::default();
        let pins = lock.as_ref().and_then(|lock| lock.pins(host.arch)).unwrap_or(&none);
        let plan = self.plan_with(found, host, pins, options, reporter)?;
        keep_to_lock(found, &plan, lock.as_ref(), host, options.locked)?;
        Ok(plan)
    }

    /// Plans a build with what names of the outside world stand for.
    pub(crate) fn plan_with(
        &self,
        found: &FoundRecipe,
        host: &HostFacts,
        pins: &Pins,
        options: BuildOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<BuildPlan> {
        let looked_up;
        let pins = match &found.recipe.source {
            Source::Template(source) => {
                looked_up = self.base_pinned(source, pins)?;
                &looked_up
            }
            _ => pins,
        };
        let catalog = match &found.recipe.source {
            Source::Catalog(_) => self.catalog()?,
            _ => Catalog::default(),
        };
        let context = PlanContext {
            base: found.path.parent().unwrap_or(Path::new("/")),
            host,
            toolbox: &self.settings.toolbox,
            cancel: &self.cancel,
            cache: &self.store.cache_dir(FETCHED)?,
            pins,
            offline: options.offline,
            catalog: &catalog,
            fetch: options.fetch,
            reporter: &Forward(reporter),
        };
        Ok(kiln_build::plan(&found.recipe, &context)?)
    }

    /// Counts what of a revision is in blocks that another has none of, by the fingerprints of blocks; none where the other
    /// cannot be read any more, or a block table is missing.
    fn new_blocks(&self, before: &Digest, after: &Digest) -> EngineResult<Option<NewBlocks>> {
        let (Ok(before), after) = (self.store.revision(before), self.store.revision(after)?) else {
            return Ok(None);
        };
        let (mut bytes, mut data) = (0, 0);
        for artifact in &after.manifest.artifacts {
            let Some(new) = self.store.block_table(&artifact.digest) else { return Ok(None) };
            let old = match before.manifest.artifact(&artifact.role) {
                Some(old) => match self.store.block_table(&old.digest) {
                    Some(table) => Some(table),
                    None => return Ok(None),
                },
                None => None,
            };
            for (block, print) in new.blocks() {
                let len = new.block_bytes(block);
                data += len;
                if old.as_ref().is_none_or(|old| old.candidates(print).next().is_none()) {
                    bytes += len;
                }
            }
        }
        Ok(Some(NewBlocks { bytes: ByteSize::from_bytes(bytes), data: ByteSize::from_bytes(data) }))
    }

    /// Pins the template that another begins as, where it is not.
    fn base_pinned(&self, source: &TemplateSource, pins: &Pins) -> EngineResult<Pins> {
        let mut pins = pins.clone();
        let name = source.from.to_string();
        if pins.get(PinKind::Template, &name).is_none() {
            // A build has pulled it before it took its locks.
            let from = match self.locate(&source.from)? {
                Located::Here(from) => from,
                Located::Listed(_) => source.from.clone(),
            };
            let id = self.store.resolve(&from)?.id;
            pins.set(PinKind::Template, &name, &id.to_string());
        }
        Ok(pins)
    }

    /// Builds a recipe and points the template's `latest` to the result.
    pub fn build(
        &self,
        found: &FoundRecipe,
        options: &BuildOptions,
        reporter: &dyn Reporter,
    ) -> EngineResult<BuildReport> {
        let begun = Instant::now();
        let name = &found.recipe.name;
        self.sweep();
        let work = format!("building {name}");
        let mut waiting = waiting(reporter);
        if let Source::Template(source) = &found.recipe.source
            && let Ok(Located::Listed(_)) = self.locate(&source.from)
        {
            let (fetch, offline) = (options.fetch, options.offline);
            self.bring(&source.from, &PullOptions { fetch, offline, ..PullOptions::default() }, reporter)?;
        }
        // The order everybody keeps: the store's lock, then a template's.
        let _store = self.store.lock(Share::Shared, &work, &self.cancel, &mut waiting)?;
        let _template = self.store.lock_template(name, &work, &self.cancel, &mut waiting)?;
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let plan = self.plan_on(found, &host, *options, reporter)?;
        let before = self.store.cached_build(&plan.key, &self.cancel)?.map(|revision| revision.id);
        let cached = before.is_some() && !options.force;
        let revision = match before {
            Some(id) if cached => id,
            _ => self.bake(found, &plan, &host, *options, begun, reporter)?,
        };
        let reproduced = match before.filter(|_| options.force) {
            Some(before) => Some(self.compare_again(&before, &revision)?),
            None => None,
        };
        let latest = self.store.tag(name, &Tag::latest())?.map(|tag| tag.revision);
        let new_blocks = match latest.filter(|latest| *latest != revision && !cached) {
            Some(latest) => self.new_blocks(&latest, &revision)?,
            None => None,
        };
        self.store.keep_recipe(name, &found.text)?;
        self.keep_inputs(name, &plan, &revision)?;
        let moved = self.store.set_tag(name, &Tag::latest(), &revision, "build")?;
        let elapsed_ms = elapsed_ms(begun);
        Ok(BuildReport {
            revision,
            template: name.clone(),
            cached,
            elapsed_ms,
            moved,
            new_blocks,
            reproduced,
        })
    }

    pub(crate) fn bake(
        &self,
        found: &FoundRecipe,
        plan: &BuildPlan,
        host: &HostFacts,
        options: BuildOptions,
        begun: Instant,
        reporter: &dyn Reporter,
    ) -> EngineResult<Digest> {
        if let (Source::Template(source), Some(steps)) = (&found.recipe.source, plan.steps()) {
            let derived = Derived { source, steps };
            return self.bake_steps(found, plan, &derived, options, begun, reporter);
        }
        let staging = self.store.stage(&format!("building {}", found.recipe.name))?;
        let scratch = staging.path().join("build");
        fs::create_dir(&scratch)?;
        let forward = Forward(reporter);
        let cache = self.store.cache_dir(FETCHED)?;
        let context = BuildContext {
            toolbox: &self.settings.toolbox,
            scratch: &scratch,
            cache: &cache,
            offline: options.offline,
            reporter: &forward,
            cancel: &self.cancel,
            host,
        };
        let output = kiln_build::run(plan, &context)?;
        let manifest = self.take_in(&found.recipe, &plan.seed, host, &output, &staging, reporter)?;
        let facts = output.facts.into_iter().chain(recipe_fact(found)).collect();
        self.publish_build(&manifest, &found.recipe.name, &plan.key, begun, facts)
    }

    /// Publishes a revision, and has the cache know it by a key.
    pub(crate) fn publish_build(
        &self,
        manifest: &Manifest,
        template: &TemplateName,
        key: &Digest,
        begun: Instant,
        facts: Vec<(String, String)>,
    ) -> EngineResult<Digest> {
        let mut facts = facts.into_iter().collect();
        if let Ok(Some(before)) = self.store.build_record(&manifest.id()) {
            keep_what_is_known(&before.facts, &mut facts);
        }
        let record = BuildRecord {
            version: 1,
            template: template.clone(),
            key: *key,
            built_unix_ms: clock::now_unix_ms(),
            elapsed_ms: elapsed_ms(begun),
            facts,
        };
        self.cancel.check()?;
        let id = self.store.commit_revision(manifest, &record)?;
        self.store.remember_build(key, &id)?;
        Ok(id)
    }

    /// Builds a recipe whatever the cache knows, and moves no tag.
    pub(crate) fn bake_again(&self, found: &FoundRecipe, reporter: &dyn Reporter) -> EngineResult<Digest> {
        let work = format!("building {} again", found.recipe.name);
        let mut waiting = waiting(reporter);
        let _store = self.store.lock(Share::Shared, &work, &self.cancel, &mut waiting)?;
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let plan = self.plan_on(found, &host, BuildOptions::default(), reporter)?;
        self.bake(found, &plan, &host, BuildOptions::default(), Instant::now(), reporter)
    }

    fn take_in(
        &self,
        recipe: &Recipe,
        seed: &PlannedSeed,
        host: &HostFacts,
        output: &BuildOutput,
        staging: &Staging,
        reporter: &dyn Reporter,
    ) -> EngineResult<Manifest> {
        let artifacts = step(reporter, "hash and commit", || {
            let (artifacts, data) = self.ingest_output(output, staging)?;
            let apparent = ByteSize::from_bytes(artifacts.iter().map(|artifact| artifact.size.bytes()).sum());
            EngineResult::Ok((artifacts, format!("{} of data in {}", data.human(), apparent.human())))
        })?;
        let seed = seed.or(|| output.seed.clone());
        manifest_of(recipe, host.arch, artifacts, seed)
    }

    /// Moves what a build made into the store; returns it with the bytes of data in it.
    pub(crate) fn ingest_output(
        &self,
        output: &BuildOutput,
        staging: &Staging,
    ) -> EngineResult<(Vec<Artifact>, ByteSize)> {
        let mut artifacts = Vec::new();
        let mut data = 0;
        for file in &output.artifacts {
            let taken = self.store.ingest(&file.path, IngestFrom::Staging, staging, &self.cancel)?;
            data += taken.data.bytes();
            let (role, format) = (file.role.clone(), file.format);
            artifacts.push(Artifact { role, digest: taken.digest, size: taken.size, format });
        }
        Ok((artifacts, ByteSize::from_bytes(data)))
    }

    /// Removes what ended processes left; failing at that fails nothing else.
    pub(crate) fn sweep(&self) {
        let _ = self.store.sweep_staging();
    }
}

pub(crate) fn elapsed_ms(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Returns the manifest that a recipe and its artifacts come to.
pub(crate) fn manifest_of(
    recipe: &Recipe,
    arch: Arch,
    mut artifacts: Vec<Artifact>,
    seed: Option<Seed>,
) -> EngineResult<Manifest> {
    artifacts.sort_by(|a, b| a.role.cmp(&b.role));
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        arch,
        artifacts,
        machine: recipe.machine.clone(),
        boot_args: recipe.boot_args.clone(),
        ready: recipe.ready.clone(),
        snapshot: recipe.snapshot.of_revision().cloned(),
        seed,
        variants: recipe.variants.clone(),
    };
    let id = manifest.id();
    manifest.checked().map_err(|source| EngineError::Store(StoreError::BadManifest { id, source }))
}

/// Returns the fact of which recipe a revision is built again; none where that is no file.
pub(crate) fn recipe_fact(found: &FoundRecipe) -> Option<(String, String)> {
    let path = Some(&found.path).filter(|path| !path.as_os_str().is_empty())?;
    Some((RECIPE_FACT.to_owned(), path.to_string_lossy().into_owned()))
}
