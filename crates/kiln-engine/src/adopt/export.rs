//! Writing a rootfs registry from templates and disks.

use super::{IMAGE_FILE, SIZE_FILE, STAMP_FILE, scan::stands};
use crate::progress::{Progress, Reporter, step, waiting};
use crate::{Engine, EngineError, EngineResult, RegistryProblem};
use kiln_core::machine::CloneMethod;
use kiln_core::revision::{Artifact, ArtifactFormat};
use kiln_core::{ByteSize, Digest, DiskOwner, Reference, RevisionSelector, Tag, TemplateName};
use kiln_store::{CloneChoice, CopyOut, Disk, DiskLock, SPACE_MARGIN, StoreError};
use kiln_sys::commit::{Existing, aside, commit_dir, write_file};
use kiln_sys::lock::Share;
use kiln_sys::{IoResultExt as _, copy, fs};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The mode of a template's image: whoever clones it with its mode must be able to write to the clone.
const IMAGE_MODE: u32 = 0o644;
/// The mode of a clone.
const CLONE_MODE: u32 = 0o600;
/// The mode of directories that others look into.
const DIR_MODE: u32 = 0o755;

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub struct ExportRegistry<'a> {
    /// The directory of stacks; it is made where it is missing.
    pub templates: &'a Path,
    /// The directory of clones, where the disks of the exported revisions are wanted too.
    pub clones: Option<&'a Path>,
    /// What to write, one of each template; none means each template's `latest`.
    pub references: &'a [Reference],
}

/// What an export wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exported {
    /// The stacks, by name.
    pub stacks: Vec<ExportedStack>,
    /// The clones, by owner.
    pub disks: Vec<ExportedDisk>,
}

/// A stack that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedStack {
    /// Its name, the template's.
    pub stack: TemplateName,
    /// The revision it holds.
    pub revision: Digest,
    /// Its image.
    pub path: PathBuf,
    /// The image's length.
    pub size: ByteSize,
    /// `reflink` or `copy`.
    pub method: CloneMethod,
}

/// A clone that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedDisk {
    /// Whose disk it is.
    pub owner: DiskOwner,
    /// Its image.
    pub path: PathBuf,
    /// The image's length.
    pub size: ByteSize,
}

/// A stack that is going to be written.
struct PlannedStack {
    revision: Digest,
    rootfs: Artifact,
    image: PathBuf,
}

/// A clone that is going to be written; nobody else uses the disk meanwhile.
struct PlannedDisk {
    disk: Disk,
    home: PathBuf,
    _lock: DiskLock,
}

type Problems = Vec<RegistryProblem>;

impl Engine {
    /// Writes templates as the stacks of a rootfs registry, and the disks of the same revisions as its clones. Nothing
    /// is overwritten.
    pub fn export_rootfs_registry(
        &self,
        request: &ExportRegistry<'_>,
        reporter: &dyn Reporter,
    ) -> EngineResult<Exported> {
        let mut waiting = waiting(reporter);
        let work = "exporting a rootfs registry";
        let _store = self.store.lock(Share::Shared, work, &self.cancel, &mut waiting)?;
        let mut problems = Vec::new();
        let stacks = self.plan_stacks(request, &mut problems)?;
        let disks = match request.clones {
            Some(dir) => self.plan_disks(dir, &stacks, reporter, &mut problems)?,
            None => Vec::new(),
        };
        if !problems.is_empty() {
            let path = request.templates.to_owned();
            return Err(EngineError::Registry { action: "exported", path, problems });
        }
        let mut exported = Exported::default();
        make_dir(request.templates)?;
        for (name, planned) in &stacks {
            exported.stacks.push(step(reporter, &format!("stack {name}"), || {
                let stack = self.write_stack(name, planned)?;
                let text = format!("{} by {}", stack.size.human(), stack.method);
                EngineResult::Ok((stack, text))
            })?);
        }
        let mut stamps = BTreeMap::new();
        for planned in &disks {
            let owner = &planned.disk.record().owner;
            exported.disks.push(step(reporter, &format!("disk of {owner}"), || {
                let disk = self.write_disk(planned, &mut stamps)?;
                let text = disk.size.human();
                EngineResult::Ok((disk, text))
            })?);
        }
        Ok(exported)
    }

    /// Returns what is to be written: every template's latest where nothing is named.
    pub(in crate::adopt) fn or_every_latest<'a>(
        &self,
        named: &'a [Reference],
    ) -> EngineResult<Cow<'a, [Reference]>> {
        if !named.is_empty() {
            return Ok(named.into());
        }
        let mut names: Vec<_> = self.store.tags()?.into_iter().map(|entry| entry.template).collect();
        names.dedup();
        let latest = |template| Reference {
            revision: RevisionSelector::Tagged { template, tag: Tag::latest(), digest: None },
            variant: None,
        };
        Ok(names.into_iter().map(latest).collect())
    }

    fn plan_stacks(
        &self,
        request: &ExportRegistry<'_>,
        problems: &mut Problems,
    ) -> EngineResult<BTreeMap<TemplateName, PlannedStack>> {
        let references = self.or_every_latest(request.references)?;
        let disks = self.store.disks(&self.cancel);
        let mut stacks: BTreeMap<TemplateName, PlannedStack> = BTreeMap::new();
        for reference in references.iter() {
            self.cancel.check()?;
            let mut refuse = |reason: String| {
                problems.push(RegistryProblem { name: reference.to_string(), reason });
            };
            let Some(template) = reference.template() else {
                refuse("it names no template, and a stack needs a name".to_owned());
                continue;
            };
            if reference.variant.is_some() {
                refuse("a stack has no variants".to_owned());
                continue;
            }
            let (revision, rootfs) = match disks.template(reference) {
                Ok(found) => found,
                Err(StoreError::Cancelled) => return Err(EngineError::Cancelled),
                Err(error) => {
                    refuse(kiln_core::text::chain(&error));
                    continue;
                }
            };
            let image = request.templates.join(template.as_str()).join(super::IMAGE_FILE);
            if stacks.contains_key(template) {
                refuse(format!("another reference is the stack `{template}` already: stacks have no tags"));
            } else if rootfs.format != ArtifactFormat::Ext4 {
                refuse(format!("its root file system is {}", rootfs.format.as_str()));
            } else if stands(&image)? {
                refuse(format!("{} exists already", image.display()));
            } else {
                stacks.insert(template.clone(), PlannedStack { revision, rootfs, image });
            }
        }
        Ok(stacks)
    }

    fn plan_disks(
        &self,
        dir: &Path,
        stacks: &BTreeMap<TemplateName, PlannedStack>,
        reporter: &dyn Reporter,
        problems: &mut Problems,
    ) -> EngineResult<Vec<PlannedDisk>> {
        let mut planned = Vec::new();
        for (owner, disk) in self.store.disks(&self.cancel).list()? {
            let mut refuse = |reason: String| {
                problems.push(RegistryProblem { name: format!("disk of {owner}"), reason });
            };
            let disk = match disk {
                Ok(disk) => disk,
                Err(error) => {
                    refuse(kiln_core::text::chain(&error));
                    continue;
                }
            };
            if !stacks.values().any(|stack| stack.revision == disk.record().revision) {
                let id = disk.record().revision.short();
                let text = format!("disk of {owner}: left out, it was made from revision {id}");
                reporter.progress(Progress::Note { text });
                continue;
            }
            let home = dir.join(owner.as_str());
            if owner.as_str().contains('.') {
                refuse("the layout would call it by another name: it turns `.` into `_`".to_owned());
            } else if disk.record().method == CloneMethod::Overlay {
                refuse("it is an overlay, and the layout has whole disks only".to_owned());
            } else if fs::exists(&home)? {
                refuse(format!("{} exists already", home.display()));
            } else {
                match disk.lock("exporting it") {
                    Ok(lock) => planned.push(PlannedDisk { disk, home, _lock: lock }),
                    Err(error) => refuse(kiln_core::text::chain(&error)),
                }
            }
        }
        Ok(planned)
    }

    fn write_stack(&self, name: &TemplateName, planned: &PlannedStack) -> EngineResult<ExportedStack> {
        let PlannedStack { revision, rootfs, image } = planned;
        // A stack without an image is none: the image's own commit makes it appear.
        if let Some(home) = image.parent() {
            make_dir(home)?;
        }
        let (digest, size) = (rootfs.digest, rootfs.size);
        let request = CopyOut { digest, size, dest: image, mode: IMAGE_MODE, choice: CloneChoice::Auto };
        let record = self.store.copy_out(&request, &self.cancel)?;
        let (path, method) = (image.clone(), record.method);
        Ok(ExportedStack { stack: name.clone(), revision: *revision, path, size, method })
    }

    /// Writes a clone with its stamps, in one step.
    fn write_disk(
        &self,
        planned: &PlannedDisk,
        stamps: &mut BTreeMap<Digest, (Digest, ByteSize)>,
    ) -> EngineResult<ExportedDisk> {
        let PlannedDisk { disk, home, .. } = planned;
        let record = disk.record();
        let (stamp, template_size) = match stamps.get(&record.artifact) {
            Some(known) => *known,
            None => {
                let path = self.store.artifact_path(&record.artifact);
                let hash = self.store.disks(&self.cancel).hash(&path)?;
                *stamps.entry(record.artifact).or_insert((hash.sha256, hash.size))
            }
        };
        if let Some(parent) = home.parent() {
            make_dir(parent)?;
        }
        let staged = aside(home);
        fs::create_dir(&staged)?;
        let written = (|| {
            let path = staged.join(IMAGE_FILE);
            copy_disk(&disk.path(), &path, &self.cancel)?;
            write_file(&staged.join(STAMP_FILE), stamp.hex().as_bytes(), IMAGE_MODE, Existing::Refuse)?;
            if record.size != template_size {
                let text = record.size.bytes().to_string();
                write_file(&staged.join(SIZE_FILE), text.as_bytes(), IMAGE_MODE, Existing::Refuse)?;
            }
            self.cancel.check()?;
            commit_dir(&staged, home)?;
            EngineResult::Ok(())
        })();
        if written.is_err() {
            // The error that is returned says more than a failed clean-up would.
            let _ = fs::remove_tree(&staged);
        }
        written?;
        Ok(ExportedDisk { owner: record.owner.clone(), path: home.join(IMAGE_FILE), size: record.size })
    }
}

fn copy_disk(from: &Path, to: &Path, cancel: &kiln_sys::Cancel) -> EngineResult<()> {
    let source = fs::open(from)?;
    let target = fs::create_new(to)?;
    if !copy::reflink(&source, &target, to)? {
        let (path, need) = (to.parent().unwrap_or(to), copy::allocated_bytes(from)?);
        let have = fs::space(path)?.available;
        if have < need.saturating_add(SPACE_MARGIN) {
            return Err(StoreError::NoSpace { path: path.to_owned(), need, have }.into());
        }
        copy::sparse_copy(&source, &target, to, Some(cancel))?;
    }
    fs::set_mode(to, CLONE_MODE)?;
    Ok(target.sync_all().at("sync", to)?)
}

/// Makes a directory that others may look into; one that is there stays as it is.
fn make_dir(path: &Path) -> EngineResult<()> {
    if !fs::exists(path)? {
        fs::create_dir_all(path)?;
        fs::set_mode(path, DIR_MODE)?;
    }
    Ok(())
}
