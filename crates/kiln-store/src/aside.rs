//! What dead processes wrote aside and did not commit. A living one writes there too, so a removal needs the store
//! alone: all who write there share its lock.

use crate::error::StoreResult;
use crate::layout::{Store, StoreLock};
use kiln_sys::commit::is_aside;
use kiln_sys::{fail, fs};
use std::path::Path;

impl Store {
    /// Removes what ended processes wrote aside in the store; returns how many files. `_alone` is the store's lock, held
    /// exclusively. What lies in the directory of a machine is its supervisor's and goes with the machine.
    pub fn sweep_asides(&self, _alone: &StoreLock) -> StoreResult<usize> {
        let root = self.root();
        let mut removed = sweep(root)?;
        for directory in ["indexes", "revisions", "cache/v1/builds", "cache/v1/revisions"] {
            removed += sweep(&root.join(directory))?;
        }
        let templates = root.join("templates");
        for name in fs::list_dir(&templates)? {
            let template = templates.join(name);
            if fs::symlink_metadata(&template)?.is_dir() {
                removed += sweep(&template)? + sweep(&template.join("tags"))?;
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
