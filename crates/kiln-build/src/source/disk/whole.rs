//! Disk images that are taken whole, with the firmware that boots them.
//!
//! Kernel, initramfs and command line are the image's own, and so is what becomes process 1. Nothing in it is read but
//! the partition table.

use super::DiskPlan;
use crate::error::BuildError;
use crate::plan::BuildPlan;
use crate::report::{BuildEvent, Running, Step};
use crate::run::{BuildContext, BuildOutput};
use crate::seed::PlannedSeed;
use crate::steps::{Output, need_space, write};
use kiln_core::arch::Arch;
use kiln_core::name::ArtifactRole;
use kiln_core::recipe::{Init, Recipe};
use kiln_core::revision::ArtifactFormat;
use kiln_core::size::ByteSize;
use kiln_core::text::chain;
use kiln_core::variant::{Board, DISK_MIB_MAX};
use kiln_source::disk::{DiskError, Image, Reading, partition};
use kiln_sys::{IoResultExt as _, copy, fs};
use std::io::Write as _;
use std::path::Path;

/// The whole disk, in the scratch directory.
const DISK_FILE: &str = "disk.raw";

/// Returns the first key of a recipe that says something of a kernel that kiln loads or of a root that it can write to.
pub(super) fn direct_only(recipe: &Recipe) -> Option<&'static str> {
    let board = |board: Board| board == Board::Microvm;
    let has_args = |args: &Vec<String>| !args.is_empty();
    let mut variants = recipe.variants.iter();
    [
        (!recipe.boot_args.is_empty(), "boot.args"),
        (
            variants.clone().any(|variant| variant.boot_args.as_ref().is_some_and(has_args)),
            "variant.boot_args",
        ),
        (recipe.agent.init != Init::Auto, "agent.init"),
        (!recipe.agent.modules.is_empty(), "agent.modules"),
        (recipe.agent.entrypoint.is_some(), "entrypoint"),
        (recipe.disk_size_min.is_some(), "machine.disk"),
        (board(recipe.machine.board), "machine.board"),
        (variants.any(|variant| variant.board.is_some_and(board)), "variant.board"),
    ]
    .into_iter()
    .find_map(|(said, field)| said.then_some(field))
}

/// Removes what a build left that came to nothing.
fn remove_left(scratch: &Path) -> Result<(), BuildError> {
    for name in fs::list_dir(scratch)? {
        let path = scratch.join(name);
        if fs::symlink_metadata(&path)?.is_dir() {
            fs::remove_tree(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Returns whether an error says that there is nothing on a disk that kiln could boot directly.
fn is_not_direct(error: &BuildError) -> bool {
    match error {
        BuildError::Disk(error) => {
            matches!(error, DiskError::WhichPartition { .. } | DiskError::FileSystem { .. })
        }
        BuildError::NoKernel { .. } | BuildError::NoModules { .. } | BuildError::Contents { .. } => true,
        _ => false,
    }
}

impl DiskPlan {
    /// Takes the whole disk where it could not be booted directly and says by its partitions that firmware boots it, and
    /// the recipe names no part of it; else `error` stands.
    pub(super) fn run_otherwise(
        &self,
        error: BuildError,
        plan: &BuildPlan,
        cx: &BuildContext<'_>,
    ) -> Result<BuildOutput, BuildError> {
        if !is_not_direct(&error)
            || self.kernel.is_some()
            || self.beside.is_some()
            || self.partition.is_some()
        {
            return Err(error);
        }
        remove_left(cx.scratch)?;
        match self.run_whole(plan, cx, Some(&error)) {
            Err(BuildError::NoEspPartition { .. }) => Err(error),
            other => other,
        }
    }

    /// Checks that the host has what boots the disk, and that the recipe asks for nothing that would be ignored.
    pub(super) fn check_whole(&self, arch: Arch) -> Result<(), BuildError> {
        if let Some(field) = self.how.direct_only {
            return Err(BuildError::WholeDisk { field, path: self.path.clone() });
        }
        match &self.how.firmware {
            Some(_) => Ok(()),
            None => Err(BuildError::NoFirmware { path: self.path.clone(), arch }),
        }
    }

    /// Makes the whole disk and its firmware. `why` is what kept kiln from booting it directly, where it tried.
    pub(super) fn run_whole(
        &self,
        plan: &BuildPlan,
        cx: &BuildContext<'_>,
        why: Option<&BuildError>,
    ) -> Result<BuildOutput, BuildError> {
        let mut output = Output::default();
        let disk = output.file(cx, ArtifactRole::rootfs(), DISK_FILE, ArtifactFormat::Disk);
        self.write_disk(cx, &disk, &mut output)?;
        if let Some(why) = why {
            let text = format!("firmware boots the whole disk: {}", chain(why));
            cx.reporter.event(BuildEvent::Note { text });
        }
        self.check_whole(plan.arch)?;
        if let Some(firmware) = &self.how.firmware {
            let (from, bytes) = firmware.load()?;
            let path = output.file(cx, ArtifactRole::firmware(), "firmware", ArtifactFormat::Firmware);
            write(&path, |out| out.write_all(&bytes).at("write", &path))?;
            output.fact("firmware", from.display());
        }
        // Not looked for: the seed is how an agent gets there, and a guest without cloud-init ignores it.
        output.cloud_init = true;
        if plan.seed == PlannedSeed::Chosen(None) {
            let text = "its machines have no agent, which the seed would bring: they cannot be reached with kiln exec or kiln cp";
            cx.reporter.event(BuildEvent::Note { text: text.to_owned() });
        }
        Ok(output.sorted(cx))
    }

    fn write_disk(&self, cx: &BuildContext<'_>, to: &Path, output: &mut Output) -> Result<(), BuildError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let reading = Reading { toolbox: cx.toolbox, threads, kept: true, cancel: cx.cancel };
        let image = Image::open(&self.path, self.format, self.backing)?;
        let step = Running::start(cx.reporter, Step::Disk, self.path.display().to_string());
        need_space(cx, image.data_bytes(&reading)?)?;
        output.fact("image_format", image.format().as_str());
        match image.raw() {
            Some(disk) => {
                self.check_partitions(disk)?;
                let len = disk.metadata().at("inspect", &self.path)?.len();
                copy::copy_out(disk, 0, len, &fs::create_new(to)?, to, Some(cx.cancel))?;
            }
            None => {
                image.write_raw(to, &reading)?;
                self.check_partitions(&fs::open(to)?)?;
            }
        }
        let bytes = fs::metadata(to)?.len();
        if bytes > DISK_MIB_MAX << 20 {
            return Err(BuildError::RootTooLarge { path: self.path.clone(), bytes });
        }
        step.done(ByteSize::from_bytes(bytes).human());
        Ok(())
    }

    /// Checks that there is a partition with boot loaders that firmware finds.
    fn check_partitions(&self, disk: &std::fs::File) -> Result<(), BuildError> {
        let all = partition::partitions(disk, &self.path)?.unwrap_or_default();
        if all.iter().any(partition::Partition::is_efi_system) {
            return Ok(());
        }
        Err(BuildError::NoEspPartition { path: self.path.clone(), there: partition::describe(&all) })
    }
}
