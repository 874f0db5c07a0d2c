//! Builds from disk images: what is taken out of them, and what is refused.

use crate::host::{facts, kernel, output, planned, scratch, write};
use kiln_build::{BuildContext, BuildError, BuildOutput, HostFacts, Quiet, run};
use kiln_core::digest::Digest;
use kiln_core::recipe::parse;
use kiln_core::revision::ArtifactFormat;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox, fs};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// An ELF file that passes for a kernel and tells its release.
fn named_kernel(release: &str) -> Vec<u8> {
    [kernel(), format!("Linux version {release} (gcc)").into_bytes()].concat()
}

/// Makes an ext4 file system of 16 MiB from files.
fn file_system(dir: &Path, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let tree = dir.join(format!("{name}.tree"));
    fs::create_dir(&tree).unwrap();
    for (path, content) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, content);
    }
    let image = dir.join(name);
    output(
        "mke2fs",
        &["-q", "-F", "-t", "ext4", "-d", tree.to_str().unwrap(), image.to_str().unwrap(), "16M"],
    );
    image
}

/// Puts file systems into the partitions of a disk, each of 16 MiB. `types` are theirs, as `sfdisk` has them.
fn partitioned(dir: &Path, name: &str, parts: &[(&str, Option<&Path>)]) -> PathBuf {
    let disk = dir.join(name);
    fs::create_new(&disk).unwrap().set_len((2 + 16 * parts.len() as u64) << 20).unwrap();
    let script: String = parts.iter().map(|(kind, _)| format!("size=32768,type={kind}\n")).collect();
    let input = dir.join(format!("{name}.sfdisk"));
    write(&input, format!("label: gpt\n{script}").as_bytes());
    let tool = Toolbox::default().find("sfdisk").unwrap().arg("-q").arg(&disk);
    let tool = tool.stdin_file(fs::open(&input).unwrap());
    tool.run(&Cancel::new().unwrap(), &mut |_| ()).unwrap();
    for (number, (_, content)) in parts.iter().enumerate() {
        if let Some(content) = content {
            let (from, to) = (format!("if={}", content.display()), format!("of={}", disk.display()));
            output(
                "dd",
                &[
                    &from,
                    &to,
                    "bs=1M",
                    &format!("seek={}", 1 + 16 * number),
                    "conv=notrunc,sparse",
                    "status=none",
                ],
            );
        }
    }
    disk
}

/// Builds a recipe of a disk image; `more` are further lines of its source.
fn build(path: &Path, more: &str) -> Result<(ScratchDir, BuildOutput), BuildError> {
    build_with(path, more, "", Toolbox::default())
}

fn build_with(
    path: &Path,
    more: &str,
    machine: &str,
    toolbox: Toolbox,
) -> Result<(ScratchDir, BuildOutput), BuildError> {
    build_on(&facts(), path, more, machine, toolbox)
}

fn build_on(
    host: &HostFacts,
    path: &Path,
    more: &str,
    machine: &str,
    toolbox: Toolbox,
) -> Result<(ScratchDir, BuildOutput), BuildError> {
    let text =
        format!("name = 'image'\n{machine}\n[source]\ntype = 'disk'\npath = '{}'\n{more}\n", path.display());
    let dir = scratch();
    let plan = planned(&parse(&text).unwrap(), path.parent().unwrap(), host)?;
    let cancel = Cancel::new().unwrap();
    let cx = BuildContext {
        toolbox: &toolbox,
        scratch: dir.path(),
        cache: dir.path(),
        offline: false,
        reporter: &Quiet,
        cancel: &cancel,
        host,
    };
    let built = run(&plan, &cx);
    built.map(|built| (dir, built))
}

fn whole(error: &BuildError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

fn artifact(built: &BuildOutput, role: &str) -> PathBuf {
    built.artifacts.iter().find(|file| file.role.as_str() == role).unwrap().path.clone()
}

fn digest(path: &Path) -> Digest {
    Digest::of(&fs::read_limited(path, 1 << 30).unwrap())
}

fn fact<'a>(built: &'a BuildOutput, name: &str) -> &'a str {
    built.facts.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}

#[test]
fn the_root_partition_alone_is_the_artifact_in_every_format() {
    let dir = scratch();
    let kernel = named_kernel("6.1.0-test");
    let root =
        file_system(dir.path(), "root", &[("boot/vmlinuz-6.1.0-test", &kernel), ("etc/hostname", b"image")]);
    let disk = partitioned(dir.path(), "disk.raw", &[("U", None), ("linux", Some(&root))]);
    let want = digest(&root);
    let mut images = vec![disk.clone()];
    for (format, name) in
        [("qcow2", "plain.qcow2"), ("qcow2", "small.qcow2"), ("vmdk", "a.vmdk"), ("vhdx", "a.vhdx")]
    {
        let image = dir.path().join(name);
        let more: &[&str] = if name == "small.qcow2" { &["-c", "-o", "compression_type=zstd"] } else { &[] };
        let ends = [disk.to_str().unwrap(), image.to_str().unwrap()];
        output("qemu-img", &[&["convert", "-f", "raw", "-O", format], more, &ends].concat());
        images.push(image);
    }
    let before = digest(&disk);
    for image in &images {
        let (made, built) = build(image, "").unwrap();
        assert_eq!(digest(&artifact(&built, "rootfs")), want, "{}", image.display());
        assert_eq!(digest(&artifact(&built, "kernel")), Digest::of(&kernel));
        assert_eq!((fact(&built, "partition"), fact(&built, "kernel")), ("2", "6.1.0-test"));
        // Nothing of what was needed in between stays.
        let left: Vec<_> = fs::list_dir(made.path()).unwrap();
        assert!(left.len() <= 4, "{left:?}");
    }
    assert_eq!(digest(&disk), before, "the image is only read");
    let (_made, again) = build(&images[1], "").unwrap();
    let (_other, first) = build(&images[1], "").unwrap();
    let digests =
        |built: &BuildOutput| ["rootfs", "kernel", "initrd"].map(|role| digest(&artifact(built, role)));
    assert_eq!(digests(&again), digests(&first));
}

#[test]
fn a_kernel_on_a_partition_of_its_own_is_found_and_its_modules_are_taken() {
    let dir = scratch();
    let kernel = named_kernel("6.1.0-test");
    let boot =
        file_system(dir.path(), "boot", &[("vmlinuz-6.1.0-test", &kernel), ("vmlinuz-0-rescue", b"no")]);
    let builtin = b"kernel/virtio_ring.ko\nkernel/virtio.ko\nkernel/virtio_pci.ko\nkernel/virtio_blk.ko\nkernel/virtio_console.ko\nkernel/ext4.ko\n";
    let files: &[(&str, &[u8])] = &[
        ("lib/modules/6.1.0-test/modules.builtin", builtin),
        (
            "lib/modules/6.1.0-test/modules.dep",
            b"kernel/virtio_net.ko: kernel/failover.ko\nkernel/failover.ko:\n",
        ),
        ("lib/modules/6.1.0-test/kernel/virtio_net.ko", b"no module"),
    ];
    let root = file_system(dir.path(), "root", files);
    let disk = partitioned(
        dir.path(),
        "disk",
        &[
            ("BC13C2FF-59E6-4262-A352-B275FD6F7172", Some(&boot)),
            ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", Some(&root)),
        ],
    );
    let error = whole(&build(&disk, "").unwrap_err());
    assert!(error.contains("virtio_net.ko is not a kernel module"), "it was taken and read: {error}");
    // The modules of another kernel are of no use.
    let other =
        file_system(dir.path(), "other", &[("boot/vmlinuz", &kernel), ("lib/modules/5.0/modules.dep", b"")]);
    let error = whole(&build(&other, "").unwrap_err());
    assert!(error.ends_with("is 6.1.0-test, and its modules are for 5.0"), "{error}");
    // A kernel of the recipe's comes without those of the image.
    write(&dir.path().join("kernel"), &kernel);
    let (_made, built) = build(&disk, "kernel = 'kernel'\npartition = 2").unwrap();
    assert_eq!(digest(&artifact(&built, "rootfs")), digest(&root));
}

#[test]
fn modules_of_an_image_and_their_list_are_limited() {
    let dir = scratch();
    let kernel = named_kernel("6.1.0-test");
    // Long files of holes, which take up nothing in the image.
    let image = |name: &str, files: &[(&str, u64)]| {
        let tree = dir.path().join(format!("{name}.tree"));
        let modules = tree.join("lib/modules/6.1.0-test");
        fs::create_dir_all(&modules).unwrap();
        fs::create_dir(&tree.join("boot")).unwrap();
        write(&tree.join("boot/vmlinuz-6.1.0-test"), &kernel);
        for (file, bytes) in files {
            fs::create_new(&modules.join(file)).unwrap().set_len(*bytes).unwrap();
        }
        let image = dir.path().join(name);
        let (from, to) = (tree.to_str().unwrap(), image.to_str().unwrap());
        output("mke2fs", &["-q", "-F", "-t", "ext4", "-d", from, to, "16M"]);
        whole(&build(&image, "").unwrap_err())
    };
    let names: Vec<String> = (0..17).map(|n| format!("m{n:02}.ko")).collect();
    let all: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 64 << 20)).collect();
    let error = image("many", &all);
    assert!(error.ends_with("m16.ko has 1140850688 bytes, more than 1073741824"), "{error}");
    // Sixteen are within the limit; they are no modules.
    let error = image("fewer", &all[..16]);
    assert!(!error.contains("more than 1073741824"), "{error}");
    let error = image("list", &[("modules.dep", (16 << 20) + 1)]);
    assert!(error.ends_with("modules.dep has 16777217 bytes, more than 16777216"), "{error}");
}

#[test]
fn a_disk_is_as_long_as_the_recipe_wants_it() {
    let dir = scratch();
    let root = file_system(dir.path(), "root", &[("boot/vmlinuz", &kernel())]);
    let (_made, built) = build_with(&root, "", "[machine]\ndisk = '64M'", Toolbox::default()).unwrap();
    let made = artifact(&built, "rootfs");
    assert_eq!(fs::metadata(&made).unwrap().len(), 64 << 20);
    let bytes = fs::read_limited(&made, 1 << 30).unwrap();
    assert!(
        bytes[..16 << 20] == fs::read_limited(&root, 1 << 30).unwrap()[..],
        "the file system is as it was"
    );
}

#[test]
fn images_that_cannot_be_used_are_refused_by_name() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    let bare = file_system(dir.path(), "bare", &[("etc/motd", b"hello")]);
    let told = |path: &Path, more: &str| {
        whole(&build(path, more).unwrap_err()).replace(dir.path().to_str().unwrap(), "DIR")
    };
    let mut all = String::new();
    let mut tell = |path: &Path, more: &str| {
        all.push_str(&told(path, more));
        all.push('\n');
    };
    tell(&bare, "");
    tell(&bare, "partition = 3");
    tell(&bare, "format = 'qcow2'");
    write(&at("packed.xz"), b"\xfd7zXZ\0 and more");
    tell(&at("packed.xz"), "");
    write(&at("text"), b"# Disk DescriptorFile\nRW 8 FLAT \"/etc/shadow\" 0\n");
    tell(&at("text"), "");
    tell(&at("text"), "format = 'vmdk'");
    let mut hybrid = vec![0; 4096];
    hybrid[..4].copy_from_slice(b"KDMV");
    write(&at("hybrid.vmdk"), &hybrid);
    tell(&at("hybrid.vmdk"), "");
    let two = partitioned(dir.path(), "two", &[("linux", Some(&bare)), ("linux", Some(&bare))]);
    tell(&two, "");
    tell(&two, "partition = 7");
    let none = partitioned(dir.path(), "none", &[("linux", None)]);
    tell(&none, "");
    tell(&none, "partition = 1");
    let mut xfs = fs::create_new(&at("xfs")).unwrap();
    xfs.set_len(16 << 20).unwrap();
    xfs.write_all(b"XFSB").unwrap();
    tell(&at("xfs"), "");
    output(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            bare.to_str().unwrap(),
            at("top").to_str().unwrap(),
        ],
    );
    tell(&at("top"), "");
    tell(&at("top"), "backing = 'flatten'");
    output("qemu-img", &["create", "-q", "-f", "vmdk", at("empty.vmdk").to_str().unwrap(), "1M"]);
    output(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-F",
            "vmdk",
            "-b",
            at("empty.vmdk").to_str().unwrap(),
            at("top.vmdk").to_str().unwrap(),
        ],
    );
    tell(&at("top.vmdk"), "");
    let without = Toolbox::new(Vec::new(), Vec::new());
    let error = build_with(&at("empty.vmdk"), "", "", without).unwrap_err();
    all.push_str(&whole(&error).replace(dir.path().to_str().unwrap(), "DIR"));
    same_lines(
        &all,
        "DIR/bare has no kernel that can be found: neither in /boot nor beside its modules\n\
         DIR/bare has no partition 3; it has no partition table\n\
         DIR/bare is raw, and the recipe says qcow2\n\
         DIR/packed.xz is compressed with xz, not a disk image that kiln reads (raw, qcow2, vmdk, vhdx)\n\
         DIR/text is a VMDK descriptor, whose data lies in other files, not a disk image that kiln reads (raw, qcow2, vmdk, vhdx)\n\
         DIR/text is a VMDK descriptor, whose data lies in other files, and the recipe says vmdk\n\
         vmdk image DIR/hybrid.vmdk cannot be used: its data lies in other files\n\
         which partition of DIR/two is the root cannot be told: it has 1 (ext4, 16.0 MiB), 2 (ext4, 16.0 MiB)\n\
         DIR/two has no partition 7; it has 1 (ext4, 16.0 MiB), 2 (ext4, 16.0 MiB)\n\
         which partition of DIR/none is the root cannot be told: it has 1 (unknown, 16.0 MiB)\n\
         the root file system in DIR/none is of no known kind; guests start from ext4\n\
         the root file system in DIR/xfs is XFS; guests start from ext4\n\
         qcow2 image DIR/top cannot be used: it is based on `DIR/bare`, a backing file\n\
         qcow2 image DIR/top cannot be used: its backing file `DIR/bare` lies outside the image's directory\n\
         vmdk image DIR/top.vmdk cannot be used: it is based on `DIR/empty.vmdk`\n\
         DIR/empty.vmdk is vmdk, which is read with `qemu-img`, and that is not installed",
    );
}

/// Compares texts line by line, so that the first line that differs is what is told.
fn same_lines(have: &str, want: &str) {
    for (have, want) in have.lines().zip(want.lines()) {
        assert_eq!(have, want);
    }
    assert_eq!(have.lines().count(), want.lines().count());
}

/// Facts of a host with this firmware.
fn host_with(firmware: Option<PathBuf>) -> HostFacts {
    HostFacts { firmware, ..facts() }
}

#[test]
fn a_disk_that_cannot_be_booted_directly_is_taken_whole_with_the_hosts_firmware() {
    let dir = scratch();
    let firmware = dir.path().join("OVMF.fd");
    write(&firmware, b"firmware");
    let host = host_with(Some(firmware.clone()));
    let kernel = named_kernel("6.1.0-test");
    let direct = file_system(dir.path(), "direct", &[("boot/vmlinuz-6.1.0-test", &kernel)]);
    let bare = file_system(dir.path(), "bare", &[("etc/hostname", b"no kernel")]);
    let xfs = dir.path().join("xfs");
    write(&xfs, b"XFSB\0\0\x10\0");
    let build = |path: &Path, more: &str| build_on(&host, path, more, "", Toolbox::default());
    let formats = |built: &BuildOutput| -> Vec<(String, ArtifactFormat)> {
        built.artifacts.iter().map(|file| (file.role.to_string(), file.format)).collect()
    };
    let whole =
        [("firmware".to_owned(), ArtifactFormat::Firmware), ("rootfs".to_owned(), ArtifactFormat::Disk)];
    for (name, root, more) in
        [("xfs.raw", &xfs, ""), ("bare.raw", &bare, ""), ("direct.raw", &direct, "boot = 'firmware'")]
    {
        let disk = partitioned(dir.path(), name, &[("U", None), ("linux", Some(root))]);
        let packed = disk.with_extension("qcow2");
        let ends = [disk.to_str().unwrap(), packed.to_str().unwrap()];
        output("qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"], &ends[..]].concat());
        for image in [&disk, &packed] {
            let (made, built) = build(image, more).unwrap();
            assert_eq!(formats(&built), whole, "{}", image.display());
            assert_eq!(digest(&artifact(&built, "rootfs")), digest(&disk));
            assert_eq!(digest(&artifact(&built, "firmware")), digest(&firmware));
            assert_eq!(fact(&built, "firmware"), firmware.to_str().unwrap());
            assert!(built.seed.is_some(), "the seed brings the agent");
            assert_eq!(fs::list_dir(made.path()).unwrap(), ["disk.raw", "firmware"]);
        }
    }
    let disk = partitioned(dir.path(), "both.raw", &[("U", None), ("linux", Some(&direct))]);
    let kept = ["kernel", "rootfs"];
    let (_made, built) = build(&disk, "").unwrap();
    assert!(kept.iter().all(|role| built.artifacts.iter().any(|file| file.role.as_str() == *role)));
    // The firmware is a part of the name, by its content.
    let key = |host: &HostFacts, more: &str| {
        let text = format!("name='a'\n[source]\ntype='disk'\npath='{}'\n{more}\n", disk.display());
        planned(&parse(&text).unwrap(), dir.path(), host).unwrap().key
    };
    let other = dir.path().join("other.fd");
    write(&other, b"another firmware");
    let newer = host_with(Some(other));
    assert_ne!(key(&host, ""), key(&newer, ""));
    assert_eq!(key(&host, "boot='direct'"), key(&newer, "boot='direct'"));
    assert_ne!(key(&host, ""), key(&host, "boot='firmware'"));
}

#[test]
fn what_firmware_would_not_do_is_refused_by_name() {
    let dir = scratch();
    let xfs = dir.path().join("xfs");
    write(&xfs, b"XFSB\0\0\x10\0");
    let disk = partitioned(dir.path(), "disk.raw", &[("U", None), ("linux", Some(&xfs))]);
    let refused = |firmware: Option<&Path>, path: &Path, more: &str, machine: &str| {
        let host = host_with(firmware.map(Path::to_owned));
        whole(&build_on(&host, path, more, machine, Toolbox::default()).unwrap_err())
    };
    let firmware = dir.path().join("OVMF.fd");
    write(&firmware, b"firmware");
    let some = Some(firmware.as_path());
    for more in ["", "boot = 'firmware'"] {
        assert!(
            refused(None, &disk, more, "").contains("needs UEFI firmware to boot, and this host has none")
        );
        for (machine, field) in [
            ("[boot]\nargs = ['quiet']", "`boot.args`"),
            ("[machine]\ndisk = '1G'", "`machine.disk`"),
            ("[machine]\nboard = 'microvm'", "`machine.board`"),
            ("[agent]\ninit = 'agent'", "`agent.init`"),
            ("[entrypoint]\ncommand = ['true']", "`entrypoint`"),
            ("[[variant]]\nname = 'v'\nboot_args = ['quiet']", "`variant.boot_args`"),
        ] {
            let told = refused(some, &disk, more, machine);
            assert!(
                told.starts_with(&format!("{field} has no effect on a disk that firmware boots")),
                "{told}"
            );
        }
    }
    // It stays what it was where nothing says that firmware boots it.
    assert!(refused(some, &disk, "boot = 'direct'", "").contains("XFS"));
    let plain = partitioned(dir.path(), "plain.raw", &[("linux", Some(&xfs))]);
    let told = refused(some, &plain, "", "");
    assert!(!told.contains("EFI") && told.contains("XFS"), "{told}");
    let told = refused(some, &plain, "boot = 'firmware'", "");
    assert!(told.contains("has no EFI system partition: its partitions are 1 (XFS"), "{told}");
    fs::open_rw(&firmware).unwrap().set_len((8 << 20) + 1).unwrap();
    assert!(refused(some, &disk, "", "").contains("has more than 8388608 bytes"));
}
