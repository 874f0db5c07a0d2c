//! What tells one state of a flake's directory from another, without reading the files.

use crate::error::BuildError;
use crate::fingerprint::Hasher;
use crate::tree::{DEPTH_MAX, FILES_MAX};
use kiln_core::digest::Digest;
use kiln_core::lock::LOCK_FILE_NAME;
use kiln_sys::{Cancel, fs};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Returns the identity of what Nix would copy: names, links and files. Times of directories are no part of that, and
/// kiln's own lock is left out: writing it after a build would make that build an old one.
pub(super) fn of(root: &Path, cancel: &Cancel) -> Result<Digest, BuildError> {
    let mut identity = Hasher::default();
    let mut files = 0;
    let mut stack = vec![(PathBuf::new(), 0_usize)];
    while let Some((relative, depth)) = stack.pop() {
        cancel.check()?;
        if files >= FILES_MAX {
            return Err(BuildError::TooManyFiles { path: root.to_owned(), max: FILES_MAX });
        }
        files += 1;
        let path = if depth == 0 { root.to_owned() } else { root.join(&relative) };
        let meta = fs::symlink_metadata(&path)?;
        identity.text(relative.as_os_str().as_bytes());
        if meta.is_dir() {
            if depth >= DEPTH_MAX {
                return Err(BuildError::TooDeep { path: root.to_owned(), max: DEPTH_MAX });
            }
            identity.numbers(&[0]);
            for name in fs::list_dir(&path)?.into_iter().rev() {
                if depth > 0 || name != LOCK_FILE_NAME {
                    stack.push((relative.join(name), depth + 1));
                }
            }
        } else if meta.is_symlink() {
            identity.numbers(&[1]);
            identity.text(fs::read_link(&path)?.as_os_str().as_bytes());
        } else {
            identity.numbers(&[2]);
            identity.file(&meta);
        }
    }
    Ok(identity.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    #[test]
    fn what_nix_would_copy_changes_the_identity_and_kilns_lock_does_not() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let (dir, cancel) = (scratch.path(), Cancel::new().unwrap());
        let put = |name: &str, text: &str| {
            write_file(&dir.join(name), text.as_bytes(), 0o644, Existing::Replace).unwrap();
        };
        let now = || of(dir, &cancel).unwrap();
        put("flake.nix", "{ }");
        let first = now();
        put(LOCK_FILE_NAME, "version = 1");
        assert_eq!(now(), first);
        put("flake.lock", "{}");
        let second = now();
        assert_ne!(second, first);
        put("flake.lock", "{ }");
        let third = now();
        assert_ne!(third, second);
        fs::create_dir(&dir.join("sub")).unwrap();
        let fourth = now();
        assert_ne!(fourth, third);
        put("sub/kiln.lock", "a file of the flake's");
        assert_ne!(now(), fourth);
    }
}
