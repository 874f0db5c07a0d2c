//! Kernels and root file systems that Nix builds of a flake.
//!
//! A flake on this host is known by the identity of its files, one that Nix fetches by what its reference is locked to.
//! Of a flake nothing runs but the build of the attribute; its own wishes about Nix's settings are not heard.

mod error;
mod facts;
mod identity;
mod output;
mod program;

pub use error::NixError;
pub use facts::legacy_key;

use crate::error::BuildError;
use crate::key::Parts;
use crate::plan::{BuildPlan, PlanContext};
use crate::report::{BuildEvent, Running, Step};
use crate::run::{BuildContext, BuildOutput};
use crate::source::input;
use crate::steps::{Output, boot_files, file_system, lengthen, need_space};
use facts::{Facts, lock_hash};
use kiln_core::lock::PinKind;
use kiln_core::name::ArtifactRole;
use kiln_core::recipe::{FlakeRef, NixSource, Recipe, nix_system};
use kiln_core::revision::ArtifactFormat;
use kiln_core::size::ByteSize;
use kiln_core::variant::DISK_MIB_MAX;
use kiln_source::disk::FileSystem;
use kiln_sys::{copy, fs};
use output::Files;
use program::{Flake, Nix};
use std::path::Path;

/// The file that makes a directory a flake.
const FLAKE_FILE: &str = "flake.nix";

/// An attribute of a flake.
#[derive(Debug, Clone)]
pub(crate) struct NixPlan {
    flake: FlakeRef,
    at: Flake,
    attribute: String,
    system: String,
    impure: bool,
    /// SHA-256 of the flake's lock, where it lies on this host and has one.
    lock_hash: Option<String>,
    facts: Facts,
}

impl NixPlan {
    pub(super) fn plan(
        source: &NixSource,
        recipe: &Recipe,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        let system = nix_system(cx.host.arch);
        let attribute = source.attribute.resolve(&system);
        parts.ask("source", "nix");
        parts.add("attribute", &attribute);
        parts.add("system", &system);
        parts.add("impure", source.impure);
        let mut lock = None;
        let at = match source.flake.path() {
            Some(path) => {
                parts.add("flake", source.flake.as_str());
                let dir = input("source.flake", cx.base, path, true)?;
                if !fs::exists(&dir.join(FLAKE_FILE))? {
                    return Err(NixError::NoFlake { path: dir }.into());
                }
                lock = lock_hash(&dir)?;
                parts.add("flake_lock", &lock);
                parts.add("content", identity::of(&dir, cx.cancel)?);
                Flake::Directory(dir)
            }
            None => {
                let name = source.flake.as_str();
                parts.ask("flake", name);
                let locked = match cx.pins.get(PinKind::Nix, name) {
                    Some(pinned) => pinned.to_owned(),
                    None => Nix::find(cx.toolbox, cx.cache, cx.offline)?.locked(&source.flake, cx.cancel)?,
                };
                parts.pin(PinKind::Nix, name, &locked);
                let locked = locked.parse().map_err(|source| NixError::Reference { text: locked, source })?;
                Flake::Fetched(locked)
            }
        };
        let facts = Facts::of(recipe);
        Ok(Self {
            flake: source.flake.clone(),
            at,
            attribute,
            system,
            impure: source.impure,
            lock_hash: lock,
            facts,
        })
    }

    pub(super) fn run(&self, plan: &BuildPlan, cx: &BuildContext<'_>) -> Result<BuildOutput, BuildError> {
        need_space(cx, 0)?;
        let nix = Nix::find(cx.toolbox, cx.cache, cx.offline)?;
        if let Some(dir) = nix.private_store() {
            let text = format!(
                "this host has no {}: Nix builds in {}, without its sandbox and without binary caches",
                program::STORE,
                dir.display()
            );
            cx.reporter.event(BuildEvent::Note { text });
        }
        let step = Running::start(cx.reporter, Step::Flake, format!("{}#{}", self.flake, self.attribute));
        let built = nix.build(&self.at, &self.attribute, self.impure, cx.cancel, &mut step.lines())?;
        step.done(built.name());
        let files = Files::find(&built)?;
        if let Some(initrd) = &files.initrd {
            let text = format!("{} is replaced by kiln's own initramfs", initrd.display());
            cx.reporter.event(BuildEvent::Note { text });
        }
        let mut output = Output::default();
        boot_files(&plan.agent, &files.kernel, files.modules.as_deref(), cx, &mut output)?;
        rootfs(&files.rootfs, plan.disk_min, cx, &mut output)?;
        output.fact("flake", &self.flake);
        match &self.at {
            Flake::Fetched(locked) => output.fact("flake_locked", locked),
            Flake::Directory(dir) => output.fact("flake_path", dir.display()),
        }
        output.fact("flake_attribute", &self.attribute);
        output.fact("nix_system", &self.system);
        output.fact("nix_store_path", built.main().display());
        if let Some(spec) = &files.spec {
            output.fact("nix_spec_sha256", output::spec_digest(spec)?.hex());
        }
        let lock_hash = self.lock_hash.clone().unwrap_or_else(|| built.hash().to_owned());
        self.facts.tell(&lock_hash, built.hash(), &mut output);
        Ok(output.sorted(cx))
    }
}

/// Copies the root file system, which stays as it is but for its length: the guest's agent grows it into the disk.
fn rootfs(
    from: &Path,
    disk_min: Option<ByteSize>,
    cx: &BuildContext<'_>,
    output: &mut Output,
) -> Result<(), BuildError> {
    check_rootfs(from)?;
    let need = copy::allocated_bytes(from)?;
    need_space(cx, need)?;
    let step = Running::start(cx.reporter, Step::Disk, from.display().to_string());
    let path = output.file(cx, ArtifactRole::rootfs(), "rootfs.ext4", ArtifactFormat::Ext4);
    let (source, target) = (fs::open(from)?, fs::create_new(&path)?);
    copy::copy_file(&source, &target, &path, Some(cx.cancel))?;
    step.done(lengthen(&path, disk_min)?.human());
    Ok(())
}

/// Checks that a file is an ext4 file system of a size that a disk may have.
fn check_rootfs(path: &Path) -> Result<(), BuildError> {
    let found = file_system(path)?;
    let bytes = fs::metadata(path)?.len();
    let path = path.to_owned();
    match found {
        Some(FileSystem::Ext4) => {}
        Some(kind @ (FileSystem::Squashfs | FileSystem::Erofs)) => {
            return Err(NixError::ReadOnlyRoot { path, format: kind.name() }.into());
        }
        _ => return Err(NixError::NotExt4 { path }.into()),
    }
    if bytes > DISK_MIB_MAX << 20 {
        return Err(BuildError::RootTooLarge { path, bytes });
    }
    Ok(())
}
