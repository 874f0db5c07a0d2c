#![expect(clippy::disallowed_methods, reason = "tests make their images with the tools of the host")]

use super::*;
use ext4_view::Ext4;
use kiln_sys::tool::{ScratchDir, Toolbox};
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

/// Mode, size, and content or target, by path.
type Seen = BTreeMap<String, (u16, u64, Vec<u8>)>;

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

/// Walks a whole image: what it is, and what its files and links hold.
fn walk(image: &Image) -> ImageResult<Seen> {
    fn below(image: &Image, dir: &Inode, path: &str, seen: &mut Seen) -> ImageResult<()> {
        if path.len() > 400 {
            return Err(ImageError::Limit { what: "paths", max: 400 });
        }
        for entry in image.entries(dir)? {
            let inode = image.inode(entry.inode)?;
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let content = match inode.kind {
                Kind::File => image.read_file(&inode, &path, 4 << 20)?,
                Kind::Link => image.link_target(&inode)?,
                _ => Vec::new(),
            };
            seen.insert(path.clone(), (inode.mode, inode.size, content));
            if inode.kind == Kind::Directory {
                below(image, &inode, &path, seen)?;
            }
        }
        Ok(())
    }
    let mut seen = BTreeMap::new();
    below(image, &image.root()?, "", &mut seen)?;
    Ok(seen)
}

/// Walks a whole image with another reader.
fn walk_otherwise(path: &Path) -> Seen {
    let fs = Ext4::load_from_path(path).unwrap();
    let mut seen = BTreeMap::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs.read_dir(format!("{dir}/").as_str()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().as_str().unwrap().to_owned();
            if name == "." || name == ".." {
                continue;
            }
            let (path, meta) = (format!("{dir}/{name}"), entry.metadata().unwrap());
            let content = if meta.is_symlink() {
                fs.read_link(path.as_str()).unwrap().as_ref().to_vec()
            } else if meta.is_dir() {
                Vec::new()
            } else {
                fs.read(path.as_str()).unwrap()
            };
            if meta.is_dir() {
                dirs.push(path.clone());
            }
            seen.insert(path, (meta.mode(), meta.len(), content));
        }
    }
    seen
}

#[test]
fn another_reader_finds_the_same() {
    let scratch = tree();
    for (name, args) in [
        ("plain", &["-b", "4096"][..]),
        ("small-blocks", &["-b", "1024", "-O", "^64bit"]),
        ("small-inodes", &["-b", "2048", "-I", "128", "-O", "^metadata_csum"]),
    ] {
        let path = image(&scratch, name, args);
        let seen = walk(&open(&path).unwrap()).unwrap();
        assert_eq!(seen, walk_otherwise(&path), "{name}");
        assert_eq!(seen["/etc/motd"], (0o4750, 6, b"hello\n".to_vec()));
        assert_eq!(seen["/etc/long"].2.len(), 200);
    }
}

#[test]
fn paths_are_found_without_following_links() {
    let scratch = tree();
    symlink("etc", scratch.path().join("tree/alias")).unwrap();
    let image = open(&image(&scratch, "image", &[])).unwrap();
    assert_eq!(image.find("/etc/motd").unwrap().unwrap().size, 6);
    for path in ["/etc/none", "/alias/motd", "/etc/motd/x"] {
        assert!(image.find(path).unwrap().is_none(), "{path}");
    }
}

#[test]
fn a_file_too_large_to_be_read_whole_is_named() {
    let scratch = tree();
    let image = open(&image(&scratch, "image", &[])).unwrap();
    let large = image.find("/etc/deep/er/large").unwrap().unwrap();
    let error = image.read_file(&large, "/etc/deep/er/large", 1000).unwrap_err();
    assert_eq!(error.to_string(), "its file /etc/deep/er/large has 300000 bytes, more than 1000");
}

/// Changes bytes of an image and says where its reader ends.
fn spoilt(path: &Path, at: u64, bytes: &[u8]) -> Result<usize, String> {
    let copy = path.with_extension("spoilt");
    let mut content = std::fs::read(path).unwrap();
    let at = usize::try_from(at).unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    std::fs::write(&copy, content).unwrap();
    open(&copy).and_then(|image| walk(&image)).map(|seen| seen.len()).map_err(|error| error.to_string())
}

#[test]
fn superblocks_that_lie_are_refused() {
    let scratch = tree();
    let path = image(&scratch, "image", &["-b", "4096"]);
    for (at, bytes, want) in [
        (0x38, &[0, 0][..], "no ext4"),
        (0x18, &[200], "block size"),
        (0x4, &[0xff; 4], "more blocks"),
        (0x14, &[9], "first data block"),
        (0x28, &[0; 4], "no inodes"),
        (0x58, &[0xff; 2], "inode size"),
        (0xfe, &[3, 0], "descriptor size"),
        (0x60, &[0x46, 0x2, 0, 0], "not played back"),
        (0x60, &[0xc2, 0x82, 0, 0], "features kiln does not read: 0x8000"),
        (0x28, &[1, 0, 0, 0], ""),
    ] {
        let error = spoilt(&path, 1024 + at, bytes).unwrap_err();
        assert!(error.contains(want), "{at:#x}: {error}");
    }
}

#[test]
fn directories_that_contain_themselves_or_nonsense_end() {
    let scratch = tree();
    let path = image(&scratch, "image", &["-b", "4096"]);
    let reader = open(&path).unwrap();
    let root = reader.root().unwrap();
    let block = reader.extents(&root).unwrap()[0].at;
    let mut entries = vec![0; 4096];
    reader.read_at(block, &mut entries).unwrap();
    let etc = entries.windows(3).position(|bytes| bytes == b"etc").unwrap() as u64;
    let error = spoilt(&path, block + etc - 8, &2_u32.to_le_bytes()).unwrap_err();
    assert!(error.contains("limit"), "{error}");
    let error = spoilt(&path, block + etc - 4, &[0, 0]).unwrap_err();
    assert!(error.contains("impossible length"), "{error}");
    let error = spoilt(&path, block + etc, b"/").unwrap_err();
    assert!(error.contains("name in it is none"), "{error}");
}

/// Writes a tree of extents into an image's large file: five levels, whose entries all lead to the next level's one
/// node. Followed entry by entry it takes some 10^13 steps.
fn bushy(scratch: &ScratchDir) -> PathBuf {
    let path = image(scratch, "image", &["-b", "4096", "-O", "^metadata_csum"]);
    let reader = open(&path).unwrap();
    let large = reader.find("/etc/deep/er/large").unwrap().unwrap();
    let first = reader.extents(&large).unwrap()[0].at;
    let node = |entries: u16, depth: u8, child: u64| {
        let mut node = vec![0x0a, 0xf3, 0, 0, 0, 0, depth, 0, 0, 0, 0, 0];
        node[2..4].copy_from_slice(&entries.to_le_bytes());
        node[4..6].copy_from_slice(&entries.to_le_bytes());
        let child = u32::try_from(child / 4096).unwrap().to_le_bytes();
        let entry = if depth == 0 { [0; 8] } else { [child, [0; 4]].concat().try_into().unwrap() };
        (0..entries).for_each(|_| node.extend([&[0; 4][..], &entry].concat()));
        node
    };
    let mut content = std::fs::read(&path).unwrap();
    let map = content.windows(60).position(|bytes| bytes == large.map).unwrap();
    content[map..map + 60].copy_from_slice(&node(4, 5, first));
    for depth in (0..5_u8).rev() {
        let at = first + u64::from(4 - depth) * 4096;
        let node = node(340, depth, at + 4096);
        let at = usize::try_from(at).unwrap();
        content[at..at + node.len()].copy_from_slice(&node);
    }
    let copy = path.with_extension("bushy");
    std::fs::write(&copy, content).unwrap();
    copy
}

#[test]
fn a_tree_of_extents_that_leads_back_to_itself_ends() {
    let scratch = tree();
    let image = open(&bushy(&scratch)).unwrap();
    let large = image.find("/etc/deep/er/large").unwrap().unwrap();
    let error = image.extents(&large).unwrap_err().to_string();
    assert!(error.contains("its extents are out of order"), "{error}");
}

#[test]
fn an_image_that_refers_to_its_blocks_too_often_is_refused() {
    let scratch = tree();
    let image = open(&image(&scratch, "image", &[])).unwrap();
    let etc = image.find("/etc").unwrap().unwrap();
    let error = (0..100_000).find_map(|_| image.entries(&etc).err()).unwrap();
    assert!(matches!(error, ImageError::Limit { .. }), "{error}");
}

#[test]
fn damaged_bytes_anywhere_give_an_error_or_a_walk_and_never_a_panic() {
    let scratch = tree();
    let path = image(&scratch, "image", &["-b", "1024", "-O", "^metadata_csum"]);
    let whole = std::fs::read(&path).unwrap();
    let used: Vec<usize> =
        (0..whole.len() / 64).filter(|chunk| whole[chunk * 64..chunk * 64 + 64] != [0; 64]).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let copy = path.with_extension("damaged");
    let (mut failed, mut walked) = (0, 0);
    for _ in 0..60 {
        let mut content = whole.clone();
        for _ in 0..20 {
            let at = used[random(used.len())] * 64 + random(64);
            content[at] = u8::try_from(random(256)).unwrap();
        }
        std::fs::write(&copy, content).unwrap();
        match open(&copy).and_then(|image| walk(&image)) {
            Ok(_) => walked += 1,
            Err(_) => failed += 1,
        }
    }
    assert!(failed > 5 && walked > 0, "{failed} failed, {walked} walked");
}

#[test]
fn what_may_be_read_of_an_image_follows_from_its_data() {
    let scratch = tree();
    let image = open(&image(&scratch, "image", &[])).unwrap();
    // `open` says that it has 1 MiB of data.
    let full = (8 << 20) + (64 << 20);
    image.spend(full).unwrap();
    let error = image.spend(1).unwrap_err().to_string();
    assert!(error.ends_with(&format!("above the limit of {full}")), "{error}");
}

#[test]
fn a_link_has_a_longest_target() {
    let scratch = tree();
    let image = open(&image(&scratch, "image", &[])).unwrap();
    let mut link = image.find("/etc/long").unwrap().unwrap();
    link.size = LINK_BYTES_MAX;
    assert_eq!(image.link_target(&link).unwrap().len(), 4096);
    link.size += 1;
    let error = image.link_target(&link).unwrap_err().to_string();
    assert_eq!(error, format!("inode {} is damaged: its target is longer than 4096 bytes", link.number));
}

#[test]
fn a_file_of_the_largest_size_is_read() {
    let scratch = tree();
    let image = open(&image(&scratch, "image", &[])).unwrap();
    let large = image.find("/etc/deep/er/large").unwrap().unwrap();
    assert_eq!(image.read_file(&large, "large", large.size).unwrap().len(), 300_000);
    assert!(matches!(image.read_file(&large, "large", large.size - 1), Err(ImageError::FileTooLarge { .. })));
}
