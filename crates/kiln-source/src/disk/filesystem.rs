//! What file system a disk or partition holds, by its superblock.

/// A file system that is told by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileSystem {
    /// ext4, or one of those before it.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// EROFS.
    Erofs,
    /// SquashFS.
    Squashfs,
    /// FAT, as EFI system partitions have it.
    Fat,
    /// F2FS.
    F2fs,
    /// Swap space.
    Swap,
    /// A LUKS volume.
    Luks,
    /// A physical volume of LVM.
    Lvm,
}

/// The bytes of the beginning that tell all of them.
pub const FILE_SYSTEM_HEAD_BYTES: u64 = 66 << 10;

/// Where each has its mark.
const MARKS: [(FileSystem, usize, &[u8]); 12] = [
    (FileSystem::Ext4, 1080, &[0x53, 0xef]),
    (FileSystem::Xfs, 0, b"XFSB"),
    (FileSystem::Btrfs, 65_600, b"_BHRfS_M"),
    (FileSystem::Erofs, 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    (FileSystem::Squashfs, 0, b"hsqs"),
    (FileSystem::F2fs, 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    (FileSystem::Swap, 4086, b"SWAPSPACE2"),
    (FileSystem::Luks, 0, b"LUKS\xba\xbe"),
    (FileSystem::Lvm, 512, b"LABELONE"),
    (FileSystem::Fat, 82, b"FAT32"),
    (FileSystem::Fat, 54, b"FAT16"),
    (FileSystem::Fat, 54, b"FAT12"),
];

impl FileSystem {
    /// Returns what begins with these bytes, [`FILE_SYSTEM_HEAD_BYTES`] of it.
    pub fn detect(head: &[u8]) -> Option<Self> {
        let has = |at: usize, mark: &[u8]| head.get(at..at + mark.len()) == Some(mark);
        MARKS.into_iter().find(|(_, at, mark)| has(*at, mark)).map(|(kind, _, _)| kind)
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS",
            Self::Btrfs => "Btrfs",
            Self::Erofs => "EROFS",
            Self::Squashfs => "SquashFS",
            Self::Fat => "FAT",
            Self::F2fs => "F2FS",
            Self::Swap => "swap space",
            Self::Luks => "encrypted with LUKS",
            Self::Lvm => "a volume of LVM",
        }
    }
}
