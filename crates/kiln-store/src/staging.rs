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
        let staging = self.reserve(work)?;
        fail::point("stage.directory", &staging.path)?;
        fs::create_dir(&staging.path)?;
        fail::point("stage.made", &staging.path)?;
        Ok(staging)
    }

    /// Takes the lock of a staging directory that is yet to come.
    fn reserve(&self, work: &str) -> StoreResult<Staging> {
        let name = clock::random_hex::<8>();
        let parent = self.root().join("staging");
        let lock_path = parent.join(format!("{name}.lock"));
        let lock = FileLock::try_take(&lock_path, work)?.map_err(|_| StoreError::Damaged {
            path: lock_path.clone(),
            reason: "a random name is taken".to_owned(),
        })?;
        let path = parent.join(&name);
        Ok(Staging { path, lock_path, _lock: lock })
    }

    /// Removes the staging directories of processes that are gone; returns how many. One that cannot be removed keeps
    /// none of the others; the first such error is returned after them.
    pub fn sweep_staging(&self) -> StoreResult<usize> {
        let parent = self.root().join("staging");
        let (mut removed, mut failed) = (0, None);
        for name in fs::list_dir(&parent)? {
            let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".lock")) else { continue };
            match sweep(&parent.join(stem), &parent.join(&name)) {
                Ok(swept) => removed += usize::from(swept),
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        failed.map_or(Ok(removed), Err)
    }

    /// Moves a directory out of sight and removes it: whoever looks sees it whole or not at all. It becomes a staging
    /// directory itself, which takes no space: a full disk can be freed so.
    pub fn discard_dir(&self, path: &Path) -> StoreResult<()> {
        let staging = self.reserve("removing a directory")?;
        fail::point("discard.rename", path)?;
        match fs::rename(path, &staging.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => Ok(other?),
        }
    }
}

/// Removes a staging directory whose lock is free; returns whether there was one.
fn sweep(path: &Path, lock_path: &Path) -> StoreResult<bool> {
    let Ok(_lock) = FileLock::try_take(lock_path, "removing what an ended process left")? else {
        return Ok(false);
    };
    let there = fs::exists(path)?;
    if there {
        fail::point("sweep.tree", path)?;
        fs::remove_tree(path)?;
    }
    fail::point("sweep.lock", lock_path)?;
    fs::remove_file(lock_path)?;
    Ok(there)
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
