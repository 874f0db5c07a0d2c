//! Root file systems that are only read: EROFS by `mkfs.erofs`, SquashFS by `mksquashfs`, of a directory tree, without
//! mounting and without root. The same tree gives the same bytes.

use crate::error::BuildError;
use crate::ext4::{EPOCH_SECONDS, uuid};
use crate::fingerprint::Hasher;
use crate::unpack::Ownership;
use kiln_core::Digest;
use kiln_core::recipe::RootFormat;
use kiln_core::revision::ArtifactFormat;
use kiln_core::size::ByteSize;
use kiln_sys::{Cancel, Toolbox, fs};
use std::path::Path;

/// The size of a scratch disk where the recipe names none. It is sparse.
pub(crate) const SCRATCH_SIZE: ByteSize = ByteSize::from_mib(1024);

/// A file system that is made whole and then only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    Erofs,
    Squashfs,
}

impl Packed {
    /// Returns what a root file system is made as; none for one that is written to.
    pub(crate) fn of(root: RootFormat) -> Option<Self> {
        match root {
            RootFormat::Ext4 => None,
            RootFormat::Erofs => Some(Self::Erofs),
            RootFormat::Squashfs => Some(Self::Squashfs),
        }
    }

    pub(crate) fn artifact(self) -> ArtifactFormat {
        match self {
            Self::Erofs => ArtifactFormat::Erofs,
            Self::Squashfs => ArtifactFormat::Squashfs,
        }
    }

    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Erofs => "rootfs.erofs",
            Self::Squashfs => "rootfs.squashfs",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Erofs => "mkfs.erofs",
            Self::Squashfs => "mksquashfs",
        }
    }

    /// Returns what tells one installed program from another.
    pub(crate) fn tool_identity(self, toolbox: &Toolbox) -> Result<Digest, BuildError> {
        let mut identity = Hasher::default();
        identity.file(&fs::metadata(toolbox.find(self.program())?.program())?);
        Ok(identity.finish())
    }

    /// Writes the file system of a tree to a new file.
    #[expect(
        clippy::too_many_arguments,
        reason = "a tree, its owners, its seed, and where and with what it is written"
    )]
    pub(crate) fn write(
        self,
        tree: &Path,
        ownership: &Ownership,
        seed: Digest,
        output: &Path,
        toolbox: &Toolbox,
        cancel: &Cancel,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), BuildError> {
        let tool = ownership.tool(toolbox, self.program())?;
        let tool = match self {
            Self::Erofs => tool
                .args(["-zlz4hc", "--quiet"])
                .arg(format!("-T{EPOCH_SECONDS}"))
                .args(["-U", &uuid(seed)])
                .arg(output)
                .arg(tree),
            Self::Squashfs => tool
                .arg(tree)
                .arg(output)
                .args(["-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-Xcompression-level", "9"])
                .args(["-mkfs-time", &EPOCH_SECONDS.to_string()]),
        };
        tool.run(cancel, line)?;
        Ok(())
    }
}
