//! What holds of a store at any time, looked up in its files.

use kiln_core::Digest;
use kiln_core::machine::CloneMethod;
use kiln_store::{Store, hash_file};
use kiln_sys::Cancel;
use kiln_sys::commit::is_aside;
use kiln_sys::lock::FileLock;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Returns what is wrong with a store in which nobody works: a revision or snapshot without all its artifacts whole, an
/// artifact that is not what its name says, a tag that leads nowhere, a machine without record, disk or revision, a torn file,
/// a held lock.
pub fn check_store(store: &Store) -> Vec<String> {
    let mut wrong = Vec::new();
    let root = store.root();
    let cancel = Cancel::new().unwrap();
    check_artifacts(store, &mut wrong);
    for id in store.revision_ids().unwrap() {
        match store.revision(&id) {
            Err(error) => wrong.push(format!("revision {id}: {error}")),
            Ok(revision) => {
                for artifact in &revision.manifest.artifacts {
                    if let Err(error) =
                        store.ensure_artifact(&artifact.digest, artifact.size, &cancel, &mut |_| ())
                    {
                        wrong.push(format!("revision {id}: {error}"));
                    }
                }
                if !matches!(store.build_record(&id), Ok(Some(_))) {
                    wrong.push(format!("revision {id} has no record of its build"));
                }
            }
        }
    }
    for (id, snapshot) in store.snapshots().unwrap() {
        match snapshot {
            Err(error) => wrong.push(format!("snapshot {id}: {error}")),
            Ok(snapshot) => {
                if let Err(error) = store.revision(&snapshot.manifest.subject) {
                    wrong.push(format!("snapshot {id}: {error}"));
                }
                for file in snapshot.manifest.files() {
                    if let Err(error) = store.ensure_artifact(&file.digest, file.size, &cancel, &mut |_| ()) {
                        wrong.push(format!("snapshot {id}: {error}"));
                    }
                }
                if snapshot.record.is_none() {
                    wrong.push(format!("snapshot {id} has no record"));
                }
            }
        }
    }
    match store.templates() {
        Err(error) => wrong.push(format!("templates: {error}")),
        Ok(templates) => {
            for (template, tag, id) in templates
                .iter()
                .flat_map(|entry| entry.tags.iter().map(|(tag, record)| (&entry.name, tag, record.revision)))
            {
                if let Err(error) = store.revision(&id) {
                    wrong.push(format!("tag {template}:{tag}: {error}"));
                }
            }
        }
    }
    for (id, entry) in store.machines().unwrap() {
        match entry {
            Err(error) => wrong.push(format!("machine {id}: {error}")),
            Ok(entry) => {
                let clone = &entry.record.clone;
                let below = store.revision(&entry.record.revision).and_then(|revision| {
                    // The disk may be longer than its artifact.
                    let artifacts = revision.manifest.artifacts;
                    let below = artifacts.iter().find(|artifact| artifact.digest == clone.artifact);
                    let size = below.map_or(clone.size, |artifact| artifact.size);
                    store.ensure_artifact(&clone.artifact, size, &cancel, &mut |_| ())
                });
                if let Err(error) = below {
                    wrong.push(format!("machine {id}: {error}"));
                }
                let disk = entry.dir.join("disk").with_extension(clone.method.extension());
                let len = std::fs::metadata(&disk).map(|meta| meta.len()).unwrap_or_default();
                let whole = clone.method == CloneMethod::Overlay || len == clone.size.bytes();
                if len == 0 || !whole {
                    wrong.push(format!("machine {id} has a disk of {len} bytes"));
                }
            }
        }
    }
    check_tree(root, &mut wrong);
    wrong
}

/// Returns what work that ended somehow has left in a store that was swept: anything staged or written aside, and records
/// of snapshots that are not there; but not what is in the directories of machines and goes with them.
pub fn check_swept(store: &Store) -> Vec<String> {
    let mut left: Vec<String> = names(&store.root().join("staging"));
    let machines = store.root().join("machines");
    walk(store.root(), &mut |path| {
        if path.file_name().is_some_and(is_aside) && !path.starts_with(&machines) {
            left.push(path.display().to_string());
        }
    });
    for name in names(&store.root().join("snapshots")) {
        if let Some(id) = name.strip_suffix(".made.json")
            && !store.root().join("snapshots").join(format!("{id}.json")).exists()
        {
            left.push(format!("snapshots/{name}"));
        }
    }
    left
}

fn check_artifacts(store: &Store, wrong: &mut Vec<String>) {
    let cancel = Cancel::new().unwrap();
    let dir = store.root().join("artifacts");
    for name in names(&dir) {
        let path = dir.join(&name);
        let Ok(digest) = Digest::from_hex(&name) else {
            wrong.push(format!("artifacts/{name} is no artifact"));
            continue;
        };
        if let Err(error) = store.index(&digest) {
            wrong.push(format!("artifact {digest}: {error}"));
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        if mode != 0o444 {
            wrong.push(format!("artifact {digest} has the mode {mode:o}"));
        }
        match hash_file(&File::open(&path).unwrap(), &path, &cancel) {
            Ok(index) if index.digest() == digest => {}
            other => {
                wrong.push(format!("artifact {digest} has other content: {:?}", other.map(|i| i.digest())));
            }
        }
    }
    for name in names(&store.root().join("indexes")) {
        if let Ok(digest) = Digest::from_hex(&name)
            && let Err(error) = store.index(&digest)
        {
            wrong.push(format!("index {digest}: {error}"));
        }
    }
}

/// Every visible JSON file is whole, and every lock free. A lock is looked at more than once: a process that this one
/// starts holds all of its files for a moment.
fn check_tree(root: &Path, wrong: &mut Vec<String>) {
    let staging = root.join("staging");
    walk(root, &mut |path| {
        let name = path.file_name().unwrap_or_default();
        let extension = path.extension().unwrap_or_default();
        if path.starts_with(&staging) && extension != "lock" || is_aside(name) {
            return;
        }
        if extension == "json" {
            let bytes = std::fs::read(path).unwrap();
            if serde_json::from_slice::<serde_json::Value>(&bytes).is_err() {
                wrong.push(format!("{} is torn", path.display()));
            }
        }
        if (extension == "lock" || name == "lock") && FileLock::try_take(path, "a check").unwrap().is_err() {
            wrong.push(format!("{} is held", path.display()));
        }
    });
}

fn names(dir: &Path) -> Vec<String> {
    kiln_sys::fs::list_dir(dir).unwrap().iter().map(|name| name.to_string_lossy().into_owned()).collect()
}

fn walk(dir: &Path, look: &mut dyn FnMut(&Path)) {
    for name in kiln_sys::fs::list_dir(dir).unwrap() {
        let path = dir.join(name);
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            walk(&path, look);
        } else {
            look(&path);
        }
    }
}
