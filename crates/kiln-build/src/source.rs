//! Sources: each kind is planned, then run, in a file of its own.

mod catalog;
mod debian;
mod disk;
mod dockerfile;
mod kernel;
mod local;
mod nix;
mod oci;
mod path;
mod template;

use crate::error::BuildError;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::run::{BuildContext, BuildOutput};
use catalog::CatalogPlan;
use disk::DiskPlan;
use dockerfile::DockerfilePlan;
use kiln_core::lock::Pins;
use kiln_core::recipe::{AgentOptions, Recipe, Source};
use kiln_sys::fs;
use nix::NixPlan;
use oci::OciPlan;
use path::PathPlan;
use std::path::{Path, PathBuf};
use template::TemplatePlan;

pub use catalog::FetchOptions;
pub(crate) use debian::{DebianPlan, MirrorPlan};
pub(crate) use local::LocalPlan;
pub use local::{LocalFiles, LocalImage, look_at};
pub use nix::{NixError, legacy_key};
pub use template::PlannedStep;

/// A source with its paths resolved.
#[derive(Debug, Clone)]
pub(crate) enum PlannedSource {
    Debian(DebianPlan),
    Directory(PathPlan),
    Tar(PathPlan),
    Disk(DiskPlan),
    Catalog(CatalogPlan),
    Local(LocalPlan),
    Nix(NixPlan),
    Oci(OciPlan),
    Dockerfile(DockerfilePlan),
    Template(TemplatePlan),
}

impl PlannedSource {
    /// Looks at the inputs and adds what tells them apart to the key.
    pub(crate) fn plan(recipe: &Recipe, cx: &PlanContext<'_>, parts: &mut Parts) -> Result<Self, BuildError> {
        Ok(match &recipe.source {
            Source::Debian(source) => Self::Debian(DebianPlan::plan(source, cx, parts)),
            Source::Directory(source) => Self::Directory(PathPlan::directory(source, cx, parts)?),
            Source::Tar(source) => Self::Tar(PathPlan::tar(source, cx, parts)?),
            Source::Disk(source) => Self::Disk(DiskPlan::plan(source, recipe, cx, parts)?),
            Source::Catalog(source) => Self::Catalog(CatalogPlan::plan(source, recipe, cx, parts)?),
            Source::Nix(source) => Self::Nix(NixPlan::plan(source, recipe, cx, parts)?),
            Source::Oci(source) => Self::Oci(OciPlan::plan(source, cx, parts)?),
            Source::Dockerfile(source) => {
                Self::Dockerfile(DockerfilePlan::plan(source, &recipe.agent, cx, parts)?)
            }
            Source::Template(source) => Self::Template(TemplatePlan::plan(source, cx, parts)?),
            other => return Err(BuildError::Source(other.kind())),
        })
    }

    /// Asks the outside world what the source's names stand for that are not known when a build is planned.
    pub(crate) fn resolve(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<Pins, BuildError> {
        match self {
            Self::Debian(source) => source.resolve(plan, cx),
            Self::Directory(source) | Self::Tar(source) => source.resolve(plan, cx),
            Self::Disk(source) => source.resolve(plan, cx),
            Self::Oci(source) => source.resolve(plan, cx),
            Self::Dockerfile(source) => source.resolve(plan, cx),
            Self::Catalog(_) | Self::Local(_) | Self::Nix(_) | Self::Template(_) => Ok(Pins::default()),
        }
    }

    /// Returns whether the root file system is made here, of files, and can be any.
    pub(crate) fn takes_any_root(&self) -> bool {
        !matches!(self, Self::Disk(_) | Self::Catalog(_) | Self::Local(_) | Self::Nix(_) | Self::Template(_))
    }

    /// Makes the files.
    pub(crate) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        match self {
            Self::Debian(source) => source.run(plan, cx),
            Self::Directory(source) => source.run_directory(plan, cx),
            Self::Tar(source) => source.run_tar(plan, cx),
            Self::Disk(source) => source.run(plan, cx),
            Self::Catalog(source) => source.run(plan, cx),
            Self::Local(image) => image.run(plan, cx),
            Self::Nix(source) => source.run(plan, cx),
            Self::Oci(source) => source.run(plan, cx),
            Self::Dockerfile(source) => source.run(plan, cx),
            // A machine does its steps.
            Self::Template(_) => Err(BuildError::Source("template")),
        }
    }

    /// Returns how the guest starts, where the source has a say in it.
    pub(crate) fn agent(&self, recipe: &AgentOptions) -> Result<AgentOptions, BuildError> {
        match self {
            Self::Oci(source) => source.agent(recipe),
            _ => Ok(recipe.clone()),
        }
    }
}

/// Resolves a path of the recipe that leads to a file or a directory; returns whether it is a directory.
fn input_of_any_kind(field: &'static str, base: &Path, path: &Path) -> Result<(PathBuf, bool), BuildError> {
    let is_dir = fs::optional(fs::metadata(&base.join(path)))?.is_some_and(|meta| meta.is_dir());
    Ok((input(field, base, path, is_dir)?, is_dir))
}

/// Resolves a path of the recipe and checks what it leads to.
pub(crate) fn input(
    field: &'static str,
    base: &Path,
    path: &Path,
    directory: bool,
) -> Result<PathBuf, BuildError> {
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
