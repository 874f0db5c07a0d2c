//! Writing the layout: each image in one step, with kiln's own initial file system, which boots it with the agent.

use super::{DISK_FILE, IMAGES, INITRD_FILE, KERNEL_FILE, find};
use crate::adopt::planning::Planning;
use crate::adopt::scan::stands;
use crate::progress::{Progress, Reporter, step, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::catalog::ImageName;
use kiln_core::recipe::{BackingFiles, DiskFormat};
use kiln_core::revision::{Artifact, ArtifactFormat, Manifest};
use kiln_core::{ArtifactRole, ByteSize, Digest, Reference, RevisionSelector};
use kiln_source::disk::{Image, Reading};
use kiln_store::{CloneChoice, CopyOut, SPACE_MARGIN, Staging, StoreError};
use kiln_sys::commit::{aside, commit_dir};
use kiln_sys::lock::Share;
use kiln_sys::{IoResultExt as _, Tool, Toolbox, copy, fs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The mode of files: whoever copies one with its mode must be able to write to the copy.
const FILE_MODE: u32 = 0o644;
/// The mode of directories.
const DIR_MODE: u32 = 0o755;
/// What makes a raw disk a qcow2 image.
const CONVERTER: &str = "qemu-img";
/// Time that may take.
const CONVERT_WITHIN: Duration = Duration::from_secs(3600);

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub struct ExportVmrs<'a> {
    /// The data directory, or the directory of images in it. It is made where it is missing.
    pub dir: &'a Path,
    /// What to write, each a template and a tag.
    pub references: &'a [Reference],
}

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedVmrs {
    /// Template and tag: distribution and release.
    pub name: String,
    /// The revision it holds.
    pub revision: Digest,
    /// Its directory.
    pub path: PathBuf,
    /// The bytes of its root file system.
    pub size: ByteSize,
    /// Whether it was there, the same.
    pub there: bool,
}

struct Planned {
    name: String,
    revision: Digest,
    home: PathBuf,
    kernel: Artifact,
    initrd: Artifact,
    rootfs: Artifact,
    boot_args: Vec<String>,
    there: bool,
}

impl Engine {
    /// Writes templates as vm-rs keeps images. Nothing is overwritten; what is there with the same content stays, and what
    /// cannot be written is told before anything is.
    ///
    /// # Errors
    /// [`EngineError::Registry`] with all that cannot be written.
    pub fn export_vmrs(
        &self,
        request: &ExportVmrs<'_>,
        reporter: &dyn Reporter,
    ) -> EngineResult<Vec<ExportedVmrs>> {
        let mut waiting = waiting(reporter);
        let work = "exporting images of vm-rs";
        let _store = self.store.lock(Share::Shared, work, &self.cancel, &mut waiting)?;
        let staging = self.store.stage(work)?;
        // Asked for before anything is written.
        self.settings.toolbox.find(CONVERTER)?;
        let planned = self.plan_vmrs(request, &staging)?;
        let mut exported = Vec::new();
        for planned in planned {
            self.cancel.check()?;
            if !planned.there {
                step(reporter, &format!("image {}", planned.name), || {
                    self.write_vmrs(&planned)?;
                    EngineResult::Ok(((), planned.rootfs.size.human()))
                })?;
            }
            if !planned.boot_args.is_empty() {
                let args = planned.boot_args.join(" ");
                let text = format!("{}: the layout does not hold its boot arguments: {args}", planned.name);
                reporter.progress(Progress::Note { text });
            }
            let Planned { name, revision, home: path, rootfs, there, .. } = planned;
            exported.push(ExportedVmrs { name, revision, path, size: rootfs.size, there });
        }
        Ok(exported)
    }

    fn plan_vmrs(&self, request: &ExportVmrs<'_>, staging: &Staging) -> EngineResult<Vec<Planned>> {
        let root = match find::root(request.dir)? {
            root if root == request.dir && !root.ends_with(IMAGES) => root.join(IMAGES),
            root => root,
        };
        let plan = |reference: &Reference| self.plan_image(&root, reference, staging);
        self.plan_each(request.dir, request.references, |it: &Planned| it.name.as_str(), str::to_owned, plan)
    }

    fn plan_image(&self, root: &Path, reference: &Reference, staging: &Staging) -> Result<Planned, Planning> {
        let because = |reason: String| Err(Planning::Because(reason));
        if reference.variant.is_some() {
            return because("the layout has no variants".to_owned());
        }
        let RevisionSelector::Tagged { template, tag, .. } = &reference.revision else {
            return because("it names no template and tag, which the layout needs".to_owned());
        };
        // Whoever reads the layout does not tell upper from lower case.
        let Some(name) = ImageName::of(template.as_str(), Some(tag.as_str())) else {
            return because(format!(
                "the layout cannot hold the tag `{tag}`: 1 to 63 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit"
            ));
        };
        let (id, rootfs) = self.store.disks(&self.cancel).template(reference)?;
        if rootfs.format != ArtifactFormat::Ext4 {
            return because(format!("its root file system is {}", rootfs.format.as_str()));
        }
        let manifest = self.store.revision(&id)?.manifest;
        let kernel = artifact(&manifest, ArtifactRole::kernel())?;
        let initrd = artifact(&manifest, ArtifactRole::initrd())?;
        let home = root.join(template.as_str()).join(tag.as_str()).join(manifest.arch.as_str());
        let mut planned = Planned {
            name: name.to_string(),
            revision: id,
            home,
            kernel,
            initrd,
            rootfs,
            boot_args: manifest.boot_args,
            there: false,
        };
        if stands(&planned.home)? {
            planned.there = match self.holds(&planned, staging) {
                Err(EngineError::Cancelled) => return Err(Planning::Stop(EngineError::Cancelled)),
                // What cannot be read is something else.
                holds => holds.unwrap_or(false),
            };
            if !planned.there {
                return because(format!("{} exists already", planned.home.display()));
            }
        }
        Ok(planned)
    }

    /// Whether an image that is there has the content of one that is to be written.
    fn holds(&self, planned: &Planned, staging: &Staging) -> EngineResult<bool> {
        let disks = self.store.disks(&self.cancel);
        for (file, artifact) in [(KERNEL_FILE, &planned.kernel), (INITRD_FILE, &planned.initrd)] {
            let path = planned.home.join(file);
            if fs::metadata(&path)?.len() != artifact.size.bytes()
                || disks.hash(&path)?.artifact != artifact.digest
            {
                return Ok(false);
            }
        }
        let disk = planned.home.join(DISK_FILE);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let reading = Reading { toolbox: &self.settings.toolbox, threads, kept: false, cancel: &self.cancel };
        let refused = |error| EngineError::Build(kiln_build::BuildError::from(error));
        let image = Image::open(&disk, Some(DiskFormat::Qcow2), BackingFiles::Refuse).map_err(refused)?;
        self.store.need_space(image.data_bytes(&reading).map_err(refused)?)?;
        let raw = staging.path().join(DISK_FILE);
        let written = image.write_raw(&raw, &reading).map_err(refused);
        let holds = written.and_then(|()| Ok(disks.hash(&raw)?.artifact == planned.rootfs.digest));
        fs::remove_file(&raw)?;
        holds
    }

    fn write_vmrs(&self, planned: &Planned) -> EngineResult<()> {
        let home = &planned.home;
        if let Some(parent) = home.parent() {
            make_dirs(parent)?;
        }
        let staged = aside(home);
        fs::create_dir(&staged)?;
        let written = self.write_files(planned, &staged).and_then(|()| {
            self.cancel.check()?;
            Ok(commit_dir(&staged, home)?)
        });
        if written.is_err() {
            // The error that is returned says more than a failed clean-up would.
            let _ = fs::remove_tree(&staged);
        }
        written
    }

    fn write_files(&self, planned: &Planned, staged: &Path) -> EngineResult<()> {
        for (file, artifact) in [(KERNEL_FILE, &planned.kernel), (INITRD_FILE, &planned.initrd)] {
            let (digest, size, dest) = (artifact.digest, artifact.size, &staged.join(file));
            let request = CopyOut { digest, size, dest, mode: FILE_MODE, choice: CloneChoice::Auto };
            self.store.copy_out(&request, &self.cancel)?;
        }
        let from = self.store.artifact_path(&planned.rootfs.digest);
        let need = copy::allocated_bytes(&from)?;
        let have = fs::space(staged)?.available;
        if have < need.saturating_add(SPACE_MARGIN) {
            return Err(StoreError::NoSpace { path: staged.to_owned(), need, have }.into());
        }
        // An absolute path is never taken for a protocol.
        let disk = fs::canonicalize(staged)?.join(DISK_FILE);
        converter(&self.settings.toolbox, &from, &disk)?.run(&self.cancel, &mut |_| ())?;
        fs::set_mode(&disk, FILE_MODE)?;
        fs::open(&disk)?.sync_all().at("sync", &disk)?;
        Ok(fs::set_mode(staged, DIR_MODE)?)
    }
}

/// Returns the program as it makes a raw disk a qcow2 image.
fn converter(toolbox: &Toolbox, from: &Path, to: &Path) -> EngineResult<Tool> {
    let tool = toolbox.find(CONVERTER)?.deadline(CONVERT_WITHIN);
    Ok(tool.args(["convert", "-q", "-f", "raw", "-O", "qcow2", "--"]).arg(from).arg(to))
}

fn artifact(manifest: &Manifest, role: ArtifactRole) -> Result<Artifact, Planning> {
    manifest.artifact(&role).cloned().ok_or_else(|| Planning::Because(format!("it has no {role}")))
}

/// Makes directories that others may look into; those that are there stay as they are.
fn make_dirs(path: &Path) -> EngineResult<()> {
    if fs::exists(path)? {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dirs(parent)?;
    }
    match fs::create_dir(path) {
        // Another export made it meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(fs::set_mode(path, DIR_MODE)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversion_has_so_much_time() {
        let tool = converter(&Toolbox::default(), Path::new("/raw"), Path::new("/image")).unwrap();
        assert_eq!(tool.limits().0, Duration::from_secs(3600));
    }
}
