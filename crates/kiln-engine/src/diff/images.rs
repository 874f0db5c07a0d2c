//! Images that the tests compare, made with the tools of the host.

#![expect(clippy::disallowed_methods, reason = "tests make their images with the tools of the host")]

use kiln_source::ext4::{Image, ImageResult};
use kiln_sys::Cancel;
use kiln_sys::tool::{ScratchDir, Toolbox};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// A scratch directory with a tree in it.
pub(crate) fn tree() -> ScratchDir {
    let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let root = scratch.path().join("tree");
    std::fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    std::fs::create_dir(root.join("many")).unwrap();
    std::fs::write(root.join("etc/motd"), "hello\n").unwrap();
    std::fs::write(root.join("etc/empty"), "").unwrap();
    std::fs::write(root.join("etc/deep/er/large"), vec![7; 300_000]).unwrap();
    std::fs::set_permissions(root.join("etc/motd"), std::fs::Permissions::from_mode(0o4750)).unwrap();
    symlink("motd", root.join("etc/short")).unwrap();
    symlink("x".repeat(200), root.join("etc/long")).unwrap();
    for number in 0..300 {
        std::fs::write(root.join(format!("many/a-rather-long-name-{number}")), number.to_string()).unwrap();
    }
    scratch
}

/// Makes an image of the tree with `args` for `mke2fs`.
pub(crate) fn image(scratch: &ScratchDir, name: &str, args: &[&str]) -> PathBuf {
    let path = scratch.path().join(name);
    let tool = Toolbox::default().find("mke2fs").unwrap();
    let tool = tool.args(["-q", "-F", "-t", "ext4"]).args(args).arg("-d").arg(scratch.path().join("tree"));
    tool.arg(&path).arg("16M").run(&Cancel::new().unwrap(), &mut |_| ()).unwrap();
    path
}

pub(crate) fn open(path: &Path) -> ImageResult<Image> {
    let file = kiln_sys::fs::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    Image::open(file, path.to_owned(), length, 1 << 20, Cancel::new().unwrap())
}
