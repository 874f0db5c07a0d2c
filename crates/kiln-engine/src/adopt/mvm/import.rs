//! Reading the layout into the store: each template by itself, so that a damaged one keeps no other from coming.

use super::MANIFEST_FILE;
use super::find::{self, Found};
use super::read::{self, ReadRevision};
use crate::adopt::scan::{Refusal, refuse, shown};
use crate::build::Forward;
use crate::progress::{Progress, Reporter, step, waiting};
use crate::{Engine, EngineError, EngineResult, RegistryProblem};
use kiln_build::{BuildContext, HostFacts};
use kiln_core::recipe::AgentOptions;
use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::{ArtifactRole, ByteSize, Digest, Tag, TemplateName};
use kiln_store::{IngestFrom, Staging, StoreError};
use kiln_sys::fs;
use kiln_sys::lock::Share;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub struct ImportMvm<'a> {
    /// The data directory of mvm, the directory of templates in it, or that of one template.
    pub dir: &'a Path,
    /// The directory of the kernels' modules, where they need some.
    pub modules: Option<&'a Path>,
}

/// What an import brought, and what it did not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportedMvm {
    /// The templates that came, by name.
    pub templates: Vec<ImportedMvmTemplate>,
    /// Those that did not, and why.
    pub failed: Vec<RegistryProblem>,
}

/// A template that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedMvmTemplate {
    /// Its name.
    pub template: TemplateName,
    /// Its revisions: the name in the layout, which is a tag now, and the id.
    pub revisions: Vec<(Tag, Digest)>,
    /// What was in use there, and what `latest` points to now.
    pub current: Option<Digest>,
    /// The bytes of its root file systems.
    pub size: ByteSize,
}

/// What the work on all templates shares.
struct Work<'a> {
    request: &'a ImportMvm<'a>,
    host: &'a HostFacts,
    staging: &'a Staging,
    reporter: &'a dyn Reporter,
    begun: Instant,
}

impl Engine {
    /// Reads templates of mvm: each revision becomes one of the store under its name as a tag, and `latest` points to the
    /// one in use. A template that is damaged is told, and the others come. The files read stay as they are.
    pub fn import_mvm(&self, request: &ImportMvm<'_>, reporter: &dyn Reporter) -> EngineResult<ImportedMvm> {
        let begun = Instant::now();
        self.sweep();
        let found = find::templates(request.dir)?;
        let mut waiting = waiting(reporter);
        let doing = "importing templates of mvm";
        let _store = self.store.lock(Share::Shared, doing, &self.cancel, &mut waiting)?;
        let staging = self.store.stage(doing)?;
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let work = Work { request, host: &host, staging: &staging, reporter, begun };
        let mut imported = ImportedMvm::default();
        for (name, path) in found {
            self.cancel.check().map_err(EngineError::from)?;
            match self.import_template(&work, &name, &path) {
                Ok(template) => imported.templates.push(template),
                Err(Refusal::Because(reason)) => {
                    imported.failed.push(RegistryProblem { name: shown(&name), reason });
                }
                Err(Refusal::Stop(error)) => return Err(error),
            }
        }
        Ok(imported)
    }

    fn import_template(
        &self,
        work: &Work<'_>,
        name: &OsString,
        path: &Path,
    ) -> Result<ImportedMvmTemplate, Refusal> {
        let found = find::template(name, path)?;
        let id = name.to_string_lossy();
        let template: TemplateName = id.parse().map_err(|error| Refusal::Because(format!("{error}")))?;
        let read = self.read_template(&found, &id)?;
        let mut taken = Vec::new();
        let mut size = 0;
        for (number, revision) in read.iter().enumerate() {
            let label = format!("{template} {}", revision.name);
            let (manifest, facts) = self.take_revision(work, number, revision, &template, &label)?;
            size += manifest.artifact(&ArtifactRole::rootfs()).map_or(0, |rootfs| rootfs.size.bytes());
            taken.push((revision.name.clone(), manifest, facts));
        }
        // All files are in the store: what is left is small.
        let mut waiting = waiting(work.reporter);
        let doing = "importing templates of mvm";
        let _template = self.store.lock_template(&template, doing, &self.cancel, &mut waiting)?;
        let mut revisions = Vec::new();
        let mut current = None;
        for (name, manifest, facts) in taken {
            let id = self.commit_imported(&manifest, &template, facts, work.begun)?;
            let tag: Tag = name.parse().map_err(|error| Refusal::Because(format!("{error}")))?;
            self.store.set_tag(&template, &tag, &id, "import")?;
            if found.current.as_ref() == Some(&name) {
                current = Some(id);
            }
            revisions.push((tag, id));
        }
        match &current {
            Some(id) => {
                self.store.set_tag(&template, &Tag::latest(), id, "import")?;
            }
            None => {
                let text = format!("{template} has no `current`: its tag `latest` stays as it is");
                work.reporter.progress(Progress::Note { text });
            }
        }
        Ok(ImportedMvmTemplate { template, revisions, current, size: ByteSize::from_bytes(size) })
    }

    /// Reads all revisions of a template before any is taken.
    fn read_template(&self, found: &Found, id: &str) -> Result<Vec<ReadRevision>, Refusal> {
        let template = read::template(found, id)?;
        let disks = self.store.disks(&self.cancel);
        let mut all = Vec::new();
        for (name, dir) in &found.revisions {
            self.cancel.check().map_err(EngineError::from)?;
            match read::revision(found, &template, name, dir, &disks) {
                Ok(revision) => all.push(revision),
                Err(Refusal::Because(reason)) => return refuse(format!("revision {name}: {reason}")),
                Err(stop) => return Err(stop),
            }
        }
        Ok(all)
    }

    /// Takes the files of a revision into the store.
    fn take_revision(
        &self,
        work: &Work<'_>,
        number: usize,
        revision: &ReadRevision,
        template: &TemplateName,
        label: &str,
    ) -> Result<(Manifest, BTreeMap<String, String>), Refusal> {
        let note = |text: String| work.reporter.progress(Progress::Note { text });
        if revision.has_snapshot {
            note(format!("{label}: its snapshot is Firecracker's and is left out"));
        }
        let rootfs = step(work.reporter, &format!("rootfs of {label}"), || {
            let rootfs =
                self.take_file(&revision.rootfs, ArtifactRole::rootfs(), ArtifactFormat::Ext4, work)?;
            // Checksums were compared with the bytes of then.
            if revision.compared.is_some_and(|compared| compared.rootfs != rootfs.digest) {
                return Err(StoreError::Changed { path: revision.rootfs.clone() }.into());
            }
            let text = rootfs.size.human();
            EngineResult::Ok((rootfs, text))
        })?;
        let mut facts = revision.facts.clone();
        if let Err(error) = &revision.manifest {
            note(format!("{label}: its {MANIFEST_FILE} is not read: {error}"));
        }
        if let Some(manifest) = self.own_manifest(work, revision, &rootfs)? {
            return Ok((manifest, facts));
        }
        if revision.initrd.is_some() {
            note(format!("{label}: its initrd is replaced by kiln's own initramfs"));
        }
        if work.request.modules.is_none() {
            note(format!(
                "{label}: no modules were given: its kernel boots if it has virtio, ext4 and a console of virtio built in"
            ));
        }
        let scratch = work.staging.path().join(format!("{template}-{number}"));
        fs::create_dir(&scratch)?;
        let context = BuildContext {
            toolbox: &self.settings.toolbox,
            scratch: &scratch,
            cache: &scratch,
            offline: true,
            reporter: &Forward(work.reporter),
            cancel: &self.cancel,
            host: work.host,
        };
        let agent = AgentOptions::default();
        let output = kiln_build::boot(&agent, &revision.kernel, work.request.modules, &context)
            .map_err(EngineError::from)?;
        if let Some(compared) = revision.compared
            && self.store.disks(&self.cancel).hash(&revision.kernel)?.sha256 != compared.kernel
        {
            return Err(StoreError::Changed { path: revision.kernel.clone() }.into());
        }
        let (mut artifacts, _) = self.ingest_output(&output, work.staging)?;
        artifacts.push(rootfs);
        artifacts.sort_by(|a, b| a.role.cmp(&b.role));
        facts.extend(output.facts);
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            arch: work.host.arch,
            artifacts,
            machine: revision.machine.clone(),
            boot_args: revision.boot_args.clone(),
            ready: None,
            snapshot: None,
            seed: None,
            variants: Vec::new(),
        };
        let id = manifest.id();
        let manifest = manifest.checked().map_err(|source| StoreError::BadManifest { id, source })?;
        Ok((manifest, facts))
    }

    /// Returns the manifest that kiln wrote beside a revision, where the files are those it names: then the revision
    /// is the one that was exported.
    fn own_manifest(
        &self,
        work: &Work<'_>,
        revision: &ReadRevision,
        rootfs: &Artifact,
    ) -> Result<Option<Manifest>, Refusal> {
        let (Ok(Some(manifest)), Some(initrd)) = (&revision.manifest, &revision.initrd) else {
            return Ok(None);
        };
        for artifact in &manifest.artifacts {
            let taken = match artifact.role.as_str() {
                "rootfs" => rootfs.clone(),
                "kernel" => self.take_file(&revision.kernel, artifact.role.clone(), artifact.format, work)?,
                "initrd" => self.take_file(initrd, artifact.role.clone(), artifact.format, work)?,
                _ => return Ok(None),
            };
            if taken != *artifact {
                return Ok(None);
            }
        }
        Ok(Some(manifest.clone()))
    }

    fn take_file(
        &self,
        path: &Path,
        role: ArtifactRole,
        format: ArtifactFormat,
        work: &Work<'_>,
    ) -> EngineResult<Artifact> {
        let taken = self.store.ingest(path, IngestFrom::Outside, work.staging, &self.cancel)?;
        Ok(Artifact { role, digest: taken.digest, size: taken.size, format })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;
    use kiln_sys::{Cancel, Toolbox};
    use std::path::PathBuf;

    /// An ELF file that passes for a kernel: one note segment with the PVH entry, and a last byte of its own.
    fn kernel(last: u8) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        for (at, value) in [(32, 64), (54, 56), (56, 1), (64, 4), (72, 120), (96, 20)] {
            bytes[at] = value;
        }
        bytes.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        bytes.extend(b"Xen\0\0\0\0\0");
        bytes.push(last);
        bytes
    }

    fn put(path: &Path, bytes: &[u8]) {
        write_file(path, bytes, 0o644, Existing::Replace).unwrap();
    }

    /// Writes a file anew once a step begins.
    struct Rewrite {
        step: &'static str,
        path: PathBuf,
        bytes: Vec<u8>,
    }

    impl Reporter for Rewrite {
        fn progress(&self, event: Progress) {
            if matches!(event, Progress::Started { step } if step == self.step) {
                put(&self.path, &self.bytes);
            }
        }
    }

    #[test]
    fn files_that_change_after_they_were_compared_are_refused() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let settings = Settings {
            home: scratch.path().join("home"),
            toolbox: Toolbox::default(),
            own_program: PathBuf::from("/bin/false"),
        };
        let engine = Engine::open(settings, Cancel::new().unwrap()).unwrap();
        let home = scratch.path().join("web");
        let dir = home.join("artifacts/r1");
        fs::create_dir_all(&dir).unwrap();
        let mut disk = vec![0; 64 << 10];
        disk[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
        let paths = r#"{"vmlinux":"vmlinux","rootfs":"rootfs.ext4"}"#;
        put(&home.join("template.json"), br#"{"template_id":"web"}"#);
        put(&home.join("current"), b"r1");
        put(
            &dir.join("revision.json"),
            format!(r#"{{"revision_hash":"r1","artifact_paths":{paths}}}"#).as_bytes(),
        );
        let lay = || {
            put(&dir.join("vmlinux"), &kernel(1));
            put(&dir.join("rootfs.ext4"), &disk);
        };
        lay();
        let sums: Vec<String> = ["revision.json", "vmlinux", "rootfs.ext4"]
            .iter()
            .map(|name| {
                let bytes = fs::read_limited(&dir.join(name), 1 << 20).unwrap();
                format!("\"{name}\":\"{}\"", Digest::of(&bytes).hex())
            })
            .collect();
        let sums = format!(r#"{{"template_id":"web","revision_hash":"r1","files":{{{}}}}}"#, sums.join(","));
        put(&dir.join("checksums.json"), sums.as_bytes());
        let request = ImportMvm { dir: &home, modules: None };
        let mut changed = disk.clone();
        changed[9000] = 1;
        // Everything was compared when the first file is taken.
        for (name, bytes) in [("vmlinux", kernel(2)), ("rootfs.ext4", changed)] {
            lay();
            let rewrite = Rewrite { step: "rootfs of web r1", path: dir.join(name), bytes };
            let imported = engine.import_mvm(&request, &rewrite).unwrap();
            assert_eq!(imported.templates, [], "{name}");
            assert!(imported.failed[0].reason.contains(name), "{:?}", imported.failed);
        }
        lay();
        let imported = engine.import_mvm(&request, &crate::progress::Silent).unwrap();
        assert_eq!((imported.templates.len(), imported.failed.as_slice()), (1, &[][..]));
    }
}
