#![expect(clippy::disallowed_methods, reason = "tests make their images with the tools of the host")]

use super::super::FileList;
use super::super::images::{image, tree};
use super::*;
use kiln_source::ext4::Image;
use kiln_sys::Cancel;
use std::path::Path;

fn side(path: &Path) -> Side {
    let cancel = Cancel::new().unwrap();
    let file = kiln_sys::fs::open(path).unwrap();
    let index = kiln_store::hash_file(&file, path, &cancel).unwrap();
    let image = Image::open(file, path.to_owned(), index.length(), index.data_bytes(), cancel).unwrap();
    Side::new(index.digest(), image, &index)
}

/// Compares two images and returns a line for each change.
fn changes(a: &Path, b: &Path) -> Result<Vec<String>, String> {
    let mut sink = Sink::new(FileList::All);
    compare(&side(a), &side(b), &mut sink).map_err(|error| kiln_core::text::chain(&error))?;
    let line = |change: &FileChange| format!("{:?} {} {:?}", change.change, change.path, change.aspects);
    Ok(sink.finish().changes.iter().map(line).collect())
}

#[test]
fn content_decides_whatever_the_layout() {
    let scratch = tree();
    let root = scratch.path().join("tree");
    let mut large: Vec<u8> = (0..500_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    std::fs::write(root.join("numbers"), &large).unwrap();
    std::fs::hard_link(root.join("numbers"), root.join("numbers-too")).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    let before = image(&scratch, "before", &["-b", "4096"]);
    // Other block size, and zeros that are written: the same content, laid out otherwise.
    std::fs::write(root.join("sparse"), vec![0; 1 << 20]).unwrap();
    let same = image(&scratch, "same", &["-b", "1024"]);
    assert_eq!(changes(&before, &same).unwrap(), Vec::<String>::new());
    assert_eq!(changes(&same, &before).unwrap(), Vec::<String>::new());
    let last = large.len() - 1;
    large[last] ^= 1;
    std::fs::write(root.join("numbers"), &large).unwrap();
    std::fs::write(root.join("sparse"), [vec![0; (1 << 20) - 1], vec![1]].concat()).unwrap();
    let after = image(&scratch, "after", &["-b", "4096"]);
    let want = ["Changed /numbers [Content]", "Changed /numbers-too [Content]", "Changed /sparse [Content]"];
    assert_eq!(changes(&before, &after).unwrap(), want);
    assert_eq!(changes(&after, &same).unwrap(), want);
}

#[test]
fn a_directory_that_contains_itself_is_an_error_that_names_the_artifact() {
    let scratch = tree();
    let path = image(&scratch, "image", &["-b", "4096"]);
    let mut content = std::fs::read(&path).unwrap();
    let deep = content.windows(12).position(|bytes| bytes[6..] == *b"\x04\x02deep").unwrap();
    content[deep..deep + 4].copy_from_slice(&2_u32.to_le_bytes());
    let looping = path.with_extension("looping");
    std::fs::write(&looping, content).unwrap();
    let digest = side(&looping).error(ImageError::NotExt4).to_string();
    // Beside a whole tree, where it is something added, and beside itself.
    for (a, b) in [(&path, &looping), (&looping, &path), (&looping, &looping)] {
        let error = changes(a, b).unwrap_err();
        assert!(error.starts_with(&digest), "{error}");
        assert!(error.contains("nested directories above the limit of 128"), "{error}");
    }
}

#[test]
fn names_paths_and_depth_are_limited() {
    check_place(PATH_BYTES_MAX, DEPTH_MAX).unwrap();
    let paths = check_place(PATH_BYTES_MAX + 1, 1).unwrap_err().to_string();
    assert_eq!(paths, "it has paths above the limit of 4096");
    let depth = check_place(1, DEPTH_MAX + 1).unwrap_err().to_string();
    assert_eq!(depth, "it has nested directories above the limit of 128");
    let scratch = tree();
    let image = side(&image(&scratch, "image", &[]));
    let root = image.root().unwrap();
    let count = image.entries(&root).unwrap().len() as u64;
    // As if so many were seen before.
    let entries = |names| Half { side: &image, names }.entries(&root);
    entries(NAMES_MAX - count).unwrap();
    let error = kiln_core::text::chain(&entries(NAMES_MAX - count + 1).unwrap_err());
    assert!(error.ends_with("it has names above the limit of 4194304"), "{error}");
}
