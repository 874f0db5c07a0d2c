//! Root disks: an ext4 file system made from a directory tree by `mke2fs -d`, without mounting and without root.
//!
//! The same tree gives the same bytes: identifiers come from a digest of the tree's listing, the host's `mke2fs.conf`
//! is not read, and the two times that `mke2fs` takes from the host (access and change) are set by `debugfs`
//! afterwards.
//!
//! Check sums of metadata begin with a constant, `CHECKSUM_UUID`, and not with the disk's own identifier: otherwise
//! every directory and every inode would have other bytes in each build, and two builds of nearly the same tree would
//! share less than they could.
//!
//! The file system has a journal of [`JOURNAL_MIB`]: machines are killed as a matter of course, and a journal makes
//! the next start of a clone a replay of milliseconds in place of a check. Neither the journal nor the inode tables
//! are zeroed, so that a fresh disk takes no more room than its content.

use crate::tree::{BLOCK_BYTES, TreeSize};
use crate::unpack::Ownership;
use kiln_core::digest::Digest;
use kiln_core::size::ByteSize;
use kiln_sys::{Cancel, IoError, ToolError, Toolbox, fs};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The time that stands for "no time": 2023-11-14 22:13:20 UTC, also given to packages as `SOURCE_DATE_EPOCH`.
pub const EPOCH_SECONDS: u64 = 1_700_000_000;
/// The least size of a root disk.
pub const DISK_MIN: ByteSize = ByteSize::from_mib(64);
/// The least free space of a root disk beyond its content.
pub const FREE_MIN: ByteSize = ByteSize::from_mib(512);
/// The size of the journal, in MiB.
pub const JOURNAL_MIB: u32 = 8;
/// The volume label of root disks.
pub const LABEL: &str = "kiln-root";

/// The identifier that a file system is made with, before it gets its own: the check sums of its metadata are seeded
/// with it, which the feature `metadata_csum_seed` lets stay.
const CHECKSUM_UUID: &str = "6b696c6e-2d72-8f6f-b420-6469736b0001";

/// Root disks are whole multiples of this.
const GRANULE_BYTES: u64 = 4 << 20;
/// Bytes of one inode in the table.
const INODE_BYTES: u64 = 256;
/// One inode for so many bytes of the disk, where the tree does not need more.
const BYTES_PER_INODE: u64 = 16 << 10;
/// The most inodes a disk gets beyond those the tree needs: they cost room in every clone.
const SPARE_INODES_MAX: u64 = 1 << 20;
/// Times the disk is made anew, half larger, when its tree does not fit.
const ATTEMPTS: u32 = 4;
/// The most bytes of `dumpe2fs -h`.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Every feature by name: the host's configuration has no say, and all of them are in kernels since 4.4.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed";

/// Why a root disk was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ext4Error {
    /// The tree does not fit, however large the disk.
    #[error("{} does not fit a file system of {}", tree.display(), size.human())]
    DoesNotFit {
        /// The directory.
        tree: PathBuf,
        /// The largest size tried.
        size: ByteSize,
        /// The tool's words.
        #[source]
        source: ToolError,
    },
    /// The tool's answer is not understood.
    #[error("cannot read what `{tool}` says of {}", path.display())]
    Answer {
        /// The tool.
        tool: &'static str,
        /// The disk.
        path: PathBuf,
    },
    /// The times could not be set.
    #[error("`debugfs` cannot set times in {}: {line}", path.display())]
    Times {
        /// The disk.
        path: PathBuf,
        /// Its first complaint.
        line: String,
    },
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// What to make.
#[derive(Debug)]
pub struct DiskRequest<'a> {
    /// The directory that becomes the root; it is only read.
    pub tree: &'a Path,
    /// Where its owners are.
    pub ownership: &'a Ownership,
    /// How large it is.
    pub size: TreeSize,
    /// The least size of the disk.
    pub disk_min: Option<ByteSize>,
    /// What the file system's identifiers are made of.
    pub seed: Digest,
    /// The file to write, which must not exist.
    pub output: &'a Path,
    /// An existing directory for files in between.
    pub scratch: &'a Path,
}

/// Returns the size a disk for this tree gets.
pub fn disk_size(size: &TreeSize, disk_min: Option<ByteSize>) -> ByteSize {
    let content = size.bytes().saturating_add(size.inodes.saturating_mul(INODE_BYTES));
    let journal = ByteSize::from_mib(JOURNAL_MIB).bytes();
    let free = FREE_MIN.bytes().max(content / 4);
    // Bitmaps, group descriptors and room for them to grow stay below a fiftieth.
    let wanted = content.saturating_add(content / 50).saturating_add(journal).saturating_add(free);
    rounded(wanted.max(DISK_MIN.bytes()).max(disk_min.map_or(0, ByteSize::bytes)))
}

fn rounded(bytes: u64) -> ByteSize {
    ByteSize::from_bytes(bytes.div_ceil(GRANULE_BYTES).saturating_mul(GRANULE_BYTES))
}

fn inode_count(size: &TreeSize, disk: ByteSize) -> u64 {
    let needed = size.inodes + size.inodes / 4 + 1024;
    needed.max((disk.bytes() / BYTES_PER_INODE).min(needed + SPARE_INODES_MAX))
}

/// Writes a root disk and returns its size.
pub fn write(
    request: &DiskRequest<'_>,
    toolbox: &Toolbox,
    cancel: &Cancel,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<ByteSize, Ext4Error> {
    let mut disk = disk_size(&request.size, request.disk_min);
    let mut attempt = 1;
    loop {
        match make(request, disk, toolbox, cancel, line) {
            Ok(()) => break,
            Err(error) if is_full(&error) => {
                fs::remove_file(request.output)?;
                if attempt == ATTEMPTS {
                    let tree = request.tree.to_owned();
                    return Err(Ext4Error::DoesNotFit { tree, size: disk, source: error });
                }
                attempt += 1;
                disk = rounded(disk.bytes().saturating_add(disk.bytes() / 2));
            }
            Err(error) => return Err(error.into()),
        }
    }
    set_times(request, toolbox, cancel, line)?;
    // All copies of the superblock get it, which `debugfs` would not do.
    let tune2fs = toolbox.find("tune2fs")?.env("E2FSPROGS_FAKE_TIME", EPOCH_SECONDS.to_string());
    tune2fs.args(["-U", &uuid(request.seed)]).arg(request.output).run(cancel, line)?;
    Ok(disk)
}

fn make(
    request: &DiskRequest<'_>,
    disk: ByteSize,
    toolbox: &Toolbox,
    cancel: &Cancel,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<(), ToolError> {
    let uuid = uuid(request.seed);
    let mke2fs = request.ownership.tool(toolbox, "mke2fs")?;
    mke2fs
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("E2FSPROGS_FAKE_TIME", EPOCH_SECONDS.to_string())
        .env("SOURCE_DATE_EPOCH", EPOCH_SECONDS.to_string())
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", LABEL, "-U", CHECKSUM_UUID, "-O", FEATURES])
        .args(["-b", &BLOCK_BYTES.to_string(), "-I", &INODE_BYTES.to_string()])
        .args(["-N", &inode_count(&request.size, disk).to_string(), "-J", &format!("size={JOURNAL_MIB}")])
        .args(["-E", &format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1")])
        .arg("-d")
        .arg(request.tree)
        .arg(request.output)
        .arg(format!("{}k", disk.bytes() >> 10))
        .run(cancel, line)
        .map(|_| ())
}

/// Returns whether `mke2fs` ran out of blocks or inodes in the file system it made, not on the host.
fn is_full(error: &ToolError) -> bool {
    let ToolError::Failed { stderr, .. } = error else { return false };
    let words =
        ["Could not allocate block", "Could not allocate inode", "No free space in", "No free inodes"];
    words.iter().any(|words| stderr.contains(words))
}

/// Sets the times of every inode in use that come from the host.
fn set_times(
    request: &DiskRequest<'_>,
    toolbox: &Toolbox,
    cancel: &Cancel,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Ext4Error> {
    let disk = request.output;
    let header =
        toolbox.find("dumpe2fs")?.arg("-h").arg(disk).stdout_max(HEADER_BYTES_MAX).run(cancel, line)?;
    let header = String::from_utf8_lossy(&header.stdout).into_owned();
    let field = |name: &str| {
        let value =
            header.lines().find_map(|line| line.strip_prefix(name)).and_then(|text| text.trim().parse().ok());
        value.ok_or_else(|| Ext4Error::Answer { tool: "dumpe2fs", path: disk.to_owned() })
    };
    let (count, free): (u64, u64) = (field("Inode count:")?, field("Free inodes:")?);
    let mut script = String::new();
    // Nothing was ever deleted in this file system: the inodes in use are the first ones.
    for inode in std::iter::once(2).chain(11..=count.saturating_sub(free)) {
        for time in ["atime", "ctime"] {
            // Writing to a String cannot fail.
            let _ = write!(script, "sif <{inode}> {time} @{EPOCH_SECONDS}\nsif <{inode}> {time}_extra 0\n");
        }
    }
    let path = request.scratch.join("set-times");
    fs::create_new(&path)?.write_all(script.as_bytes()).map_err(|source| IoError {
        action: "write",
        path: path.clone(),
        source,
    })?;
    let debugfs = toolbox.find("debugfs")?.env("E2FSPROGS_FAKE_TIME", EPOCH_SECONDS.to_string());
    let echo = script.len() * 2 + HEADER_BYTES_MAX;
    let output = debugfs.args(["-w", "-f"]).arg(&path).arg(disk).stdout_max(echo).run(cancel, &mut |_| ())?;
    fs::remove_file(&path)?;
    // It ends well whatever its commands met; its first line is its version.
    match output.stderr.lines().find(|line| !line.starts_with("debugfs ") && !line.trim().is_empty()) {
        Some(line) => Err(Ext4Error::Times { path: disk.to_owned(), line: kiln_core::text::clip(line) }),
        None => Ok(()),
    }
}

/// Makes a version 8 UUID, the version for values of one's own, of a digest.
pub(crate) fn uuid(seed: Digest) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&seed.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_granules_with_room_left() {
        let size = TreeSize { data_bytes: 150 << 20, inodes: 6000, directories: 600, name_bytes: 200_000 };
        let disk = disk_size(&size, None);
        assert!(disk.bytes() >= size.bytes() + FREE_MIN.bytes() && disk.bytes() < 800 << 20, "{disk}");
        assert!(disk.bytes().is_multiple_of(GRANULE_BYTES));
        assert_eq!(disk_size(&size, Some(ByteSize::from_mib(4096))), ByteSize::from_mib(4096));
        assert!(disk_size(&TreeSize::default(), None) >= DISK_MIN);
        assert!(inode_count(&size, disk) > size.inodes);
        assert!(inode_count(&size, ByteSize::from_mib(16 << 20)) < 2 << 20);
    }

    #[test]
    fn uuids_are_well_formed() {
        assert_eq!(uuid(Digest::of(b"")), "e3b0c442-98fc-8c14-9afb-f4c8996fb924");
    }
}
