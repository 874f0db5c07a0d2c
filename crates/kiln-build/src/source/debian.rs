//! Root file systems made of Debian packages.

use crate::apt::{self, AptSource};
use crate::debian;
use crate::error::BuildError;
use crate::key::Parts;
use crate::lock;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{Running, Step};
use crate::run::{BuildContext, BuildOutput, PACKAGES_SPACE_MIN};
use crate::steps::{Output, disk, kernel_pins, need_space, packaged_boot_files, unpacked};
use kiln_core::lock::{PinKind, Pins};
use kiln_core::recipe::DebianSource;
use kiln_core::text::count;
use kiln_sys::fs;
use serde::Serialize;

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
    /// The versions that a lock says.
    pub(crate) pins: Pins,
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

impl DebianPlan {
    pub(super) fn plan(source: &DebianSource, cx: &PlanContext<'_>, parts: &mut Parts) -> Self {
        let host = cx.host;
        let components = sorted(&source.components);
        let host_sources = || apt::for_suite(&host.apt_sources, &source.suite, &components);
        let mirror = match &source.mirror {
            Some(mirror) => MirrorPlan::Recipe(mirror.clone()),
            None => {
                Some(host_sources()).filter(|s| !s.is_empty()).map_or(MirrorPlan::Default, MirrorPlan::Host)
            }
        };
        let default_kernel = || format!("linux-image-cloud-{}", host.arch.debian());
        let plan = Self {
            suite: source.suite.clone(),
            variant: source.variant.clone(),
            packages: sorted(&source.packages),
            mirror,
            kernel_package: source.kernel_package.clone().unwrap_or_else(default_kernel),
            docs: source.docs,
            components,
            pins: cx.pins.clone(),
        };
        parts.ask("source", "debian");
        parts.ask("suite", &plan.suite);
        parts.ask("package_set", &plan.variant);
        parts.ask("packages", &plan.packages);
        parts.ask("components", &plan.components);
        // The host's own archives are not the recipe's to say: a lock holds wherever they have what it names.
        parts.add("mirror", &plan.mirror);
        parts.ask("archive", &source.mirror);
        parts.add("kernel_package", &plan.kernel_package);
        parts.ask("kernel", &source.kernel_package);
        for kind in [PinKind::Package, PinKind::Kernel] {
            for (name, to) in cx.pins.of(kind) {
                parts.pin(kind, name, to);
            }
        }
        parts.add("docs", plan.docs);
        parts.add("mmdebstrap", host.mmdebstrap);
        plan
    }

    /// Asks the archives which versions a build would install now.
    pub(super) fn resolve(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<Pins, BuildError> {
        if cx.offline {
            return Err(BuildError::Offline { what: "versions of packages" });
        }
        let step = Running::start(cx.reporter, Step::Resolve, format!("{} {}", self.suite, self.variant));
        let (arch, is_root, scratch) = (plan.arch, cx.host.is_root, cx.scratch);
        let tar = scratch.join("rootfs.tar");
        let request = debian::Request { plan: self, arch, is_root, scratch, tar: &tar };
        let mut pins = Pins::default();
        for (name, version) in debian::simulate(&request, cx.toolbox, cx.cancel, &mut step.lines())? {
            pins.set(PinKind::Package, &name, &version);
        }
        let lines = match &self.mirror {
            MirrorPlan::Host(sources) => sources.iter().map(apt::AptSource::line).collect(),
            MirrorPlan::Recipe(mirror) if mirror.contains("://") => {
                vec![format!("deb {mirror} {} {}", self.suite, self.components.join(" "))]
            }
            // Only the package tool knows them.
            MirrorPlan::Recipe(_) | MirrorPlan::Default => Vec::new(),
        };
        if !lines.is_empty() {
            let (package, suite) = (self.kernel_package.as_str(), self.suite.as_str());
            kernel_pins(plan, package, suite, lines, cx, &mut step.lines(), &mut pins)?;
        }
        step.done(count(pins.iter().count(), "pin"));
        Ok(pins)
    }

    pub(super) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        if cx.offline {
            return Err(BuildError::Offline { what: "packages of Debian" });
        }
        need_space(cx, PACKAGES_SPACE_MIN.bytes())?;
        let tar = cx.scratch.join("rootfs.tar");
        let mut output = Output::default();
        let (package, suite, pins) = (self.kernel_package.as_str(), self.suite.as_str(), &self.pins);
        let packages = || {
            let step =
                Running::start(cx.reporter, Step::Packages, format!("{} {}", self.suite, self.variant));
            let (arch, is_root, scratch) = (plan.arch, cx.host.is_root, cx.scratch);
            let request = debian::Request { plan: self, arch, is_root, scratch, tar: &tar };
            debian::bootstrap(&request, cx.toolbox, cx.cancel, &mut step.lines())?;
            step.done("");
            Ok(())
        };
        let root = match &self.mirror {
            MirrorPlan::Host(sources) => {
                let lines: Vec<String> = sources.iter().map(apt::AptSource::line).collect();
                let boot = &mut output;
                // Where packages come from is known beforehand: the kernel comes along with them.
                let (packages, boot) = std::thread::scope(|scope| {
                    let kernel =
                        scope.spawn(move || packaged_boot_files(plan, pins, package, suite, lines, cx, boot));
                    let packages: Result<(), BuildError> = packages();
                    (packages, kernel.join())
                });
                packages?;
                boot.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                unpacked(&tar, cx)?
            }
            _ => {
                packages()?;
                let root = unpacked(&tar, cx)?;
                let sources = apt::read_sources(&apt::files_below(&root.path.join("etc/apt"))?)?;
                let lines = sources.iter().map(apt::AptSource::line).collect();
                packaged_boot_files(plan, pins, package, suite, lines, cx, &mut output)?;
                root
            }
        };
        fs::remove_file(&tar)?;
        let installed = debian::installed(&root.path)?;
        lock::check(&self.pins, PinKind::Package, &installed)?;
        debian::neutralise(&root.path)?;
        if !self.docs {
            debian::strip_documents(&root.path)?;
        }
        output.fact("packages", installed.len());
        output.fact("suite", &self.suite);
        disk(plan, &root.path, &root.ownership, root.size, root.listing, cx, &mut output)?;
        Ok(output.sorted(cx))
    }
}

fn sorted(words: &[String]) -> Vec<String> {
    let mut words = words.to_vec();
    words.sort();
    words.dedup();
    words
}
