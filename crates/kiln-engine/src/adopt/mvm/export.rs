//! Writing the layout: each template in one step, with the links that its readers follow.

use super::record::{
    ArtifactPaths, BootSource, Checksums, Config, Drive, MachineConfig, Origin, RevisionRecord,
    SCHEMA_VERSION, Shape, Sizes, TemplateRecord, time,
};
use super::{
    ARTIFACTS, CHECKSUMS_FILE, CONFIG_FILE, CURRENT, INITRD_FILE, KERNEL_FILE, MANIFEST_FILE, REVISION_FILE,
    REVISIONS, ROOTFS_FILE, TEMPLATE_FILE, TEMPLATES, boot_args, is_template_id,
};
use crate::adopt::planning::Planning;
use crate::adopt::scan::stands;
use crate::progress::{Progress, Reporter, step, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::revision::{ArtifactFormat, Manifest};
use kiln_core::text::chain;
use kiln_core::variant::MachineShape;
use kiln_core::{ByteSize, Digest, Reference};
use kiln_store::{CloneChoice, CopyOut, Revision};
use kiln_sys::commit::{aside, commit_dir, write_staged};
use kiln_sys::lock::Share;
use kiln_sys::{clock, fs};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The mode of files: whoever copies one with its mode must be able to write to the copy.
const FILE_MODE: u32 = 0o644;
/// The mode of directories.
const DIR_MODE: u32 = 0o755;
/// The letters of a revision's name: as many as the hash of a path in Nix's store has.
const REVISION_CHARS: usize = 32;
/// What a template that came from elsewhere than a flake has for its profile and role.
const UNNAMED: &str = "default";

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub struct ExportMvm<'a> {
    /// The data directory: templates are written to `templates` in it. It is made where it is missing.
    pub dir: &'a Path,
    /// What to write, one of each template or variant; none means each template's `latest`.
    pub references: &'a [Reference],
}

/// A template that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedMvm {
    /// Its name in the layout.
    pub template: String,
    /// The revision it holds.
    pub revision: Digest,
    /// The revision's name in the layout.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// The bytes of its root file system.
    pub size: ByteSize,
}

struct Planned {
    id: String,
    revision: Revision,
    variant: Option<kiln_core::VariantName>,
    home: PathBuf,
}

impl Engine {
    /// Writes templates as mvm keeps them. Nothing is overwritten; what cannot be written is told before anything is.
    pub fn export_mvm(
        &self,
        request: &ExportMvm<'_>,
        reporter: &dyn Reporter,
    ) -> EngineResult<Vec<ExportedMvm>> {
        let mut waiting = waiting(reporter);
        let work = "exporting templates of mvm";
        let _store = self.store.lock(Share::Shared, work, &self.cancel, &mut waiting)?;
        let planned = self.plan_mvm(request)?;
        let dir = request.dir.join(TEMPLATES);
        if !fs::exists(&dir)? {
            fs::create_dir_all(&dir)?;
            fs::set_mode(&dir, DIR_MODE)?;
        }
        planned
            .iter()
            .map(|planned| {
                step(reporter, &format!("template {}", planned.id), || {
                    let exported = self.write_mvm(planned, reporter)?;
                    let text = exported.size.human();
                    EngineResult::Ok((exported, text))
                })
            })
            .collect()
    }

    fn plan_mvm(&self, request: &ExportMvm<'_>) -> EngineResult<Vec<Planned>> {
        let references = self.or_every_latest(request.references)?;
        let plan = |reference: &Reference| self.plan_one(request.dir, reference);
        let shown = |id: &str| format!("the template `{id}`");
        self.plan_each(request.dir, &references, |planned: &Planned| planned.id.as_str(), shown, plan)
    }

    fn plan_one(&self, dir: &Path, reference: &Reference) -> Result<Planned, Planning> {
        let because = |reason: &str| Err(Planning::Because(reason.to_owned()));
        let Some(template) = reference.template() else {
            return because("it names no template, and one needs a name");
        };
        // The layout has no variants: each is a template of its own, named as its users name them.
        let id = match &reference.variant {
            Some(variant) => format!("{template}-{variant}"),
            None => template.to_string(),
        };
        if !is_template_id(&id) {
            return Err(Planning::Because(format!(
                "the layout cannot hold the name `{id}`: 1 to 63 of a-z, 0-9, `-` and `_`, a letter or digit first"
            )));
        }
        let (revision, rootfs) = match self.store.disks(&self.cancel).template(reference) {
            Ok((id, rootfs)) => (self.store.revision(&id).map_err(EngineError::from)?, rootfs),
            Err(error) => match EngineError::from(error) {
                EngineError::Cancelled => return Err(Planning::Stop(EngineError::Cancelled)),
                error => return Err(Planning::Because(chain(&error))),
            },
        };
        if rootfs.format != ArtifactFormat::Ext4 {
            return Err(Planning::Because(format!("its root file system is {}", rootfs.format.as_str())));
        }
        let home = dir.join(TEMPLATES).join(&id);
        if stands(&home).map_err(EngineError::from)? {
            return Err(Planning::Because(format!("{} exists already", home.display())));
        }
        Ok(Planned { id, revision, variant: reference.variant.clone(), home })
    }

    fn write_mvm(&self, planned: &Planned, reporter: &dyn Reporter) -> EngineResult<ExportedMvm> {
        let name = planned.revision.id.hex()[..REVISION_CHARS].to_owned();
        let staged = aside(&planned.home);
        fs::create_dir(&staged)?;
        let written = self.write_staged_mvm(planned, &name, &staged, reporter).and_then(|size| {
            self.cancel.check().map_err(EngineError::from)?;
            commit_dir(&staged, &planned.home)?;
            Ok(size)
        });
        if written.is_err() {
            // The error that is returned says more than a failed clean-up would.
            let _ = fs::remove_tree(&staged);
        }
        let (template, revision, path) = (planned.id.clone(), planned.revision.id, planned.home.clone());
        Ok(ExportedMvm { template, revision, name, path, size: written? })
    }

    fn write_staged_mvm(
        &self,
        planned: &Planned,
        name: &str,
        staged: &Path,
        reporter: &dyn Reporter,
    ) -> EngineResult<ByteSize> {
        let manifest = &planned.revision.manifest;
        let dir = staged.join(ARTIFACTS).join(name);
        fs::create_dir_all(&dir)?;
        let mut sizes = Sizes { vmlinux_bytes: 0, rootfs_bytes: 0, initrd_bytes: None };
        for artifact in &manifest.artifacts {
            let file = match artifact.role.as_str() {
                "kernel" => KERNEL_FILE,
                "rootfs" => ROOTFS_FILE,
                "initrd" => INITRD_FILE,
                _ => continue,
            };
            let (digest, size) = (artifact.digest, artifact.size);
            let dest = &dir.join(file);
            let request = CopyOut { digest, size, dest, mode: FILE_MODE, choice: CloneChoice::Auto };
            self.store.copy_out(&request, &self.cancel)?;
            match file {
                KERNEL_FILE => sizes.vmlinux_bytes = size.bytes(),
                ROOTFS_FILE => sizes.rootfs_bytes = size.bytes(),
                _ => sizes.initrd_bytes = Some(size.bytes()),
            }
            if file == KERNEL_FILE && artifact.format != ArtifactFormat::Elf {
                let format = artifact.format.as_str();
                let text =
                    format!("{}: its kernel is {format}, and Firecracker loads ELF on x86-64", planned.id);
                reporter.progress(Progress::Note { text });
            }
        }
        self.write_records(planned, name, staged, &dir, sizes)?;
        // As text it is what the layout's readers read, and with the second link it also leads there.
        fs::symlink(Path::new(&format!("{REVISIONS}/{name}")), &staged.join(CURRENT))?;
        fs::symlink(Path::new(ARTIFACTS), &staged.join(REVISIONS))?;
        for dir in [&dir, &staged.join(ARTIFACTS), &staged.to_owned()] {
            fs::set_mode(dir, DIR_MODE)?;
            fs::sync_dir(dir)?;
        }
        Ok(ByteSize::from_bytes(sizes.rootfs_bytes))
    }

    fn write_records(
        &self,
        planned: &Planned,
        name: &str,
        staged: &Path,
        dir: &Path,
        sizes: Sizes,
    ) -> EngineResult<()> {
        let manifest = &planned.revision.manifest;
        let machine = shape(manifest, planned);
        // What is not known of a revision keeps it from nothing.
        let record = self.store.build_record(&planned.revision.id).ok().flatten();
        let facts = record.as_ref().map(|record| &record.facts);
        let fact = |name: &str| facts?.get(name).filter(|text| !text.is_empty()).cloned();
        let built_at = time(record.as_ref().map_or_else(clock::now_unix_ms, |record| record.built_unix_ms));
        let of = |name: &str| {
            let own = planned.variant.as_ref().and_then(|variant| fact(&format!("{name}.{variant}")));
            own.or_else(|| fact(name)).unwrap_or_else(|| UNNAMED.to_owned())
        };
        let origin = Origin {
            // A path is relative to a recipe that is not there. No flake's address begins with `kiln:`: whoever tries to
            // build it is told so.
            flake_ref: fact("flake_path")
                .or_else(|| fact("flake"))
                .unwrap_or_else(|| format!("kiln:{}", planned.revision.id)),
            profile: of("nix_profile"),
            role: of("nix_role"),
        };
        let mib = |size: ByteSize| u32::try_from(size.mib()).unwrap_or(u32::MAX);
        let layout_shape = Shape {
            vcpus: u8::try_from(machine.vcpus).ok(),
            mem_mib: Some(mib(machine.memory)),
            data_disk_mib: Some(machine.data_disk.map_or(0, mib)),
        };
        let initrd = sizes.initrd_bytes.map(|_| INITRD_FILE.to_owned());
        let template = TemplateRecord {
            schema_version: SCHEMA_VERSION,
            template_id: planned.id.clone(),
            origin: origin.clone(),
            shape: layout_shape,
            created_at: built_at.clone(),
            updated_at: built_at.clone(),
        };
        let revision = RevisionRecord {
            schema_version: SCHEMA_VERSION,
            revision_hash: name.to_owned(),
            origin,
            // What the layout does where there is no lock.
            flake_lock_hash: fact("flake_lock_hash").unwrap_or_else(|| name.to_owned()),
            artifact_paths: ArtifactPaths {
                vmlinux: KERNEL_FILE.to_owned(),
                rootfs: ROOTFS_FILE.to_owned(),
                fc_base_config: CONFIG_FILE.to_owned(),
                initrd: initrd.clone(),
                sizes: Some(sizes),
            },
            built_at,
            shape: layout_shape,
            snapshot: None,
        };
        let before = if initrd.is_some() { "" } else { boot_args::ARGS_WITHOUT_INITRD };
        let args = planned.variant.as_ref().and_then(|variant| manifest.variant(variant)?.boot_args.as_ref());
        let mut words = vec![format!("{before}{}", boot_args::ARGS)];
        let own = args.unwrap_or(&manifest.boot_args);
        words
            .extend(own.iter().filter(|arg| !boot_args::ARGS.split(' ').any(|known| known == *arg)).cloned());
        let config = Config {
            boot_source: BootSource {
                kernel_image_path: KERNEL_FILE.to_owned(),
                boot_args: words.join(" "),
                initrd_path: initrd.clone(),
            },
            drives: vec![Drive {
                drive_id: "rootfs".to_owned(),
                path_on_host: ROOTFS_FILE.to_owned(),
                is_root_device: true,
                is_read_only: false,
            }],
            machine_config: MachineConfig { vcpu_count: machine.vcpus, mem_size_mib: machine.memory.mib() },
        };
        put(&staged.join(TEMPLATE_FILE), &template)?;
        put(&dir.join(REVISION_FILE), &revision)?;
        put(&dir.join(CONFIG_FILE), &config)?;
        let disks = self.store.disks(&self.cancel);
        let mut files = BTreeMap::new();
        let listed =
            [REVISION_FILE, CONFIG_FILE, KERNEL_FILE, ROOTFS_FILE].into_iter().chain(initrd.as_deref());
        for (file, path) in
            listed.map(|file| (file, dir.join(file))).chain([(TEMPLATE_FILE, staged.join(TEMPLATE_FILE))])
        {
            files.insert(file.to_owned(), disks.hash(&path)?.sha256.hex());
        }
        let (template_id, revision_hash) = (planned.id.clone(), name.to_owned());
        let sums = Checksums { schema_version: SCHEMA_VERSION, template_id, revision_hash, files };
        put(&dir.join(CHECKSUMS_FILE), &sums)?;
        // A variant is less than its revision: what comes back of it is another one.
        if planned.variant.is_none() {
            write_staged(&dir.join(MANIFEST_FILE), &manifest.to_bytes(), FILE_MODE)?;
        }
        Ok(())
    }
}

fn shape(manifest: &Manifest, planned: &Planned) -> MachineShape {
    let variant = planned.variant.as_ref().and_then(|name| manifest.variant(name));
    variant.map_or_else(|| manifest.machine.clone(), |variant| variant.shape(&manifest.machine))
}

fn put(path: &Path, record: &impl Serialize) -> EngineResult<()> {
    #[expect(clippy::expect_used, reason = "plain structs of text and numbers always have a JSON form")]
    let mut text = serde_json::to_string_pretty(record).expect("a record has a JSON form");
    text.push('\n');
    Ok(write_staged(path, text.as_bytes(), FILE_MODE)?)
}
