//! Root disks: the same bytes each time, and everything of the tree in them.

use crate::host::{output, scratch, write};
use kiln_build::ext4::{DiskRequest, Ext4Error, write as write_disk};
use kiln_build::{Ownership, TreeSize};
use kiln_core::digest::Digest;
use kiln_core::size::ByteSize;
use kiln_sys::{Cancel, Toolbox, fs};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;

const SIZE: TreeSize = TreeSize { data_bytes: 1 << 20, inodes: 64, directories: 8, name_bytes: 4096 };

fn make(
    tree: &Path,
    name: &str,
    ownership: &Ownership,
    size: TreeSize,
) -> Result<(std::path::PathBuf, ByteSize), Ext4Error> {
    let scratch = tree.parent().unwrap();
    let path = scratch.join(name);
    let request =
        DiskRequest { tree, ownership, size, disk_min: None, seed: Digest::of(b"s"), output: &path, scratch };
    let size = write_disk(&request, &Toolbox::default(), &Cancel::new().unwrap(), &mut |_| ())?;
    Ok((path, size))
}

fn digest(path: &Path) -> Digest {
    Digest::of(&fs::read_limited(path, 1 << 30).unwrap())
}

fn debugfs(disk: &Path, command: &str) -> String {
    output("debugfs", &["-R", command, disk.to_str().unwrap()])
}

fn fill(tree: &Path, reverse: bool) {
    fs::create_dir(tree).unwrap();
    fs::create_dir(&tree.join("etc")).unwrap();
    let mut names: Vec<String> = (0..40).map(|n| format!("file{n}")).collect();
    if reverse {
        names.reverse();
    }
    for name in names {
        write(&tree.join("etc").join(&name), name.as_bytes());
    }
    symlink("/etc/file1", tree.join("link")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "hard links are what is tested")]
    std::fs::hard_link(tree.join("etc/file2"), tree.join("hard")).unwrap();
    let holes = fs::create_new(&tree.join("holes")).unwrap();
    holes.set_len(64 << 20).unwrap();
    holes.write_all_at(b"end", (64 << 20) - 3).unwrap();
    for path in ["etc", "", "holes"]
        .iter()
        .map(|p| tree.join(p))
        .chain((0..40).map(|n| tree.join(format!("etc/file{n}"))))
    {
        output("touch", &["-d", "@1600000000", path.to_str().unwrap()]);
    }
    output("touch", &["-h", "-d", "@1600000000", tree.join("link").to_str().unwrap()]);
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let dir = scratch();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fill(&one, false);
    fill(&two, true);
    output("touch", &["-a", "-d", "@1500000000", one.join("etc/file3").to_str().unwrap()]);
    let (first, _) = make(&one, "first.ext4", &Ownership::OnDisk, SIZE).unwrap();
    // Times of access and of change now differ, and the copy was made in another order.
    output("cat", &[one.join("etc/file3").to_str().unwrap()]);
    let (second, _) = make(&one, "second.ext4", &Ownership::OnDisk, SIZE).unwrap();
    let (third, _) = make(&two, "third.ext4", &Ownership::OnDisk, SIZE).unwrap();
    assert_eq!(digest(&first), digest(&second));
    assert_eq!(digest(&first), digest(&third));
    output("e2fsck", &["-fn", first.to_str().unwrap()]);
}

/// Returns the numbers of the blocks in which two disks differ.
fn changed_blocks(one: &Path, two: &Path) -> Vec<usize> {
    let [one, two] = [one, two].map(|path| fs::read_limited(path, 1 << 30).unwrap());
    assert_eq!(one.len(), two.len());
    let pairs = one.chunks(4096).zip(two.chunks(4096)).enumerate();
    pairs.filter(|(_, (one, two))| one != two).map(|(number, _)| number).collect()
}

#[test]
fn another_identifier_and_one_other_file_change_few_blocks() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fill(&tree, false);
    let (disks, tools) = (["a", "b", "c"].map(|name| dir.path().join(name)), Toolbox::default());
    for (disk, seed) in disks.iter().zip(["a", "b", "c"]) {
        if seed == "c" {
            fs::remove_file(&tree.join("etc/file7")).unwrap();
            write(&tree.join("etc/file7"), b"FILE7");
            for (changed, time) in [("etc/file7", "@1600000001"), ("etc", "@1600000000")] {
                output("touch", &["-d", time, tree.join(changed).to_str().unwrap()]);
            }
        }
        let seed = Digest::of(seed.as_bytes());
        let ownership = &Ownership::OnDisk;
        let request = DiskRequest {
            tree: &tree,
            ownership,
            size: SIZE,
            disk_min: None,
            seed,
            output: disk,
            scratch: dir.path(),
        };
        write_disk(&request, &tools, &Cancel::new().unwrap(), &mut |_| ()).unwrap();
        output("e2fsck", &["-fn", disk.to_str().unwrap()]);
    }
    let uuid = |copy: &str| {
        let said =
            output("dumpe2fs", &["-h", "-o", copy, "-o", "blocksize=4096", disks[1].to_str().unwrap()]);
        said.lines().find_map(|line| line.strip_prefix("Filesystem UUID:")).unwrap().trim().to_owned()
    };
    assert_eq!(uuid("superblock=0"), uuid("superblock=32768"));
    // The copies of the superblock begin groups; the first holds the identifier and nothing else that differs.
    let own = |blocks: Vec<usize>| -> Vec<usize> {
        blocks.into_iter().filter(|block| block % 32768 != 0).collect()
    };
    assert_eq!(own(changed_blocks(&disks[0], &disks[1])), Vec::<usize>::new());
    // The file's content, and its inode.
    assert_eq!(own(changed_blocks(&disks[1], &disks[2])).len(), 2);
}

#[test]
fn holes_links_and_times_are_kept() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fill(&tree, false);
    let (disk, size) = make(&tree, "disk.ext4", &Ownership::OnDisk, SIZE).unwrap();
    let meta = fs::metadata(&disk).unwrap();
    assert_eq!(meta.len(), size.bytes());
    assert!(meta.blocks() * 512 < 4 << 20, "{} bytes allocated", meta.blocks() * 512);
    let holes = debugfs(&disk, "stat /holes");
    assert!(holes.contains("Size: 67108864") && holes.contains("Blockcount: 8"), "{holes}");
    let inode =
        |path: &str| debugfs(&disk, &format!("stat {path}")).split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(inode("/hard"), inode("/etc/file2"));
    assert!(debugfs(&disk, "stat /hard").contains("Links: 2"));
    assert!(debugfs(&disk, "stat /link").contains("Fast link dest: \"/etc/file1\""));
    let file = debugfs(&disk, "stat /etc/file3");
    for time in [
        "ctime: 0x6553f100:00000000",
        "atime: 0x6553f100:00000000",
        "mtime: 0x5f5e1000:00000000",
        "crtime: 0x6553f100",
    ] {
        assert!(file.contains(time), "{file}");
    }
    assert!(debugfs(&disk, "stats").contains("kiln-root"));
}

#[test]
fn owners_modes_devices_and_attributes_are_kept() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let state = dir.path().join("state");
    let root = kiln_sys::process::is_root();
    // As fakeroot does it for whoever is not root; root does it in earnest as well.
    for ownership in [Ownership::Faked(state), Ownership::OnDisk].into_iter().take(if root { 2 } else { 1 }) {
        let name = if ownership == Ownership::OnDisk { "disk" } else { "faked" };
        let tree = dir.path().join(name);
        fs::create_dir(&tree).unwrap();
        let run = |program: &str, args: &[&str]| {
            let toolbox = Toolbox::default();
            let tool = match &ownership {
                Ownership::OnDisk => toolbox.find(program).unwrap(),
                Ownership::Faked(state) => {
                    let fakeroot = toolbox.find("fakeroot").unwrap().arg("-s").arg(state);
                    let fakeroot =
                        if fs::exists(state).unwrap() { fakeroot.arg("-i").arg(state) } else { fakeroot };
                    fakeroot.arg("--").arg(program)
                }
            };
            tool.args(args).current_dir(&tree).run(&Cancel::new().unwrap(), &mut |_| ()).unwrap();
        };
        write(&tree.join("owned"), b"x");
        write(&tree.join("capable"), b"x");
        run("chown", &["1234:5678", "owned"]);
        run("chmod", &["4751", "owned"]);
        run("mknod", &["null", "c", "1", "3"]);
        run("mknod", &["disk", "b", "254", "300"]);
        run("mkfifo", &["fifo"]);
        let capable = root && ownership == Ownership::OnDisk;
        if capable {
            run("setcap", &["cap_net_raw+ep", "capable"]);
        }
        let (disk, _) = make(&tree, &format!("{name}.ext4"), &ownership, SIZE).unwrap();
        let owned = debugfs(&disk, "stat /owned");
        assert!(owned.contains("User:  1234   Group:  5678") && owned.contains("Mode:  04751"), "{owned}");
        let null = debugfs(&disk, "stat /null");
        assert!(null.contains("character special") && null.contains("01:03"), "{null}");
        assert!(debugfs(&disk, "stat /disk").contains("254:300"), "{}", debugfs(&disk, "stat /disk"));
        assert!(debugfs(&disk, "stat /fifo").contains("FIFO"));
        assert!(debugfs(&disk, "stat /").contains("User:     0   Group:     0"));
        if capable {
            assert!(debugfs(&disk, "ea_list /capable").contains("security.capability"));
        }
        output("e2fsck", &["-fn", disk.to_str().unwrap()]);
    }
}

#[test]
fn a_tree_larger_than_told_gets_a_larger_disk() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    write(&tree.join("large"), &vec![7; 110 << 20]);
    let (disk, size) = make(&tree, "disk.ext4", &Ownership::OnDisk, SIZE).unwrap();
    assert!(size.bytes() > 110 << 20);
    output("e2fsck", &["-fn", disk.to_str().unwrap()]);
}

#[test]
fn many_files_spread_over_block_groups_have_fixed_times() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for d in 0..30 {
        let sub = tree.join(format!("d{d}"));
        fs::create_dir(&sub).unwrap();
        for f in 0..150 {
            write(&sub.join(format!("f{f}")), b"x");
        }
    }
    let size = TreeSize { data_bytes: 4500 * 4096, inodes: 4532, directories: 31, name_bytes: 100_000 };
    let (disk, _) = make(&tree, "disk.ext4", &Ownership::OnDisk, size).unwrap();
    for path in ["/d0/f0", "/d15/f149", "/d29/f149", "/d29", "/"] {
        let stat = debugfs(&disk, &format!("stat {path}"));
        assert!(
            stat.contains("ctime: 0x6553f100:00000000") && stat.contains("atime: 0x6553f100:00000000"),
            "{stat}"
        );
    }
}
