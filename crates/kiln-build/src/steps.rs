//! What the builds of all sources are made of: unpacking, kernel and initramfs, the root disk.

use crate::agent::AGENT;
use crate::error::BuildError;
use crate::ext4::{self, DiskRequest};
use crate::initramfs;
use crate::kernel::{self, KernelImage};
use crate::kernel_package::{self, KernelFiles};
use crate::modules::{GUEST_DRIVERS, ModuleDir, ModuleError, Wanted};
use crate::packed;
use crate::plan::BuildPlan;
use crate::report::{BuildEvent, Running, Step};
use crate::run::{BuildContext, BuildOutput, OutputFile, SPACE_RESERVE};
use crate::seed::{CLOUD_INIT, CLOUD_INIT_OFF};
use crate::tree::{self, TreeSize};
use crate::unpack::{self, Ownership};
use kiln_core::digest::Digest;
use kiln_core::lock::{PinKind, Pins};
use kiln_core::name::ArtifactRole;
use kiln_core::recipe::{AgentOptions, Init, RootFormat};
use kiln_core::revision::ArtifactFormat;
use kiln_core::seed::Seed;
use kiln_core::size::ByteSize;
use kiln_core::text::count;
use kiln_guest::config::When;
use kiln_source::disk::{FILE_SYSTEM_HEAD_BYTES, FileSystem};
use kiln_sys::{IoResultExt, fs};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

pub(crate) fn need_space(cx: &BuildContext<'_>, need: u64) -> Result<(), BuildError> {
    need_space_in(cx.scratch, need)
}

/// Checks that a directory's file system has so much room, and some to spare.
pub(crate) fn need_space_in(path: &Path, need: u64) -> Result<(), BuildError> {
    let need = need.saturating_add(SPACE_RESERVE.bytes());
    let have = fs::space(path)?.available;
    if have < need { Err(BuildError::NoSpace { path: path.to_owned(), need, have }) } else { Ok(()) }
}

pub(crate) fn ownership(cx: &BuildContext<'_>) -> Ownership {
    if cx.host.is_root { Ownership::OnDisk } else { Ownership::Faked(cx.scratch.join("fakeroot")) }
}

/// A root file system in the scratch directory.
pub(crate) struct Root {
    pub(crate) path: PathBuf,
    pub(crate) ownership: Ownership,
    pub(crate) size: TreeSize,
    pub(crate) listing: Digest,
}

pub(crate) fn unpacked(tar: &Path, cx: &BuildContext<'_>) -> Result<Root, BuildError> {
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

/// Writes kernel and initramfs.
pub(crate) fn boot_files(
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
    let root = match agent.root {
        RootFormat::Ext4 => &[][..],
        RootFormat::Erofs => &["erofs", "overlay"][..],
        RootFormat::Squashfs => &["squashfs", "overlay"][..],
    };
    let own = agent.modules.iter().map(String::as_str).chain(root.iter().copied());
    let own: Vec<Wanted<'_>> = own.map(wanted).collect();
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
pub(crate) fn disk(
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
    output.cloud_init =
        tree::find_file(tree, CLOUD_INIT).is_some() && tree::find_file(tree, CLOUD_INIT_OFF).is_none();
    need_space(cx, size.bytes())?;
    let step = Running::start(cx.reporter, Step::Disk, count(size.inodes, "file"));
    let Some(format) = packed::Packed::of(plan.agent.root) else {
        let path = output.file(cx, ArtifactRole::rootfs(), "rootfs.ext4", ArtifactFormat::Ext4);
        let (disk_min, scratch) = (plan.disk_min, cx.scratch);
        let request = DiskRequest { tree, ownership, size, disk_min, seed: listing, output: &path, scratch };
        let size = ext4::write(&request, cx.toolbox, cx.cancel, &mut step.lines())?;
        step.done(size.human());
        return Ok(());
    };
    let path = output.file(cx, ArtifactRole::rootfs(), format.file_name(), format.artifact());
    format.write(tree, ownership, listing, &path, cx.toolbox, cx.cancel, &mut step.lines())?;
    let blank = cx.scratch.join("blank");
    fs::create_dir(&blank)?;
    let scratch = output.file(cx, ArtifactRole::scratch(), "scratch.ext4", ArtifactFormat::Ext4);
    let request = DiskRequest {
        tree: &blank,
        ownership: &Ownership::OnDisk,
        size: TreeSize { inodes: 1, directories: 1, ..TreeSize::default() },
        disk_min: Some(plan.disk_min.unwrap_or(packed::SCRATCH_SIZE)),
        // One scratch disk of a size is as good as another: templates share it.
        seed: Digest::of(b"kiln scratch"),
        output: &scratch,
        scratch: cx.scratch,
    };
    unpack::set_time(&blank, unpack::epoch())?;
    ext4::write(&request, cx.toolbox, cx.cancel, &mut step.lines())?;
    step.done(ByteSize::from_bytes(fs::metadata(&path)?.len()).human());
    Ok(())
}

/// Tells what file system a file holds; none for one of no known kind.
pub(crate) fn file_system(path: &Path) -> Result<Option<FileSystem>, BuildError> {
    let mut head = Vec::new();
    fs::open(path)?.take(FILE_SYSTEM_HEAD_BYTES).read_to_end(&mut head).at("read", path)?;
    Ok(FileSystem::detect(&head))
}

/// Makes a root disk as long as the recipe wants it, in whole blocks; the guest's agent grows the file system. Returns its length.
pub(crate) fn lengthen(root: &Path, least: Option<ByteSize>) -> Result<ByteSize, BuildError> {
    let len = fs::metadata(root)?.len();
    let wanted = len.max(least.map_or(0, ByteSize::bytes)).next_multiple_of(tree::BLOCK_BYTES);
    if wanted > len {
        fs::open_rw(root)?.set_len(wanted).at("set the length of", root)?;
    }
    Ok(ByteSize::from_bytes(wanted))
}

pub(crate) fn write<E: Into<BuildError>>(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<std::fs::File>) -> Result<(), E>,
) -> Result<(), BuildError> {
    let mut out = BufWriter::with_capacity(1 << 20, fs::create_new(path)?);
    content(&mut out).map_err(Into::into)?;
    out.flush().at("write", path)?;
    Ok(())
}

/// What a build has made so far.
#[derive(Default)]
pub(crate) struct Output {
    artifacts: Vec<OutputFile>,
    facts: Vec<(String, String)>,
    /// Whether the root file system has cloud-init, and has it on.
    pub(crate) cloud_init: bool,
}

impl Output {
    /// Notes a file and returns its path.
    pub(crate) fn file(
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

    pub(crate) fn fact(&mut self, name: &str, value: impl ToString) {
        self.facts.push((name.to_owned(), value.to_string()));
    }

    #[cfg(test)]
    pub(crate) fn facts(&self) -> &[(String, String)] {
        &self.facts
    }

    pub(crate) fn sorted(mut self, cx: &BuildContext<'_>) -> BuildOutput {
        self.fact("mke2fs", &cx.host.mke2fs_version);
        self.fact("kiln", &cx.host.kiln_version);
        self.artifacts.sort_by(|a, b| a.role.cmp(&b.role));
        self.facts.sort();
        let text = format!("{} built", count(self.artifacts.len(), "file"));
        cx.reporter.event(BuildEvent::Note { text });
        let seed = self.cloud_init.then(Seed::identity);
        BuildOutput { artifacts: self.artifacts, facts: self.facts, seed }
    }
}

/// Fetches a package with a kernel, and writes kernel and initramfs. `sources` are lines of `sources.list`.
pub(crate) fn packaged_boot_files(
    plan: &BuildPlan,
    pins: &Pins,
    package: &str,
    suite: &str,
    sources: Vec<String>,
    cx: &BuildContext<'_>,
    output: &mut Output,
) -> Result<(), BuildError> {
    let step = Running::start(cx.reporter, Step::KernelPackage, package.to_owned());
    let request = kernel_package::Request {
        package,
        suite,
        locked: pins.get(PinKind::Kernel, package),
        arch: plan.arch,
        sources,
        dir: cx.scratch.join("kernel-package"),
    };
    let files: KernelFiles = kernel_package::fetch(&request, cx.toolbox, cx.cancel, &mut step.lines())?;
    step.done(files.packages.join(" "));
    output.fact("kernel_package", files.packages.join(" "));
    boot_files(&plan.agent, &files.kernel, Some(&files.modules), cx, output)
}

/// Looks up what a kernel's package and the archives stand for, and pins it.
pub(crate) fn kernel_pins(
    plan: &BuildPlan,
    package: &str,
    suite: &str,
    sources: Vec<String>,
    cx: &BuildContext<'_>,
    line: &mut (dyn FnMut(&str) + Send),
    pins: &mut Pins,
) -> Result<(), BuildError> {
    let (arch, dir) = (plan.arch, cx.scratch.join("kernel-package"));
    let request = kernel_package::Request { package, suite, locked: None, arch, sources, dir };
    let found = kernel_package::look_up(&request, cx.toolbox, cx.cancel, line)?;
    pins.set(PinKind::Kernel, package, &found.packages);
    for (archive, date) in &found.archives {
        pins.set(PinKind::Archive, archive, date);
    }
    Ok(())
}
