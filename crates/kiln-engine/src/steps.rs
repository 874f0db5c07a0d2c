//! Templates made of others: each step is done in a machine, and the disk after it is a layer that the cache keeps. The
//! machine has an initramfs whose agent is process 1 and starts nothing by itself: what the template is for does not run
//! while it is made.

mod log;
mod workshop;

use crate::build::{BuildOptions, FoundRecipe, elapsed_ms};
use crate::progress::{Progress, Reporter, step};
use crate::verify::RECIPE_FACT;
use crate::{Engine, EngineError, EngineResult};
use kiln_build::{BuildPlan, PlannedStep, initramfs};
use kiln_core::lock::PinKind;
use kiln_core::recipe::{BuildStep, Init, TemplateSource};
use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::text::{clip, count};
use kiln_core::{ArtifactRole, Digest, TemplateName};
use kiln_guest::config::{self, InitConfig};
use kiln_guest::{GuestPath, UserSpec};
use kiln_store::{BuildRecord, IngestFrom, Revision, Staging};
use kiln_sys::{IoResultExt as _, clock, fs};
use log::StepLog;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// For how long layers are kept that no build used.
const LAYERS_KEPT: Duration = Duration::from_secs(14 * 24 * 3600);
/// The largest initramfs that is read, in bytes.
const INITRAMFS_BYTES_MAX: usize = 1 << 30;
/// Grows with every change that gives another disk for the same steps.
const STEPS_VERSION: u32 = 1;

/// What a template made of another comes from.
pub(crate) struct Derived<'a> {
    pub(crate) source: &'a TemplateSource,
    pub(crate) steps: &'a [PlannedStep],
}

/// What is left to do.
#[derive(Clone, Copy)]
struct Work<'a> {
    found: &'a FoundRecipe,
    derived: &'a Derived<'a>,
    keys: &'a [Digest],
    /// How many steps are done already.
    todo: usize,
    /// The disk they left.
    begin: &'a Revision,
    options: BuildOptions,
}

/// What the commands of steps run with.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepContext {
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user: Option<UserSpec>,
    pub(crate) cwd: Option<GuestPath>,
}

impl StepContext {
    /// Takes over what a step says of those that follow.
    fn follow(&mut self, number: usize, step: &BuildStep) -> EngineResult<()> {
        let bad = |reason: String| EngineError::StepInvalid { number, reason };
        match step {
            BuildStep::Env(env) => self.env.extend(env.clone()),
            BuildStep::User(user) => {
                self.user = Some(user.parse().map_err(|error| bad(kiln_core::text::chain(&error)))?);
            }
            BuildStep::Workdir(dir) => {
                let dir =
                    GuestPath::new(dir.as_str()).map_err(|error| bad(kiln_core::text::chain(&error)))?;
                self.cwd = Some(dir);
            }
            BuildStep::Run { .. } | BuildStep::Copy { .. } => {}
        }
        Ok(())
    }
}

/// Returns the key of the layer after each step, and last the one of the cleaned disk.
fn layer_keys(base: &Digest, plan: &BuildPlan, derived: &Derived<'_>) -> Vec<Digest> {
    let digest = |value: serde_json::Value| Digest::of(value.to_string().as_bytes());
    let disk = plan.explanation.iter().find(|part| part.name == "disk").map(|part| part.value.as_str());
    let agent = plan.explanation.iter().find(|part| part.name == "agent").map(|part| part.value.as_str());
    let network = derived.source.network;
    let first = serde_json::json!(["kiln.steps", STEPS_VERSION, base, plan.arch, disk, agent, network]);
    let mut key = digest(first);
    let mut keys = Vec::new();
    for step in derived.steps {
        key = digest(serde_json::json!([key, step.key]));
        keys.push(key);
    }
    keys.push(digest(serde_json::json!([key, "cleaned"])));
    keys
}

impl Engine {
    /// Does the steps that the cache does not know, and publishes the template they make.
    pub(crate) fn bake_steps(
        &self,
        found: &FoundRecipe,
        plan: &BuildPlan,
        derived: &Derived<'_>,
        options: BuildOptions,
        begun: Instant,
        reporter: &dyn Reporter,
    ) -> EngineResult<Digest> {
        let recipe = &found.recipe;
        let from = derived.source.from.to_string();
        let base = plan.pins.get(PinKind::Template, &from).and_then(|id| id.parse::<Digest>().ok());
        let base =
            self.store.revision(&base.ok_or(EngineError::Build(kiln_build::BuildError::NotPinned {
                kind: PinKind::Template,
                name: from.clone(),
            }))?)?;
        let staging = self.store.stage(&format!("building {}", recipe.name))?;
        let keys = layer_keys(&base.id, plan, derived);
        // The disk after the last step that the cache knows, and its place among the keys.
        let mut known = None;
        for (index, key) in keys.iter().enumerate().rev().filter(|_| !options.force) {
            if let Some(layer) = self.store.cached_build(key, &self.cancel)? {
                known = Some((index, layer));
                break;
            }
        }
        let disk = match known {
            Some((index, layer)) if index + 1 == keys.len() => rootfs(&layer)?,
            known => {
                let (todo, begin) = match known {
                    Some((index, layer)) => {
                        let text = format!("{} of {} cached", index + 1, count(derived.steps.len(), "step"));
                        reporter.progress(Progress::Note { text });
                        (index + 1, layer)
                    }
                    None => (0, self.workshop_revision(&base, &recipe.name, &staging)?),
                };
                let work = Work { found, derived, keys: &keys, todo, begin: &begin, options };
                self.do_steps(&work, &staging, reporter)?
            }
        };
        let initrd = self.derived_initrd(found, &base, derived, &staging)?;
        let kernel = artifact(&base, &ArtifactRole::kernel())?.clone();
        let mut artifacts = vec![kernel, initrd, disk];
        artifacts.sort_by(|a, b| a.role.cmp(&b.role));
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            arch: base.manifest.arch,
            artifacts,
            machine: recipe.machine.clone(),
            boot_args: recipe.boot_args.clone(),
            ready: recipe.ready.clone(),
            snapshot: recipe.snapshot.of_revision().cloned(),
            variants: recipe.variants.clone(),
        };
        let facts = [
            ("from", format!("{from} {}", base.id)),
            ("steps", derived.steps.len().to_string()),
            (RECIPE_FACT, found.path.to_string_lossy().into_owned()),
        ];
        self.cancel.check()?;
        let id = self.commit_layer(&manifest, &recipe.name, &plan.key, begun, &facts)?;
        self.keep_layers(&recipe.name, &keys)?;
        Ok(id)
    }

    /// Publishes a revision, and has the cache know it by a key.
    fn commit_layer(
        &self,
        manifest: &Manifest,
        template: &TemplateName,
        key: &Digest,
        begun: Instant,
        facts: &[(&str, String)],
    ) -> EngineResult<Digest> {
        let id = manifest.id();
        let checked = manifest.clone().checked();
        let manifest = checked
            .map_err(|source| EngineError::Store(kiln_store::StoreError::BadManifest { id, source }))?;
        let record = BuildRecord {
            version: 1,
            template: template.clone(),
            key: *key,
            built_unix_ms: clock::now_unix_ms(),
            elapsed_ms: elapsed_ms(begun),
            facts: facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        };
        let id = self.store.commit_revision(&manifest, &record)?;
        self.store.remember_build(key, &id)?;
        Ok(id)
    }

    /// Keeps the layers of a template's last build, and no others, for a while.
    fn keep_layers(&self, template: &TemplateName, keys: &[Digest]) -> EngineResult<()> {
        let reason = format!("layer of {template}");
        let mut wanted = Vec::new();
        for key in keys {
            wanted.extend(self.store.cached_build(key, &self.cancel)?.map(|layer| layer.id));
        }
        for lease in self.store.leases()?.into_iter().filter(|lease| lease.reason == reason) {
            self.store.release_lease(&lease.id)?;
        }
        for layer in wanted {
            self.store.take_lease(&layer, &reason, LAYERS_KEPT)?;
        }
        Ok(())
    }

    /// Does what is to be done, and returns the cleaned disk.
    fn do_steps(
        &self,
        work: &Work<'_>,
        staging: &Staging,
        reporter: &dyn Reporter,
    ) -> EngineResult<Artifact> {
        let Work { found, derived, keys, todo, begin, options } = *work;
        let mut context = StepContext::default();
        for (index, step) in derived.steps.iter().enumerate() {
            context.follow(index + 1, &step.step)?;
        }
        let template = &found.recipe.name;
        let mut log = StepLog::create(&self.store.cache_dir("logs")?, template)?;
        let network = derived.source.network && !options.offline;
        let shop = self.open_workshop(&found.recipe, begin, network, options.keep_failed, reporter)?;
        let mut context = StepContext::default();
        let total = derived.steps.len();
        for (index, planned) in derived.steps.iter().enumerate() {
            let number = index + 1;
            context.follow(number, &planned.step)?;
            let name = format!("step {number}/{total}: {}", words(&planned.step));
            if index < todo || !changes_disk(&planned.step) {
                continue;
            }
            self.cancel.check()?;
            let begun = Instant::now();
            let result = step(reporter, &name, || {
                shop.act(self, number, &planned.step, &context, &mut log, reporter)?;
                let disk = shop.disk(self, staging, false)?;
                let manifest = layer_manifest(begin, disk);
                let facts = [("layer", format!("{number} of {template}"))];
                self.commit_layer(&manifest, template, &keys[index], begun, &facts)?;
                EngineResult::Ok(((), String::new()))
            });
            if let Err(error) = result {
                return Err(shop.failed(self, error));
            }
        }
        let begun = Instant::now();
        let cleaned = step(reporter, "clean", || {
            shop.clean(self, reporter)?;
            let disk = shop.disk(self, staging, true)?;
            let size = disk.size.human();
            EngineResult::Ok((disk, size))
        });
        let disk = match cleaned {
            Ok(disk) => disk,
            Err(error) => return Err(shop.failed(self, error)),
        };
        shop.close(self);
        let manifest = layer_manifest(begin, disk.clone());
        let facts = [("layer", format!("cleaned of {template}"))];
        self.commit_layer(&manifest, template, &keys[total], begun, &facts)?;
        Ok(disk)
    }

    /// Returns the revision that steps begin with: the base, whose agent is process 1 and starts nothing.
    fn workshop_revision(
        &self,
        base: &Revision,
        template: &TemplateName,
        staging: &Staging,
    ) -> EngineResult<Revision> {
        let plain = |config: &mut InitConfig| {
            config.init = config::Init::Agent;
            config.entrypoint = None;
            Ok(())
        };
        let initrd = self.changed_initrd(base, staging, "workshop.initrd", plain)?;
        let mut artifacts = vec![artifact(base, &ArtifactRole::kernel())?.clone(), initrd, rootfs(base)?];
        artifacts.sort_by(|a, b| a.role.cmp(&b.role));
        let manifest = Manifest {
            artifacts,
            ready: None,
            snapshot: None,
            variants: Vec::new(),
            ..base.manifest.clone()
        };
        let key =
            Digest::of(serde_json::json!(["kiln.workshop", STEPS_VERSION, base.id]).to_string().as_bytes());
        let facts = [("layer", format!("0 of {template}"))];
        let id = self.commit_layer(&manifest, template, &key, Instant::now(), &facts)?;
        Ok(self.store.revision(&id)?)
    }

    /// Returns the initramfs of the new template: that of the base, as the recipe and its steps change it.
    fn derived_initrd(
        &self,
        found: &FoundRecipe,
        base: &Revision,
        derived: &Derived<'_>,
        staging: &Staging,
    ) -> EngineResult<Artifact> {
        let mut context = StepContext::default();
        for (index, step) in derived.steps.iter().enumerate() {
            context.follow(index + 1, &step.step)?;
        }
        let agent = &found.recipe.agent;
        if let Some(module) = agent.modules.first() {
            let reason =
                format!("module `{module}` is asked for, and modules come with the template it begins as");
            return Err(EngineError::StepInvalid { number: 0, reason });
        }
        self.changed_initrd(base, staging, "derived.initrd", |config| {
            match &agent.init {
                Init::Auto => {}
                Init::Image(path) => {
                    let path = GuestPath::new(path.as_str())
                        .map_err(|source| initramfs::InitramfsError::Name { field: "agent.init", source })?;
                    config.init = config::Init::Image(path);
                }
                _ => config.init = config::Init::Agent,
            }
            if let Some(entrypoint) = &agent.entrypoint {
                config.entrypoint = Some(initramfs::entrypoint(entrypoint)?);
            }
            if let Some(entrypoint) = &mut config.entrypoint {
                let own = agent.entrypoint.as_ref();
                for (name, to) in &context.env {
                    if own.is_none_or(|own| !own.env.contains_key(name)) {
                        entrypoint.env.insert(name.clone(), to.clone());
                    }
                }
                if own.is_none_or(|own| own.workdir.is_none()) && context.cwd.is_some() {
                    entrypoint.cwd.clone_from(&context.cwd);
                }
                if own.is_none_or(|own| own.user.is_none()) && context.user.is_some() {
                    entrypoint.user.clone_from(&context.user);
                }
            }
            Ok(())
        })
    }

    fn changed_initrd(
        &self,
        base: &Revision,
        staging: &Staging,
        name: &str,
        change: impl FnOnce(&mut InitConfig) -> Result<(), initramfs::InitramfsError>,
    ) -> EngineResult<Artifact> {
        let initrd = artifact(base, &ArtifactRole::initrd())?;
        self.store.ensure_artifact(&initrd.digest, initrd.size, &self.cancel, &mut |_| {})?;
        let bytes = fs::read_limited(&self.store.artifact_path(&initrd.digest), INITRAMFS_BYTES_MAX)?;
        let changed = initramfs::reconfigure(&bytes, change).map_err(kiln_build::BuildError::from)?;
        let Some(changed) = changed else { return Ok(initrd.clone()) };
        let path = staging.path().join(name);
        fs::create_new(&path)?.write_all(&changed).at("write", &path)?;
        let taken = self.store.ingest(&path, IngestFrom::Staging, staging, &self.cancel)?;
        Ok(Artifact {
            role: ArtifactRole::initrd(),
            digest: taken.digest,
            size: taken.size,
            format: ArtifactFormat::Cpio,
        })
    }
}

fn artifact<'a>(revision: &'a Revision, role: &ArtifactRole) -> EngineResult<&'a Artifact> {
    revision
        .manifest
        .artifact(role)
        .ok_or_else(|| EngineError::BaseLacks { revision: revision.id, role: role.clone() })
}

fn rootfs(revision: &Revision) -> EngineResult<Artifact> {
    let rootfs = artifact(revision, &ArtifactRole::rootfs())?;
    if rootfs.format.is_read_only() {
        return Err(EngineError::BaseReadOnly { revision: revision.id, format: rootfs.format.as_str() });
    }
    Ok(rootfs.clone())
}

/// Returns the manifest of a layer: that of where the steps began, with another disk.
fn layer_manifest(begin: &Revision, disk: Artifact) -> Manifest {
    let mut manifest = begin.manifest.clone();
    manifest.artifacts.retain(|artifact| artifact.role != ArtifactRole::rootfs());
    manifest.artifacts.push(disk);
    manifest.artifacts.sort_by(|a, b| a.role.cmp(&b.role));
    manifest
}

fn changes_disk(step: &BuildStep) -> bool {
    matches!(step, BuildStep::Run { .. } | BuildStep::Copy { .. })
}

/// Returns a step in a few words.
fn words(step: &BuildStep) -> String {
    match step {
        BuildStep::Run { command, .. } => match command.as_slice() {
            [_, flag, text] if flag == "-c" => format!("run {}", clip(text)),
            words => format!("run {}", clip(&words.join(" "))),
        },
        BuildStep::Copy { from, to } => format!("copy {} to {}", from.display(), clip(to)),
        BuildStep::Env(env) => format!("env {}", env.keys().cloned().collect::<Vec<_>>().join(" ")),
        BuildStep::User(user) => format!("user {}", clip(user)),
        BuildStep::Workdir(dir) => format!("workdir {}", clip(dir)),
    }
}
