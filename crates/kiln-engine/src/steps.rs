//! Templates made of others: each step is done in a machine, and the disk after it is a layer that the cache keeps. The
//! machine has an initramfs whose agent is process 1 and starts nothing by itself: what the template is for does not run
//! while it is made.

mod log;
mod workshop;

use crate::build::{BuildOptions, FoundRecipe, manifest_of, recipe_fact};
use crate::progress::{Progress, Reporter, step};
use crate::{Engine, EngineError, EngineResult};
use kiln_build::{BuildError, BuildPlan, PlannedStep, initramfs};
use kiln_core::lock::PinKind;
use kiln_core::recipe::{BuildStep, Init, TemplateSource};
use kiln_core::revision::{Artifact, ArtifactFormat, Manifest};
use kiln_core::text::{chain, clip, count};
use kiln_core::{ArtifactRole, Digest, TemplateName};
use kiln_guest::config::{self, InitConfig};
use kiln_guest::{GuestPath, UserSpec};
use kiln_store::{IngestFrom, Revision, Staging};
use kiln_sys::{IoResultExt as _, fs};
use log::StepLog;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};
use workshop::Workshop;

/// For how long layers are kept that no build used.
const LAYERS_KEPT: Duration = Duration::from_secs(14 * 24 * 3600);
/// The largest initramfs that is read, in bytes.
const INITRAMFS_BYTES_MAX: usize = 1 << 30;
/// Grows with every change that gives another disk for the same steps.
const STEPS_VERSION: u32 = 2;

/// What a template made of another comes from.
pub(crate) struct Derived<'a> {
    pub(crate) source: &'a TemplateSource,
    pub(crate) steps: &'a [PlannedStep],
}

/// What is left to do.
struct Work<'a> {
    found: &'a FoundRecipe,
    derived: &'a Derived<'a>,
    /// What the commands of each step run with.
    contexts: &'a [StepContext],
    keys: &'a [Digest],
    /// How many steps are done already.
    done: usize,
    /// The disk they left.
    begin: &'a Revision,
}

/// What the commands of steps run with.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepContext {
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user: Option<UserSpec>,
    pub(crate) cwd: Option<GuestPath>,
}

impl StepContext {
    /// Returns this as a step leaves it to those that follow.
    fn after(mut self, number: usize, step: &BuildStep) -> EngineResult<Self> {
        let bad = |reason: String| EngineError::StepInvalid { number, reason };
        match step {
            BuildStep::Env(env) => self.env.extend(env.clone()),
            BuildStep::User(user) => {
                self.user = Some(user.parse().map_err(|error| bad(chain(&error)))?);
            }
            BuildStep::Workdir(dir) => {
                self.cwd = Some(GuestPath::new(dir.as_str()).map_err(|error| bad(chain(&error)))?);
            }
            BuildStep::Run { .. } | BuildStep::Copy { .. } => {}
        }
        Ok(self)
    }
}

/// Returns what the commands of each step run with, and last what the entry point begins with.
fn contexts(steps: &[PlannedStep]) -> EngineResult<Vec<StepContext>> {
    let mut contexts = vec![StepContext::default()];
    for (index, step) in steps.iter().enumerate() {
        contexts.push(contexts[index].clone().after(index + 1, &step.step)?);
    }
    Ok(contexts)
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
        if let Some(module) = recipe.agent.modules.first() {
            return Err(EngineError::StepModule { module: module.clone() });
        }
        let contexts = contexts(derived.steps)?;
        let from = derived.source.from.to_string();
        let base = plan.pins.get(PinKind::Template, &from).and_then(|id| id.parse::<Digest>().ok());
        let base = base
            .ok_or_else(|| BuildError::NotPinned { kind: PinKind::Template, name: from.clone() })
            .map_err(EngineError::from)?;
        let base = self.store.revision(&base)?;
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
                let (done, begin) = match known {
                    Some((index, layer)) => {
                        let text = format!("{} of {} cached", index + 1, count(derived.steps.len(), "step"));
                        reporter.progress(Progress::Note { text });
                        (index + 1, layer)
                    }
                    None => (0, self.workshop_revision(found, &base, &staging)?),
                };
                let work = Work { found, derived, contexts: &contexts, keys: &keys, done, begin: &begin };
                self.do_steps(&work, options, &staging, reporter)?
            }
        };
        let initrd = self.derived_initrd(found, &base, &contexts[derived.steps.len()], &staging)?;
        let kernel = artifact(&base, &ArtifactRole::kernel())?.clone();
        let seed = plan.seed.or(|| base.manifest.seed.clone());
        let manifest = manifest_of(recipe, base.manifest.arch, vec![kernel, initrd, disk], seed)?;
        let facts = [
            ("from".to_owned(), format!("{from} {}", base.id)),
            ("steps".to_owned(), derived.steps.len().to_string()),
        ];
        let facts = facts.into_iter().chain(recipe_fact(found)).collect();
        let id = self.publish_build(&manifest, &recipe.name, &plan.key, begun, facts)?;
        self.keep_layers(&recipe.name, &keys)?;
        Ok(id)
    }

    /// Publishes a layer: the machine of where the steps began, with another disk. The cache knows it by its key.
    fn commit_layer(
        &self,
        work: &Work<'_>,
        index: usize,
        disk: Artifact,
        begun: Instant,
    ) -> EngineResult<()> {
        let mut manifest = work.begin.manifest.clone();
        manifest.artifacts.retain(|artifact| artifact.role != ArtifactRole::rootfs());
        manifest.artifacts.push(disk);
        manifest.artifacts.sort_by(|a, b| a.role.cmp(&b.role));
        let facts = vec![("layer".to_owned(), format!("{} of {}", index + 1, work.keys.len()))];
        self.publish_build(&manifest, &work.found.recipe.name, &work.keys[index], begun, facts)?;
        Ok(())
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
        options: BuildOptions,
        staging: &Staging,
        reporter: &dyn Reporter,
    ) -> EngineResult<Artifact> {
        let mut log = StepLog::create(&self.store.cache_dir("logs")?, &work.found.recipe.name)?;
        let network = work.derived.source.network && !options.offline;
        let shop =
            self.open_workshop(&work.found.recipe, work.begin, network, options.keep_failed, reporter)?;
        match self.attended(&shop.entry, || self.in_workshop(work, &shop, &mut log, staging, reporter)) {
            Ok(disk) => {
                shop.close(self)?;
                Ok(disk)
            }
            Err(error) => Err(shop.failed(self, error)),
        }
    }

    fn in_workshop(
        &self,
        work: &Work<'_>,
        shop: &Workshop,
        log: &mut StepLog,
        staging: &Staging,
        reporter: &dyn Reporter,
    ) -> EngineResult<Artifact> {
        let total = work.derived.steps.len();
        let steps = work.derived.steps.iter().zip(work.contexts).enumerate().skip(work.done);
        for (index, (planned, context)) in steps.filter(|(_, (planned, _))| changes_disk(&planned.step)) {
            self.cancel.check()?;
            let begun = Instant::now();
            let name = format!("step {}/{total}: {}", index + 1, words(&planned.step));
            step(reporter, &name, || {
                shop.act(self, index + 1, &planned.step, context, log, reporter)?;
                self.commit_layer(work, index, shop.disk(self, staging, false)?, begun)?;
                EngineResult::Ok(((), String::new()))
            })?;
        }
        let begun = Instant::now();
        step(reporter, "clean", || {
            shop.clean(self, reporter)?;
            let disk = shop.disk(self, staging, true)?;
            self.commit_layer(work, total, disk.clone(), begun)?;
            let size = disk.size.human();
            EngineResult::Ok((disk, size))
        })
    }

    /// Returns the revision that steps begin with: the base, whose agent is process 1 and starts nothing.
    fn workshop_revision(
        &self,
        found: &FoundRecipe,
        base: &Revision,
        staging: &Staging,
    ) -> EngineResult<Revision> {
        let key = serde_json::json!(["kiln.workshop", STEPS_VERSION, base.id]);
        let key = Digest::of(key.to_string().as_bytes());
        if let Some(revision) = self.store.cached_build(&key, &self.cancel)? {
            return Ok(revision);
        }
        let begun = Instant::now();
        let initrd = self.changed_initrd(base, staging, "workshop.initrd", |config| {
            config.init = config::Init::Agent;
            config.entrypoint = None;
            Ok(())
        })?;
        let mut artifacts = vec![artifact(base, &ArtifactRole::kernel())?.clone(), initrd, rootfs(base)?];
        artifacts.sort_by(|a, b| a.role.cmp(&b.role));
        let manifest = Manifest {
            artifacts,
            ready: None,
            snapshot: None,
            seed: None,
            variants: Vec::new(),
            ..base.manifest.clone()
        };
        let facts = vec![("layer".to_owned(), "none: where the steps begin".to_owned())];
        let id = self.publish_build(&manifest, &found.recipe.name, &key, begun, facts)?;
        Ok(self.store.revision(&id)?)
    }

    /// Returns the initramfs of the new template: that of the base, as the recipe and its steps change it.
    fn derived_initrd(
        &self,
        found: &FoundRecipe,
        base: &Revision,
        context: &StepContext,
        staging: &Staging,
    ) -> EngineResult<Artifact> {
        let agent = &found.recipe.agent;
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
    if rootfs.format != ArtifactFormat::Ext4 {
        return Err(EngineError::BaseFormat { revision: revision.id, format: rootfs.format.as_str() });
    }
    Ok(rootfs.clone())
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
