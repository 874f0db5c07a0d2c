//! Where the bytes of a file lie, as its file system tells (`FS_IOC_FIEMAP`): a figure for people, never a base for
//! decisions about content.

use crate::error::{IoResult, IoResultExt};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::fs::File;
use std::path::Path;

/// `linux/fs.h`; the size in the number is that of the head alone.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<[u8; HEAD_BYTES]>(b'f', 11);
const HEAD_BYTES: usize = 32;
/// Extents that one call returns.
const EXTENTS: usize = 256;
/// Of a request: write out first.
const FLAG_SYNC: u32 = 1;
/// Of an extent: it is the last.
const FLAG_LAST: u32 = 0x1;
const FLAG_SHARED: u32 = 0x2000;

/// `struct fiemap` with room for extents behind it.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// Returns the bytes of a file that other files have too; none where the file system does not tell.
pub fn shared_bytes(file: &File, path: &Path) -> IoResult<Option<u64>> {
    let mut shared = 0;
    let mut start = 0;
    loop {
        let map = match map(file, start, 0, EXTENTS) {
            Ok(map) => map,
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error).at("map the extents of", path),
        };
        let mapped = usize::try_from(map.mapped_extents).unwrap_or(EXTENTS).min(EXTENTS);
        let found = &map.extents[..mapped];
        shared +=
            found.iter().filter(|extent| extent.flags & FLAG_SHARED != 0).map(|e| e.length).sum::<u64>();
        match found.last() {
            Some(last) if last.flags & FLAG_LAST == 0 && last.logical.saturating_add(last.length) > start => {
                start = last.logical.saturating_add(last.length);
            }
            _ => return Ok(Some(shared)),
        }
    }
}

/// Returns the number of a file's extents, after what is not yet written out was; none where the file system does not
/// tell.
pub fn count(file: &File) -> Option<u64> {
    map(file, 0, FLAG_SYNC, 0).ok().map(|map| u64::from(map.mapped_extents))
}

/// Maps up to `room` extents from `start` on; without room they are only counted.
fn map(file: &File, start: u64, flags: u32, room: usize) -> Result<Fiemap, Errno> {
    let none = Extent { logical: 0, physical: 0, length: 0, reserved64: [0; 2], flags: 0, reserved: [0; 3] };
    let mut map = Fiemap {
        start,
        length: u64::MAX - start,
        flags,
        mapped_extents: 0,
        extent_count: u32::try_from(room.min(EXTENTS)).unwrap_or(0),
        reserved: 0,
        extents: [none; EXTENTS],
    };
    #[expect(unsafe_code, reason = "FS_IOC_FIEMAP has no safe wrapper")]
    // SAFETY: the kernel reads the head and writes at most `extent_count` extents behind it, for all of which there is
    // room; both are plain numbers, and nothing is kept after the call.
    unsafe {
        ioctl(file, Updater::<FS_IOC_FIEMAP, Fiemap>::new(&mut map))?;
    }
    Ok(map)
}
