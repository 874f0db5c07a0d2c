//! What is taken from a root file system without mounting it: the kernel and its modules.

use crate::error::BuildError;
use crate::kernel;
use crate::modules::{BUILTIN_BYTES_MAX, FILES_MAX, GUEST_DRIVERS, MODULE_BYTES_MAX, ModuleError};
use crate::seed::{CLOUD_INIT, CLOUD_INIT_OFF};
use crate::steps::write;
use kiln_core::recipe::AgentOptions;
use kiln_source::disk::boot;
use kiln_source::ext4::{Image, ImageError, Inode, Kind};
use kiln_sys::{Cancel, IoResultExt as _, copy, fs};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The most bytes of all modules that are taken.
pub(crate) const MODULES_BYTES_MAX: u64 = 1 << 30;
/// The largest list of what modules need that is read, in bytes.
const DEP_BYTES_MAX: u64 = 16 << 20;
/// The most directories within one another below a kernel's modules.
const DEPTH_MAX: usize = 16;

/// A file system in a file.
pub(super) struct Contents {
    image: Image,
    path: PathBuf,
}

impl Contents {
    pub(super) fn open(path: &Path, cancel: &Cancel) -> Result<Self, BuildError> {
        let file = fs::open(path)?;
        let len = file.metadata().at("inspect", path)?.len();
        let data = copy::allocated_bytes(path)?;
        let image = Image::open(file, path.to_owned(), len, data, cancel.clone());
        let image = image.map_err(|source| refused(path, source))?;
        Ok(Self { image, path: path.to_owned() })
    }

    fn refused(&self, source: ImageError) -> BuildError {
        refused(&self.path, source)
    }

    /// Whether a path of the image leads to a program.
    pub(super) fn has_program(&self, path: &str) -> Result<bool, BuildError> {
        let inode = self.image.follow(path).map_err(|source| self.refused(source))?;
        Ok(inode.is_some_and(|inode| inode.kind == Kind::File && inode.mode & 0o111 != 0))
    }

    /// Whether it has cloud-init, and has it on.
    pub(super) fn has_cloud_init(&self) -> Result<bool, BuildError> {
        let has = |path| {
            let inode = self.image.follow(path).map_err(|source| self.refused(source))?;
            Ok::<_, BuildError>(inode.is_some_and(|inode| inode.kind == Kind::File))
        };
        Ok(has(CLOUD_INIT)? && !has(CLOUD_INIT_OFF)?)
    }

    /// Writes the kernel that the image would start to a new file and returns its path in the image; none where there
    /// is none. `boot` is what is mounted at `/boot`.
    pub(super) fn kernel(&self, boot: Option<&Self>, to: &Path) -> Result<Option<String>, BuildError> {
        let found = boot::find_kernel(&self.image, boot.map(|boot| &boot.image));
        let Some(found) = found.map_err(|source| self.refused(source))? else { return Ok(None) };
        let max = kernel::FILE_BYTES_MAX as u64;
        if found.inode.size > max {
            let (path, size) = (found.path, found.inode.size);
            return Err(self.refused(ImageError::FileTooLarge { path, size, max }));
        }
        let copied = found.image.copy_file(&found.inode, &fs::create_new(to)?, to);
        copied.map_err(|source| self.refused(source))?;
        Ok(Some(found.path))
    }

    /// Writes the modules that a guest may need to a new directory and returns that of the kernel's version; none where
    /// the image has no modules at all.
    pub(super) fn modules(
        &self,
        agent: &AgentOptions,
        kernel: &Path,
        image: &Path,
        to: &Path,
    ) -> Result<Option<PathBuf>, BuildError> {
        let path = image.to_owned();
        let loaded = kernel::load(kernel).map_err(|source| BuildError::Kernel { path, source })?;
        let refuse = |source| self.refused(source);
        let all = self.image.follow("/lib/modules").map_err(refuse)?;
        let Some(all) = all.filter(|inode| inode.kind == Kind::Directory) else { return Ok(None) };
        let entries = self.image.entries(&all).map_err(refuse)?;
        let versions: Vec<String> =
            entries.into_iter().filter_map(|entry| String::from_utf8(entry.name).ok()).collect();
        let version = match (&loaded.release, versions.as_slice()) {
            (_, []) => return Ok(None),
            (Some(release), _) if versions.contains(release) => release,
            (None, [only]) => only,
            (release, _) => {
                let release = release.clone().unwrap_or_else(|| "an unknown version".to_owned());
                return Err(BuildError::NoModules {
                    path: image.to_owned(),
                    release,
                    there: versions.join(", "),
                });
            }
        };
        let dir = to.join(version);
        fs::create_dir_all(&dir)?;
        let base = format!("/lib/modules/{version}");
        if let Some(list) = self.list(&base, "modules.builtin", BUILTIN_BYTES_MAX as u64)? {
            let path = dir.join("modules.builtin");
            write(&path, |out| out.write_all(&list).at("write", &path))?;
        }
        let files = match self.list(&base, "modules.dep", DEP_BYTES_MAX)? {
            Some(list) => needed(&String::from_utf8_lossy(&list), agent),
            None => self.all_files(&base)?,
        };
        self.copy_modules(&base, &files, &dir, image)?;
        Ok(Some(dir))
    }

    fn list(&self, base: &str, name: &str, max: u64) -> Result<Option<Vec<u8>>, BuildError> {
        let path = format!("{base}/{name}");
        let inode = self.image.follow(&path).map_err(|source| self.refused(source))?;
        let Some(inode) = inode.filter(|inode| inode.kind == Kind::File) else { return Ok(None) };
        let read = self.image.read_file(&inode, &path, max);
        read.map(Some).map_err(|source| self.refused(source))
    }

    /// Returns the modules below a directory, as paths from it; links are left out.
    fn all_files(&self, base: &str) -> Result<BTreeSet<String>, BuildError> {
        let refuse = |source| self.refused(source);
        let mut files = BTreeSet::new();
        let mut stack = vec![(String::new(), 0)];
        while let Some((dir, depth)) = stack.pop() {
            let Some(inode) = self.image.follow(&format!("{base}/{dir}")).map_err(refuse)? else { continue };
            for entry in self.image.entries(&inode).map_err(refuse)? {
                let Ok(name) = String::from_utf8(entry.name) else { continue };
                let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                match self.image.inode(entry.inode).map_err(refuse)?.kind {
                    Kind::Directory if depth < DEPTH_MAX => stack.push((path, depth + 1)),
                    Kind::File if path.contains(".ko") => {
                        files.insert(path);
                    }
                    _ => {}
                }
            }
            if files.len() > FILES_MAX {
                return Err(ModuleError::TooMany(PathBuf::from(base)).into());
            }
        }
        Ok(files)
    }

    /// Copies modules, each to its file name: their places say nothing that is needed.
    fn copy_modules(
        &self,
        base: &str,
        files: &BTreeSet<String>,
        dir: &Path,
        image: &Path,
    ) -> Result<(), BuildError> {
        let mut total = 0_u64;
        let mut done = BTreeSet::new();
        for file in files {
            let path = format!("{base}/{file}");
            let inode: Option<Inode> = self.image.follow(&path).map_err(|source| self.refused(source))?;
            let Some(inode) = inode.filter(|inode| inode.kind == Kind::File) else { continue };
            let name = file.rsplit('/').next().unwrap_or(file);
            if name.is_empty() || name == "." || name == ".." || !done.insert(name.to_owned()) {
                continue;
            }
            total = total.saturating_add(inode.size);
            let (size, max) = if inode.size > MODULE_BYTES_MAX {
                (inode.size, MODULE_BYTES_MAX)
            } else {
                (total, MODULES_BYTES_MAX)
            };
            if size > max {
                let source = ImageError::FileTooLarge { path, size, max };
                return Err(refused(image, source));
            }
            let to = dir.join(name);
            let copied = self.image.copy_file(&inode, &fs::create_new(&to)?, &to);
            copied.map_err(|source| self.refused(source))?;
        }
        Ok(())
    }
}

fn refused(path: &Path, source: ImageError) -> BuildError {
    match source {
        ImageError::Cancelled(_) => BuildError::Cancelled,
        ImageError::Io(error) => BuildError::Io(error),
        source => BuildError::Contents { path: path.to_owned(), source },
    }
}

/// Returns the files that the drivers of a guest and what they need are in, by a kernel's own list.
fn needed(list: &str, agent: &AgentOptions) -> BTreeSet<String> {
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split(".ko").next().unwrap_or(file).replace('-', "_")
    };
    let lines: BTreeMap<String, (&str, &str)> = list
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (name(path), (path, needs)))
        .collect();
    let own = agent.modules.iter().map(|module| module.replace('-', "_"));
    let mut wanted: Vec<String> =
        GUEST_DRIVERS.iter().map(|driver| driver.name.to_owned()).chain(own).collect();
    let (mut files, mut seen) = (BTreeSet::new(), BTreeSet::new());
    while let Some(module) = wanted.pop() {
        if !seen.insert(module.clone()) {
            continue;
        }
        if let Some((path, needs)) = lines.get(&module) {
            files.insert((*path).to_owned());
            wanted.extend(needs.split_whitespace().map(name));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_needs_comes_along() {
        let list = "kernel/fs/ext4/ext4.ko.zst: kernel/fs/jbd2/jbd2.ko.zst kernel/lib/crc16.ko\n\
                    kernel/fs/jbd2/jbd2.ko.zst: kernel/lib/more.ko\n\
                    kernel/lib/more.ko:\nkernel/lib/crc16.ko:\nkernel/sound/snd.ko:\nkernel/a/own-driver.ko:\n";
        let agent = AgentOptions { modules: vec!["own_driver".to_owned()], ..AgentOptions::default() };
        let files: Vec<String> = needed(list, &agent).into_iter().collect();
        assert_eq!(
            files,
            [
                "kernel/a/own-driver.ko",
                "kernel/fs/ext4/ext4.ko.zst",
                "kernel/fs/jbd2/jbd2.ko.zst",
                "kernel/lib/crc16.ko",
                "kernel/lib/more.ko"
            ]
        );
    }
}
