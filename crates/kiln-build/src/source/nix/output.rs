//! What lies in an output of a flake: which file is what, by its name.
//!
//! | what | names |
//! |---|---|
//! | kernel | `vmlinux`, `bzImage`, `kernel`, `vmlinuz`, `Image` |
//! | initrd | `initrd`, `initrd.img`, `initramfs`, `initramfs.img` |
//! | root file system | `rootfs.ext4`, `rootfs.squashfs`, `rootfs.erofs`, `store-disk` |
//! | modules | the one directory in `lib/modules` |
//! | description | `spec.json` |
//!
//! Each is looked for in every output and in the directories of [`DIRS`] in it. Links are followed within the store.

use super::error::NixError;
use super::program::Built;
use crate::error::BuildError;
use kiln_core::digest::Digest;
use kiln_core::text::clip;
use kiln_sys::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const KERNEL: (&str, &[&str]) = ("kernel", &["vmlinux", "bzImage", "kernel", "vmlinuz", "Image"]);
const INITRD: (&str, &[&str]) = ("initrd", &["initrd", "initrd.img", "initramfs", "initramfs.img"]);
const ROOTFS: (&str, &[&str]) =
    ("root file system", &["rootfs.ext4", "rootfs.squashfs", "rootfs.erofs", "store-disk"]);
const SPEC: (&str, &[&str]) = ("spec.json", &["spec.json"]);

/// The directories of an output that files are looked for in, itself first.
const DIRS: [&str; 5] = ["", "boot", "image", "images", "artifacts"];
/// The directory of kernel modules in an output.
const MODULES_DIR: &str = "lib/modules";
/// The most names of files that a message repeats.
pub(super) const FOUND_MAX: usize = 32;
/// The largest description that is read, in bytes.
pub(super) const SPEC_BYTES_MAX: usize = 1 << 20;

/// The files of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) kernel: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) initrd: Option<PathBuf>,
    pub(super) modules: Option<PathBuf>,
    pub(super) spec: Option<PathBuf>,
}

impl Files {
    /// Finds the files of an image in what was built.
    pub(super) fn find(built: &Built) -> Result<Self, BuildError> {
        for output in &built.outputs {
            if !fs::metadata(output)?.is_dir() {
                return Err(NixError::OutputKind { path: output.clone() }.into());
            }
        }
        Ok(Self {
            kernel: required(built, KERNEL)?,
            rootfs: required(built, ROOTFS)?,
            initrd: one(built, INITRD)?,
            modules: modules(built)?,
            spec: one(built, SPEC)?,
        })
    }
}

/// Returns the digest of a description, which is remembered and not acted on.
pub(super) fn spec_digest(path: &Path) -> Result<Digest, BuildError> {
    Ok(Digest::of(&fs::read_limited(path, SPEC_BYTES_MAX)?))
}

fn required(built: &Built, (what, names): (&'static str, &[&str])) -> Result<PathBuf, BuildError> {
    if let Some(path) = one(built, (what, names))? {
        return Ok(path);
    }
    let what = format!("{what} ({})", names.join(", "));
    Err(NixError::Missing { path: built.main().to_owned(), what, found: held(built)? }.into())
}

/// Finds the one file that goes by one of these names; the same file by two of them is one.
fn one(built: &Built, (what, names): (&'static str, &[&str])) -> Result<Option<PathBuf>, BuildError> {
    let mut found: Option<(PathBuf, PathBuf)> = None;
    for output in &built.outputs {
        for dir in DIRS {
            for name in names {
                let path = output.join(dir).join(name);
                let Some(real) = inside(built, &path)? else { continue };
                if !fs::metadata(&real)?.is_file() {
                    continue;
                }
                match &found {
                    Some((_, known)) if *known == real => {}
                    Some((one, _)) => {
                        return Err(NixError::Twice { what, one: one.clone(), other: path }.into());
                    }
                    None => found = Some((path, real)),
                }
            }
        }
    }
    Ok(found.map(|(_, real)| real))
}

/// Returns the file that a path in an output leads to; none where it leads to nothing.
fn inside(built: &Built, path: &Path) -> Result<Option<PathBuf>, BuildError> {
    let real = match fs::canonicalize(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        real => real?,
    };
    if !real.starts_with(&built.store) {
        return Err(NixError::Outside { path: path.to_owned(), target: real }.into());
    }
    Ok(Some(real))
}

fn modules(built: &Built) -> Result<Option<PathBuf>, BuildError> {
    let mut found: Option<PathBuf> = None;
    for output in &built.outputs {
        let dir = output.join(MODULES_DIR);
        let Some(real) = inside(built, &dir)? else { continue };
        for name in fs::list_dir(&real)? {
            let Some(path) = inside(built, &real.join(name))? else { continue };
            if !fs::metadata(&path)?.is_dir() {
                continue;
            }
            match found {
                Some(one) if one != path => {
                    return Err(NixError::Twice { what: "directory of modules", one, other: path }.into());
                }
                _ => found = Some(path),
            }
        }
    }
    Ok(found)
}

/// Lists what is in the outputs, for a message.
fn held(built: &Built) -> Result<Vec<String>, BuildError> {
    let mut found = Vec::new();
    for output in &built.outputs {
        let names = fs::list_dir(output)?;
        found.extend(names.iter().take(FOUND_MAX + 1).map(|name| clip(&name.to_string_lossy())));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;
    use std::os::unix::fs::symlink;

    struct Store {
        scratch: ScratchDir,
        built: Built,
    }

    impl Store {
        fn new(files: &[&str]) -> Self {
            let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
            let store = fs::canonicalize(scratch.path()).unwrap().join("store");
            let built = Built { outputs: vec![store.join("out")], store };
            let this = Self { scratch, built };
            fs::create_dir_all(&this.out("")).unwrap();
            files.iter().for_each(|name| this.put(name));
            this
        }

        fn out(&self, name: &str) -> PathBuf {
            self.built.main().join(name)
        }

        fn put(&self, name: &str) {
            let path = self.out(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            write_file(&path, name.as_bytes(), 0o644, Existing::Replace).unwrap();
        }

        fn find(&self) -> Result<Files, String> {
            let out = format!("{}/", self.built.main().display());
            Files::find(&self.built).map_err(|error| error.to_string().replace(&out, ""))
        }
    }

    #[test]
    fn files_are_found_by_their_names_in_an_output_and_its_known_directories() {
        let store = Store::new(&["boot/bzImage", "images/rootfs.ext4", "initrd.img", "spec.json"]);
        fs::create_dir_all(&store.out("lib/modules/6.1")).unwrap();
        store.put("lib/modules/README");
        let files = store.find().unwrap();
        assert_eq!(files.kernel, store.out("boot/bzImage"));
        assert_eq!(files.rootfs, store.out("images/rootfs.ext4"));
        assert_eq!(files.initrd, Some(store.out("initrd.img")));
        assert_eq!(files.modules, Some(store.out("lib/modules/6.1")));
        assert_eq!(files.spec, Some(store.out("spec.json")));
        let store = Store::new(&["vmlinux", "store-disk", "kernel/readme"]);
        assert_eq!(store.find().unwrap().kernel, store.out("vmlinux"), "a directory is no kernel");
    }

    #[test]
    fn two_kernels_and_two_roots_are_refused_by_name() {
        let refused = |files: &[&str]| Store::new(files).find().unwrap_err();
        assert_eq!(
            refused(&["vmlinux", "bzImage", "rootfs.ext4"]),
            "two files could be the kernel: vmlinux and bzImage"
        );
        assert_eq!(
            refused(&["vmlinux", "rootfs.ext4", "image/rootfs.erofs"]),
            "two files could be the root file system: rootfs.ext4 and image/rootfs.erofs"
        );
        let store = Store::new(&["vmlinux", "rootfs.ext4"]);
        symlink("vmlinux", store.out("kernel")).unwrap();
        assert_eq!(store.find().unwrap().kernel, store.out("vmlinux"), "one file by two names");
        ["6.1", "6.2"].iter().for_each(|v| fs::create_dir_all(&store.out("lib/modules").join(v)).unwrap());
        assert!(store.find().unwrap_err().contains("two files could be the directory of modules"));
    }

    #[test]
    fn what_is_missing_is_told_with_what_there_is() {
        let message = Store::new(&["vmlinux", "rootfs.img"]).find().unwrap_err();
        let names = "rootfs.ext4, rootfs.squashfs, rootfs.erofs, store-disk";
        assert!(message.contains(&format!("has no root file system ({names})")), "{message}");
        assert!(message.ends_with("it holds rootfs.img, vmlinux"), "{message}");
        assert!(Store::new(&[]).find().unwrap_err().ends_with("it holds nothing"));
        let many: Vec<String> = (0..=FOUND_MAX).map(|n| format!("f{n}")).collect();
        let message = Store::new(&many.iter().map(String::as_str).collect::<Vec<_>>()).find().unwrap_err();
        assert!(message.ends_with(", and more"), "{message}");
    }

    #[test]
    fn links_are_followed_within_the_store_only() {
        let store = Store::new(&["rootfs.ext4", "../kernel-6/bzImage"]);
        symlink("../kernel-6/bzImage", store.out("kernel")).unwrap();
        assert_eq!(store.find().unwrap().kernel, store.built.store.join("kernel-6/bzImage"));
        let outside = store.scratch.path().join("secret");
        write_file(&outside, b"secret", 0o600, Existing::Refuse).unwrap();
        symlink(&outside, store.out("initrd")).unwrap();
        assert!(store.find().unwrap_err().contains("which is not in Nix's store"));
        let dangling = Store::new(&["rootfs.ext4"]);
        symlink("nowhere", dangling.out("vmlinux")).unwrap();
        assert!(dangling.find().unwrap_err().contains("has no kernel"));
    }

    #[test]
    fn an_output_that_is_a_file_and_a_long_description_are_refused() {
        let mut store = Store::new(&["vmlinux"]);
        store.built.outputs = vec![store.out("vmlinux")];
        let error = Files::find(&store.built).unwrap_err().to_string();
        assert!(error.contains("is a file, a directory"), "{error}");
        let path = store.scratch.path().join("spec.json");
        let put = |bytes| write_file(&path, &vec![b' '; bytes], 0o600, Existing::Replace).unwrap();
        put(SPEC_BYTES_MAX);
        assert!(spec_digest(&path).is_ok());
        put(SPEC_BYTES_MAX + 1);
        assert!(spec_digest(&path).is_err());
    }
}
