//! The work itself.

use crate::error::BuildError;
use crate::ext4;
use crate::host::HostFacts;
use crate::plan::BuildPlan;
use crate::report::Reporter;
use crate::steps::{Output, boot_files};
use kiln_core::lock::{PinKind, Pins};
use kiln_core::name::ArtifactRole;
use kiln_core::recipe::AgentOptions;
use kiln_core::revision::ArtifactFormat;
use kiln_core::seed::Seed;
use kiln_core::size::ByteSize;
use kiln_source::oci::OciError;
use kiln_sys::{Cancel, ToolError, Toolbox};
use std::path::{Path, PathBuf};

/// The least free space for a build from packages: downloads, the unpacked system, its tar file and the disk.
pub const PACKAGES_SPACE_MIN: ByteSize = ByteSize::from_mib(1024);
/// Free space kept for kernel and initramfs, and against surprises.
pub const SPACE_RESERVE: ByteSize = ByteSize::from_mib(64);

/// What a build works with.
#[derive(Clone, Copy)]
pub struct BuildContext<'a> {
    /// The programs.
    pub toolbox: &'a Toolbox,
    /// An empty directory, for this build alone. The caller removes it.
    pub scratch: &'a Path,
    /// A directory for what was fetched, as in the plan.
    pub cache: &'a Path,
    /// Whether nothing may be asked of the network.
    pub offline: bool,
    /// Receives progress.
    pub reporter: &'a dyn Reporter,
    /// Ends the work early.
    pub cancel: &'a Cancel,
    /// The host.
    pub host: &'a HostFacts,
}

impl std::fmt::Debug for BuildContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildContext").field("scratch", &self.scratch).finish_non_exhaustive()
    }
}

/// A file that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// What it is to the revision.
    pub role: ArtifactRole,
    /// Where it lies, in the scratch directory.
    pub path: PathBuf,
    /// What its bytes are.
    pub format: ArtifactFormat,
}

/// What a build left in the scratch directory.
#[derive(Debug, Clone)]
pub struct BuildOutput {
    /// The files, sorted by role.
    pub artifacts: Vec<OutputFile>,
    /// What is known of them, to stand beside the revision: names and values.
    pub facts: Vec<(String, String)>,
    /// The seed that suits the root file system, where the recipe says nothing of one: none where it has no cloud-init, or
    /// has it off.
    pub seed: Option<Seed>,
}

/// Looks up what the names of the outside world stand for, in the plan and beyond it, and builds nothing. The scratch
/// directory is as for a build.
pub fn resolve(plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<Pins, BuildError> {
    let mut pins = plan.pins.clone();
    for (kind, name, to) in plan.source.resolve(plan, cx)?.iter() {
        pins.set(kind, name, to);
    }
    if !pins.is_empty() {
        for (kind, name, to) in builder_pins(cx.host).iter() {
            pins.set(kind, name, to);
        }
    }
    Ok(pins)
}

/// Returns what a host builds with: programs whose version shapes the result.
pub fn builder_pins(host: &HostFacts) -> Pins {
    let mut pins = Pins::default();
    pins.set(PinKind::Builder, "kiln", &host.kiln_version);
    pins.set(PinKind::Builder, "mke2fs", &host.mke2fs_version);
    pins
}

/// Builds what was planned.
pub fn run(plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
    let output = plan.source.run(plan, cx);
    output.map_err(
        |error| if cx.cancel.is_cancelled() { BuildError::Cancelled } else { space_error(error, cx) },
    )
}

/// Turns "no space left", from wherever it comes, into the one error that says so.
fn space_error(error: BuildError, cx: &BuildContext<'_>) -> BuildError {
    let by_tool = |error: &ToolError| match error {
        ToolError::Failed { stderr, .. } => stderr.contains("No space left on device"),
        ToolError::Io(error) => error.is_no_space(),
        _ => false,
    };
    let full = match &error {
        BuildError::Io(error) | BuildError::Ext4(ext4::Ext4Error::Io(error)) => error.is_no_space(),
        BuildError::Nix(error) => error.tool().is_some_and(by_tool),
        BuildError::Image { source, .. } => matches!(source, OciError::NoRoom { .. }),
        BuildError::Tool(error) | BuildError::Ext4(ext4::Ext4Error::Tool(error)) => by_tool(error),
        _ => false,
    };
    if full { BuildError::Full { path: cx.scratch.to_owned(), source: Box::new(error) } } else { error }
}

/// Makes kernel and initramfs alone, for a root file system that comes from elsewhere.
pub fn boot(
    agent: &AgentOptions,
    kernel: &Path,
    modules: Option<&Path>,
    cx: &BuildContext<'_>,
) -> Result<BuildOutput, BuildError> {
    let mut output = Output::default();
    boot_files(agent, kernel, modules, cx, &mut output)?;
    Ok(output.sorted(cx))
}
