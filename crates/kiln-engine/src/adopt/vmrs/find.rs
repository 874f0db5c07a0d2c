//! What lies in the layout: images that are whole, and what is the matter with the others.

use super::{DISK_FILE, IMAGES, KERNEL_FILE, PARTIAL_FILE, RAW_FILE};
use crate::adopt::scan::{entries, shown};
use crate::{EngineError, EngineResult};
use kiln_core::catalog::WORD_BYTES_MAX;
use kiln_core::{Arch, Digest};
use kiln_sys::fs;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The most images of a directory.
const IMAGES_MAX: usize = 1000;

/// Why something in the layout is no image that can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageFilesError {
    /// A name that no image has.
    #[error(
        "`{0}` is no name of a distribution or release: 1 to {WORD_BYTES_MAX} of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit"
    )]
    Name(String),
    /// A link, which may lead anywhere.
    #[error("{} is a symbolic link", .0.display())]
    Link(PathBuf),
    /// Something in the place of a file or a directory.
    #[error("{} is not {wanted}", path.display())]
    Kind {
        /// Where.
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
    },
    /// A file without content.
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
    /// No disk image.
    #[error("{} has neither {DISK_FILE} nor {RAW_FILE}{}", path.display(), if *partial { ", but what is left of a download that did not end" } else { "" })]
    NoDisk {
        /// The image's directory.
        path: PathBuf,
        /// Whether there is one that was never whole.
        partial: bool,
    },
    /// The template and tag that it would be are something else.
    #[error("`{name}` is revision {} in the store, which did not come from there", revision.short())]
    Taken {
        /// Template and tag.
        name: String,
        /// What the tag points to.
        revision: Digest,
    },
}

/// An image that is whole as far as the names and lengths of its files tell.
#[derive(Debug, Clone)]
pub(super) struct FoundImage {
    /// Its place, as it is written.
    pub(super) place: String,
    /// In lower case.
    pub(super) distribution: String,
    /// In lower case.
    pub(super) release: String,
    pub(super) disk: PathBuf,
    pub(super) kernel: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) images: Vec<FoundImage>,
    /// Places with what is the matter.
    pub(super) failed: Vec<(String, EngineError)>,
    /// Places that are for other architectures alone.
    pub(super) foreign: Vec<String>,
}

/// Returns the directory of images: in a data root, in its cache, or what was given.
pub(super) fn root(dir: &Path) -> EngineResult<PathBuf> {
    for path in [dir.join(IMAGES), dir.join("cache").join(IMAGES)] {
        if fs::optional(fs::metadata(&path))?.is_some_and(|meta| meta.is_dir()) {
            return Ok(path);
        }
    }
    Ok(dir.to_owned())
}

/// Finds all images for an architecture.
pub(super) fn images(root: &Path, arch: Arch) -> EngineResult<Found> {
    let mut found = Found::default();
    for distribution in entries(root)? {
        let path = root.join(&distribution);
        match is_directory(&path) {
            Ok(true) => {}
            // A file beside the directories.
            Ok(false) => continue,
            Err(error) => {
                found.failed.push((shown(&distribution), error));
                continue;
            }
        }
        for release in entries(&path)? {
            let place = format!("{}/{}", shown(&distribution), shown(&release));
            let home = path.join(&release);
            match image(&home, [&distribution, &release], arch, &place) {
                Ok(Looked::Image(image)) => found.images.push(image),
                Ok(Looked::Foreign) => found.foreign.push(place),
                Ok(Looked::Nothing) => {}
                Err(error) => found.failed.push((place, error)),
            }
            check_images(found.images.len() + found.failed.len(), root)?;
        }
    }
    Ok(found)
}

fn check_images(images: usize, root: &Path) -> EngineResult<()> {
    if images > IMAGES_MAX {
        let reason = format!("holds more than {IMAGES_MAX} images");
        return Err(EngineError::HostPath { path: root.to_owned(), reason });
    }
    Ok(())
}

enum Looked {
    Image(FoundImage),
    /// For other architectures alone.
    Foreign,
    Nothing,
}

fn image(home: &Path, names: [&OsStr; 2], arch: Arch, place: &str) -> EngineResult<Looked> {
    if !is_directory(home)? {
        return Ok(Looked::Nothing);
    }
    let dir = home.join(arch.as_str());
    if !fs::exists(&dir)? {
        let is_there = |arch: Arch| fs::exists(&home.join(arch.as_str()));
        let foreign = is_there(Arch::X86_64)? || is_there(Arch::Aarch64)?;
        return Ok(if foreign { Looked::Foreign } else { Looked::Nothing });
    }
    if !is_directory(&dir)? {
        return Err(ImageFilesError::Kind { path: dir, wanted: "a directory" }.into());
    }
    let [distribution, release] = names.map(word);
    let (distribution, release) = (distribution?, release?);
    let disk = match file(&dir.join(DISK_FILE))? {
        Some(disk) => disk,
        None => match file(&dir.join(RAW_FILE))? {
            Some(disk) => disk,
            None => {
                let partial = fs::exists(&dir.join(PARTIAL_FILE))?;
                return Err(ImageFilesError::NoDisk { path: dir, partial }.into());
            }
        },
    };
    let kernel = file(&dir.join(KERNEL_FILE))?;
    Ok(Looked::Image(FoundImage { place: place.to_owned(), distribution, release, disk, kernel }))
}

/// Returns a name in lower case.
fn word(name: &OsStr) -> Result<String, ImageFilesError> {
    let lower = name.to_str().map(str::to_ascii_lowercase);
    let is_word = |word: &String| kiln_core::catalog::ImageName::of(word, None).is_some();
    lower.filter(is_word).ok_or_else(|| ImageFilesError::Name(shown(name)))
}

/// Whether a directory is there, and not a link to one.
fn is_directory(path: &Path) -> EngineResult<bool> {
    let meta = fs::symlink_metadata(path)?;
    if meta.file_type().is_symlink() {
        return Err(ImageFilesError::Link(path.to_owned()).into());
    }
    Ok(meta.is_dir())
}

/// Returns a file that is there and holds something.
fn file(path: &Path) -> EngineResult<Option<PathBuf>> {
    let Some(meta) = fs::optional(fs::symlink_metadata(path))? else { return Ok(None) };
    let path = path.to_owned();
    match meta.file_type() {
        kind if kind.is_symlink() => Err(ImageFilesError::Link(path).into()),
        kind if !kind.is_file() => Err(ImageFilesError::Kind { path, wanted: "a regular file" }.into()),
        _ if meta.len() == 0 => Err(ImageFilesError::Empty(path).into()),
        _ => Ok(Some(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    #[test]
    fn the_images_of_a_directory_are_limited() {
        check_images(1000, Path::new("/images")).unwrap();
        let error = check_images(1001, Path::new("/images")).unwrap_err().to_string();
        assert_eq!(error, "/images holds more than 1000 images");
    }

    #[test]
    fn what_is_whole_is_found_and_what_is_not_is_told() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let images_dir = scratch.path().join("images");
        let put = |place: &str, content: &[u8]| {
            let path = images_dir.join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_file(&path, content, 0o600, Existing::Refuse).unwrap();
            path
        };
        put("README", b"no image");
        put("Ubuntu/24.04/x86_64/disk.img", b"disk");
        put("Ubuntu/24.04/x86_64/vmlinuz", b"kernel");
        put("ubuntu/22.04/x86_64/disk.raw", b"disk");
        put("ubuntu/20.04/aarch64/disk.img", b"disk");
        put("ubuntu/18.04/x86_64/disk.tmp", b"dis");
        put("machines/one/disk.img", b"no image");
        put("ubuntu/empty/x86_64/disk.img", b"");
        put("ubuntu/half/x86_64/disk.img", b"disk");
        put("ubuntu/half/x86_64/vmlinuz", b"");
        put("ubuntu/a b/x86_64/disk.img", b"disk");
        fs::create_dir_all(&images_dir.join("linked/1/x86_64")).unwrap();
        fs::symlink(Path::new("/etc/passwd"), &images_dir.join("linked/1/x86_64/disk.img")).unwrap();
        fs::symlink(&images_dir.join("ubuntu"), &images_dir.join("other")).unwrap();
        fs::create_dir_all(&images_dir.join("dir/1/x86_64/disk.img")).unwrap();
        let cached = scratch.path().join("data");
        fs::create_dir_all(&cached.join("cache/images")).unwrap();
        assert_eq!(root(&cached).unwrap(), cached.join("cache/images"));
        assert_eq!(root(&images_dir).unwrap(), images_dir);
        assert_eq!(root(scratch.path()).unwrap(), images_dir);

        let found = images(&images_dir, Arch::X86_64).unwrap();
        let name = |image: &FoundImage| {
            (image.place.clone(), format!("{}:{}", image.distribution, image.release), image.kernel.is_some())
        };
        let want = [("Ubuntu/24.04", "ubuntu:24.04", true), ("ubuntu/22.04", "ubuntu:22.04", false)];
        let want = want.map(|(place, name, kernel)| (place.to_owned(), name.to_owned(), kernel));
        assert_eq!(found.images.iter().map(name).collect::<Vec<_>>(), want);
        assert_eq!(found.foreign, ["ubuntu/20.04"]);
        let told: Vec<String> =
            found.failed.iter().map(|(place, error)| format!("{place}: {error}")).collect();
        let in_images = |text: &str| text.replace("IMAGES", &images_dir.display().to_string());
        let want = [
            "dir/1: IMAGES/dir/1/x86_64/disk.img is not a regular file",
            "linked/1: IMAGES/linked/1/x86_64/disk.img is a symbolic link",
            "other: IMAGES/other is a symbolic link",
            "ubuntu/18.04: IMAGES/ubuntu/18.04/x86_64 has neither disk.img nor disk.raw, but what is left of a download that did not end",
            "ubuntu/a b: `a b` is no name of a distribution or release: 1 to 63 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit",
            "ubuntu/empty: IMAGES/ubuntu/empty/x86_64/disk.img is empty",
            "ubuntu/half: IMAGES/ubuntu/half/x86_64/vmlinuz is empty",
        ];
        assert_eq!(told, want.map(in_images));
    }
}
