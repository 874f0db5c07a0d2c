//! ext4: directories are sorted and plain, extents lie in order, and reading ends.

use crate::{Bench, HOST};
use kiln_source::disk::boot::find_kernel;
use kiln_source::ext4::{Image, ImageResult, Inode, Kind};

/// The most names that are looked at, whatever leads where.
const NAMES_MAX: usize = 500;
/// The largest file that is read whole or copied, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads bytes as a file system.
pub fn run(data: &[u8]) {
    let bench = Bench::shared();
    let (file, path) = bench.write("image", data);
    let len = data.len() as u64;
    let Ok(image) = Image::open(file, path, len, len, bench.cancel.clone()) else { return };
    // What ends early is an error that was told.
    let _ = walk(bench, &image);
    if let Ok(Some(kernel)) = find_kernel(&image, None) {
        assert_eq!(kernel.inode.kind, Kind::File);
    }
}

fn walk(bench: &Bench, image: &Image) -> ImageResult<()> {
    let mut rest = vec![image.root()?];
    let mut seen = 0;
    while let Some(inode) = rest.pop() {
        seen += 1;
        if seen > NAMES_MAX {
            break;
        }
        // One that is damaged says nothing of the others.
        let _ = look(bench, image, &inode, &mut rest);
    }
    for path in ["/etc/os-release", "etc/../link/x", "/dir/deep/file"] {
        let _ = image.find(path);
        let _ = image.follow(path);
    }
    Ok(())
}

fn look(bench: &Bench, image: &Image, inode: &Inode, rest: &mut Vec<Inode>) -> ImageResult<()> {
    let extents = image.extents(inode)?;
    for pair in extents.windows(2) {
        assert!(pair[0].end() <= pair[1].start, "{pair:?} overlap");
    }
    match inode.kind {
        Kind::Directory => {
            let entries = image.entries(inode)?;
            for pair in entries.windows(2) {
                assert!(pair[0].name < pair[1].name, "{pair:?} are not in order");
            }
            for entry in entries.into_iter().take(NAMES_MAX) {
                let name = &entry.name;
                let plain = !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/');
                assert!(plain && !name.contains(&0), "{name:?} is no name");
                if let Ok(inode) = image.inode(entry.inode) {
                    rest.push(inode);
                }
            }
        }
        Kind::File if inode.size <= FILE_BYTES_MAX => {
            let content = image.read_file(inode, "file", FILE_BYTES_MAX)?;
            assert_eq!(content.len() as u64, inode.size);
            let (copy, path) = bench.write("copy", &[]);
            image.copy_file(inode, &copy, &path)?;
            assert_eq!(copy.metadata().expect(HOST).len(), inode.size, "the copy has another length");
            let copied = kiln_sys::fs::read_limited(&path, content.len()).expect(HOST);
            assert!(copied == content, "the copy differs");
        }
        Kind::Link => {
            let target = image.link_target(inode)?;
            assert_eq!(target.len() as u64, inode.size);
        }
        _ => {}
    }
    Ok(())
}
