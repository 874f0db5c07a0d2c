//! Kernels for sources that bring none of their own.

use super::input;
use crate::apt::AptSource;
use crate::error::BuildError;
use crate::fingerprint::FileIdentity;
use crate::host::HostFacts;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{Running, Step};
use crate::run::BuildContext;
use crate::steps::{Output, boot_files, kernel_pins, packaged_boot_files};
use crate::tree;
use kiln_core::lock::{PinKind, Pins};
use kiln_core::recipe::KernelSource;
use std::path::PathBuf;

/// Where the kernel comes from.
#[derive(Debug, Clone)]
pub(crate) enum KernelPlan {
    /// Files of the host.
    Files {
        /// The kernel.
        kernel: PathBuf,
        /// The directory of its modules.
        modules: Option<PathBuf>,
    },
    /// A package, from the archives that the host's apt uses.
    Package {
        /// Its name.
        package: String,
        /// The archives.
        sources: Vec<AptSource>,
        /// The versions that a lock says.
        pins: Pins,
    },
}

impl KernelPlan {
    /// Looks at the kernel and adds what tells it apart to the key.
    pub(super) fn plan(
        source: &KernelSource,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        match source {
            KernelSource::Files { kernel, modules } => {
                let kernel = input("source.kernel", cx.base, kernel, false)?;
                let modules =
                    modules.as_ref().map(|path| input("source.modules", cx.base, path, true)).transpose()?;
                parts.add("kernel", FileIdentity::at(&kernel)?);
                let identity = |path: &PathBuf| tree::walk(path, None, false).map(|walked| walked.identity);
                parts.add("kernel_modules", modules.as_ref().map(identity).transpose()?);
                Ok(Self::Files { kernel, modules })
            }
            KernelSource::Package(name) => {
                let package = name.clone().unwrap_or_else(|| default_package(cx.host));
                let sources = cx.host.apt_sources.clone();
                if sources.is_empty() {
                    return Err(BuildError::NoArchive { package });
                }
                parts.add("kernel_package", &package);
                parts.add("kernel_archives", &sources);
                parts.ask("kernel", name);
                if let Some(to) = cx.pins.get(PinKind::Kernel, &package) {
                    parts.pin(PinKind::Kernel, &package, to);
                }
                Ok(Self::Package { package, sources, pins: cx.pins.clone() })
            }
        }
    }

    /// Asks the archives what the package stands for now, where it is one.
    pub(super) fn resolve(
        &self,
        plan: &BuildPlan,
        cx: &BuildContext<'_>,
        pins: &mut Pins,
    ) -> Result<(), BuildError> {
        let Self::Package { package, sources, .. } = self else { return Ok(()) };
        if cx.offline {
            return Err(BuildError::Offline { what: "versions of packages" });
        }
        let step = Running::start(cx.reporter, Step::Resolve, package.clone());
        let lines = sources.iter().map(AptSource::line).collect();
        let suite = sources.first().map_or("", |source| source.suite.as_str());
        kernel_pins(plan, package, suite, lines, cx, &mut step.lines(), pins)?;
        step.done("");
        Ok(())
    }

    /// Writes kernel and initramfs.
    pub(super) fn run(
        &self,
        plan: &BuildPlan,
        cx: &BuildContext<'_>,
        output: &mut Output,
    ) -> Result<(), BuildError> {
        match self {
            Self::Files { kernel, modules } => {
                boot_files(&plan.agent, kernel, modules.as_deref(), cx, output)
            }
            Self::Package { .. } if cx.offline => Err(BuildError::Offline { what: "kernel packages" }),
            Self::Package { package, sources, pins } => {
                let lines = sources.iter().map(AptSource::line).collect();
                let suite = sources.first().map_or("", |source| source.suite.as_str());
                packaged_boot_files(plan, pins, package, suite, lines, cx, output)
            }
        }
    }
}

/// Returns the package that brings the kernel where a recipe names none.
pub(super) fn default_package(host: &HostFacts) -> String {
    format!("linux-image-cloud-{}", host.arch.debian())
}
