//! Disk images.
//!
//! Where the root file system is one that kiln boots directly, the image becomes a raw file, of which the root's partition alone stays: a machine's disk is its root file system.
//! Its bytes are not changed. Kernel and modules are the image's own where the recipe names no others; they are read
//! from the file system without mounting it. Another image that UEFI firmware can boot becomes a raw file as a whole
//! ([`whole`]).

mod contents;
mod whole;

use super::input;
use super::kernel::KernelPlan;
use crate::error::BuildError;
use crate::fingerprint::FileIdentity;
use crate::firmware::Firmware;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{BuildEvent, Running, Step};
use crate::run::{BuildContext, BuildOutput};
use crate::seed::PlannedSeed;
use crate::steps::{Output, boot_files, file_system, lengthen, need_space};
use contents::Contents;
use kiln_core::lock::Pins;
use kiln_core::name::ArtifactRole;
use kiln_core::recipe::{BackingFiles, DiskBoot, DiskFormat, DiskSource, Init, Recipe};
use kiln_core::revision::ArtifactFormat;
use kiln_core::size::ByteSize;
use kiln_core::text::chain;
use kiln_core::variant::DISK_MIB_MAX;
use kiln_source::disk::partition::{self, Partition};
use kiln_source::disk::{DiskError, FileSystem, Image, Reading};
use kiln_sys::{IoResultExt as _, copy, fs};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A disk image, and the kernel for what it holds.
#[derive(Debug, Clone)]
pub(crate) struct DiskPlan {
    path: PathBuf,
    format: Option<DiskFormat>,
    backing: BackingFiles,
    partition: Option<u32>,
    /// None means that of the image.
    kernel: Option<KernelPlan>,
    /// The image's own kernel, where it lies outside.
    beside: Option<PathBuf>,
    how: How,
}

/// How a disk is to be booted.
#[derive(Debug, Clone)]
pub(super) struct How {
    boot: DiskBoot,
    /// None where the host has none, or where it is not used.
    firmware: Option<Firmware>,
    /// A key of the recipe that a disk that firmware boots would not honour.
    direct_only: Option<&'static str>,
}

impl How {
    pub(super) fn plan(
        boot: DiskBoot,
        recipe: &Recipe,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        parts.add("disk_boot", boot.as_str());
        let firmware = match &cx.host.firmware {
            Some(file) if boot != DiskBoot::Direct => Some(Firmware::read(file)?),
            _ => None,
        };
        parts.add("firmware", firmware.as_ref().map(|firmware| firmware.digest));
        Ok(Self { boot, firmware, direct_only: whole::direct_only(recipe) })
    }
}

/// What was found on a disk.
struct Found {
    /// Where the root lies; none where the whole disk is it.
    root: Option<Partition>,
    /// A copy of the partition that holds the boot files.
    boot: Option<PathBuf>,
}

impl DiskPlan {
    pub(super) fn plan(
        source: &DiskSource,
        recipe: &Recipe,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        let path = input("source.path", cx.base, &source.path, false)?;
        let image = Image::open(&path, source.format, source.backing)?;
        let identities: Result<Vec<FileIdentity>, _> =
            image.files().iter().map(|path| FileIdentity::at(path)).collect();
        parts.ask("source", "disk");
        parts.add("content", identities?);
        parts.add("image_format", image.format().as_str());
        parts.add("partition", source.partition);
        let kernel = match &source.kernel {
            Some(kernel) => Some(KernelPlan::plan(kernel, cx, parts)?),
            None => {
                parts.add("kernel", "image");
                None
            }
        };
        let how = How::plan(source.boot, recipe, cx, parts)?;
        let (format, backing, partition) = (source.format, source.backing, source.partition);
        let plan = Self { path, format, backing, partition, kernel, beside: None, how };
        if source.boot == DiskBoot::Firmware {
            plan.check_whole(cx.host.arch)?;
        }
        Ok(plan)
    }

    /// An image that was fetched, perhaps with its kernel in a file of its own.
    pub(super) fn of_image(path: PathBuf, format: DiskFormat, beside: Option<PathBuf>, how: How) -> Self {
        let (format, backing) = (Some(format), BackingFiles::Refuse);
        Self { path, format, backing, partition: None, kernel: None, beside, how }
    }

    pub(super) fn resolve(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<Pins, BuildError> {
        let mut pins = Pins::default();
        if let Some(kernel) = &self.kernel {
            kernel.resolve(plan, cx, &mut pins)?;
        }
        Ok(pins)
    }

    pub(super) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        match self.how.boot {
            DiskBoot::Direct => self.run_direct(plan, cx),
            DiskBoot::Firmware => self.run_whole(plan, cx, None),
            DiskBoot::Auto => self.run_direct(plan, cx).or_else(|error| self.run_otherwise(error, plan, cx)),
        }
    }

    fn run_direct(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        let mut output = Output::default();
        let root = output.file(cx, ArtifactRole::rootfs(), "rootfs.ext4", ArtifactFormat::Ext4);
        let found = self.take_out(plan, cx, &root, &mut output)?;
        self.check_root(&root)?;
        self.boot_files(plan, cx, &root, &found, &mut output).map_err(|error| self.named(error))?;
        if let Some(boot) = &found.boot {
            fs::remove_file(boot)?;
        }
        lengthen(&root, plan.disk_min)?;
        Ok(output.sorted(cx))
    }

    /// Writes the root file system to `root`.
    fn take_out(
        &self,
        plan: &BuildPlan,
        cx: &BuildContext<'_>,
        root: &Path,
        output: &mut Output,
    ) -> Result<Found, BuildError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let reading = Reading { toolbox: cx.toolbox, threads, kept: true, cancel: cx.cancel };
        let image = Image::open(&self.path, self.format, self.backing)?;
        let step = Running::start(cx.reporter, Step::Disk, self.path.display().to_string());
        let need = image.data_bytes(&reading)?;
        need_space(cx, need)?;
        output.fact("image_format", image.format().as_str());
        if image.snapshots() > 0 {
            let text = format!("{} snapshots inside the image are left out", image.snapshots());
            cx.reporter.event(BuildEvent::Note { text });
        }
        let found = match image.raw() {
            Some(disk) => {
                let found = self.look(disk, plan, cx)?;
                let len = disk.metadata().at("inspect", &self.path)?.len();
                let (start, len) = found.root.as_ref().map_or((0, len), |root| (root.start, root.len));
                copy::copy_out(disk, start, len, &fs::create_new(root)?, root, Some(cx.cancel))?;
                found
            }
            None => {
                image.write_raw(root, &reading)?;
                let disk = fs::open(root)?;
                let found = self.look(&disk, plan, cx)?;
                if let Some(partition) = &found.root {
                    cut(root, partition, cx)?;
                }
                found
            }
        };
        if let Some(partition) = &found.root {
            output.fact("partition", partition.number);
        }
        step.done(ByteSize::from_bytes(fs::metadata(root)?.len()).human());
        Ok(found)
    }

    /// Finds the root on a raw disk, and takes out the partition with the boot files if there is one.
    fn look(&self, disk: &File, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<Found, BuildError> {
        let Some(all) = partition::partitions(disk, &self.path)? else {
            return match self.partition {
                None => Ok(Found { root: None, boot: None }),
                Some(number) => {
                    let (path, there) = (self.path.clone(), "no partition table".to_owned());
                    Err(DiskError::NoPartition { path, number, there }.into())
                }
            };
        };
        let root = partition::choose_root(&all, self.partition, plan.arch, &self.path)?.clone();
        let boot = match (partition::choose_boot(&all, &root), &self.kernel) {
            (Some(boot), None) => {
                let path = cx.scratch.join("boot.ext4");
                let to = fs::create_new(&path)?;
                copy::copy_out(disk, boot.start, boot.len, &to, &path, Some(cx.cancel))?;
                Some(path)
            }
            _ => None,
        };
        Ok(Found { root: Some(root), boot })
    }

    fn check_root(&self, root: &Path) -> Result<(), BuildError> {
        let bytes = fs::metadata(root)?.len();
        if bytes > DISK_MIB_MAX << 20 {
            return Err(BuildError::RootTooLarge { path: self.path.clone(), bytes });
        }
        let found = match file_system(root)? {
            Some(FileSystem::Ext4) => return Ok(()),
            Some(other) => other.name(),
            None => "of no known kind",
        };
        Err(DiskError::FileSystem { path: self.path.clone(), found }.into())
    }

    /// Makes the boot files, and checks that the image has the init that is wanted.
    fn boot_files(
        &self,
        plan: &BuildPlan,
        cx: &BuildContext<'_>,
        root: &Path,
        found: &Found,
        output: &mut Output,
    ) -> Result<(), BuildError> {
        let init = match &plan.agent.init {
            Init::Image(program) => Some(program),
            _ => None,
        };
        let opened = Contents::open(root, cx.cancel)
            .and_then(|contents| contents.has_cloud_init().map(|has| (contents, has)));
        let contents = match opened {
            Ok((contents, has)) => {
                output.cloud_init = has;
                Some(contents)
            }
            // The kernel may come from elsewhere, and then the root need not be readable.
            Err(error @ BuildError::Contents { .. }) if self.kernel.is_some() && init.is_none() => {
                if plan.seed == PlannedSeed::Auto {
                    let why = chain(&self.named(error));
                    let text = format!("not known whether the image has cloud-init: {why}");
                    cx.reporter.event(BuildEvent::Note { text });
                }
                None
            }
            Err(error) => return Err(error),
        };
        if let (Some(contents), Some(program)) = (&contents, init)
            && !contents.has_program(program)?
        {
            return Err(BuildError::InitMissing { path: program.clone() });
        }
        match (&self.kernel, &contents) {
            (Some(kernel), _) => kernel.run(plan, cx, output),
            (None, Some(contents)) => self.own_kernel(plan, cx, contents, found, output),
            (None, None) => Err(BuildError::NoKernel { path: self.path.clone() }),
        }
    }

    /// Makes boot files of the kernel in the image and its modules.
    fn own_kernel(
        &self,
        plan: &BuildPlan,
        cx: &BuildContext<'_>,
        contents: &Contents,
        found: &Found,
        output: &mut Output,
    ) -> Result<(), BuildError> {
        let modules = cx.scratch.join("image-modules");
        if let Some(kernel) = &self.beside {
            let wanted = contents.modules(&plan.agent, kernel, &self.path, &modules)?;
            return boot_files(&plan.agent, kernel, wanted.as_deref(), cx, output);
        }
        let kernel = cx.scratch.join("image-kernel");
        let boot = found.boot.as_ref().and_then(|path| Contents::open(path, cx.cancel).ok());
        let taken = match contents.kernel(boot.as_ref(), &kernel) {
            // A partition that cannot be read is as if it were not there: the root may have the kernel too.
            Err(error @ BuildError::Contents { .. }) if boot.is_some() => {
                fs::optional(fs::remove_file(&kernel))?;
                contents.kernel(None, &kernel)?.map(Some).ok_or(error)
            }
            taken => taken,
        }?;
        let Some(inside) = taken else { return Err(BuildError::NoKernel { path: self.path.clone() }) };
        output.fact("image_kernel", &inside);
        let wanted = contents.modules(&plan.agent, &kernel, &self.path, &modules)?;
        boot_files(&plan.agent, &kernel, wanted.as_deref(), cx, output)?;
        fs::remove_file(&kernel)?;
        if wanted.is_some() {
            fs::remove_tree(&modules)?;
        }
        Ok(())
    }

    /// Names the image in place of a file in the scratch directory.
    fn named(&self, error: BuildError) -> BuildError {
        match error {
            BuildError::Contents { source, .. } => BuildError::Contents { path: self.path.clone(), source },
            other => other,
        }
    }
}

/// Leaves a partition alone of a raw disk.
fn cut(disk: &Path, partition: &Partition, cx: &BuildContext<'_>) -> Result<(), BuildError> {
    let file = fs::open_rw(disk)?;
    // What follows the partition goes first: then little is left to move.
    file.set_len(partition.start + partition.len).at("set the length of", disk)?;
    if copy::drop_front(&file, disk, partition.start)? {
        return Ok(());
    }
    let whole = cx.scratch.join("disk.raw");
    fs::rename(disk, &whole)?;
    copy::copy_out(&file, partition.start, partition.len, &fs::create_new(disk)?, disk, Some(cx.cancel))?;
    Ok(fs::remove_file(&whole)?)
}
