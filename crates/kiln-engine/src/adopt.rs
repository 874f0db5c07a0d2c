//! The rootfs registry of microvm-runtime: directories that it keeps templates and clones in, read into templates and
//! disks of the store, and written from them.
//!
//! ```text
//! TEMPLATES/<stack>/rootfs.ext4
//! CLONES/<vm>/rootfs.ext4          a machine's disk
//! CLONES/<vm>/rootfs.ext4.sha256   of the template's bytes when it was cloned, in hexadecimal
//! CLONES/<vm>/rootfs.ext4.size     the disk's length in bytes, where it was grown
//! ```
//!
//! It turns what is not `[A-Za-z0-9_-]` in a machine's id into `_`, so a directory with a `_` may belong to any of several
//! ids: that is refused, as is every name that is none of kiln's. All that is refused is told at once, before anything
//! is written.

mod export;
pub mod mvm;
mod planning;
mod scan;
pub mod vmrs;

pub use export::{ExportRegistry, Exported, ExportedDisk, ExportedStack};

use crate::build::{Forward, elapsed_ms};
use crate::progress::{Reporter, step, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_build::{BuildContext, HostFacts};
use kiln_core::recipe::AgentOptions;
use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::text::count;
use kiln_core::variant::MachineShape;
use kiln_core::{ArtifactRole, ByteSize, Digest, DiskOwner, Reference, RevisionSelector, Tag, TemplateName};
use kiln_store::{AdoptDisk, BuildRecord, IngestFrom, Staging, StoreError};
use kiln_sys::lock::Share;
use kiln_sys::{clock, fs};
use scan::{FoundClone, FoundStack};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// The image, in the directory of a stack or of a machine.
pub const IMAGE_FILE: &str = "rootfs.ext4";
/// Beside a clone: SHA-256 of the template's bytes.
const STAMP_FILE: &str = "rootfs.ext4.sha256";
/// Beside a clone that was grown: its length.
const SIZE_FILE: &str = "rootfs.ext4.size";

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub struct ImportRegistry<'a> {
    /// The directory of stacks.
    pub templates: &'a Path,
    /// The directory of clones, where they are to become disks.
    pub clones: Option<&'a Path>,
    /// The kernel that the templates boot: the layout has none.
    pub kernel: &'a Path,
    /// The directory of its modules, where it needs some.
    pub modules: Option<&'a Path>,
}

/// What an import brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Imported {
    /// The templates, by name.
    pub templates: Vec<ImportedTemplate>,
    /// The owners of the disks.
    pub disks: Vec<DiskOwner>,
}

/// A template that came from a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedTemplate {
    /// Its name, the stack's.
    pub template: TemplateName,
    /// What its tag `latest` points to now.
    pub revision: Digest,
    /// The root file system.
    pub artifact: Digest,
    /// Its length.
    pub size: ByteSize,
    /// Whether the tag moved.
    pub moved: bool,
}

/// A stack that is in the store, not yet as a template.
struct TakenStack<'a> {
    stack: &'a FoundStack,
    rootfs: Artifact,
}

impl Engine {
    /// Reads a rootfs registry: each stack becomes a template of its name, each clone a disk of its machine. The files
    /// read stay as they are; machines that use them must be stopped.
    pub fn import_rootfs_registry(
        &self,
        request: &ImportRegistry<'_>,
        reporter: &dyn Reporter,
    ) -> EngineResult<Imported> {
        let begun = Instant::now();
        self.sweep();
        let (stacks, clones) = step(reporter, "check", || {
            let found = self.scan_registry(request)?;
            let text = format!("{}, {}", count(found.0.len(), "stack"), count(found.1.len(), "clone"));
            EngineResult::Ok((found, text))
        })?;
        let mut waiting = waiting(reporter);
        let work = "importing a rootfs registry";
        let _store = self.store.lock(Share::Shared, work, &self.cancel, &mut waiting)?;
        let staging = self.store.stage(work)?;
        let (boot, facts) = self.boot_artifacts(request, &staging, reporter)?;
        let taken = step(reporter, "hash and commit", || {
            let mut taken = Vec::new();
            for stack in &stacks {
                taken.push(self.take_stack(stack, &staging)?);
            }
            let bytes = taken.iter().map(|stack| stack.rootfs.size.bytes()).sum();
            EngineResult::Ok((taken, ByteSize::from_bytes(bytes).human()))
        })?;
        // All files are in the store: what is left is small, and a repetition finds them there.
        let mut imported = Imported::default();
        for taken in &taken {
            let manifest = manifest(&boot, &taken.rootfs)?;
            let mut facts = facts.clone();
            facts.insert("imported".to_owned(), "rootfs-registry".to_owned());
            if let Some(sha256) = taken.stack.sha256 {
                facts.insert("rootfs_sha256".to_owned(), sha256.hex());
            }
            let name = taken.stack.name.clone();
            let revision = self.commit_imported(&manifest, &name, facts, begun)?;
            let _template = self.store.lock_template(&name, work, &self.cancel, &mut waiting)?;
            let moved = self.store.set_tag(&name, &Tag::latest(), &revision, "import")?;
            let (artifact, size) = (taken.rootfs.digest, taken.rootfs.size);
            imported.templates.push(ImportedTemplate { template: name, revision, artifact, size, moved });
        }
        for clone in &clones {
            imported.disks.push(self.take_clone(clone, &imported.templates, reporter)?);
        }
        Ok(imported)
    }

    /// Publishes a revision that came from elsewhere. One that the store has keeps what is known of it.
    fn commit_imported(
        &self,
        manifest: &Manifest,
        template: &TemplateName,
        facts: BTreeMap<String, String>,
        begun: Instant,
    ) -> EngineResult<Digest> {
        let id = manifest.id();
        // A record that cannot be read is replaced.
        let mut record = self.store.build_record(&id).ok().flatten().unwrap_or_else(|| BuildRecord {
            version: 1,
            template: template.clone(),
            key: id,
            built_unix_ms: clock::now_unix_ms(),
            elapsed_ms: elapsed_ms(begun),
            facts: BTreeMap::new(),
        });
        for (name, fact) in facts {
            record.facts.entry(name).or_insert(fact);
        }
        self.cancel.check()?;
        Ok(self.store.commit_revision(manifest, &record)?)
    }

    /// Makes the kernel and the initramfs that all templates of an import share.
    fn boot_artifacts(
        &self,
        request: &ImportRegistry<'_>,
        staging: &Staging,
        reporter: &dyn Reporter,
    ) -> EngineResult<(Vec<Artifact>, BTreeMap<String, String>)> {
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let scratch = staging.path().join("boot");
        fs::create_dir(&scratch)?;
        let forward = Forward(reporter);
        let context = BuildContext {
            toolbox: &self.settings.toolbox,
            scratch: &scratch,
            cache: &scratch,
            offline: true,
            reporter: &forward,
            cancel: &self.cancel,
            host: &host,
        };
        let output = kiln_build::boot(&AgentOptions::default(), request.kernel, request.modules, &context)?;
        let (artifacts, _) = self.ingest_output(&output, staging)?;
        Ok((artifacts, output.facts.into_iter().collect()))
    }

    fn take_stack<'a>(&self, stack: &'a FoundStack, staging: &Staging) -> EngineResult<TakenStack<'a>> {
        let taken = self.store.ingest(&stack.image, IngestFrom::Outside, staging, &self.cancel)?;
        // The stamps of clones were compared with the bytes of then.
        if stack.artifact.is_some_and(|artifact| artifact != taken.digest) {
            return Err(StoreError::Changed { path: stack.image.clone() }.into());
        }
        let (role, format) = (ArtifactRole::rootfs(), ArtifactFormat::Ext4);
        Ok(TakenStack { stack, rootfs: Artifact { role, digest: taken.digest, size: taken.size, format } })
    }

    fn take_clone(
        &self,
        clone: &FoundClone,
        templates: &[ImportedTemplate],
        reporter: &dyn Reporter,
    ) -> EngineResult<DiskOwner> {
        let template = templates.iter().find(|imported| imported.template == clone.stack);
        let template = template.ok_or_else(|| EngineError::HostPath {
            path: clone.image.clone(),
            reason: format!("was made from `{}`, which was not imported", clone.stack),
        })?;
        let reference = Reference {
            revision: RevisionSelector::Tagged {
                template: clone.stack.clone(),
                tag: Tag::latest(),
                digest: Some(template.revision),
            },
            variant: None,
        };
        step(reporter, &format!("disk of {}", clone.owner), || {
            let disk = self.store.disks(&self.cancel).adopt(&AdoptDisk {
                owner: &clone.owner,
                reference: &reference,
                revision: template.revision,
                file: &clone.image,
            })?;
            let record = disk.record();
            let text = format!("{} by {}", record.size.human(), record.method);
            EngineResult::Ok((clone.owner.clone(), text))
        })
    }
}

fn manifest(boot: &[Artifact], rootfs: &Artifact) -> EngineResult<Manifest> {
    let mut artifacts = boot.to_vec();
    artifacts.push(rootfs.clone());
    artifacts.sort_by(|a, b| a.role.cmp(&b.role));
    let arch = kiln_core::Arch::host().ok_or(kiln_build::BuildError::Architecture(std::env::consts::ARCH))?;
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        arch,
        artifacts,
        machine: MachineShape::default(),
        boot_args: Vec::new(),
        ready: None,
        snapshot: None,
        seed: None,
        variants: Vec::new(),
    };
    let id = manifest.id();
    Ok(manifest.checked().map_err(|source| StoreError::BadManifest { id, source })?)
}
