//! What a comparison says. These types are also what `kiln diff --json` prints.

use super::packages::Manager;
use kiln_core::revision::ArtifactFormat;
use kiln_core::{ArtifactRole, Digest};
use serde::Serialize;

/// All that differs between two revisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffReport {
    /// The revision before.
    pub a: DiffSide,
    /// The revision after.
    pub b: DiffSide,
    /// Settings that differ: architecture, machine shape, boot arguments, ready command, variants.
    pub settings: Vec<SettingChange>,
    /// All artifacts of both, by role, equal ones too.
    pub artifacts: Vec<ArtifactDiff>,
    /// Packages that differ.
    pub packages: PackageDiff,
    /// Files of the root file system that differ; none when they were not looked at.
    pub files: Option<FileDiff>,
}

impl DiffReport {
    /// Whether both are one revision.
    pub fn is_identical(&self) -> bool {
        self.a.revision == self.b.revision
    }
}

/// One of the two revisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffSide {
    /// How it was asked for.
    pub reference: String,
    /// Its id.
    pub revision: Digest,
}

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Both have it, otherwise.
    Changed,
    /// Only the first has it.
    Removed,
}

/// A setting that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    /// Its name: that of the manifest's field, or `variant NAME`.
    pub name: String,
    /// Its value in the first, as text.
    pub before: Option<String>,
    /// Its value in the second, as text.
    pub after: Option<String>,
}

/// An artifact of one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArtifactSummary {
    /// Its digest.
    pub digest: Digest,
    /// What its bytes are.
    pub format: ArtifactFormat,
    /// Its length in bytes, holes included.
    pub size: u64,
    /// Bytes of its segments that are no holes.
    pub data_bytes: u64,
}

/// A role and the artifacts that have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArtifactDiff {
    /// The role.
    pub role: ArtifactRole,
    /// The first's artifact.
    pub before: Option<ArtifactSummary>,
    /// The second's artifact.
    pub after: Option<ArtifactSummary>,
    /// Bytes of segments that both hold, wherever they lie; holes do not count.
    pub shared_bytes: u64,
}

/// Packages that differ.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PackageDiff {
    /// Those that differ, by manager and name.
    pub changes: Vec<PackageChange>,
    /// Databases that are there and are not read, each with manager, path and reason. No package of such a manager is
    /// compared.
    pub not_read: Vec<String>,
}

/// A package that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// How it differs.
    pub change: Change,
    /// Who manages it.
    pub manager: Manager,
    /// Its name.
    pub name: String,
    /// Its version in the first; several where it is installed more than once.
    pub before: Option<String>,
    /// Its version in the second.
    pub after: Option<String>,
}

/// Files that differ.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FileDiff {
    /// Names that only the second has.
    pub added: FileSum,
    /// Names that both have and that lead to something else.
    pub changed: FileSum,
    /// Names that only the first has.
    pub removed: FileSum,
    /// The changes that are listed.
    pub changes: Vec<FileChange>,
    /// How many changes are not listed.
    pub omitted: u64,
}

/// A number of names and the bytes behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct FileSum {
    /// How many.
    pub count: u64,
    /// Bytes of the regular files among them in the first.
    pub bytes_before: u64,
    /// Bytes of the regular files among them in the second.
    pub bytes_after: u64,
}

/// A name that leads to something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// How it differs.
    pub change: Change,
    /// Its absolute path; bytes that are not UTF-8 appear as U+FFFD.
    pub path: String,
    /// What it is in the first.
    pub before: Option<FileFacts>,
    /// What it is in the second.
    pub after: Option<FileFacts>,
    /// In what it differs, for something that both have.
    pub aspects: Vec<Aspect>,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileFacts {
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes of a regular file, 0 for all else.
    pub size: u64,
    /// Permission bits, with set-user-id, set-group-id and sticky bit.
    pub mode: u16,
    /// The owner's user.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileKind {
    /// Returns the word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Link => "link",
            Self::BlockDevice => "block device",
            Self::CharacterDevice => "character device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// In what two files of one name differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Aspect {
    /// What they are.
    Type,
    /// The content of regular files.
    Content,
    /// The target of symbolic links.
    Target,
    /// The numbers of devices.
    Device,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
}

impl Aspect {
    /// Returns the word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Content => "content",
            Self::Target => "target",
            Self::Device => "device",
            Self::Mode => "mode",
            Self::Owner => "owner",
        }
    }
}
