//! The one way a file becomes visible: written aside, synced, given its mode, renamed, directory synced.

use crate::error::{IoResult, IoResultExt};
use crate::{fail, fs};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What happens when something stands at the target already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is replaced in one step: for records that move.
    Replace,
    /// It stays, and the new file is dropped: for files named by their content.
    Keep,
    /// It stays, and the commit fails: for files of the user's.
    Refuse,
}

/// Publishes a finished file at `to`, on the same file system, with `mode`. After success it is durable; after a
/// failure or a crash the target is as it was, or, when only the directory could not be synced, the whole new file.
pub fn commit_file(file: &File, from: &Path, to: &Path, mode: u32, existing: Existing) -> IoResult<()> {
    fail::point("commit.mode", from)?;
    fs::set_mode(from, mode)?;
    fail::point("commit.sync", from)?;
    file.sync_all().at("sync", from)?;
    fail::point("commit.rename", from)?;
    match existing {
        Existing::Replace => fs::rename(from, to)?,
        Existing::Refuse => fs::rename_new(from, to)?,
        Existing::Keep => match fs::rename_new(from, to) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                fail::point("commit.drop", from)?;
                fs::remove_file(from)?;
            }
            other => other?,
        },
    }
    sync_parent(to)
}

/// Publishes a finished directory at `to`, which must not exist. The caller has synced the files in it.
pub fn commit_dir(from: &Path, to: &Path) -> IoResult<()> {
    fail::point("commit.dir-sync", from)?;
    fs::sync_dir(from)?;
    fail::point("commit.dir-rename", from)?;
    fs::rename_new(from, to)?;
    sync_parent(to)
}

/// Has a finished directory take the place of the one at `to`, which is at `from` then. The caller has synced the files in
/// it.
pub fn commit_dir_over(from: &Path, to: &Path) -> IoResult<()> {
    fail::point("commit.dir-sync", from)?;
    fs::sync_dir(from)?;
    fail::point("commit.dir-rename", from)?;
    fs::exchange(from, to)?;
    sync_parent(to)
}

/// Writes `bytes` to `path` in one step: readers see the old content or the new, never a part.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32, existing: Existing) -> IoResult<()> {
    let aside = aside(path);
    fail::point("commit.create", &aside)?;
    let result = fs::create_new(&aside).and_then(|mut file| {
        fail::point("commit.write", &aside)?;
        file.write_all(bytes).at("write", &aside)?;
        commit_file(&file, &aside, path, mode, existing)
    });
    if result.is_err() {
        // The error that is returned says more than a failed clean-up would.
        let _ = fs::remove_file(&aside);
    }
    result
}

/// Writes `bytes` to a new file in a directory that nobody sees yet and syncs it: [`commit_dir`] makes its name durable,
/// and it visible.
pub fn write_staged(path: &Path, bytes: &[u8], mode: u32) -> IoResult<()> {
    fail::point("commit.staged-create", path)?;
    let mut file = fs::create_new(path)?;
    fail::point("commit.staged-write", path)?;
    file.write_all(bytes).at("write", path)?;
    fs::set_mode(path, mode)?;
    fail::point("commit.staged-sync", path)?;
    file.sync_all().at("sync", path)
}

/// Returns whether a file name is one that [`aside`] makes.
pub fn is_aside(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".aside-")
}

/// Returns a name beside `path` for what is to be committed there.
pub fn aside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".aside-{}", crate::clock::random_hex::<8>()))
}

fn sync_parent(path: &Path) -> IoResult<()> {
    fail::point("commit.parent-sync", path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::sync_dir(parent),
        _ => fs::sync_dir(Path::new(".")),
    }
}
