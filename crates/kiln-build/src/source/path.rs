//! Root file systems that lie ready on the host, as a directory or a tar file.

use super::input;
use super::kernel::KernelPlan;
use crate::error::BuildError;
use crate::fingerprint::FileIdentity;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{Running, Step};
use crate::run::{BuildContext, BuildOutput};
use crate::steps::{Output, disk, need_space, unpacked};
use crate::tree;
use crate::unpack::Ownership;
use kiln_core::lock::Pins;
use kiln_core::recipe::PathSource;
use kiln_core::text::count;
use std::path::PathBuf;

/// A path of the host, and the kernel for what it holds.
#[derive(Debug, Clone)]
pub(crate) struct PathPlan {
    root: PathBuf,
    kernel: KernelPlan,
}

impl PathPlan {
    pub(super) fn directory(
        source: &PathSource,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        let root = input("source.path", cx.base, &source.path, true)?;
        parts.ask("source", "directory");
        parts.add("content", tree::walk(&root, None, false)?.identity);
        Ok(Self { root, kernel: KernelPlan::plan(&source.kernel, cx, parts)? })
    }

    pub(super) fn tar(
        source: &PathSource,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        let root = input("source.path", cx.base, &source.path, false)?;
        parts.ask("source", "tar");
        parts.add("content", FileIdentity::at(&root)?);
        Ok(Self { root, kernel: KernelPlan::plan(&source.kernel, cx, parts)? })
    }

    pub(super) fn resolve(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<Pins, BuildError> {
        let mut pins = Pins::default();
        self.kernel.resolve(plan, cx, &mut pins)?;
        Ok(pins)
    }

    pub(super) fn run_directory(
        &self,
        plan: &BuildPlan,
        cx: &BuildContext<'_>,
    ) -> Result<BuildOutput, BuildError> {
        let check = Running::start(cx.reporter, Step::Check, self.root.display().to_string());
        let walked = tree::walk(&self.root, Some(cx.cancel), true)?;
        check.done(count(walked.size.inodes, "file"));
        need_space(cx, walked.size.bytes())?;
        let mut output = Output::default();
        self.kernel.run(plan, cx, &mut output)?;
        // Whoever is not root owns the files, and they stay that user's in the image.
        disk(plan, &self.root, &Ownership::OnDisk, walked.size, walked.listing, cx, &mut output)?;
        Ok(output.sorted(cx))
    }

    pub(super) fn run_tar(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        let mut output = Output::default();
        let root = unpacked(&self.root, cx)?;
        self.kernel.run(plan, cx, &mut output)?;
        disk(plan, &root.path, &root.ownership, root.size, root.listing, cx, &mut output)?;
        Ok(output.sorted(cx))
    }
}
