//! Staging: directories in the store that nobody sees. Each is locked by the process at work in it; one whose lock
//! is free was left by a process that is gone, and is removed.

use crate::error::{StoreError, StoreResult};
use crate::layout::Store;
use kiln_sys::lock::FileLock;
use kiln_sys::{clock, fail, fs};
use std::path::{Path, PathBuf};

/// A private directory on the store's file system. Dropping it removes what is left in it.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: FileLock,
}

impl Store {
    /// Makes a staging directory. `work` names what it is for.
    pub fn stage(&self, work: &str) -> StoreResult<Staging> {
        let name = clock::random_hex::<8>();
        let parent = self.root().join("staging");
        let lock_path = parent.join(format!("{name}.lock"));
        let lock = FileLock::try_take(&lock_path, work)?.map_err(|_| StoreError::Damaged {
            path: lock_path.clone(),
            reason: "a random name is taken".to_owned(),
        })?;
        let path = parent.join(&name);
        fail::point("stage.directory", &path)?;
        fs::create_dir(&path)?;
        fail::point("stage.made", &path)?;
        Ok(Staging { path, lock_path, _lock: lock })
    }

    /// Removes the staging directories of processes that are gone; returns how many.
    pub fn sweep_staging(&self) -> StoreResult<usize> {
        let parent = self.root().join("staging");
        let mut removed = 0;
        for name in fs::list_dir(&parent)? {
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".lock")) else { continue };
            let lock_path = parent.join(&name);
            let Ok(_lock) = FileLock::try_take(&lock_path, "removing what an ended process left")? else {
                continue;
            };
            let path = parent.join(stem);
            if fs::exists(&path)? {
                fail::point("sweep.tree", &path)?;
                fs::remove_tree(&path)?;
                removed += 1;
            }
            fail::point("sweep.lock", &lock_path)?;
            fs::remove_file(&lock_path)?;
        }
        Ok(removed)
    }

    /// Moves a directory out of sight and removes it: whoever looks sees it whole or not at all.
    pub fn discard_dir(&self, path: &Path) -> StoreResult<()> {
        let staging = self.stage("removing a directory")?;
        fail::point("discard.rename", path)?;
        match fs::rename(path, &staging.path().join("discarded")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }
}

impl Staging {
    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is swept by a later command: the lock is free by then.
        let cleared = fail::point("stage.clear", &self.path).and_then(|()| fs::remove_tree(&self.path));
        if cleared.is_ok() && fail::point("stage.unlock", &self.lock_path).is_ok() {
            let _ = fs::remove_file(&self.lock_path);
        }
    }
}
