//! A revision of the layout, read and checked: nothing of it is in the store yet.

use super::find::Found;
use super::record::{
    Checksums, Config, FILES_MAX, RECORD_BYTES_MAX, RevisionRecord, SCHEMA_VERSION, Shape, TemplateRecord,
};
use super::{CHECKSUMS_FILE, CONFIG_FILE, MANIFEST_FILE, REVISION_FILE, TEMPLATE_FILE, boot_args, is_plain};
use crate::adopt::scan::{Refusal, check_ext4, refuse};
use kiln_core::recipe::FLAKE_BYTES_MAX;
use kiln_core::revision::{InvalidManifest, MANIFEST_BYTES_MAX, Manifest};
use kiln_core::text::clip;
use kiln_core::variant::{BOOT_ARGS_BYTES_MAX, DISK_MIB_MAX, MachineShape, boot_args_bytes};
use kiln_core::{ByteSize, Digest};
use kiln_store::Disks;
use kiln_sys::fs;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The longest other text of a record that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// A revision whose files are there and are what its records say.
#[derive(Debug)]
pub(super) struct ReadRevision {
    pub(super) name: String,
    pub(super) kernel: PathBuf,
    pub(super) rootfs: PathBuf,
    /// What was compared with checksums, where there are some.
    pub(super) compared: Option<Compared>,
    pub(super) initrd: Option<PathBuf>,
    /// What kiln wrote beside the layout's files, where it did.
    pub(super) manifest: Result<Option<Manifest>, InvalidManifest>,
    pub(super) machine: MachineShape,
    pub(super) boot_args: Vec<String>,
    /// Whether Firecracker's memory of a running machine is there, which nothing else can use.
    pub(super) has_snapshot: bool,
    pub(super) facts: BTreeMap<String, String>,
}

/// The bytes that were compared with checksums, which may be others by the time they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Compared {
    /// The digest by which the store will know the root file system.
    pub(super) rootfs: Digest,
    /// The kernel's SHA-256.
    pub(super) kernel: Digest,
}

/// Reads the record of a template.
pub(super) fn template(found: &Found, name: &str) -> Result<TemplateRecord, Refusal> {
    let record: TemplateRecord = json(&found.home, &found.home.join(TEMPLATE_FILE), TEMPLATE_FILE)?;
    check_version(TEMPLATE_FILE, record.schema_version)?;
    if record.template_id != name {
        return refuse(format!("its {TEMPLATE_FILE} is of template `{}`", clip(&record.template_id)));
    }
    Ok(record)
}

/// Reads one revision. `disks` hashes its files, where they have checksums.
pub(super) fn revision(
    found: &Found,
    template: &TemplateRecord,
    name: &str,
    dir: &Path,
    disks: &Disks<'_>,
) -> Result<ReadRevision, Refusal> {
    let home = &found.home;
    let record: RevisionRecord = json(home, &dir.join(REVISION_FILE), REVISION_FILE)?;
    check_version(REVISION_FILE, record.schema_version)?;
    if record.revision_hash != name {
        return refuse(format!("its {REVISION_FILE} is of revision `{}`", clip(&record.revision_hash)));
    }
    let paths = &record.artifact_paths;
    let kernel = file(home, dir, &paths.vmlinux)?;
    let rootfs = file(home, dir, &paths.rootfs)?;
    let initrd = paths.initrd.as_deref().map(|name| file(home, dir, name)).transpose()?;
    check_ext4(&rootfs)?;
    let bytes = fs::metadata(&rootfs)?.len();
    if bytes > DISK_MIB_MAX << 20 {
        return refuse(format!("its root file system has {bytes} bytes, a disk has at most 16T"));
    }
    let mut compared = None;
    if let Some(sums) = optional_json::<Checksums>(home, &dir.join(CHECKSUMS_FILE), CHECKSUMS_FILE)? {
        check_sums_listed(&sums, template, &record)?;
        compared = check_sums(home, dir, &sums, (&rootfs, &kernel), disks)?;
    }
    let config = if paths.fc_base_config.is_empty() { CONFIG_FILE } else { &paths.fc_base_config };
    plain_name(config)?;
    let config: Option<Config> = optional_json(home, &dir.join(config), config)?;
    let boot_args = config.map(|config| boot_args::kept(&config.boot_source.boot_args)).unwrap_or_default();
    let graphic = |arg: &String| arg.chars().all(|c| c.is_ascii_graphic());
    if boot_args_bytes(&boot_args) > BOOT_ARGS_BYTES_MAX || !boot_args.iter().all(graphic) {
        return refuse(format!(
            "its kernel arguments are over {BOOT_ARGS_BYTES_MAX} bytes, or no plain words"
        ));
    }
    let manifest = match inside(home, &dir.join(MANIFEST_FILE))? {
        Some(path) => Manifest::parse(&fs::read_limited(&path, MANIFEST_BYTES_MAX)?).map(Some),
        None => Ok(None),
    };
    Ok(ReadRevision {
        name: name.to_owned(),
        kernel,
        rootfs,
        compared,
        initrd,
        manifest,
        machine: machine(&record.shape, &template.shape)?,
        boot_args,
        has_snapshot: record.snapshot.is_some() || fs::exists(&dir.join("snapshot"))?,
        facts: facts(name, &record)?,
    })
}

/// Returns the machine that a revision says, else its template.
fn machine(own: &Shape, template: &Shape) -> Result<MachineShape, Refusal> {
    let base = MachineShape::default();
    let shape = MachineShape {
        vcpus: own.vcpus.or(template.vcpus).map_or(base.vcpus, u32::from),
        memory: own.mem_mib.or(template.mem_mib).map_or(base.memory, ByteSize::from_mib),
        data_disk: own
            .data_disk_mib
            .or(template.data_disk_mib)
            .filter(|size| *size > 0)
            .map(ByteSize::from_mib),
        board: base.board,
    };
    shape.checked().or_else(|error| refuse(format!("its machine cannot be: {error}")))
}

/// What is remembered of a revision, in the words of a build by Nix.
fn facts(name: &str, record: &RevisionRecord) -> Result<BTreeMap<String, String>, Refusal> {
    let origin = &record.origin;
    let texts = [
        ("flake", &origin.flake_ref, FLAKE_BYTES_MAX),
        ("flake_lock_hash", &record.flake_lock_hash, TEXT_BYTES_MAX),
        ("nix_profile", &origin.profile, TEXT_BYTES_MAX),
        ("nix_role", &origin.role, TEXT_BYTES_MAX),
        ("mvm_built_at", &record.built_at, TEXT_BYTES_MAX),
    ];
    let mut facts = BTreeMap::new();
    for (fact, text, max) in texts {
        if !is_plain(text, max) {
            return refuse(format!("its {REVISION_FILE} has `{}`, no short line of text", clip(text)));
        }
        facts.insert(fact.to_owned(), text.clone());
    }
    let key = kiln_build::legacy_key(&record.flake_lock_hash, &origin.profile, &origin.role);
    facts.insert("nix_key".to_owned(), key.hex());
    facts.insert("mvm_revision".to_owned(), name.to_owned());
    facts.insert("imported".to_owned(), "mvm".to_owned());
    Ok(facts)
}

/// Checks that a list of checksums is of this revision, and lists what there has to be.
fn check_sums_listed(
    sums: &Checksums,
    template: &TemplateRecord,
    record: &RevisionRecord,
) -> Result<(), Refusal> {
    check_version(CHECKSUMS_FILE, sums.schema_version)?;
    if sums.template_id != template.template_id || sums.revision_hash != record.revision_hash {
        let (id, revision) = (clip(&sums.template_id), clip(&sums.revision_hash));
        return refuse(format!("its {CHECKSUMS_FILE} is of template `{id}`, revision `{revision}`"));
    }
    if sums.files.len() > FILES_MAX {
        return refuse(format!(
            "its {CHECKSUMS_FILE} lists {} files, more than {FILES_MAX}",
            sums.files.len()
        ));
    }
    let paths = &record.artifact_paths;
    for name in [REVISION_FILE, paths.vmlinux.as_str(), paths.rootfs.as_str()] {
        if !sums.files.contains_key(name) {
            return refuse(format!("its {CHECKSUMS_FILE} does not list {name}"));
        }
    }
    Ok(())
}

/// Compares the files of a revision with their checksums. The template's record, which is listed too, lies above.
fn check_sums(
    home: &Path,
    dir: &Path,
    sums: &Checksums,
    (rootfs, kernel): (&Path, &Path),
    disks: &Disks<'_>,
) -> Result<Option<Compared>, Refusal> {
    let mut compared = (None, None);
    for (name, want) in &sums.files {
        let path = file(home, if name == TEMPLATE_FILE { home } else { dir }, name)?;
        let Ok(want) = Digest::from_hex(want) else {
            return refuse(format!("its {CHECKSUMS_FILE} has `{}` for {name}, no SHA-256", clip(want)));
        };
        let hash = disks.hash(&path)?;
        if hash.sha256 != want {
            let (have, want) = (hash.sha256.hex(), want.hex());
            return refuse(format!("{name} has SHA-256 {have}, its {CHECKSUMS_FILE} says {want}"));
        }
        if path == rootfs {
            compared.0 = Some(hash.artifact);
        }
        if path == kernel {
            compared.1 = Some(hash.sha256);
        }
    }
    Ok(compared.0.zip(compared.1).map(|(rootfs, kernel)| Compared { rootfs, kernel }))
}

fn check_version(file: &str, version: u32) -> Result<(), Refusal> {
    if version > SCHEMA_VERSION {
        return refuse(format!("its {file} has version {version}, this kiln reads up to {SCHEMA_VERSION}"));
    }
    Ok(())
}

fn plain_name(name: &str) -> Result<(), Refusal> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(one)), None) if one == name && is_plain(name, 255) => Ok(()),
        _ => refuse(format!("`{}` is no plain name of a file", clip(name))),
    }
}

/// Returns a file that has to be there.
fn file(home: &Path, dir: &Path, name: &str) -> Result<PathBuf, Refusal> {
    plain_name(name)?;
    match inside(home, &dir.join(name))? {
        Some(path) => Ok(path),
        None => refuse(format!("{name} is missing")),
    }
}

/// Returns the file that a path leads to; none where nothing is. It has to lie in the template's directory.
fn inside(home: &Path, path: &Path) -> Result<Option<PathBuf>, Refusal> {
    if fs::optional(fs::symlink_metadata(path))?.is_none() {
        return Ok(None);
    }
    let real = fs::canonicalize(path)?;
    if !real.starts_with(home) {
        return refuse(format!("{} leads out of the template's directory", path.display()));
    }
    if !fs::metadata(&real)?.is_file() {
        return refuse(format!("{} is no file", path.display()));
    }
    Ok(Some(real))
}

fn json<T: DeserializeOwned>(home: &Path, path: &Path, name: &str) -> Result<T, Refusal> {
    match optional_json(home, path, name)? {
        Some(record) => Ok(record),
        None => refuse(format!("{name} is missing")),
    }
}

fn optional_json<T: DeserializeOwned>(home: &Path, path: &Path, name: &str) -> Result<Option<T>, Refusal> {
    let Some(path) = inside(home, path)? else { return Ok(None) };
    let bytes = fs::read_limited(&path, RECORD_BYTES_MAX)?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(error) => refuse(format!("its {name} cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    fn because<T>(result: Result<T, Refusal>) -> String {
        match result {
            Err(Refusal::Because(reason)) => reason,
            _ => panic!("it was taken"),
        }
    }

    #[test]
    fn names_of_files_are_plain() {
        for name in ["vmlinux", "rootfs.ext4", "..x"] {
            assert!(plain_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a/", "./a", "a\nb"] {
            assert!(because(plain_name(name)).contains("no plain name"), "{name}");
        }
    }

    fn record(role: &str) -> RevisionRecord {
        let paths = r#"{"vmlinux":"vmlinux","rootfs":"rootfs.ext4"}"#;
        let text = format!(r#"{{"revision_hash":"r","role":"{role}","artifact_paths":{paths}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn texts_that_are_kept_are_short_lines() {
        let kept = |role: &str| facts("r", &record(role));
        assert!(kept(&"a".repeat(TEXT_BYTES_MAX)).is_ok());
        assert!(because(kept(&"a".repeat(TEXT_BYTES_MAX + 1))).contains("no short line of text"));
        assert!(because(kept("a\\nb")).contains("no short line of text"));
    }

    #[test]
    fn checksums_list_so_many_files_at_most() {
        let files = |count: usize| {
            let files = (0..count).map(|n| (format!("f{n}"), String::new())).collect();
            Checksums { schema_version: 0, template_id: "t".to_owned(), revision_hash: "r".to_owned(), files }
        };
        let template: TemplateRecord = serde_json::from_str(r#"{"template_id":"t"}"#).unwrap();
        let checked = |sums: &Checksums| because(check_sums_listed(sums, &template, &record("")));
        assert!(checked(&files(FILES_MAX)).contains("does not list revision.json"));
        assert!(checked(&files(FILES_MAX + 1)).contains("lists 65 files, more than 64"));
    }

    #[test]
    fn a_record_has_a_largest_size() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let home = fs::canonicalize(scratch.path()).unwrap();
        let path = home.join(TEMPLATE_FILE);
        let put = |text: String| write_file(&path, text.as_bytes(), 0o600, Existing::Replace).unwrap();
        let record = r#"{"template_id":"a"}"#;
        let read = || json::<TemplateRecord>(&home, &path, TEMPLATE_FILE);
        put(format!("{record}{}", " ".repeat(RECORD_BYTES_MAX - record.len())));
        assert_eq!(read().ok().unwrap().template_id, "a");
        put(format!("{record}{}", " ".repeat(RECORD_BYTES_MAX - record.len() + 1)));
        assert!(because(read()).contains("more than 1048576 bytes"));
        put("{".to_owned());
        assert!(because(read()).contains("its template.json cannot be read"));
    }

    #[test]
    fn a_machine_is_the_revisions_then_the_templates_then_the_usual_one() {
        let template = Shape { vcpus: Some(2), mem_mib: Some(512), data_disk_mib: Some(64) };
        let own = Shape { vcpus: None, mem_mib: Some(1024), data_disk_mib: Some(0) };
        let shape = machine(&own, &template).ok().unwrap();
        assert_eq!((shape.vcpus, shape.memory, shape.data_disk), (2, ByteSize::from_mib(1024), None));
        assert_eq!(machine(&Shape::default(), &Shape::default()).ok().unwrap(), MachineShape::default());
        let none = Shape { vcpus: Some(0), ..template };
        assert!(because(machine(&none, &template)).contains("vcpus is 0"));
    }
}
