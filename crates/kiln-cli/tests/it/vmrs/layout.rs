//! The layout as its own program leaves it, with small disks and files that pass for kernels.

use kiln_testing::TestContext;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Drivers that a guest needs, as a list of those that a kernel has built in.
const BUILT_IN: &str = "kernel/virtio_ring.ko\nkernel/virtio.ko\nkernel/virtio_pci.ko\nkernel/virtio_blk.ko\n\
                        kernel/virtio_console.ko\nkernel/ext4.ko\n";

/// Returns an ELF file that passes for a kernel of a release: one note segment with the PVH entry, and a banner.
pub(super) fn kernel(release: &str) -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    for (at, value) in [(32, 64), (54, 56), (56, 1), (64, 4), (72, 120), (96, 20)] {
        bytes[at] = value;
    }
    bytes.extend([4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    bytes.extend(b"Xen\0\0\0\0\0");
    bytes.extend(format!("Linux version {release} (x)\0").bytes());
    bytes
}

pub(super) fn run(program: &str, args: &[&str], dir: &Path) {
    let path = std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin";
    let output = Command::new(program).args(args).current_dir(dir).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a disk holds.
#[derive(Default)]
pub(super) struct Disk<'a> {
    /// A word that tells it from others.
    pub(super) word: &'a str,
    /// The release of the kernel inside.
    pub(super) kernel: Option<&'a str>,
    /// The releases that it has modules for.
    pub(super) modules: &'a [&'a str],
}

impl Disk<'_> {
    /// Writes it as a raw file system to a new file.
    pub(super) fn raw(&self, context: &TestContext, name: &str) -> PathBuf {
        let dir = context.work();
        let tree = dir.join(format!("{name}.tree"));
        std::fs::create_dir_all(tree.join("boot")).unwrap();
        std::fs::write(tree.join("word"), self.word).unwrap();
        if let Some(release) = self.kernel {
            std::fs::write(tree.join("boot").join(format!("vmlinuz-{release}")), kernel(release)).unwrap();
        }
        for release in self.modules {
            let modules = tree.join("lib/modules").join(release);
            std::fs::create_dir_all(&modules).unwrap();
            std::fs::write(modules.join("modules.builtin"), BUILT_IN).unwrap();
        }
        let tree = tree.to_str().unwrap();
        run("mke2fs", &["-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, name, "2M"], &dir);
        dir.join(name)
    }

    /// Writes it as a qcow2 image.
    pub(super) fn qcow2(&self, context: &TestContext, name: &str) -> PathBuf {
        let raw = format!("{name}.raw");
        self.raw(context, &raw);
        run("qemu-img", &["convert", "-q", "-f", "raw", "-O", "qcow2", &raw, name], &context.work());
        context.work().join(name)
    }
}

/// Returns the directory of an image for this host, below `images`.
pub(super) fn home(context: &TestContext, images: &str, place: &str) -> PathBuf {
    context.work().join(images).join(place).join(std::env::consts::ARCH)
}

/// Lays an image out as it is fetched.
pub(super) fn lay(context: &TestContext, place: &str, disk: &Path, kernel: Option<&[u8]>) -> PathBuf {
    let home = home(context, "data/images", place);
    std::fs::create_dir_all(&home).unwrap();
    std::fs::copy(disk, home.join("disk.img")).unwrap();
    if let Some(kernel) = kernel {
        std::fs::write(home.join("vmlinuz"), kernel).unwrap();
        std::fs::write(home.join("initramfs"), "not looked at").unwrap();
    }
    home
}

/// Returns every file below a directory with its content.
pub(super) fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}
