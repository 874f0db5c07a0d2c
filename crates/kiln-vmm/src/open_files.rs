//! Which files a process holds open.

use kiln_sys::{IoResult, fs};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The most descriptors that are looked at.
const DESCRIPTORS_MAX: usize = 4096;

/// Returns whether a process has the very file open that is now at `path`: the same inode of the same file system. A
/// monitor that was restored onto another disk does not find out by itself.
///
/// # Errors
/// When the file is not there, or the process has ended or is another user's.
pub fn holds_open(pid: u32, path: &Path) -> IoResult<bool> {
    let wanted = fs::metadata(path)?;
    let dir = Path::new("/proc").join(pid.to_string()).join("fd");
    for name in fs::list_dir(&dir)?.into_iter().take(DESCRIPTORS_MAX) {
        // A descriptor may be closed while the others are looked at.
        if let Some(open) = fs::optional(fs::metadata(&dir.join(name)))?
            && (open.dev(), open.ino()) == (wanted.dev(), wanted.ino())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_inode_and_not_by_its_name() {
        let dir = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let (path, other) = (dir.path().join("disk"), dir.path().join("other"));
        let file = fs::create_new(&path).unwrap();
        let pid = std::process::id();
        assert!(holds_open(pid, &path).unwrap());
        fs::rename(&path, &other).unwrap();
        drop(fs::create_new(&path).unwrap());
        assert!(!holds_open(pid, &path).unwrap());
        assert!(holds_open(pid, &other).unwrap());
        drop(file);
        assert!(!holds_open(pid, &other).unwrap());
        assert!(holds_open(pid, &dir.path().join("missing")).is_err());
    }
}
