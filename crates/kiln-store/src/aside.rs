//! What dead processes wrote aside and did not commit. A living one writes there too, so a removal needs the store
//! alone: all who write there share its lock.

use crate::error::StoreResult;
use crate::layout::{Store, StoreLock};
use kiln_core::Digest;
use kiln_sys::commit::is_aside;
use kiln_sys::{fail, fs};
use std::path::Path;

impl Store {
    /// Removes what ended processes wrote aside in the store; returns how many files. `_alone` is the store's lock, held
    /// exclusively. What lies in the directory of a machine is its supervisor's and goes with the machine.
    pub fn sweep_asides(&self, _alone: &StoreLock) -> StoreResult<usize> {
        let root = self.root();
        let mut removed = sweep(root)?;
        for directory in ["indexes", "revisions", "snapshots", "cache/v1/builds", "cache/v1/revisions"] {
            removed += sweep(&root.join(directory))?;
        }
        let templates = root.join("templates");
        for name in fs::list_dir(&templates)? {
            let template = templates.join(name);
            if fs::symlink_metadata(&template)?.is_dir() {
                removed += sweep(&template)? + sweep(&template.join("tags"))?;
            }
        }
        Ok(removed + self.sweep_snapshot_records()?)
    }

    /// Removes records of snapshots that were never published, or whose removal was cut short.
    fn sweep_snapshot_records(&self) -> StoreResult<usize> {
        let directory = self.root().join("snapshots");
        let mut removed = 0;
        let recorded =
            |name: &std::ffi::OsStr| Digest::from_hex(name.to_str()?.strip_suffix(".made.json")?).ok();
        for id in fs::list_dir_where(&directory, recorded)? {
            if fs::optional(fs::symlink_metadata(&self.snapshot_path(&id)))?.is_none() {
                fail::point("sweep.aside", &directory)?;
                fs::remove_file(&self.snapshot_record_path(&id))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn sweep(directory: &Path) -> StoreResult<usize> {
    let mut removed = 0;
    for name in fs::list_dir(directory)?.iter().filter(|name| is_aside(name)) {
        fail::point("sweep.aside", directory)?;
        fs::remove_file(&directory.join(name))?;
        removed += 1;
    }
    Ok(removed)
}
