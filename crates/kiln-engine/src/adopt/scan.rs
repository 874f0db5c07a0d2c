//! What lies in a rootfs registry, and what of it cannot be taken over.

use super::{IMAGE_FILE, ImportRegistry, SIZE_FILE, STAMP_FILE};
use crate::{Engine, EngineError, EngineResult, RegistryProblem};
use kiln_core::{ByteSize, Digest, DiskOwner, TemplateName, text};
use kiln_sys::{IoResult, IoResultExt as _, fs};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 100_000;
/// The largest stamp that is read, in bytes.
const STAMP_BYTES_MAX: usize = 1024;
/// Where an ext4 file system has its magic number, and the number.
const EXT4_MAGIC: (u64, [u8; 2]) = (1024 + 0x38, [0x53, 0xef]);

/// A stack that can become a template.
#[derive(Debug, Clone)]
pub(super) struct FoundStack {
    pub(super) name: TemplateName,
    pub(super) image: PathBuf,
    pub(super) size: ByteSize,
    /// SHA-256 of its bytes, where clones are looked for.
    pub(super) sha256: Option<Digest>,
    /// The digest by which the store will know these bytes.
    pub(super) artifact: Option<Digest>,
}

/// A clone that can become a disk.
#[derive(Debug, Clone)]
pub(super) struct FoundClone {
    pub(super) owner: DiskOwner,
    pub(super) image: PathBuf,
    /// The stack whose bytes its stamp names.
    pub(super) stack: TemplateName,
}

impl Engine {
    /// Finds all stacks and clones, or says what is the matter with each that cannot be taken over.
    pub(super) fn scan_registry(
        &self,
        request: &ImportRegistry<'_>,
    ) -> EngineResult<(Vec<FoundStack>, Vec<FoundClone>)> {
        let mut problems = Vec::new();
        let mut stacks = Vec::new();
        for name in entries(request.templates)? {
            match self.stack(request, &name) {
                Ok(stack) => stacks.extend(stack),
                Err(Refusal::Because(reason)) => {
                    problems.push(RegistryProblem { name: shown(&name), reason });
                }
                Err(Refusal::Stop(error)) => return Err(error),
            }
        }
        if stacks.is_empty() && problems.is_empty() {
            return Err(EngineError::RegistryEmpty {
                path: request.templates.to_owned(),
                file: "STACK/rootfs.ext4",
            });
        }
        let mut clones = Vec::new();
        if let Some(dir) = request.clones {
            for name in entries(dir)? {
                match self.clone(dir, &name, &stacks) {
                    Ok(clone) => clones.extend(clone),
                    Err(Refusal::Because(reason)) => {
                        let name = format!("clone {}", shown(&name));
                        problems.push(RegistryProblem { name, reason });
                    }
                    Err(Refusal::Stop(error)) => return Err(error),
                }
            }
        }
        if !problems.is_empty() {
            let path = request.templates.to_owned();
            return Err(EngineError::Registry { action: "imported", path, problems });
        }
        Ok((stacks, clones))
    }

    /// Looks at one stack, through symbolic links; none where there is no image.
    fn stack(
        &self,
        request: &ImportRegistry<'_>,
        name: &std::ffi::OsStr,
    ) -> Result<Option<FoundStack>, Refusal> {
        self.cancel.check()?;
        let image = request.templates.join(name).join(IMAGE_FILE);
        if !stands(&image)? {
            return Ok(None);
        }
        let name: TemplateName = parse(name)?;
        let size = image_size(&image)?;
        let (mut sha256, mut artifact) = (None, None);
        if request.clones.is_some() {
            let hash = self.store.disks(&self.cancel).hash(&image)?;
            (sha256, artifact) = (Some(hash.sha256), Some(hash.artifact));
        }
        Ok(Some(FoundStack { name, image, size, sha256, artifact }))
    }

    /// Looks at one clone; none where there is no image. A link is no disk of one's own and is not followed.
    fn clone(
        &self,
        dir: &Path,
        name: &std::ffi::OsStr,
        stacks: &[FoundStack],
    ) -> Result<Option<FoundClone>, Refusal> {
        let home = dir.join(name);
        let image = home.join(IMAGE_FILE);
        if !stands(&image)? {
            return Ok(None);
        }
        let owner: DiskOwner = parse(name)?;
        if owner.as_str().contains('_') {
            return refuse("several ids of machines share it: each `_` may stand for another character");
        }
        for path in [&home, &image] {
            if fs::symlink_metadata(path)?.file_type().is_symlink() {
                return refuse(format!("{} is a symbolic link", path.display()));
            }
        }
        let size = image_size(&image)?;
        if self.store.disk_owners()?.contains(&owner) {
            return refuse("this owner has a disk in the store already");
        }
        let Some(stamp) = read(&home.join(STAMP_FILE))? else {
            return refuse(format!("it has no {STAMP_FILE}: it may be a part only"));
        };
        let Ok(stamp) = Digest::from_hex(&stamp) else {
            return refuse(format!("its {STAMP_FILE} is `{}`, no SHA-256", text::clip(&stamp)));
        };
        let Some(stack) = stacks.iter().find(|stack| stack.sha256 == Some(stamp)) else {
            return refuse(format!("its template, SHA-256 {}, is not among the stacks", stamp.hex()));
        };
        let wanted = match read(&home.join(SIZE_FILE))? {
            None => stack.size.bytes(),
            Some(text) => match text.parse::<u64>() {
                Ok(grown) => grown,
                Err(_) => return refuse(format!("its {SIZE_FILE} is `{}`, no number", text::clip(&text))),
            },
        };
        if size.bytes() != wanted || size < stack.size {
            return refuse(format!("it has {} bytes, {wanted} are recorded", size.bytes()));
        }
        Ok(Some(FoundClone { owner, image, stack: stack.name.clone() }))
    }
}

/// Why an entry is not taken, or why the look ends.
pub(super) enum Refusal {
    /// This entry only.
    Because(String),
    /// All of it.
    Stop(EngineError),
}

impl<E: Into<EngineError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        match error.into() {
            EngineError::Cancelled => Self::Stop(EngineError::Cancelled),
            error => Self::Because(text::chain(&error)),
        }
    }
}

pub(super) fn refuse<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Because(reason.into()))
}

/// Lists the names in a directory that was given, which must be there.
pub(super) fn entries(dir: &Path) -> EngineResult<Vec<std::ffi::OsString>> {
    if !fs::exists(dir)? {
        return Err(EngineError::NoDirectory { path: dir.to_owned() });
    }
    let mut names = fs::list_dir(dir)?;
    check_entries(names.len(), dir)?;
    names.retain(|name| !kiln_sys::commit::is_aside(name));
    Ok(names)
}

fn check_entries(entries: usize, dir: &Path) -> EngineResult<()> {
    if entries > ENTRIES_MAX {
        let reason = format!("has more than {ENTRIES_MAX} entries");
        return Err(EngineError::HostPath { path: dir.to_owned(), reason });
    }
    Ok(())
}

pub(super) fn shown(name: &std::ffi::OsStr) -> String {
    text::clip(&name.to_string_lossy())
}

/// Whether something stands there, be it a link to nothing.
pub(super) fn stands(image: &Path) -> IoResult<bool> {
    match fs::exists(image) {
        // A file beside the directories.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Ok(false),
        other => other,
    }
}

fn parse<T: std::str::FromStr<Err = kiln_core::name::InvalidName>>(
    name: &std::ffi::OsStr,
) -> Result<T, Refusal> {
    match name.to_str().map(str::parse) {
        Some(Ok(name)) => Ok(name),
        Some(Err(error)) => refuse(error.to_string()),
        None => refuse("its name is no text"),
    }
}

/// Returns the length of an image that nothing else shares.
fn image_size(image: &Path) -> Result<ByteSize, Refusal> {
    let file = fs::open(image)?;
    let meta = file.metadata().at("inspect", image)?;
    if meta.nlink() > 1 {
        return refuse(format!(
            "its image has {} names: a machine that wrote to another wrote to this",
            meta.nlink()
        ));
    }
    check_magic(&file, image)?;
    Ok(ByteSize::from_bytes(meta.len()))
}

/// Checks that a file looks like an ext4 file system.
pub(super) fn check_ext4(image: &Path) -> Result<(), Refusal> {
    check_magic(&fs::open(image)?, image)
}

fn check_magic(file: &std::fs::File, image: &Path) -> Result<(), Refusal> {
    let (offset, magic) = EXT4_MAGIC;
    let mut found = [0; 2];
    let read = match file.read_exact_at(&mut found, offset) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
        read => read,
    };
    read.at("read", image)?;
    if found != magic {
        return refuse("its image is no ext4 file system");
    }
    Ok(())
}

/// Reads a stamp without the white space around it.
fn read(path: &Path) -> Result<Option<String>, Refusal> {
    Ok(fs::optional(fs::read_text_limited(path, STAMP_BYTES_MAX))?.map(|text| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    #[test]
    fn the_entries_of_a_registry_are_limited() {
        let dir = Path::new("/registry");
        check_entries(100_000, dir).unwrap();
        let error = check_entries(100_001, dir).unwrap_err().to_string();
        assert!(error.contains("/registry has more than 100000 entries"), "{error}");
    }

    #[test]
    fn a_stamp_has_a_largest_size() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = scratch.path().join(STAMP_FILE);
        let stamp = |bytes: usize| write_file(&path, &vec![b'a'; bytes], 0o600, Existing::Replace).unwrap();
        stamp(STAMP_BYTES_MAX);
        assert_eq!(read(&path).ok().flatten().unwrap().len(), 1024);
        stamp(STAMP_BYTES_MAX + 1);
        let Err(Refusal::Because(reason)) = read(&path) else { panic!("it was read") };
        assert!(reason.contains(STAMP_FILE) && reason.contains("more than 1024 bytes"), "{reason}");
    }
}
