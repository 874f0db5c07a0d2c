#![expect(clippy::disallowed_methods, reason = "tests make their images with the tools of the host")]

use super::*;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox};
use std::os::unix::fs::symlink;

/// Makes an ext4 image of files, each with its path as its content.
fn made(files: &[(&str, &str)]) -> (ScratchDir, Image) {
    let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let tree = scratch.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for (path, content) in files {
        let path = tree.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("-> ") {
            Some(target) => symlink(target, path).unwrap(),
            None => std::fs::write(path, content).unwrap(),
        }
    }
    let path = scratch.path().join("image");
    let tool = Toolbox::new(vec!["/usr/sbin".into(), "/sbin".into()], Vec::new()).find("mke2fs").unwrap();
    let tool = tool.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&path).arg("8M");
    let cancel = Cancel::new().unwrap();
    tool.run(&cancel, &mut |_| ()).unwrap();
    let file = kiln_sys::fs::open(&path).unwrap();
    let image = Image::open(file, path, 8 << 20, 1 << 20, cancel).unwrap();
    (scratch, image)
}

fn found(root: &[(&str, &str)], boot: Option<&[(&str, &str)]>) -> String {
    let root = made(root);
    let boot = boot.map(made);
    find_kernel(&root.1, boot.as_ref().map(|boot| &boot.1))
        .unwrap()
        .map_or("none".into(), |kernel| kernel.path)
}

#[test]
fn the_newest_kernel_is_the_default() {
    let files = [("boot/vmlinuz-6.9.1", "k"), ("boot/vmlinuz-6.10.2", "k"), ("boot/vmlinuz-6.11.0.old", "k")];
    assert_eq!(found(&files, None), "/boot/vmlinuz-6.10.2");
    let files = [("boot/vmlinuz-0-rescue-abc", "k"), ("boot/vmlinuz-virt", "k")];
    assert_eq!(found(&files, None), "/boot/vmlinuz-virt");
    let files = [("boot/initrd.img", "k"), ("usr/lib/modules/6.1/vmlinuz", "k"), ("lib", "-> usr/lib")];
    assert_eq!(found(&files, None), "/lib/modules/6.1/vmlinuz");
    assert_eq!(found(&[("etc/fstab", "")], None), "none");
    // Links that lead to themselves or to nothing are no kernels.
    let files =
        [("boot/vmlinuz", "-> vmlinuz"), ("boot/vmlinuz-7", "-> ../nothing"), ("boot/vmlinuz-1", "k")];
    assert_eq!(found(&files, None), "/boot/vmlinuz-1");
}

#[test]
fn entries_of_the_boot_loader_come_first() {
    let entry = |version: &str| format!("title x\nversion {version}\nlinux /vmlinuz-{version}\n");
    let (old, new) = (entry("5.14.0-9"), entry("5.14.0-10"));
    let boot: &[(&str, &str)] = &[
        ("loader/entries/a.conf", &old),
        ("loader/entries/b.conf", &new),
        ("loader/entries/c-0-rescue.conf", "linux /vmlinuz-9\n"),
        ("loader/entries/d.conf", "version 99\nlinux /missing\n"),
        ("vmlinuz-5.14.0-9", "k"),
        ("vmlinuz-5.14.0-10", "k"),
        ("vmlinuz-9", "k"),
    ];
    assert_eq!(found(&[("boot/vmlinuz-1", "k")], Some(boot)), "//vmlinuz-5.14.0-10");
    let inside = [
        ("boot/loader/entries/a.conf", "linux /boot/vmlinuz-1\n"),
        ("boot/vmlinuz-1", "k"),
        ("boot/vmlinuz-2", "k"),
    ];
    assert_eq!(found(&inside, None), "/boot/vmlinuz-1");
}

#[test]
fn the_default_of_extlinux_is_taken() {
    let config = "DEFAULT virt\nTIMEOUT 1\nLABEL lts\n LINUX vmlinuz-lts\nLABEL virt\n  LINUX vmlinuz-virt\n";
    let files = [("boot/extlinux.conf", config), ("boot/vmlinuz-lts", "k"), ("boot/vmlinuz-virt", "k")];
    assert_eq!(found(&files, None), "/boot//vmlinuz-virt");
    let config = "label one\nkernel ../vmlinuz-1\n";
    let files = [("boot/extlinux/extlinux.conf", config), ("boot/vmlinuz-1", "k"), ("boot/vmlinuz-2", "k")];
    assert_eq!(found(&files, None), "/boot/extlinux/../vmlinuz-1");
}

#[test]
fn names_are_compared_by_their_numbers() {
    for (small, large) in
        [("6.9", "6.10"), ("a", "b"), ("5.14.0-9.el9", "5.14.0-10.el9"), ("6.1", "6.1.1"), ("007", "8")]
    {
        assert_eq!(compare(small, large), Ordering::Less, "{small} {large}");
        assert_eq!(compare(large, small), Ordering::Greater, "{small} {large}");
    }
    assert_eq!(compare("1.02", "1.2"), Ordering::Equal);
}

#[test]
fn a_configuration_has_a_largest_size() {
    let max = usize::try_from(CONFIG_BYTES_MAX).unwrap();
    for (len, fits) in [(max, true), (max + 1, false)] {
        let config = " ".repeat(len);
        let (_scratch, root) = made(&[("boot/extlinux.conf", &config), ("boot/vmlinuz", "k")]);
        let found = find_kernel(&root, None).map(|kernel| kernel.is_some());
        assert_eq!(found.map_err(|error| error.to_string()).is_ok(), fits);
    }
}
