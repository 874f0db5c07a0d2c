//! The work itself.

use crate::agent::AGENT;
use crate::error::BuildError;
use crate::ext4::{self, DiskRequest};
use crate::host::HostFacts;
use crate::initramfs;
use crate::kernel::{self, KernelImage};
use crate::kernel_package::{self, KernelFiles};
use crate::modules::{GUEST_DRIVERS, ModuleDir, ModuleError, Wanted};
use crate::plan::{BuildPlan, DebianPlan, MirrorPlan, PathPlan, PlannedSource};
use crate::report::{BuildEvent, Reporter, Running, Step};
use crate::tree::{self, TreeSize};
use crate::unpack::{self, Ownership};
use crate::{apt, debian};
use kiln_core::digest::Digest;
use kiln_core::name::ArtifactRole;
use kiln_core::recipe::{AgentOptions, Init};
use kiln_core::revision::ArtifactFormat;
use kiln_core::size::ByteSize;
use kiln_core::text::count;
use kiln_guest::config::When;
use kiln_sys::{Cancel, IoResultExt, ToolError, Toolbox, fs};
use std::io::{BufWriter, Write as _};
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
}

/// Builds what was planned.
pub fn run(plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
    let output = match &plan.source {
        PlannedSource::Debian(source) => run_debian(plan, source, cx),
        PlannedSource::Directory(source) => run_directory(plan, source, cx),
        PlannedSource::Tar(source) => run_tar(plan, source, cx),
    };
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
        BuildError::Tool(error) | BuildError::Ext4(ext4::Ext4Error::Tool(error)) => by_tool(error),
        _ => false,
    };
    if full { BuildError::Full { path: cx.scratch.to_owned(), source: Box::new(error) } } else { error }
}

fn need_space(cx: &BuildContext<'_>, need: u64) -> Result<(), BuildError> {
    let need = need.saturating_add(SPACE_RESERVE.bytes());
    let have = fs::space(cx.scratch)?.available;
    if have < need { Err(BuildError::NoSpace { path: cx.scratch.to_owned(), need, have }) } else { Ok(()) }
}

fn ownership(cx: &BuildContext<'_>) -> Ownership {
    if cx.host.is_root { Ownership::OnDisk } else { Ownership::Faked(cx.scratch.join("fakeroot")) }
}

fn run_directory(
    plan: &BuildPlan,
    source: &PathPlan,
    cx: &BuildContext<'_>,
) -> Result<BuildOutput, BuildError> {
    let check = Running::start(cx.reporter, Step::Check, source.root.display().to_string());
    let walked = tree::walk(&source.root, Some(cx.cancel), true)?;
    check.done(count(walked.size.inodes, "file"));
    need_space(cx, walked.size.bytes())?;
    let mut output = Output::default();
    boot_files(&plan.agent, &source.kernel, source.modules.as_deref(), cx, &mut output)?;
    // Whoever is not root owns the files, and they stay that user's in the image.
    disk(plan, &source.root, &Ownership::OnDisk, walked.size, walked.listing, cx, &mut output)?;
    Ok(output.sorted(cx))
}

fn run_tar(plan: &BuildPlan, source: &PathPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
    let mut output = Output::default();
    let root = unpacked(&source.root, cx)?;
    boot_files(&plan.agent, &source.kernel, source.modules.as_deref(), cx, &mut output)?;
    disk(plan, &root.path, &root.ownership, root.size, root.listing, cx, &mut output)?;
    Ok(output.sorted(cx))
}

fn run_debian(
    plan: &BuildPlan,
    source: &DebianPlan,
    cx: &BuildContext<'_>,
) -> Result<BuildOutput, BuildError> {
    need_space(cx, PACKAGES_SPACE_MIN.bytes())?;
    let tar = cx.scratch.join("rootfs.tar");
    let mut output = Output::default();
    let packages = || {
        let step =
            Running::start(cx.reporter, Step::Packages, format!("{} {}", source.suite, source.variant));
        let (arch, is_root, scratch) = (plan.arch, cx.host.is_root, cx.scratch);
        let request = debian::Request { plan: source, arch, is_root, scratch, tar: &tar };
        debian::bootstrap(&request, cx.toolbox, cx.cancel, &mut step.lines())?;
        step.done("");
        Ok(())
    };
    let root = match &source.mirror {
        MirrorPlan::Host(sources) => {
            let lines: Vec<String> = sources.iter().map(apt::AptSource::line).collect();
            let boot = &mut output;
            // Where packages come from is known beforehand: the kernel comes along with them.
            let (packages, boot) = std::thread::scope(|scope| {
                let kernel = scope.spawn(move || packaged_boot_files(plan, source, lines, cx, boot));
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
            packaged_boot_files(plan, source, lines, cx, &mut output)?;
            root
        }
    };
    fs::remove_file(&tar)?;
    debian::neutralise(&root.path)?;
    if !source.docs {
        debian::strip_documents(&root.path)?;
    }
    output.fact("packages", debian::package_count(&root.path)?);
    output.fact("suite", &source.suite);
    disk(plan, &root.path, &root.ownership, root.size, root.listing, cx, &mut output)?;
    Ok(output.sorted(cx))
}

/// A root file system in the scratch directory.
struct Root {
    path: PathBuf,
    ownership: Ownership,
    size: TreeSize,
    listing: Digest,
}

fn unpacked(tar: &Path, cx: &BuildContext<'_>) -> Result<Root, BuildError> {
    let check = Running::start(cx.reporter, Step::Check, tar.display().to_string());
    let open = unpack::check(tar, cx.cancel)?;
    let (size, listing) = (open.checked.size, open.checked.listing);
    check.done(count(size.inodes, "file"));
    // Once as files, once in the disk.
    need_space(cx, size.bytes().saturating_mul(2))?;
    let step = Running::start(cx.reporter, Step::Unpack, ByteSize::from_bytes(size.bytes()).human());
    let (path, ownership) = (cx.scratch.join("rootfs"), ownership(cx));
    open.unpack(&path, unpack::epoch(), &ownership, cx.toolbox, cx.cancel, &mut step.lines())?;
    step.done("");
    Ok(Root { path, ownership, size, listing })
}

fn packaged_boot_files(
    plan: &BuildPlan,
    source: &DebianPlan,
    sources: Vec<String>,
    cx: &BuildContext<'_>,
    output: &mut Output,
) -> Result<(), BuildError> {
    let step = Running::start(cx.reporter, Step::KernelPackage, source.kernel_package.clone());
    let request = kernel_package::Request {
        package: &source.kernel_package,
        suite: &source.suite,
        arch: plan.arch,
        sources,
        dir: cx.scratch.join("kernel-package"),
    };
    let files: KernelFiles = kernel_package::fetch(&request, cx.toolbox, cx.cancel, &mut step.lines())?;
    step.done(files.packages.join(" "));
    output.fact("kernel_package", files.packages.join(" "));
    boot_files(&plan.agent, &files.kernel, Some(&files.modules), cx, output)
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

/// Writes kernel and initramfs.
fn boot_files(
    agent: &AgentOptions,
    kernel: &Path,
    modules: Option<&Path>,
    cx: &BuildContext<'_>,
    output: &mut Output,
) -> Result<(), BuildError> {
    cx.cancel.check()?;
    let step = Running::start(cx.reporter, Step::Kernel, kernel.display().to_string());
    let refuse = |source| BuildError::Kernel { path: kernel.to_owned(), source };
    let KernelImage { bytes, format, release } = kernel::load(kernel).map_err(refuse)?;
    let path = output.file(cx, ArtifactRole::kernel(), "kernel", format);
    write(&path, |out| out.write_all(&bytes).at("write", &path))?;
    let release = release.or_else(|| Some(modules?.file_name()?.to_str()?.to_owned())).unwrap_or_default();
    output.fact("kernel", &release);
    step.done(release);

    cx.cancel.check()?;
    let step = Running::start(cx.reporter, Step::Initramfs, "");
    let wanted = |name| Wanted { name, when: When::Always, optional: false };
    let own: Vec<Wanted<'_>> = agent.modules.iter().map(|name| wanted(name.as_str())).collect();
    let loaded = match (modules, own.first()) {
        (Some(dir), _) => ModuleDir::open(dir)?.resolve(&[&GUEST_DRIVERS, own.as_slice()].concat())?,
        (None, Some(first)) => return Err(ModuleError::NoDirectory(first.name.to_owned()).into()),
        (None, None) => Vec::new(),
    };
    let config = initramfs::init_config(agent, &loaded)?;
    let path = output.file(cx, ArtifactRole::initrd(), "initrd", ArtifactFormat::Cpio);
    write(&path, |out| initramfs::write(out, AGENT, &config, &loaded))?;
    step.done(count(loaded.len(), "module"));
    Ok(())
}

/// Writes the root disk.
fn disk(
    plan: &BuildPlan,
    tree: &Path,
    ownership: &Ownership,
    size: TreeSize,
    listing: Digest,
    cx: &BuildContext<'_>,
    output: &mut Output,
) -> Result<(), BuildError> {
    if let Init::Image(program) = &plan.agent.init
        && tree::find_program(tree, program).is_none()
    {
        return Err(BuildError::InitMissing { path: program.clone() });
    }
    need_space(cx, size.bytes())?;
    let step = Running::start(cx.reporter, Step::Disk, count(size.inodes, "file"));
    let path = output.file(cx, ArtifactRole::rootfs(), "rootfs.ext4", ArtifactFormat::Ext4);
    let (disk_min, scratch) = (plan.disk_min, cx.scratch);
    let request = DiskRequest { tree, ownership, size, disk_min, seed: listing, output: &path, scratch };
    let size = ext4::write(&request, cx.toolbox, cx.cancel, &mut step.lines())?;
    step.done(size.human());
    Ok(())
}

fn write<E: Into<BuildError>>(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<std::fs::File>) -> Result<(), E>,
) -> Result<(), BuildError> {
    let mut out = BufWriter::with_capacity(1 << 20, fs::create_new(path)?);
    content(&mut out).map_err(Into::into)?;
    out.flush().at("write", path)?;
    Ok(())
}

#[derive(Default)]
struct Output {
    artifacts: Vec<OutputFile>,
    facts: Vec<(String, String)>,
}

impl Output {
    /// Notes a file and returns its path.
    fn file(
        &mut self,
        cx: &BuildContext<'_>,
        role: ArtifactRole,
        name: &str,
        format: ArtifactFormat,
    ) -> PathBuf {
        let path = cx.scratch.join(name);
        self.artifacts.push(OutputFile { role, path: path.clone(), format });
        path
    }

    fn fact(&mut self, name: &str, value: impl ToString) {
        self.facts.push((name.to_owned(), value.to_string()));
    }

    fn sorted(mut self, cx: &BuildContext<'_>) -> BuildOutput {
        self.fact("mke2fs", &cx.host.mke2fs_version);
        self.fact("kiln", &cx.host.kiln_version);
        self.artifacts.sort_by(|a, b| a.role.cmp(&b.role));
        self.facts.sort();
        let text = format!("{} built", count(self.artifacts.len(), "file"));
        cx.reporter.event(BuildEvent::Note { text });
        BuildOutput { artifacts: self.artifacts, facts: self.facts }
    }
}
