//! Revision manifests: the immutable result of a build. A revision's id is the digest of its manifest's bytes, which
//! hold only content identity, so that the same inputs give the same id. `docs/formats/store.md` describes the file.

use crate::arch::Arch;
use crate::capture::{CapturePlan, InvalidCapturePlan};
use crate::digest::Digest;
use crate::name::{ArtifactRole, VariantName};
use crate::ready::ReadyProbe;
use crate::seed::{InvalidSeed, Seed};
use crate::size::ByteSize;
use crate::variant::{BOOT_ARGS_BYTES_MAX, InvalidShape, MachineShape, Variant, boot_args_bytes};
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
    /// A raw EROFS file system, which is only read.
    Erofs,
    /// A raw SquashFS file system, which is only read.
    Squashfs,
    /// An uncompressed kernel, loaded by its PVH note.
    Elf,
    /// A compressed kernel with its own loader.
    Bzimage,
    /// An uncompressed initramfs.
    Cpio,
    /// A raw disk with a partition table and a boot loader of its own.
    Disk,
    /// A UEFI firmware, code and variables in one image.
    Firmware,
}

impl ArtifactFormat {
    /// Returns the label as written in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
            Self::Elf => "elf",
            Self::Bzimage => "bzimage",
            Self::Cpio => "cpio",
            Self::Disk => "disk",
            Self::Firmware => "firmware",
        }
    }

    /// Returns whether it is a file system that is only read: as a root it needs a scratch disk for what is written.
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::Erofs | Self::Squashfs)
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
    /// What happens to a ready machine before it is captured; none means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<CapturePlan>,
    /// What a machine's disk of the seed tells the guest's cloud-init; none means that there is no such disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
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
    /// An artifact that says nothing beside a root of this kind: a disk that firmware boots has its own kernel, and a file
    /// system has no boot loader.
    #[error("manifest has an artifact of role `{role}` beside a root of format `{}`", root.as_str())]
    Beside {
        /// The artifact's role.
        role: ArtifactRole,
        /// The root's format.
        root: ArtifactFormat,
    },
    /// Kernel arguments beside a disk that has its own.
    #[error("manifest has boot arguments beside a disk that brings its own kernel")]
    DiskBootArgs,
    /// A wish that only an agent fulfils, where machines have none.
    #[error("manifest has `{0}`, and its machines have no agent: their disk has no seed that brings one")]
    NoAgent(&'static str),
    /// A shape no machine can have.
    #[error("manifest has an impossible machine")]
    Shape(#[from] InvalidShape),
    /// A plan of captures that says nothing or too much.
    #[error("manifest has a bad plan of captures")]
    Capture(#[from] InvalidCapturePlan),
    /// A seed that cloud-init would not take.
    #[error("manifest has a bad seed")]
    Seed(#[from] InvalidSeed),
    /// More kernel arguments than [`BOOT_ARGS_BYTES_MAX`].
    #[error(
        "manifest has {bytes} bytes of boot arguments{}, more than {BOOT_ARGS_BYTES_MAX}",
        variant.as_ref().map(|name| format!(" in variant `{name}`")).unwrap_or_default()
    )]
    BootArgs {
        /// The variant that brings them; none when they are the template's.
        variant: Option<VariantName>,
        /// Their bytes, each argument with the space that ends it.
        bytes: usize,
    },
    /// Bytes that say a manifest in another way than [`Manifest::to_bytes`] does: the same content would have two ids.
    #[error("manifest is not canonical from byte {0} on")]
    NotCanonical(usize),
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

    /// Parses and checks a manifest: only the bytes that [`Manifest::to_bytes`] returns for it are taken.
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
        let canonical = manifest.to_bytes();
        if canonical != bytes {
            let same = canonical.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            return Err(InvalidManifest::NotCanonical(same));
        }
        manifest.checked()
    }

    /// Returns the manifest when every rule of its content holds; the size of its bytes is [`Manifest::parse`]'s to
    /// check.
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
        self.check_boot()?;
        if self.base().is_some() && self.artifact(&ArtifactRole::scratch()).is_none() {
            return Err(InvalidManifest::Missing(ArtifactRole::scratch()));
        }
        self.machine.clone().checked()?;
        let limited = |variant: Option<&VariantName>, args: &[String]| match boot_args_bytes(args) {
            ..=BOOT_ARGS_BYTES_MAX => Ok(()),
            bytes => Err(InvalidManifest::BootArgs { variant: variant.cloned(), bytes }),
        };
        limited(None, &self.boot_args)?;
        for variant in &self.variants {
            variant.shape(&self.machine).checked()?;
            limited(Some(&variant.name), variant.boot_args.as_deref().unwrap_or_default())?;
        }
        if let Some(plan) = &self.snapshot {
            if plan.is_empty() {
                return Err(InvalidCapturePlan::Empty.into());
            }
            plan.check()?;
        }
        if let Some(seed) = &self.seed {
            seed.check()?;
        }
        Ok(self)
    }

    /// Checks that there is a root and what boots it, and nothing that would go unused.
    fn check_boot(&self) -> Result<(), InvalidManifest> {
        let rootfs = ArtifactRole::rootfs();
        let Some(root) = self.artifact(&rootfs) else { return Err(InvalidManifest::Missing(rootfs)) };
        let (kernel, initrd) = (ArtifactRole::kernel(), ArtifactRole::initrd());
        let (wanted, beside) = match root.format {
            ArtifactFormat::Disk => (ArtifactRole::firmware(), vec![kernel, initrd, ArtifactRole::scratch()]),
            _ => (kernel, vec![ArtifactRole::firmware()]),
        };
        if self.artifact(&wanted).is_none() {
            return Err(InvalidManifest::Missing(wanted));
        }
        if let Some(role) = beside.into_iter().find(|role| self.artifact(role).is_some()) {
            return Err(InvalidManifest::Beside { role, root: root.format });
        }
        if root.format != ArtifactFormat::Disk {
            return Ok(());
        }
        let variants = self.variants.iter().filter_map(|variant| variant.boot_args.as_ref());
        if std::iter::once(&self.boot_args).chain(variants).any(|args| !args.is_empty()) {
            return Err(InvalidManifest::DiskBootArgs);
        }
        match (&self.ready, &self.snapshot) {
            _ if self.has_agent() => Ok(()),
            (Some(_), _) => Err(InvalidManifest::NoAgent("ready")),
            (_, Some(_)) => Err(InvalidManifest::NoAgent("snapshot")),
            (None, None) => Ok(()),
        }
    }

    /// Returns whether the root is a whole disk, which firmware boots: it is only known to be one, not what it holds.
    pub fn is_disk(&self) -> bool {
        self.artifact(&ArtifactRole::rootfs()).is_some_and(|root| root.format == ArtifactFormat::Disk)
    }

    /// Returns whether machines have an agent: on a whole disk it comes with the seed.
    pub fn has_agent(&self) -> bool {
        !self.is_disk() || self.seed.is_some()
    }

    /// Returns the artifact of `role`.
    pub fn artifact(&self, role: &ArtifactRole) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.role == *role)
    }

    /// Returns the root file system where it is only read, and so shared by all machines.
    pub fn base(&self) -> Option<&Artifact> {
        self.artifact(&ArtifactRole::rootfs()).filter(|artifact| artifact.format.is_read_only())
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
            snapshot: None,
            seed: None,
            variants: Vec::new(),
        }
    }

    fn probe(command: Vec<String>) -> ReadyProbe {
        let check = crate::ready::ReadyCheck::Command(command);
        ReadyProbe { check, interval_ms: 1, timeout_ms: 1, start_period_ms: None, retries: None }
    }

    #[test]
    fn a_probe_that_is_a_command_has_the_bytes_it_always_had() {
        let bytes = Manifest { ready: Some(probe(vec!["true".to_owned()])), ..manifest() }.to_bytes();
        let bytes = String::from_utf8(bytes).unwrap();
        let part = r#","ready":{"command":["true"],"interval_ms":1,"timeout_ms":1},"variants""#;
        assert!(bytes.contains(part), "{bytes}");
    }

    #[test]
    fn a_plan_of_captures_is_there_only_where_it_says_something() {
        let plan = CapturePlan { warm_up: vec![vec!["true".to_owned()]], drop_caches: true };
        let with = |plan| Manifest {
            snapshot: Some(plan),
            ready: Some(probe(vec!["true".to_owned()])),
            ..manifest()
        };
        let bytes = with(plan).to_bytes();
        let part = r#""timeout_ms":1},"snapshot":{"warm_up":[["true"]],"drop_caches":true},"variants""#;
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(part), "{text}");
        Manifest::parse(&bytes).unwrap();
        let refused = Manifest::parse(&with(CapturePlan::default()).to_bytes());
        assert!(matches!(refused, Err(InvalidManifest::Capture(InvalidCapturePlan::Empty))));
        let many = CapturePlan { warm_up: vec![vec!["true".to_owned()]; 17], drop_caches: false };
        assert!(matches!(
            Manifest::parse(&with(many).to_bytes()),
            Err(InvalidManifest::Capture(InvalidCapturePlan::TooMany(17)))
        ));
    }

    #[test]
    fn a_seed_is_there_only_where_a_guest_wants_one() {
        let with = |user_data: Option<&str>| {
            let seed = Seed { user_data: user_data.map(str::to_owned), ..Seed::identity() };
            Manifest { seed: Some(seed), ..manifest() }.to_bytes()
        };
        let bytes = with(None);
        assert!(
            String::from_utf8_lossy(&bytes)
                .contains(r#""boot_args":["quiet"],"seed":{"type":"nocloud"},"variants""#)
        );
        Manifest::parse(&bytes).unwrap();
        let refused = Manifest::parse(&with(Some("packages: []")));
        assert!(matches!(refused, Err(InvalidManifest::Seed(InvalidSeed::Format(_)))));
    }

    #[test]
    fn a_root_that_is_only_read_needs_a_scratch_disk() {
        let mut packed = manifest();
        assert_eq!(packed.base(), None);
        packed.artifacts[1].format = ArtifactFormat::Erofs;
        let bytes = packed.to_bytes();
        assert!(String::from_utf8_lossy(&bytes).contains(r#""format":"erofs""#));
        assert!(
            matches!(Manifest::parse(&bytes), Err(InvalidManifest::Missing(role)) if role == ArtifactRole::scratch())
        );
        let scratch = Artifact { role: ArtifactRole::scratch(), ..manifest().artifacts[1].clone() };
        packed.artifacts.push(scratch);
        let parsed = Manifest::parse(&packed.to_bytes()).unwrap();
        assert_eq!(parsed.base().map(|base| base.role.clone()), Some(ArtifactRole::rootfs()));
    }

    #[test]
    fn a_whole_disk_has_firmware_and_nothing_that_firmware_does_not_use() {
        let mut disk = manifest();
        disk.boot_args.clear();
        disk.artifacts[1].format = ArtifactFormat::Disk;
        assert_eq!(refusal(&disk), "manifest has no artifact of role `firmware`");
        let firmware = Artifact {
            role: ArtifactRole::firmware(),
            format: ArtifactFormat::Firmware,
            ..disk.artifacts[0].clone()
        };
        disk.artifacts.insert(0, firmware.clone());
        assert_eq!(
            refusal(&disk),
            "manifest has an artifact of role `kernel` beside a root of format `disk`"
        );
        disk.artifacts.remove(1);
        let bytes = disk.to_bytes();
        assert!(String::from_utf8_lossy(&bytes).contains(r#""format":"firmware"},{"role":"rootfs""#));
        let parsed = Manifest::parse(&bytes).unwrap();
        assert!(parsed.is_disk() && !parsed.has_agent());
        let seeded = Manifest { seed: Some(Seed::identity()), ..disk.clone() };
        assert!(Manifest::parse(&seeded.to_bytes()).unwrap().has_agent());
        let ready = Some(probe(vec!["true".to_owned()]));
        Manifest::parse(&Manifest { ready: ready.clone(), ..seeded }.to_bytes()).unwrap();
        assert!(
            refusal(&Manifest { ready, ..disk.clone() })
                .contains("has `ready`, and its machines have no agent")
        );
        disk.boot_args = vec!["quiet".to_owned()];
        assert!(refusal(&disk).contains("boot arguments beside a disk"));

        let mut direct = manifest();
        assert!(!direct.is_disk() && direct.has_agent());
        direct.artifacts.insert(0, firmware);
        assert_eq!(
            refusal(&direct),
            "manifest has an artifact of role `firmware` beside a root of format `ext4`"
        );
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

    fn variant(number: usize) -> Variant {
        serde_json::from_value(serde_json::json!({ "name": format!("v{number:03}") })).unwrap()
    }

    fn refusal(manifest: &Manifest) -> String {
        Manifest::parse(&manifest.to_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn artifacts_and_variants_are_limited() {
        let mut full = manifest();
        let more = (full.artifacts.len()..ARTIFACTS_MAX)
            .map(|n| Artifact { role: format!("z{n:03}").parse().unwrap(), ..full.artifacts[0].clone() });
        full.artifacts.extend(more.collect::<Vec<_>>());
        full.variants = (0..VARIANTS_MAX).map(variant).collect();
        Manifest::parse(&full.to_bytes()).unwrap();
        let mut artifacts = full.clone();
        artifacts.artifacts.push(Artifact { role: "zz".parse().unwrap(), ..full.artifacts[0].clone() });
        assert_eq!(refusal(&artifacts), "manifest has 65 artifacts, more than 64");
        full.variants.push(variant(VARIANTS_MAX));
        assert_eq!(refusal(&full), "manifest has 257 variants, more than 256");
    }

    #[test]
    fn a_manifest_has_a_largest_size() {
        let with = |text: String| {
            let ready = probe(vec![text]);
            Manifest { ready: Some(ready), ..manifest() }
        };
        let room = MANIFEST_BYTES_MAX - with(String::new()).to_bytes().len();
        Manifest::parse(&with("x".repeat(room)).to_bytes()).unwrap();
        assert_eq!(refusal(&with("x".repeat(room + 1))), "manifest has 1048577 bytes, more than 1048576");
    }

    #[test]
    fn boot_arguments_are_limited_as_in_a_recipe() {
        let args = |bytes: usize| vec!["x".repeat(bytes - 1)];
        let mut full = Manifest { boot_args: args(BOOT_ARGS_BYTES_MAX), ..manifest() };
        full.variants = vec![Variant { boot_args: Some(args(BOOT_ARGS_BYTES_MAX)), ..variant(1) }];
        Manifest::parse(&full.to_bytes()).unwrap();
        let template = Manifest { boot_args: args(BOOT_ARGS_BYTES_MAX + 1), ..full.clone() };
        assert_eq!(refusal(&template), "manifest has 1025 bytes of boot arguments, more than 1024");
        full.variants[0].boot_args = Some(args(BOOT_ARGS_BYTES_MAX + 1));
        assert_eq!(
            refusal(&full),
            "manifest has 1025 bytes of boot arguments in variant `v001`, more than 1024"
        );
    }

    #[test]
    fn bytes_that_are_not_the_canonical_ones_are_refused() {
        let bytes = String::from_utf8(manifest().to_bytes()).unwrap();
        for (what, with) in [
            ("white space", format!("{bytes}\n")),
            ("white space within", bytes.replacen(',', ", ", 1)),
            (
                "another order",
                bytes
                    .replace("\"version\":1,", "")
                    .replace("\"variants\":[]", "\"variants\":[],\"version\":1"),
            ),
            ("a field that says nothing", bytes.replace("\"boot_args\":", "\"ready\":null,\"boot_args\":")),
            ("an escape", bytes.replace("quiet", "qu\\u0069et")),
        ] {
            let parsed = Manifest::parse(with.as_bytes());
            assert!(matches!(parsed, Err(InvalidManifest::NotCanonical(_))), "{what}: {parsed:?}");
        }
    }

    #[test]
    fn fields_that_are_not_known_are_refused_at_every_depth() {
        let mut full = manifest();
        full.ready = Some(probe(vec!["true".to_owned()]));
        full.variants = vec![variant(1)];
        full.snapshot = Some(CapturePlan { warm_up: Vec::new(), drop_caches: true });
        full.seed = Some(Seed::identity());
        let bytes = String::from_utf8(full.to_bytes()).unwrap();
        for object in [
            "\"arch\":",
            "\"role\":\"kernel\"",
            "\"vcpus\":",
            "\"interval_ms\":",
            "\"name\":",
            "\"drop_caches\":",
            "\"type\":",
        ] {
            assert!(bytes.contains(object));
            let with = bytes.replacen(object, &format!("\"surprise\":1,{object}"), 1);
            let Err(InvalidManifest::Json(error)) = Manifest::parse(with.as_bytes()) else {
                panic!("{with}")
            };
            assert!(error.to_string().contains("unknown field `surprise`"), "{error}");
        }
    }
}
