//! Paths as a process in the image would follow them.

use super::{Image, ImageResult, Inode, Kind};
use std::collections::VecDeque;

/// The most symbolic links on the way to a file, as the kernel has it.
const LINKS_MAX: usize = 40;
/// The most parts of a path, with those of the links on the way.
const PARTS_MAX: usize = 4096;

impl Image {
    /// Returns the inode at a path, with symbolic links followed and none of them leading out of the image; none when it
    /// is not there, or links lead in a circle.
    pub fn follow(&self, path: &str) -> ImageResult<Option<Inode>> {
        let mut rest: VecDeque<Vec<u8>> = parts(path.as_bytes()).collect();
        let mut way = vec![self.root()?];
        let (mut links, mut steps) = (0, 0);
        while let Some(part) = rest.pop_front() {
            steps += 1;
            if steps > PARTS_MAX {
                return Ok(None);
            }
            if part == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let Some(here) = way.last().filter(|here| here.kind == Kind::Directory) else { return Ok(None) };
            let entries = self.entries(here)?;
            let Ok(place) = entries.binary_search_by(|entry| entry.name.as_slice().cmp(&part)) else {
                return Ok(None);
            };
            let inode = self.inode(entries[place].inode)?;
            if inode.kind != Kind::Link {
                way.push(inode);
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Ok(None);
            }
            let target = self.link_target(&inode)?;
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(part);
            }
        }
        Ok(way.pop())
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{image, open, tree};
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_and_stay_inside() {
        let scratch = tree();
        let root = scratch.path().join("tree");
        symlink("etc/deep", root.join("alias")).unwrap();
        symlink("/alias/er", root.join("etc/absolute")).unwrap();
        symlink("../../../../etc/motd", root.join("etc/out")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        let image = open(&image(&scratch, "image", &[])).unwrap();
        let size = |path: &str| image.follow(path).unwrap().map(|inode| inode.size);
        assert_eq!(size("/etc/absolute/large"), Some(300_000));
        assert_eq!(size("etc/./out"), Some(6));
        assert_eq!(size("/../../etc/motd"), Some(6));
        for path in ["/circle", "/circle/x", "/etc/motd/x", "/nothing", "/etc/long"] {
            assert_eq!(size(path), None, "{path}");
        }
    }
}
