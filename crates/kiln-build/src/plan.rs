//! Plans: inputs that exist, paths that are absolute, and the key that names the result.

use crate::apt::{self, AptSource};
use crate::error::BuildError;
use crate::fingerprint::FileIdentity;
use crate::host::HostFacts;
use crate::{ext4, initramfs, tree};
use kiln_core::arch::Arch;
use kiln_core::digest::Digest;
use kiln_core::recipe::{AgentOptions, DebianSource, Init, PathSource, Recipe, Source};
use kiln_core::size::ByteSize;
use kiln_sys::fs;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A part of a key: an input and its value, or what stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyPart {
    /// The input.
    pub name: &'static str,
    /// Its value as JSON.
    pub value: String,
    /// Whether it shapes the files. What does not is written into the revision only.
    pub shapes_files: bool,
}

/// What is to be done, and what names the result.
#[derive(Debug, Clone)]
pub struct BuildPlan {
    /// Names the revision: all that goes into it.
    pub key: Digest,
    /// Names the files alone: two plans that differ only in the machine's shape share them.
    pub files_key: Digest,
    /// What the keys are made of.
    pub explanation: Vec<KeyPart>,
    /// What the files are built for.
    pub arch: Arch,
    pub(crate) source: PlannedSource,
    pub(crate) agent: AgentOptions,
    pub(crate) disk_min: Option<ByteSize>,
}

/// A source with its paths resolved.
#[derive(Debug, Clone)]
pub(crate) enum PlannedSource {
    Debian(DebianPlan),
    Directory(PathPlan),
    Tar(PathPlan),
}

/// Debian packages, lists in order and without doubles.
#[derive(Debug, Clone)]
pub(crate) struct DebianPlan {
    pub(crate) suite: String,
    pub(crate) variant: String,
    pub(crate) packages: Vec<String>,
    pub(crate) components: Vec<String>,
    pub(crate) mirror: MirrorPlan,
    pub(crate) kernel_package: String,
    pub(crate) docs: bool,
}

/// Where packages come from.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MirrorPlan {
    /// The archive that the recipe names.
    Recipe(String),
    /// Those that the host's apt uses.
    Host(Vec<AptSource>),
    /// Whatever the package tool takes by itself.
    Default,
}

/// Paths of the host.
#[derive(Debug, Clone)]
pub(crate) struct PathPlan {
    pub(crate) root: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) modules: Option<PathBuf>,
}

/// Grows with every change that gives other files for the same inputs.
const LAYOUT_VERSION: u32 = 1;

#[derive(Default)]
struct Parts(Vec<KeyPart>);

impl Parts {
    fn add(&mut self, name: &'static str, value: impl Serialize) {
        self.push(name, value, true);
    }

    fn add_record(&mut self, name: &'static str, value: impl Serialize) {
        self.push(name, value, false);
    }

    fn push(&mut self, name: &'static str, value: impl Serialize, shapes_files: bool) {
        #[expect(clippy::expect_used, reason = "plain structs, lists and text always have a JSON form")]
        let value = serde_json::to_string(&value).expect("a key part has a JSON form");
        self.0.push(KeyPart { name, value, shapes_files });
    }

    fn digest(&self, only_files: bool) -> Digest {
        let parts: Vec<&KeyPart> = self.0.iter().filter(|part| part.shapes_files || !only_files).collect();
        #[expect(clippy::expect_used, reason = "plain structs, lists and text always have a JSON form")]
        let bytes = serde_json::to_vec(&parts).expect("key parts have a JSON form");
        Digest::of(&bytes)
    }
}

/// Plans a build. Paths in the recipe are relative to `base_dir`. Inputs are looked at and not read.
pub fn plan(recipe: &Recipe, base_dir: &Path, host: &HostFacts) -> Result<BuildPlan, BuildError> {
    let mut parts = Parts::default();
    parts.add("layout", (LAYOUT_VERSION, ext4::EPOCH_SECONDS, initramfs::ROOT_OPTIONS));
    parts.add("kiln", &host.kiln_version);
    parts.add("arch", host.arch.as_str());
    parts.add("agent", host.agent);
    parts.add("mke2fs", &host.mke2fs_version);
    // Owners that only root can keep on disk come out differently for a directory.
    parts.add("root", host.is_root);
    let source = match &recipe.source {
        Source::Debian(source) => PlannedSource::Debian(debian(source, host, &mut parts)),
        Source::Directory(source) => PlannedSource::Directory(paths(source, base_dir, true, &mut parts)?),
        Source::Tar(source) => PlannedSource::Tar(paths(source, base_dir, false, &mut parts)?),
        other => return Err(BuildError::Source(other.kind())),
    };
    agent(&recipe.agent, &mut parts);
    parts.add("disk", recipe.disk_size_min);
    parts.add_record("machine", &recipe.machine);
    parts.add_record("boot_args", &recipe.boot_args);
    parts.add_record("ready", &recipe.ready);
    if let Some(plan) = recipe.snapshot.of_revision() {
        parts.add_record("snapshot", plan);
    }
    parts.add_record("variants", &recipe.variants);
    parts.add_record("profile", &recipe.profile);
    Ok(BuildPlan {
        key: parts.digest(false),
        files_key: parts.digest(true),
        explanation: parts.0,
        arch: host.arch,
        source,
        agent: recipe.agent.clone(),
        disk_min: recipe.disk_size_min,
    })
}

fn agent(agent: &AgentOptions, parts: &mut Parts) {
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

fn sorted(words: &[String]) -> Vec<String> {
    let mut words = words.to_vec();
    words.sort();
    words.dedup();
    words
}

fn debian(source: &DebianSource, host: &HostFacts, parts: &mut Parts) -> DebianPlan {
    let components = sorted(&source.components);
    let host_sources = || apt::for_suite(&host.apt_sources, &source.suite, &components);
    let mirror = match &source.mirror {
        Some(mirror) => MirrorPlan::Recipe(mirror.clone()),
        None => Some(host_sources()).filter(|s| !s.is_empty()).map_or(MirrorPlan::Default, MirrorPlan::Host),
    };
    let default_kernel = || format!("linux-image-cloud-{}", host.arch.debian());
    let plan = DebianPlan {
        suite: source.suite.clone(),
        variant: source.variant.clone(),
        packages: sorted(&source.packages),
        mirror,
        kernel_package: source.kernel_package.clone().unwrap_or_else(default_kernel),
        docs: source.docs,
        components,
    };
    parts.add("source", "debian");
    parts.add("suite", &plan.suite);
    parts.add("package_set", &plan.variant);
    parts.add("packages", &plan.packages);
    parts.add("components", &plan.components);
    parts.add("mirror", &plan.mirror);
    parts.add("kernel_package", &plan.kernel_package);
    parts.add("docs", plan.docs);
    parts.add("mmdebstrap", host.mmdebstrap);
    plan
}

fn paths(
    source: &PathSource,
    base: &Path,
    directory: bool,
    parts: &mut Parts,
) -> Result<PathPlan, BuildError> {
    let root = input("source.path", base, &source.path, directory)?;
    let kernel = input("source.kernel", base, &source.kernel, false)?;
    let modules = source.modules.as_ref();
    let modules = modules.map(|path| input("source.modules", base, path, true)).transpose()?;
    parts.add("source", if directory { "directory" } else { "tar" });
    if directory {
        parts.add("content", tree::walk(&root, None, false)?.identity);
    } else {
        parts.add("content", FileIdentity::at(&root)?);
    }
    parts.add("kernel", FileIdentity::at(&kernel)?);
    let identity = |path: &PathBuf| tree::walk(path, None, false).map(|walked| walked.identity);
    parts.add("kernel_modules", modules.as_ref().map(identity).transpose()?);
    Ok(PathPlan { root, kernel, modules })
}

/// Resolves a path of the recipe and checks what it leads to.
fn input(field: &'static str, base: &Path, path: &Path, directory: bool) -> Result<PathBuf, BuildError> {
    let path = base.join(path);
    let Some(meta) = fs::optional(fs::metadata(&path))? else {
        return Err(BuildError::InputMissing { field, path });
    };
    let found = match meta.file_type() {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_file() => "a file",
        _ => "neither a file nor a directory",
    };
    let wanted = if directory { "a directory" } else { "a file" };
    if found != wanted {
        return Err(BuildError::InputKind { field, path, found, wanted });
    }
    Ok(fs::canonicalize(&path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_key_do_not_run_into_each_other() {
        let digest = |values: &[&[&str]]| {
            let mut parts = Parts::default();
            values.iter().for_each(|value| parts.add("part", value));
            parts.digest(false)
        };
        let keys = [
            digest(&[&["a:b"], &["c"]]),
            digest(&[&["a"], &["b:c"]]),
            digest(&[&["a", "b"], &["c"]]),
            digest(&[&["a"], &["b", "c"]]),
            digest(&[&["a\",\"b"], &["c"]]),
            digest(&[&["a b c"], &[]]),
        ];
        let different: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
    }
}
