//! Copies of large files: shared extents where the file system can, else data only, so that holes stay holes.

use crate::cancel::Cancel;
use crate::error::{IoError, IoResult, IoResultExt};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// By shared extents.
    Reflink,
    /// Byte by byte, holes kept.
    Sparse,
}

/// The most bytes copied between two looks at the cancellation flag.
const STEP_BYTES: u64 = 8 << 20;

/// Copies the content of `from` to the empty file `to`. `to_path` is for errors.
pub fn copy_file(from: &File, to: &File, to_path: &Path, cancel: Option<&Cancel>) -> IoResult<Copied> {
    if reflink(from, to, to_path)? {
        return Ok(Copied::Reflink);
    }
    sparse_copy(from, to, to_path, cancel).map(|()| Copied::Sparse)
}

/// Has the kernel begin to write a part of a file to its disk, so that less is left to wait for when it is synced. What is
/// written there may still be lost: nothing is waited for but room in the disk's queue.
pub fn begin_writeback(file: &File, at: u64, len: u64) {
    let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) else { return };
    #[expect(unsafe_code, reason = "sync_file_range has no safe wrapper")]
    // SAFETY: the descriptor is open as long as `file` is, and no memory is passed.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE) };
    // A file system that cannot do so writes at the sync.
    let _ = result;
}

/// Shares all extents of `from` with `to`; false where the file systems of the two cannot. `to_path` is for errors.
///
/// # Errors
/// What a copy would meet as well: no room, a quota, a disk that fails.
pub fn reflink(from: &File, to: &File, to_path: &Path) -> IoResult<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(error) if is_inability(error) => Ok(false),
        Err(error) => Err(error).at("share the blocks of", to_path),
    }
}

/// Whether a range of blocks became shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// It did.
    Yes,
    /// This range cannot be.
    NotThis,
    /// The file systems of the two files cannot share blocks.
    Never,
}

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct CloneRange {
    from_fd: i64,
    from_offset: u64,
    len: u64,
    to_offset: u64,
}

/// Shares `len` bytes of `from` with `to`; offsets and length are whole blocks of the file system. `to_path` is for
/// errors.
///
/// # Errors
/// As [`reflink`].
pub fn share_range(
    from: &File,
    from_offset: u64,
    to: &File,
    to_offset: u64,
    len: u64,
    to_path: &Path,
) -> IoResult<Shared> {
    use rustix::io::Errno;
    use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
    use std::os::fd::AsRawFd as _;
    const FICLONERANGE: Opcode = opcode::write::<CloneRange>(0x94, 13);
    if len == 0 {
        // To the kernel this means up to the end.
        return Ok(Shared::Yes);
    }
    let range = CloneRange { from_fd: from.as_raw_fd().into(), from_offset, len, to_offset };
    #[expect(unsafe_code, reason = "FICLONERANGE has no safe wrapper")]
    // SAFETY: the kernel reads one `struct file_clone_range`, whose descriptor is open during the call.
    let result = unsafe { ioctl(to, Setter::<FICLONERANGE, CloneRange>::new(range)) };
    match result {
        Ok(()) => Ok(Shared::Yes),
        Err(Errno::INVAL) => Ok(Shared::NotThis),
        Err(error) if is_inability(error) => Ok(Shared::Never),
        Err(error) => Err(error).at("share the blocks of", to_path),
    }
}

/// Makes a range of a file read as zeros, without room where the file system can. `path` is for errors.
pub fn write_hole(file: &File, path: &Path, offset: u64, len: u64) -> IoResult<()> {
    use rustix::fs::FallocateFlags;
    use std::os::unix::fs::FileExt as _;
    if len == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => Ok(()),
        Err(error) if is_inability(error) => {
            let zeros = vec![0; 1 << 16];
            let mut done = 0;
            while done < len {
                let step = usize::try_from((len - done).min(1 << 16)).unwrap_or(1 << 16);
                file.write_all_at(&zeros[..step], offset + done).at("write", path)?;
                done += step as u64;
            }
            Ok(())
        }
        Err(error) => Err(error).at("make a hole in", path),
    }
}

/// Takes the first `len` bytes out of a file, so that what follows begins it, without copying; false where the file
/// system cannot. `path` is for errors.
pub fn drop_front(file: &File, path: &Path, len: u64) -> IoResult<bool> {
    if len == 0 {
        return Ok(true);
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::COLLAPSE_RANGE, 0, len) {
        Ok(()) => Ok(true),
        Err(error) if is_inability(error) => Ok(false),
        Err(error) => Err(error).at("shorten", path),
    }
}

/// Copies `len` bytes of `from` at an offset to the beginning of the empty file `to`: shared where the file system
/// can, holes kept. `to_path` is for errors.
pub fn copy_out(
    from: &File,
    offset: u64,
    len: u64,
    to: &File,
    to_path: &Path,
    cancel: Option<&Cancel>,
) -> IoResult<()> {
    let end = offset.saturating_add(len);
    let mut data = DataExtents { file: from, len: end, position: offset };
    to.set_len(len).at("set the length of", to_path)?;
    // Whole blocks may be shared, and the end of the range is seldom one.
    let block = 4096;
    let whole = len - len % block;
    if offset.is_multiple_of(block) && share_range(from, offset, to, 0, whole, to_path)? == Shared::Yes {
        data.position = offset + whole;
    }
    for extent in data {
        let (mut start, end) = extent.at("find the data for", to_path)?;
        while start < end {
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "cancelled")).at("write", to_path);
            }
            let (mut read, mut write) = (start, start - offset);
            let want = usize::try_from((end - start).min(STEP_BYTES)).unwrap_or(1);
            let copied = match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), want)
            {
                Ok(copied) => copied,
                Err(error) if is_inability(error) => {
                    use std::os::unix::fs::FileExt as _;
                    let mut buffer = vec![0; want.min(1 << 20)];
                    let read = from.read_at(&mut buffer, start).at("read the source of", to_path)?;
                    to.write_all_at(&buffer[..read], start - offset).at("write", to_path)?;
                    read
                }
                Err(error) => return Err(error).at("write", to_path),
            };
            if copied == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the source became shorter"))
                    .at("write", to_path);
            }
            start += copied as u64;
        }
    }
    Ok(())
}

/// Whether the kernel says by this that the two files cannot share blocks here, rather than that it failed to.
fn is_inability(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS)
}

/// Copies the data extents of `from` to the empty file `to`, and its length.
pub fn sparse_copy(from: &File, to: &File, to_path: &Path, cancel: Option<&Cancel>) -> IoResult<()> {
    copy_extents(from, to, to_path, cancel, copy_range)
}

/// Copies up to some bytes at an offset; returns how many.
type Step = fn(&File, &File, u64, u64) -> io::Result<u64>;

fn copy_extents(from: &File, to: &File, to_path: &Path, cancel: Option<&Cancel>, step: Step) -> IoResult<()> {
    let len = from.metadata().at("inspect the source of", to_path)?.len();
    to.set_len(len).at("set the length of", to_path)?;
    for extent in DataExtents::new(from, len) {
        let (mut start, end) = extent.at("find the data for", to_path)?;
        while start < end {
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "cancelled")).at("write", to_path);
            }
            let want = (end - start).min(STEP_BYTES);
            start += step(from, to, start, want).at("write", to_path)?;
        }
    }
    Ok(())
}

/// Copies data extents through a buffer, never by sharing: whatever the source's extents are, the file system lays
/// the copy out anew, in order. Otherwise as [`sparse_copy`].
pub fn compacting_copy(from: &File, to: &File, to_path: &Path, cancel: Option<&Cancel>) -> IoResult<()> {
    copy_extents(from, to, to_path, cancel, copy_buffered)
}

/// Copies with the standard library's function, which writes holes as zeros: what other copies are measured against.
pub fn filled_copy(from: &Path, to: &Path) -> IoResult<()> {
    #[expect(clippy::disallowed_methods, reason = "its cost is what is asked for")]
    std::fs::copy(from, to).at("write", to).map(|_| ())
}

/// Makes `to`, an empty file, of the blocks of `from` in reversed order by sharing them, so that each is a fragment:
/// for measurements. False where the file system cannot share blocks. `block` is its block size in bytes.
pub fn reversed_reflink(from: &File, to: &File, block: u64) -> IoResult<bool> {
    let path = Path::new("a file of fragments");
    let blocks = from.metadata().at("inspect", path)?.len() / block;
    if !reflink(from, to, path)? {
        return Ok(false);
    }
    for number in 0..blocks {
        let (mut source, mut target) = ((blocks - 1 - number) * block, number * block);
        let bytes = usize::try_from(block).unwrap_or(0);
        rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), bytes)
            .at("write", path)?;
    }
    Ok(true)
}

/// Copies up to `want` bytes at `offset` in the kernel, else through a buffer where the kernel refuses the pair.
fn copy_range(from: &File, to: &File, offset: u64, want: u64) -> io::Result<u64> {
    let (mut in_offset, mut out_offset) = (offset, offset);
    let want_bytes = usize::try_from(want).unwrap_or(usize::MAX);
    match rustix::fs::copy_file_range(from, Some(&mut in_offset), to, Some(&mut out_offset), want_bytes) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the source became shorter")),
        Ok(copied) => Ok(copied as u64),
        Err(error) if is_inability(error) => copy_buffered(from, to, offset, want),
        Err(error) => Err(error.into()),
    }
}

fn copy_buffered(from: &File, to: &File, offset: u64, want: u64) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    let mut buffer = vec![0; usize::try_from(want.min(1 << 20)).unwrap_or(1 << 20)];
    let read = from.read_at(&mut buffer, offset)?;
    if read == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the source became shorter"));
    }
    to.write_all_at(&buffer[..read], offset)?;
    Ok(read as u64)
}

/// The ranges of a file that may hold data, as the file system tells: a hint, never content. On a file system that
/// cannot tell, one range over the whole file.
#[derive(Debug)]
pub struct DataExtents<'a> {
    file: &'a File,
    len: u64,
    position: u64,
}

impl<'a> DataExtents<'a> {
    /// Starts at the beginning of a file of `len` bytes.
    pub fn new(file: &'a File, len: u64) -> Self {
        Self { file, len, position: 0 }
    }
}

impl Iterator for DataExtents<'_> {
    type Item = io::Result<(u64, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.len {
            return None;
        }
        let start = match rustix::fs::seek(self.file, SeekFrom::Data(self.position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => {
                self.position = self.len;
                return None;
            }
            Err(rustix::io::Errno::INVAL) => self.position,
            Err(error) => return Some(Err(error.into())),
        };
        let end = match rustix::fs::seek(self.file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(self.len),
            Err(rustix::io::Errno::INVAL) => self.len,
            Err(error) => return Some(Err(error.into())),
        };
        self.position = end;
        (start < end).then_some(Ok((start, end)))
    }
}

/// How the data of a file lies on its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Pieces that lie apart.
    pub extents: u64,
    /// Pieces that holes make of it: what `extents` would be at best.
    pub ranges: u64,
}

/// Returns how the data of a file lies; none where the file system does not tell. What is not yet written out is
/// written first.
pub fn layout(file: &File) -> Option<Layout> {
    let len = file.metadata().ok()?.len();
    let ranges = DataExtents::new(file, len).count() as u64;
    Some(Layout { extents: crate::extents::count(file)?, ranges })
}

/// Returns the bytes that the files of a tree take up. What vanishes meanwhile takes up nothing.
pub fn allocated_tree(path: &Path) -> IoResult<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut stack = vec![path.to_owned()];
    while let Some(path) = stack.pop() {
        let Some(meta) = crate::fs::optional(crate::fs::symlink_metadata(&path))? else { continue };
        if meta.is_dir() {
            stack.extend(crate::fs::list_dir(&path)?.into_iter().map(|name| path.join(name)));
        } else {
            bytes += meta.blocks() * 512;
        }
    }
    Ok(bytes)
}

/// Returns the bytes of a file that take up space.
pub fn allocated_bytes(path: &Path) -> Result<u64, IoError> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(crate::fs::metadata(path)?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn holes_stay_holes_and_bytes_stay_bytes() {
        let dir = crate::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let from = fs::create_new(&dir.path().join("from")).unwrap();
        from.set_len(256 << 20).unwrap();
        from.write_all_at(b"begin", 4096).unwrap();
        from.write_all_at(b"end", (256 << 20) - 3).unwrap();
        let to_path = dir.path().join("to");
        let to = fs::create_new(&to_path).unwrap();
        sparse_copy(&from, &to, &to_path, None).unwrap();
        let meta = to.metadata().unwrap();
        assert_eq!(meta.len(), 256 << 20);
        assert!(meta.blocks() * 512 <= 1 << 20, "{} bytes allocated", meta.blocks() * 512);
        let mut bytes = [0; 5];
        to.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"begin");
        to.read_exact_at(&mut bytes[..3], (256 << 20) - 3).unwrap();
        assert_eq!(&bytes[..3], b"end");
    }

    #[test]
    fn what_cannot_share_blocks_is_told_from_what_fails_to() {
        use rustix::io::Errno;
        for error in [Errno::OPNOTSUPP, Errno::XDEV, Errno::INVAL, Errno::NOTTY, Errno::NOSYS] {
            assert!(is_inability(error), "{error}");
        }
        for error in [Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::FBIG, Errno::ROFS, Errno::BADF] {
            assert!(!is_inability(error), "{error}");
        }
    }

    #[test]
    fn a_reflink_that_fails_is_an_error_with_its_path() {
        let dir = crate::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("file");
        let from = fs::create_new(&path).unwrap();
        from.write_all_at(b"x", 0).unwrap();
        // A target that is not open for writing is refused before anybody asks the file system.
        let error = reflink(&from, &fs::open(&path).unwrap(), &path).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot share the blocks of {}", path.display()));
        assert_eq!(error.source.raw_os_error(), Some(rustix::io::Errno::BADF.raw_os_error()));
    }

    #[test]
    fn a_copy_is_its_own_file() {
        let dir = crate::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let from = fs::create_new(&dir.path().join("from")).unwrap();
        from.write_all_at(b"template", 0).unwrap();
        let to_path = dir.path().join("to");
        let to = fs::create_new(&to_path).unwrap();
        copy_file(&from, &to, &to_path, None).unwrap();
        assert_ne!(from.metadata().unwrap().ino(), to.metadata().unwrap().ino());
        to.write_all_at(b"HACKED!!", 0).unwrap();
        let mut bytes = [0; 8];
        from.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"template");
    }

    #[test]
    fn a_layout_counts_pieces_and_a_compacting_copy_keeps_holes() {
        let dir = crate::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let from = fs::create_new(&dir.path().join("from")).unwrap();
        from.set_len(3 << 20).unwrap();
        from.write_all_at(&[7; 4096], 0).unwrap();
        from.write_all_at(&[8; 4096], 2 << 20).unwrap();
        if let Some(layout) = layout(&from) {
            assert_eq!(layout, Layout { extents: 2, ranges: 2 });
        }
        let to_path = dir.path().join("to");
        let to = fs::create_new(&to_path).unwrap();
        compacting_copy(&from, &to, &to_path, None).unwrap();
        let read = |file: &File| {
            let mut bytes = vec![0; 3 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&from) == read(&to));
        assert!(to.metadata().unwrap().blocks() * 512 <= 1 << 20);
    }

    #[test]
    fn cancelling_stops_a_copy() {
        let dir = crate::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let from = fs::create_new(&dir.path().join("from")).unwrap();
        from.write_all_at(b"x", 0).unwrap();
        let to_path = dir.path().join("to");
        let to = fs::create_new(&to_path).unwrap();
        let cancel = Cancel::new().unwrap();
        cancel.cancel();
        let error = sparse_copy(&from, &to, &to_path, Some(&cancel)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_part_of_a_file_is_copied_out_and_its_front_dropped() {
        let dir = crate::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("from");
        let from = fs::create_new(&path).unwrap();
        from.set_len(4 << 20).unwrap();
        from.write_all_at(&[3; 10_000], (1 << 20) + 8192).unwrap();
        from.write_all_at(b"after", 3 << 20).unwrap();
        let want = [&[0; 8192][..], &[3; 10_000], &vec![0; (1 << 20) - 18_192]].concat();
        for (offset, name) in [(1 << 20, "whole"), ((1 << 20) + 512, "odd")] {
            let to_path = dir.path().join(name);
            let to = fs::create_new(&to_path).unwrap();
            copy_out(&from, offset, 1 << 20, &to, &to_path, None).unwrap();
            let mut bytes = vec![0; 1 << 20];
            to.read_exact_at(&mut bytes, 0).unwrap();
            let skipped = usize::try_from(offset - (1 << 20)).unwrap();
            assert!(bytes[..bytes.len() - skipped] == want[skipped..], "{name}");
            assert_eq!(to.metadata().unwrap().len(), 1 << 20);
            assert!(to.metadata().unwrap().blocks() * 512 <= 64 << 10);
        }
        write_hole(&from, &path, (1 << 20) + 8192, 4096).unwrap();
        let mut byte = [9];
        from.read_exact_at(&mut byte, (1 << 20) + 8192).unwrap();
        assert_eq!(byte, [0]);
        if drop_front(&from, &path, 1 << 20).unwrap() {
            assert_eq!(from.metadata().unwrap().len(), 3 << 20);
            from.read_exact_at(&mut byte, 8192 + 4096).unwrap();
            assert_eq!(byte, [3]);
        }
    }

    #[test]
    fn a_range_is_shared_or_said_not_to_be() {
        let dir = crate::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
        let from = fs::create_new(&dir.path().join("from")).unwrap();
        from.write_all_at(&[5; 8192], 0).unwrap();
        let path = dir.path().join("to");
        let to = fs::create_new(&path).unwrap();
        if share_range(&from, 4096, &to, 0, 4096, &path).unwrap() == Shared::Yes {
            assert_eq!(to.metadata().unwrap().len(), 4096);
        }
        assert_eq!(share_range(&from, 0, &to, 0, 0, &path).unwrap(), Shared::Yes);
        assert!(to.metadata().unwrap().len() <= 4096, "a length of nothing is not all");
    }
}
