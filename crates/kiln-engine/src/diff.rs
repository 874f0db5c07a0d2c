//! What differs between two revisions: settings, artifacts, packages and the files of the root file system.
//!
//! Both root file systems are read straight from their artifacts: nothing is mounted, no privilege is needed, and nothing
//! is written but a copy of an RPM database, which is gone when it is listed. They are walked side by side in the order of their names, so that no more is held than the directories
//! on the way. Equal segments of the two indexes are equal content and are not read.

mod content;
#[cfg(test)]
mod images;
mod packages;
mod report;
mod settings;
mod shared;
mod side;
mod sink;
mod tree;

pub use kiln_source::ext4::ImageError;
pub use packages::Manager;
pub use report::{
    ArtifactDiff, ArtifactSummary, Aspect, Change, DiffReport, DiffSide, FileChange, FileDiff, FileFacts,
    FileKind, FileSum, PackageChange, PackageDiff, SettingChange,
};

use crate::{Engine, EngineResult};
use kiln_core::revision::Artifact;
use kiln_core::{ArtifactRole, Reference};
use kiln_store::{Index, Revision};
use side::Side;
use sink::Sink;

/// Which changed files a comparison lists; it counts all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileList {
    /// None: files are not looked at.
    None,
    /// At most so many, those with the largest content first.
    Largest(usize),
    /// All, in the order of their paths, up to 1,048,576 files and 64 MiB of paths.
    All,
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct DiffRequest {
    /// The revision before.
    pub a: Reference,
    /// The revision after.
    pub b: Reference,
    /// Which files are listed.
    pub files: FileList,
}

impl Engine {
    /// Compares two revisions; of a whole disk that firmware boots neither packages nor files. Extended attributes and times of files are not compared.
    ///
    /// # Errors
    /// When a reference means nothing, when an artifact is damaged, or with [`crate::EngineError::Image`] when a root
    /// file system is none that can be read.
    pub fn diff(&self, request: &DiffRequest) -> EngineResult<DiffReport> {
        let (a, b) = (self.store.resolve(&request.a)?, self.store.resolve(&request.b)?);
        let mut report = DiffReport {
            settings: settings::compare(
                (&a.manifest, request.a.variant.as_ref()),
                (&b.manifest, request.b.variant.as_ref()),
            ),
            artifacts: self.artifacts(&a, &b)?,
            packages: PackageDiff::default(),
            files: None,
            a: DiffSide { reference: request.a.to_string(), revision: a.id },
            b: DiffSide { reference: request.b.to_string(), revision: b.id },
        };
        let mut sink = Sink::new(request.files);
        if let (Some(root_a), Some(root_b)) = (rootfs(&a), rootfs(&b))
            && root_a.digest != root_b.digest
            && !a.manifest.is_disk()
            && !b.manifest.is_disk()
        {
            let sizes = report.artifacts.iter().flat_map(|line| [&line.before, &line.after]).flatten();
            let data = sizes.map(|summary| summary.data_bytes).max().unwrap_or_default();
            let (side_a, side_b) = (Side::open(self, root_a, data)?, Side::open(self, root_b, data)?);
            report.packages =
                packages::compare(&packages::read(self, &side_a)?, &packages::read(self, &side_b)?);
            if request.files != FileList::None {
                tree::compare(&side_a, &side_b, &mut sink)?;
            }
        }
        // What is on a whole disk is not known.
        let has_files = !a.manifest.is_disk() && !b.manifest.is_disk();
        report.files = (has_files && request.files != FileList::None).then(|| sink.finish());
        Ok(report)
    }

    fn artifacts(&self, a: &Revision, b: &Revision) -> EngineResult<Vec<ArtifactDiff>> {
        let mut roles: Vec<&ArtifactRole> =
            a.manifest.artifacts.iter().chain(&b.manifest.artifacts).map(|artifact| &artifact.role).collect();
        roles.sort_unstable();
        roles.dedup();
        let load = |revision: &Revision, role| -> EngineResult<Option<(Artifact, Index)>> {
            let Some(artifact) = revision.manifest.artifact(role) else { return Ok(None) };
            Ok(Some((artifact.clone(), self.store.index(&artifact.digest)?)))
        };
        let mut lines = Vec::with_capacity(roles.len());
        for role in roles {
            let (before, after) = (load(a, role)?, load(b, role)?);
            let shared_bytes = match (&before, &after) {
                (Some((_, a)), Some((_, b))) => shared::bytes(a, b),
                _ => 0,
            };
            let summary = |(artifact, index): (Artifact, Index)| ArtifactSummary {
                digest: artifact.digest,
                format: artifact.format,
                size: artifact.size.bytes(),
                data_bytes: index.data_bytes(),
            };
            lines.push(ArtifactDiff {
                role: role.clone(),
                before: before.map(summary),
                after: after.map(summary),
                shared_bytes,
            });
        }
        Ok(lines)
    }
}

fn rootfs(revision: &Revision) -> Option<&Artifact> {
    revision.manifest.artifact(&ArtifactRole::rootfs())
}
