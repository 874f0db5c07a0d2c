//! Inodes: what a name leads to.

use super::{Image, ImageError, ImageResult, LINK_BYTES_MAX, ROOT_INODE, u16_at, u32_at};
use kiln_sys::IoResultExt as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// An inode keeps its content's map, or a short link's target, in so many bytes.
pub(super) const MAP_BYTES: usize = 60;
/// Bytes of a file that are copied at a time.
const COPY_BYTES: u64 = 1 << 20;
const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE_DATA: u32 = 0x1000_0000;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A block or character device, with its major and minor number.
    Device {
        /// Whether it is a block device.
        block: bool,
        /// The driver.
        major: u32,
        /// The device of the driver.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What is known of a file.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Its number, 1 or more.
    pub number: u32,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-user-id, set-group-id and sticky bit.
    pub mode: u16,
    /// The owner's user.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// Its length in bytes.
    pub size: u64,
    /// How many names it has.
    pub links: u16,
    pub(super) flags: u32,
    pub(super) map: [u8; MAP_BYTES],
}

impl Inode {
    /// Returns an error about this inode.
    pub(super) fn damaged(&self, reason: &'static str) -> ImageError {
        ImageError::Inode { inode: self.number, reason }
    }

    /// Whether the map is a tree of extents.
    pub(super) fn has_extents(&self) -> bool {
        self.flags & FLAG_EXTENTS != 0
    }
}

impl Image {
    /// Reads the root directory's inode.
    pub fn root(&self) -> ImageResult<Inode> {
        let root = self.inode(ROOT_INODE)?;
        if root.kind == Kind::Directory { Ok(root) } else { Err(root.damaged("the root is no directory")) }
    }

    /// Reads an inode.
    pub fn inode(&self, number: u32) -> ImageResult<Inode> {
        let damaged = |reason| ImageError::Inode { inode: number, reason };
        if number == 0 || number > self.inode_count {
            return Err(damaged("there is no such inode"));
        }
        let (group, place) =
            ((number - 1) / self.inodes_per_group, u64::from((number - 1) % self.inodes_per_group));
        let mut descriptor = vec![0; usize::from(self.descriptor_bytes)];
        let table = (u64::from(self.first_data_block) + 1) * self.block_bytes();
        self.read_at(table + u64::from(group) * u64::from(self.descriptor_bytes), &mut descriptor)?;
        let high = if self.descriptor_bytes >= 64 { u32_at(&descriptor, 0x28) } else { 0 };
        let inodes = u64::from(high) << 32 | u64::from(u32_at(&descriptor, 8));
        let offset = inodes
            .checked_mul(self.block_bytes())
            .and_then(|start| start.checked_add(place * u64::from(self.inode_bytes)))
            .ok_or(damaged("it lies outside the file system"))?;
        let mut bytes = [0; 128];
        self.read_at(offset, &mut bytes)?;
        parse(number, &bytes)
    }

    /// Returns the target of a symbolic link.
    pub fn link_target(&self, inode: &Inode) -> ImageResult<Vec<u8>> {
        if inode.kind != Kind::Link {
            return Err(inode.damaged("it is no symbolic link"));
        }
        if inode.size > LINK_BYTES_MAX {
            return Err(inode.damaged("its target is longer than 4096 bytes"));
        }
        match usize::try_from(inode.size) {
            Ok(size) if size < MAP_BYTES && !inode.has_extents() => Ok(inode.map[..size].to_vec()),
            _ => self.read_whole(inode),
        }
    }

    /// Reads a regular file of at most `max` bytes whole; `path` is for errors.
    pub fn read_file(&self, inode: &Inode, path: &str, max: u64) -> ImageResult<Vec<u8>> {
        if inode.size > max {
            return Err(ImageError::FileTooLarge { path: path.to_owned(), size: inode.size, max });
        }
        self.read_whole(inode)
    }

    /// Reads content whose length was checked; holes are zeros.
    fn read_whole(&self, inode: &Inode) -> ImageResult<Vec<u8>> {
        let too_large = || inode.damaged("it is too large to be read whole");
        let size = usize::try_from(inode.size).map_err(|_| too_large())?;
        let mut content = vec![0; size];
        for extent in self.extents(inode)? {
            let Ok(start) = usize::try_from(extent.start) else { continue };
            let end = usize::try_from(extent.end()).unwrap_or(size).min(size);
            if start < end {
                self.read_at(extent.at, &mut content[start..end])?;
            }
        }
        Ok(content)
    }

    /// Copies the content of a regular file, whose length the caller has found to be bearable, to an empty file; holes
    /// stay holes. `path` is the copy's, for errors.
    pub fn copy_file(&self, inode: &Inode, to: &File, path: &Path) -> ImageResult<()> {
        to.set_len(inode.size).at("write", path)?;
        let mut buffer = Vec::new();
        for extent in self.extents(inode)? {
            let end = extent.end().min(inode.size);
            let mut position = extent.start;
            while position < end {
                let step = (end - position).min(COPY_BYTES);
                buffer.resize(step as usize, 0);
                self.read_at(extent.at + (position - extent.start), &mut buffer)?;
                to.write_all_at(&buffer, position).at("write", path)?;
                position += step;
            }
        }
        Ok(())
    }
}

fn parse(number: u32, bytes: &[u8; 128]) -> ImageResult<Inode> {
    let mut map = [0; MAP_BYTES];
    map.copy_from_slice(&bytes[0x28..0x28 + MAP_BYTES]);
    let mode = u16_at(bytes, 0);
    let kind = match mode >> 12 {
        0x8 => Kind::File,
        0x4 => Kind::Directory,
        0xa => Kind::Link,
        0x2 => device(false, &map),
        0x6 => device(true, &map),
        0x1 => Kind::Fifo,
        0xc => Kind::Socket,
        _ => return Err(ImageError::Inode { inode: number, reason: "it is of no known type" }),
    };
    let flags = u32_at(bytes, 0x20);
    if flags & FLAG_INLINE_DATA != 0 {
        return Err(ImageError::Unsupported("content inside inodes"));
    }
    if flags & FLAG_ENCRYPTED != 0 {
        return Err(ImageError::Unsupported("encryption"));
    }
    Ok(Inode {
        number,
        kind,
        mode: mode & 0o7777,
        uid: u32::from(u16_at(bytes, 0x78)) << 16 | u32::from(u16_at(bytes, 2)),
        gid: u32::from(u16_at(bytes, 0x7a)) << 16 | u32::from(u16_at(bytes, 0x18)),
        size: u64::from(u32_at(bytes, 0x6c)) << 32 | u64::from(u32_at(bytes, 4)),
        links: u16_at(bytes, 0x1a),
        flags,
        map,
    })
}

/// Reads a device number: in the first word in its old form, else in the second.
fn device(block: bool, map: &[u8; MAP_BYTES]) -> Kind {
    let (old, new) = (u32_at(map, 0), u32_at(map, 4));
    if old != 0 {
        return Kind::Device { block, major: old >> 8 & 0xff, minor: old & 0xff };
    }
    Kind::Device { block, major: new >> 8 & 0xfff, minor: new & 0xff | new >> 12 & 0xf_ff00 }
}
