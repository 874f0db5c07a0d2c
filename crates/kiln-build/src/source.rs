//! Sources: each kind is planned, then run, in a file of its own.

mod debian;
mod disk;
mod kernel;
mod path;

use crate::error::BuildError;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::run::{BuildContext, BuildOutput};
use disk::DiskPlan;
use kiln_core::recipe::{Recipe, Source};
use kiln_sys::fs;
use path::PathPlan;
use std::path::{Path, PathBuf};

pub(crate) use debian::{DebianPlan, MirrorPlan};

/// A source with its paths resolved.
#[derive(Debug, Clone)]
pub(crate) enum PlannedSource {
    Debian(DebianPlan),
    Directory(PathPlan),
    Tar(PathPlan),
    Disk(DiskPlan),
}

impl PlannedSource {
    /// Looks at the inputs and adds what tells them apart to the key.
    pub(crate) fn plan(recipe: &Recipe, cx: &PlanContext<'_>, parts: &mut Parts) -> Result<Self, BuildError> {
        Ok(match &recipe.source {
            Source::Debian(source) => Self::Debian(DebianPlan::plan(source, cx, parts)),
            Source::Directory(source) => Self::Directory(PathPlan::directory(source, cx, parts)?),
            Source::Tar(source) => Self::Tar(PathPlan::tar(source, cx, parts)?),
            Source::Disk(source) => Self::Disk(DiskPlan::plan(source, cx, parts)?),
            other => return Err(BuildError::Source(other.kind())),
        })
    }

    /// Makes the files.
    pub(crate) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        match self {
            Self::Debian(source) => source.run(plan, cx),
            Self::Directory(source) => source.run_directory(plan, cx),
            Self::Tar(source) => source.run_tar(plan, cx),
            Self::Disk(source) => source.run(plan, cx),
        }
    }
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
