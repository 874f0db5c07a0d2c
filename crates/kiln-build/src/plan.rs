//! Plans: inputs that exist, paths that are absolute, and the key that names the result.

use crate::error::BuildError;
use crate::host::HostFacts;
use crate::key::{KeyPart, Parts};
use crate::packed::Packed;
use crate::report::Reporter;
use crate::seed::PlannedSeed;
use crate::source::{FetchOptions, LocalImage, PlannedSource, PlannedStep};
use crate::{ext4, initramfs};
use kiln_core::arch::Arch;
use kiln_core::catalog::Catalog;
use kiln_core::digest::Digest;
use kiln_core::lock::Pins;
use kiln_core::recipe::{AgentOptions, Init, Recipe};
use kiln_core::size::ByteSize;
use kiln_sys::{Cancel, Toolbox};
use std::path::Path;

/// What is to be done, and what names the result.
#[derive(Debug, Clone)]
pub struct BuildPlan {
    /// Names the revision: all that goes into it.
    pub key: Digest,
    /// Names the files alone: two plans that differ only in the machine's shape share them.
    pub files_key: Digest,
    /// What the keys are made of.
    pub explanation: Vec<KeyPart>,
    /// What the names of the outside world stand for that were looked up, or pinned already.
    pub pins: Pins,
    /// What the files are built for.
    pub arch: Arch,
    /// What machines tell the guest's cloud-init.
    pub seed: PlannedSeed,
    pub(crate) source: PlannedSource,
    pub(crate) agent: AgentOptions,
    pub(crate) disk_min: Option<ByteSize>,
}

/// Grows with every change that gives other files for the same inputs.
const LAYOUT_VERSION: u32 = 2;

impl BuildPlan {
    /// Returns the steps that a machine has to do, where the source is another template.
    pub fn steps(&self) -> Option<&[PlannedStep]> {
        match &self.source {
            PlannedSource::Template(template) => Some(&template.steps),
            _ => None,
        }
    }

    /// Returns whether the recipe names something of the outside world, which a lock would pin.
    pub fn looks_outside(&self) -> bool {
        self.explanation.iter().any(|part| part.shapes_pins && part.name != "source")
    }
}

/// What a plan is made with.
#[derive(Clone, Copy)]
pub struct PlanContext<'a> {
    /// Relative paths of the recipe begin here.
    pub base: &'a Path,
    /// The host.
    pub host: &'a HostFacts,
    /// The programs.
    pub toolbox: &'a Toolbox,
    /// Ends the work early.
    pub cancel: &'a Cancel,
    /// A directory for what was fetched, which builds share and anybody may empty between two of them. It exists.
    pub cache: &'a Path,
    /// What names of the outside world stand for: one that is pinned is not looked up.
    pub pins: &'a Pins,
    /// Whether nothing may be asked of the network.
    pub offline: bool,
    /// The images that names mean.
    pub catalog: &'a Catalog,
    /// How those are fetched.
    pub fetch: FetchOptions,
    /// Receives progress of what is looked up.
    pub reporter: &'a dyn Reporter,
}

impl std::fmt::Debug for PlanContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlanContext").field("base", &self.base).finish_non_exhaustive()
    }
}

/// Plans a build. Files are looked at and not read, names that are not pinned are looked up.
pub fn plan(recipe: &Recipe, cx: &PlanContext<'_>) -> Result<BuildPlan, BuildError> {
    plan_of(recipe, cx, |parts| PlannedSource::plan(recipe, cx, parts))
}

/// Plans a build of an image that is on this host, in place of the source that the recipe names.
pub fn plan_local(
    recipe: &Recipe,
    image: &LocalImage,
    cx: &PlanContext<'_>,
) -> Result<BuildPlan, BuildError> {
    plan_of(recipe, cx, |parts| Ok(PlannedSource::Local(image.plan(recipe, cx, parts)?)))
}

fn plan_of(
    recipe: &Recipe,
    cx: &PlanContext<'_>,
    source: impl FnOnce(&mut Parts) -> Result<PlannedSource, BuildError>,
) -> Result<BuildPlan, BuildError> {
    let host = cx.host;
    let mut parts = Parts::default();
    parts.add("layout", (LAYOUT_VERSION, ext4::EPOCH_SECONDS, initramfs::ROOT_OPTIONS));
    parts.add("kiln", &host.kiln_version);
    parts.add("arch", host.arch.as_str());
    parts.add("agent", host.agent);
    parts.add("mke2fs", &host.mke2fs_version);
    // Owners that only root can keep on disk come out differently for a directory.
    parts.add("root", host.is_root);
    let source = source(&mut parts)?;
    let agent = source.agent(&recipe.agent)?;
    agent_parts(&agent, &mut parts);
    parts.add("disk", recipe.disk_size_min);
    if let Some(format) = Packed::of(recipe.agent.root) {
        if !source.takes_any_root() {
            return Err(BuildError::RootFormat {
                kind: recipe.source.kind(),
                root: recipe.agent.root.as_str(),
            });
        }
        parts.add("root_format", (recipe.agent.root.as_str(), format.tool_identity(cx.toolbox)?));
    }
    parts.add_record("machine", &recipe.machine);
    parts.add_record("boot_args", &recipe.boot_args);
    parts.add_record("ready", &recipe.ready);
    if let Some(plan) = recipe.snapshot.of_revision() {
        parts.add_record("snapshot", plan);
    }
    let seed = PlannedSeed::plan(&recipe.seed, cx)?;
    parts.add_record("seed", seed.key());
    if let Some(user) = seed.user() {
        parts.add_record("seed_user", user);
    }
    parts.add_record("variants", &recipe.variants);
    parts.add_record("profile", &recipe.profile);
    Ok(BuildPlan {
        key: parts.digest(false),
        files_key: parts.digest(true),
        explanation: parts.list,
        pins: parts.pins,
        arch: host.arch,
        seed,
        source,
        agent,
        disk_min: recipe.disk_size_min,
    })
}

fn agent_parts(agent: &AgentOptions, parts: &mut Parts) {
    let image = match &agent.init {
        Init::Auto => ("auto", None),
        Init::Image(path) => ("image", Some(path)),
        _ => ("agent", None),
    };
    parts.add("init", image);
    let entrypoint = agent.entrypoint.as_ref();
    parts.add("entrypoint", entrypoint.map(|it| (&it.command, &it.env, &it.workdir, &it.user)));
    parts.add("modules", &agent.modules);
}
