//! A cloud-style disk image: Debian with systemd, cloud-init and an SSH server on Btrfs, a GUID partition table, and a
//! boot loader in an EFI system partition. It is made once and kept beside the other fixtures.

use kiln_sys::tool::ScratchDir;
use kiln_testing::fixtures;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Grows with every change of what is made here.
const VERSION: u32 = 1;
/// What is in the image beside the essential packages.
const PACKAGES: &str = "cloud-init,ifupdown,initramfs-tools,iproute2,isc-dhcp-client,kmod,linux-image-cloud-amd64,\
                        openssh-server,procps,systemd-boot-efi,systemd-sysv,udev";
/// User data that spares cloud-init what an image without locales and a partition tool cannot do.
pub(crate) const USER_DATA: &str =
    "#cloud-config\nlocale: C.UTF-8\nresize_rootfs: false\ngrowpart: { mode: \"off\" }\n";

/// Makes the image from an unpacked system in `root`: `$1`.
const MAKE: &str = r#"
set -eu
PATH=$PATH:/usr/sbin:/sbin
kernel=$(ls "$1"/boot/vmlinuz-*)
version=${kernel##*/vmlinuz-}
truncate -s 96M esp.img
mformat -i esp.img -F ::
mmd -i esp.img ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
mcopy -i esp.img "$1/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
mcopy -i esp.img "$kernel" ::/vmlinuz
mcopy -i esp.img "$1/boot/initrd.img-$version" ::/initrd
printf 'timeout 0\ndefault debian.conf\n' >loader.conf
printf 'title Debian\nlinux /vmlinuz\ninitrd /initrd\noptions root=LABEL=cloudroot rw console=ttyS0 quiet mitigations=off\n' >debian.conf
mcopy -i esp.img loader.conf ::/loader/loader.conf
mcopy -i esp.img debian.conf ::/loader/entries/debian.conf
truncate -s 1200M root.img
mkfs.btrfs -q --rootdir "$1" -L cloudroot root.img >&2
truncate -s 1300M disk.raw
sgdisk -n1:2048:+96M -t1:ef00 -n2:198656:0 -t2:8300 disk.raw >/dev/null
dd if=esp.img of=disk.raw bs=1M seek=1 conv=notrunc,sparse status=none
dd if=root.img of=disk.raw bs=1M seek=97 conv=notrunc,sparse status=none
qemu-img convert -O qcow2 disk.raw disk.qcow2
"#;

/// Returns the image, a qcow2 file that is only read.
pub(crate) fn cloud_image() -> PathBuf {
    let image = fixtures().join(format!("cloud-{VERSION}.qcow2"));
    let lock = std::fs::File::create(image.with_extension("lock")).unwrap();
    // Tests are processes of their own: whoever comes first makes it.
    lock.lock().unwrap();
    if !image.exists() {
        make(&image);
    }
    image
}

fn make(image: &Path) {
    // Beside it, so that it can be renamed; removed also when something fails.
    let work = ScratchDir::new(image.parent().unwrap()).unwrap();
    let root = work.path().join("root.tar");
    let root = root.to_str().unwrap();
    let without = |path: &str| format!("--dpkgopt=path-exclude=/usr/share/{path}/*");
    let include = format!("--include={PACKAGES}");
    let (docs, pages, words) = (without("doc"), without("man"), without("locale"));
    run(
        work.path(),
        "mmdebstrap",
        &["-q", "--variant=essential", &include, &docs, &pages, &words, "bookworm", root],
    );
    // Owners are kept by root, and by a user in a namespace of his.
    let script = format!(
        "mkdir root && tar -xf root.tar -C root --numeric-owner --exclude=./dev/* && set -- root\n{MAKE}"
    );
    if rustix::process::geteuid().is_root() {
        run(work.path(), "sh", &["-c", &script]);
    } else {
        run(work.path(), "unshare", &["--map-root-user", "--map-auto", "sh", "-c", &script]);
    }
    std::fs::rename(work.path().join("disk.qcow2"), image).unwrap();
}

fn run(dir: &Path, program: &str, args: &[&str]) {
    let made = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr));
}
