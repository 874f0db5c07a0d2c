//! Revision manifests: the immutable result of a build. A revision's id is the digest of its manifest's bytes, which
//! hold only content identity, so that the same inputs give the same id. `docs/formats/store.md` describes the file.

use crate::arch::Arch;
use crate::digest::Digest;
use crate::name::{ArtifactRole, VariantName};
use crate::size::ByteSize;
use crate::variant::{InvalidShape, MachineShape, ReadyProbe, Variant};
use serde::{Deserialize, Serialize};

/// The version of the manifest this program writes and reads.
pub const MANIFEST_VERSION: u32 = 1;
/// The largest manifest that is read, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;
/// The most artifacts a revision may have.
pub const ARTIFACTS_MAX: usize = 64;
/// The most variants a revision may have.
pub const VARIANTS_MAX: usize = 256;

/// One file of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// What the file is to the revision.
    pub role: ArtifactRole,
    /// The digest of the file's index: see `docs/formats/index.md`.
    pub digest: Digest,
    /// The file's length in bytes, holes included.
    pub size: ByteSize,
    /// What the bytes are, a label such as `ext4`, `elf`, `bzimage` or `cpio`.
    pub format: ArtifactFormat,
}

/// What the bytes of an artifact are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ArtifactFormat {
    /// A raw ext4 file system.
    Ext4,
    /// An uncompressed kernel, loaded by its PVH note.
    Elf,
    /// A compressed kernel with its own loader.
    Bzimage,
    /// An uncompressed initramfs.
    Cpio,
}

impl ArtifactFormat {
    /// Returns the label as written in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Elf => "elf",
            Self::Bzimage => "bzimage",
            Self::Cpio => "cpio",
        }
    }
}

/// The content of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// What the artifacts run on.
    pub arch: Arch,
    /// The files, sorted by role, one of each role.
    pub artifacts: Vec<Artifact>,
    /// The shape of a machine where neither variant nor user says otherwise.
    pub machine: MachineShape,
    /// Kernel arguments added to those kiln needs.
    pub boot_args: Vec<String>,
    /// When a machine counts as ready; none means when its agent answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyProbe>,
    /// The variants, sorted by name.
    pub variants: Vec<Variant>,
}

/// Why bytes are not a manifest that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidManifest {
    /// Larger than [`MANIFEST_BYTES_MAX`].
    #[error("manifest has {0} bytes, more than {MANIFEST_BYTES_MAX}")]
    TooLarge(usize),
    /// Not JSON of the manifest's shape.
    #[error("manifest does not parse")]
    Json(#[source] serde_json::Error),
    /// Written by a newer kiln.
    #[error("manifest has version {0}, this kiln reads up to {MANIFEST_VERSION}")]
    Version(u32),
    /// Too many of something.
    #[error("manifest has {count} {what}, more than {max}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// Two artifacts of one role, or roles out of order.
    #[error("manifest lists artifact role `{0}` twice or out of order")]
    Roles(ArtifactRole),
    /// Two variants of one name, or names out of order.
    #[error("manifest lists variant `{0}` twice or out of order")]
    Variants(VariantName),
    /// A required artifact is missing.
    #[error("manifest has no artifact of role `{0}`")]
    Missing(ArtifactRole),
    /// A shape no machine can have.
    #[error("manifest has an impossible machine")]
    Shape(#[from] InvalidShape),
}

impl Manifest {
    /// Returns the canonical bytes: JSON without white space, fields in the order of this type.
    pub fn to_bytes(&self) -> Vec<u8> {
        #[expect(
            clippy::unwrap_used,
            reason = "the type has no map with non-text keys and no failing serializer"
        )]
        serde_json::to_vec(self).unwrap()
    }

    /// Returns the id of the revision: the digest of the canonical bytes.
    pub fn id(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Parses and checks a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidManifest> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(InvalidManifest::TooLarge(bytes.len()));
        }
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(InvalidManifest::Json)?;
        if version != MANIFEST_VERSION {
            return Err(InvalidManifest::Version(version));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(InvalidManifest::Json)?;
        manifest.checked()
    }

    /// Returns the manifest when every rule of the format holds.
    pub fn checked(self) -> Result<Self, InvalidManifest> {
        for (what, count, max) in [
            ("artifacts", self.artifacts.len(), ARTIFACTS_MAX),
            ("variants", self.variants.len(), VARIANTS_MAX),
        ] {
            if count > max {
                return Err(InvalidManifest::TooMany { what, count, max });
            }
        }
        if let Some(pair) = self.artifacts.windows(2).find(|pair| pair[0].role >= pair[1].role) {
            return Err(InvalidManifest::Roles(pair[1].role.clone()));
        }
        if let Some(pair) = self.variants.windows(2).find(|pair| pair[0].name >= pair[1].name) {
            return Err(InvalidManifest::Variants(pair[1].name.clone()));
        }
        for role in [ArtifactRole::kernel(), ArtifactRole::rootfs()] {
            if self.artifact(&role).is_none() {
                return Err(InvalidManifest::Missing(role));
            }
        }
        self.machine.clone().checked()?;
        for variant in &self.variants {
            variant.shape(&self.machine).checked()?;
        }
        Ok(self)
    }

    /// Returns the artifact of `role`.
    pub fn artifact(&self, role: &ArtifactRole) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.role == *role)
    }

    /// Returns the variant called `name`.
    pub fn variant(&self, name: &VariantName) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.name == *name)
    }

    /// Returns the sum of the artifacts' lengths in bytes, holes included.
    pub fn apparent_size(&self) -> ByteSize {
        ByteSize::from_bytes(self.artifacts.iter().map(|artifact| artifact.size.bytes()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let artifact = |role: ArtifactRole, format| Artifact {
            digest: Digest::of(role.as_str().as_bytes()),
            role,
            size: ByteSize::from_mib(1),
            format,
        };
        Manifest {
            version: MANIFEST_VERSION,
            arch: Arch::X86_64,
            artifacts: vec![
                artifact(ArtifactRole::kernel(), ArtifactFormat::Elf),
                artifact(ArtifactRole::rootfs(), ArtifactFormat::Ext4),
            ],
            machine: MachineShape::default(),
            boot_args: vec!["quiet".to_owned()],
            ready: None,
            variants: Vec::new(),
        }
    }

    #[test]
    fn bytes_and_id_are_pinned() {
        let manifest = manifest();
        assert_eq!(
            manifest.id().to_string(),
            Digest::of(&Manifest::parse(&manifest.to_bytes()).unwrap().to_bytes()).to_string()
        );
        assert_eq!(
            String::from_utf8(manifest.to_bytes()).unwrap(),
            "{\"version\":1,\"arch\":\"x86_64\",\"artifacts\":[{\"role\":\"kernel\",\"digest\":\"sha256:6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c\",\"size\":1048576,\"format\":\"elf\"},{\"role\":\"rootfs\",\"digest\":\"sha256:3c47ef972d531d524daa15fa33dd885dd23de6221bbd10a29eb42ecfcf2ef422\",\"size\":1048576,\"format\":\"ext4\"}],\"machine\":{\"vcpus\":1,\"memory\":268435456,\"board\":\"pc\"},\"boot_args\":[\"quiet\"],\"variants\":[]}"
        );
    }

    #[test]
    fn required_files_and_order_are_checked() {
        let mut none = manifest();
        none.artifacts.clear();
        assert!(matches!(Manifest::parse(&none.to_bytes()), Err(InvalidManifest::Missing(_))));
        let mut swapped = manifest();
        swapped.artifacts.reverse();
        assert!(matches!(Manifest::parse(&swapped.to_bytes()), Err(InvalidManifest::Roles(_))));
        let mut newer = manifest();
        newer.version = 2;
        assert!(matches!(Manifest::parse(&newer.to_bytes()), Err(InvalidManifest::Version(2))));
        assert!(Manifest::parse(b"{\"version\":1,\"surprise\":true}").is_err());
    }
}
