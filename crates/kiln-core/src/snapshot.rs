//! Snapshot manifests: memory, device state and disks of a warmed machine, bound to a revision and to the facts that
//! must hold where it is restored. A snapshot's id is the digest of its manifest's bytes. `docs/formats/snapshot.md`
//! describes the file.

use crate::arch::Arch;
use crate::digest::Digest;
use crate::name::VariantName;
use crate::size::ByteSize;
use crate::variant::{BOOT_ARGS_BYTES_MAX, InvalidShape, MachineShape, boot_args_bytes};
use serde::{Deserialize, Serialize};

/// The version of the manifest this program writes and reads.
pub const SNAPSHOT_VERSION: u32 = 1;
/// The largest snapshot manifest that is read, in bytes.
pub const SNAPSHOT_BYTES_MAX: usize = 256 << 10;
/// The most facts of a compatibility record.
pub const FACTS_MAX: usize = 256;
/// The longest name of a fact, in bytes.
pub const FACT_NAME_BYTES_MAX: usize = 64;
/// The longest value of a fact, in bytes.
pub const FACT_VALUE_BYTES_MAX: usize = 4096;

/// A file of a snapshot: an artifact of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFile {
    /// The digest of the file's index.
    pub digest: Digest,
    /// The file's length in bytes, holes included.
    pub size: ByteSize,
}

/// A thing that must be the same where a snapshot is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// What it is, such as `vmm.version` or `cpu`.
    pub name: String,
    /// Its value, compared as text.
    pub value: String,
}

/// What must be the same where a snapshot is restored, in the order in which differences are told. What is unknown is a
/// difference: a fact that only one side has counts as one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Compatibility {
    facts: Vec<Fact>,
}

/// A fact in which a snapshot and a host differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} is {} in the snapshot and {} here",
    snapshot.as_deref().unwrap_or("unknown"),
    here.as_deref().unwrap_or("unknown")
)]
pub struct Difference {
    /// The fact's name.
    pub name: String,
    /// Its value in the snapshot; none where it has none.
    pub snapshot: Option<String>,
    /// Its value here; none where there is none.
    pub here: Option<String>,
}

impl Compatibility {
    /// Adds a fact; one of the same name is replaced.
    pub fn insert(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        match self.facts.iter_mut().find(|fact| fact.name == name) {
            Some(fact) => fact.value = value,
            None => self.facts.push(Fact { name: name.to_owned(), value }),
        }
    }

    /// Returns the facts in their order.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Returns the value of a fact.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|fact| fact.name == name).map(|fact| fact.value.as_str())
    }

    /// Returns the first fact, in the snapshot's order, in which a snapshot with these facts differs from `here`.
    pub fn first_difference(&self, here: &Self) -> Option<Difference> {
        let differs = self.facts.iter().find(|fact| here.get(&fact.name) != Some(fact.value.as_str()));
        let fact = differs.or_else(|| here.facts.iter().find(|fact| self.get(&fact.name).is_none()))?;
        let value = |side: &Self| side.get(&fact.name).map(str::to_owned);
        Some(Difference { name: fact.name.clone(), snapshot: value(self), here: value(here) })
    }
}

/// The content of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotManifest {
    /// [`SNAPSHOT_VERSION`].
    pub version: u32,
    /// The revision whose machine was captured.
    pub subject: Digest,
    /// What the machine ran on.
    pub arch: Arch,
    /// The variant the machine was of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<VariantName>,
    /// The machine's shape.
    pub machine: MachineShape,
    /// The machine's kernel arguments, added to those kiln needs.
    pub boot_args: Vec<String>,
    /// The root disk at the instant of the capture, raw.
    pub disk: SnapshotFile,
    /// The data disk at that instant, raw; none where the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_disk: Option<SnapshotFile>,
    /// What the machine held in memory; none for a snapshot of the disks only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<SnapshotMemory>,
}

/// A machine's memory and the state of its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMemory {
    /// The guest's memory, byte by byte, mapped by every restored machine; none when it is a part of the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram: Option<SnapshotFile>,
    /// The state of processors and devices, in the machine monitor's own format.
    pub state: SnapshotFile,
    /// What must be the same where it is restored.
    pub compatibility: Compatibility,
}

/// Why bytes are not a snapshot manifest that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSnapshot {
    /// Larger than [`SNAPSHOT_BYTES_MAX`].
    #[error("snapshot manifest has {0} bytes, more than {SNAPSHOT_BYTES_MAX}")]
    TooLarge(usize),
    /// Not JSON of the manifest's shape.
    #[error("snapshot manifest does not parse")]
    Json(#[source] serde_json::Error),
    /// Written by another kiln.
    #[error("snapshot manifest has version {0}, this kiln reads {SNAPSHOT_VERSION}")]
    Version(u32),
    /// A shape no machine can have.
    #[error("snapshot manifest has an impossible machine")]
    Shape(#[from] InvalidShape),
    /// More kernel arguments than [`BOOT_ARGS_BYTES_MAX`].
    #[error("snapshot manifest has {0} bytes of boot arguments, more than {BOOT_ARGS_BYTES_MAX}")]
    BootArgs(usize),
    /// Memory of another length than the machine's.
    #[error("snapshot manifest has a memory file of {file} for a machine of {machine}")]
    Memory {
        /// The file's length.
        file: ByteSize,
        /// The machine's memory.
        machine: ByteSize,
    },
    /// A data disk without a machine that has one, or the other way round, or one of another length.
    #[error("snapshot manifest has another data disk than its machine")]
    DataDisk,
    /// Too many facts.
    #[error("snapshot manifest has {0} facts, more than {FACTS_MAX}")]
    TooManyFacts(usize),
    /// A fact without a name, one that is there twice, or one that is too long.
    #[error("snapshot manifest has a bad fact `{0}`")]
    Fact(String),
    /// Bytes that say a manifest in another way than [`SnapshotManifest::to_bytes`] does.
    #[error("snapshot manifest is not canonical from byte {0} on")]
    NotCanonical(usize),
}

impl SnapshotManifest {
    /// Returns the canonical bytes: JSON without white space, fields in the order of this type.
    pub fn to_bytes(&self) -> Vec<u8> {
        #[expect(clippy::unwrap_used, reason = "the type has no map and no failing serializer")]
        serde_json::to_vec(self).unwrap()
    }

    /// Returns the id of the snapshot: the digest of the canonical bytes.
    pub fn id(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Parses and checks a manifest: only the bytes that [`SnapshotManifest::to_bytes`] returns for it are taken.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidSnapshot> {
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(InvalidSnapshot::TooLarge(bytes.len()));
        }
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(InvalidSnapshot::Json)?;
        if version != SNAPSHOT_VERSION {
            return Err(InvalidSnapshot::Version(version));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(InvalidSnapshot::Json)?;
        let canonical = manifest.to_bytes();
        if canonical != bytes {
            let same = canonical.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            return Err(InvalidSnapshot::NotCanonical(same));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks every rule of the content.
    pub fn check(&self) -> Result<(), InvalidSnapshot> {
        self.machine.clone().checked()?;
        let args = boot_args_bytes(&self.boot_args);
        if args > BOOT_ARGS_BYTES_MAX {
            return Err(InvalidSnapshot::BootArgs(args));
        }
        if self.data_disk.map(|disk| disk.size) != self.machine.data_disk {
            return Err(InvalidSnapshot::DataDisk);
        }
        let Some(memory) = &self.memory else { return Ok(()) };
        if let Some(ram) = memory.ram.filter(|ram| ram.size != self.machine.memory) {
            return Err(InvalidSnapshot::Memory { file: ram.size, machine: self.machine.memory });
        }
        let facts = memory.compatibility.facts();
        if facts.len() > FACTS_MAX {
            return Err(InvalidSnapshot::TooManyFacts(facts.len()));
        }
        for (at, fact) in facts.iter().enumerate() {
            let bad = fact.name.is_empty()
                || fact.name.len() > FACT_NAME_BYTES_MAX
                || fact.value.len() > FACT_VALUE_BYTES_MAX
                || facts[..at].iter().any(|earlier| earlier.name == fact.name);
            if bad {
                return Err(InvalidSnapshot::Fact(crate::text::clip(&fact.name)));
            }
        }
        Ok(())
    }

    /// Lists the files.
    pub fn files(&self) -> impl Iterator<Item = SnapshotFile> {
        self.parts().map(|(_, file)| file)
    }

    /// Lists the files, each with the name of its field: `disk`, `data_disk`, `ram`, `state`.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, SnapshotFile)> {
        let memory = self.memory.iter().flat_map(|memory| {
            memory.ram.map(|ram| ("ram", ram)).into_iter().chain([("state", memory.state)])
        });
        std::iter::once(("disk", self.disk))
            .chain(self.data_disk.map(|disk| ("data_disk", disk)))
            .chain(memory)
    }
}

/// For how long a snapshot stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotKeep {
    /// For as long as its revision: what a build or a re-warming made.
    Revision,
    /// Until it is removed: what a user made. Its revision stays with it.
    Always,
    /// For as long as a machine was restored from it: what a fork made.
    Machines,
}

impl SnapshotKeep {
    /// Returns the word the record has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Revision => "revision",
            Self::Always => "always",
            Self::Machines => "machines",
        }
    }
}

/// How and when a snapshot was made: kept beside it, never part of its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// The record's version, 1.
    pub version: u32,
    /// When it was captured, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
    /// For how long it stays.
    pub keep: SnapshotKeep,
    /// The name its maker gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VariantName>,
    /// The machine it was captured from; none for one that was booted for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The time the machine stood still for the capture, in microseconds.
    pub paused_us: u64,
    /// The time from the machine's readiness to the snapshot, in milliseconds.
    pub elapsed_ms: u64,
}

/// The version of a snapshot record that is known.
pub const SNAPSHOT_RECORD_VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, size: ByteSize) -> SnapshotFile {
        SnapshotFile { digest: Digest::of(text.as_bytes()), size }
    }

    fn manifest() -> SnapshotManifest {
        let machine = MachineShape::default();
        let mut compatibility = Compatibility::default();
        compatibility.insert("vmm", "qemu");
        compatibility.insert("vmm.version", "7.2.22");
        SnapshotManifest {
            version: SNAPSHOT_VERSION,
            subject: Digest::of(b"revision"),
            arch: Arch::X86_64,
            variant: None,
            boot_args: vec!["quiet".to_owned()],
            disk: file("disk", ByteSize::from_mib(1)),
            data_disk: None,
            memory: Some(SnapshotMemory {
                ram: Some(file("ram", machine.memory)),
                state: file("state", ByteSize::from_bytes(77)),
                compatibility,
            }),
            machine,
        }
    }

    fn refusal(manifest: &SnapshotManifest) -> String {
        SnapshotManifest::parse(&manifest.to_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn bytes_and_id_are_pinned() {
        let bytes = manifest().to_bytes();
        assert_eq!(SnapshotManifest::parse(&bytes).unwrap(), manifest());
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\"version\":1,\"subject\":\"sha256:2b214ddf3326016519afcb268f63623b80b91a65265277668e4d020d87dd9078\",\"arch\":\"x86_64\",\"machine\":{\"vcpus\":1,\"memory\":268435456,\"board\":\"pc\"},\"boot_args\":[\"quiet\"],\"disk\":{\"digest\":\"sha256:1044dec7206e8d7c9fbb4ae8f766668406d2567fc7fc1a160a9d4700fcf8f8e9\",\"size\":1048576},\"memory\":{\"ram\":{\"digest\":\"sha256:a631f4488a457da27b4a64dc8f2d85085b50ff568be99125cf6f8f45c759878e\",\"size\":268435456},\"state\":{\"digest\":\"sha256:4ba69735ca53765ed6a709edb56c6ea236b7193a3b29a6b390c346f0f4340e4e\",\"size\":77},\"compatibility\":[{\"name\":\"vmm\",\"value\":\"qemu\"},{\"name\":\"vmm.version\",\"value\":\"7.2.22\"}]}}"
        );
        assert_eq!(
            manifest().id().to_string(),
            "sha256:f74fa21cdb52b9d22fffbfb6c4784b26e3c3e0500eb628f57540968ca57f2916"
        );
    }

    #[test]
    fn the_first_fact_that_differs_is_named_and_what_is_unknown_differs() {
        let facts = |pairs: &[(&str, &str)]| {
            let mut facts = Compatibility::default();
            for (name, value) in pairs {
                facts.insert(name, value);
            }
            facts
        };
        let snapshot = facts(&[("vmm", "qemu"), ("cpu", "Nehalem"), ("vcpus", "1")]);
        let told = |here: &[(&str, &str)]| snapshot.first_difference(&facts(here)).map(|d| d.to_string());
        assert_eq!(told(&[("vcpus", "1"), ("cpu", "Nehalem"), ("vmm", "qemu")]), None);
        let both = told(&[("vmm", "qemu"), ("cpu", "max"), ("vcpus", "2")]);
        assert_eq!(both.unwrap(), "cpu is Nehalem in the snapshot and max here");
        let fewer = told(&[("vmm", "qemu"), ("cpu", "Nehalem")]);
        assert_eq!(fewer.unwrap(), "vcpus is 1 in the snapshot and unknown here");
        let more = told(&[("vmm", "qemu"), ("cpu", "Nehalem"), ("vcpus", "1"), ("rng", "on")]);
        assert_eq!(more.unwrap(), "rng is unknown in the snapshot and on here");
    }

    #[test]
    fn files_have_the_lengths_of_the_machine() {
        let mut short = manifest();
        short.memory.as_mut().unwrap().ram = Some(file("ram", ByteSize::from_mib(128)));
        assert_eq!(refusal(&short), "snapshot manifest has a memory file of 128M for a machine of 256M");
        let mut extra = manifest();
        extra.data_disk = Some(file("data", ByteSize::from_mib(1)));
        assert_eq!(refusal(&extra), "snapshot manifest has another data disk than its machine");
        let mut shape = manifest();
        shape.machine.vcpus = 0;
        assert_eq!(refusal(&shape), "snapshot manifest has an impossible machine");
        let mut newer = manifest();
        newer.version = 2;
        assert_eq!(refusal(&newer), "snapshot manifest has version 2, this kiln reads 1");
    }

    #[test]
    fn facts_are_limited_in_number_and_length() {
        let with = |facts: &[(String, String)]| {
            let mut manifest = manifest();
            let memory = manifest.memory.as_mut().unwrap();
            memory.compatibility.facts =
                facts.iter().map(|(name, value)| Fact { name: name.clone(), value: value.clone() }).collect();
            manifest
        };
        let many = |count: usize| (0..count).map(|n| (format!("f{n}"), String::new())).collect::<Vec<_>>();
        with(&many(FACTS_MAX)).check().unwrap();
        assert_eq!(refusal(&with(&many(FACTS_MAX + 1))), "snapshot manifest has 257 facts, more than 256");
        let sized = |name: usize, value: usize| with(&[("n".repeat(name), "v".repeat(value))]);
        sized(FACT_NAME_BYTES_MAX, FACT_VALUE_BYTES_MAX).check().unwrap();
        for (name, value) in [(0, 1), (FACT_NAME_BYTES_MAX + 1, 1), (1, FACT_VALUE_BYTES_MAX + 1)] {
            assert!(refusal(&sized(name, value)).starts_with("snapshot manifest has a bad fact"));
        }
        let twice = with(&[("cpu".to_owned(), "a".to_owned()), ("cpu".to_owned(), "b".to_owned())]);
        assert_eq!(refusal(&twice), "snapshot manifest has a bad fact `cpu`");
    }

    #[test]
    fn a_snapshot_manifest_has_a_largest_size_and_one_form() {
        let large = vec![b' '; SNAPSHOT_BYTES_MAX + 1];
        let error = SnapshotManifest::parse(&large).unwrap_err().to_string();
        assert_eq!(error, "snapshot manifest has 262145 bytes, more than 262144");
        let mut args = manifest();
        args.boot_args = vec!["x".repeat(BOOT_ARGS_BYTES_MAX)];
        assert_eq!(refusal(&args), "snapshot manifest has 1025 bytes of boot arguments, more than 1024");
        let bytes = String::from_utf8(manifest().to_bytes()).unwrap();
        for other in [format!("{bytes}\n"), bytes.replacen(',', ", ", 1)] {
            let parsed = SnapshotManifest::parse(other.as_bytes());
            assert!(matches!(parsed, Err(InvalidSnapshot::NotCanonical(_))), "{parsed:?}");
        }
        let surprise = bytes.replacen("\"arch\":", "\"surprise\":1,\"arch\":", 1);
        assert!(matches!(SnapshotManifest::parse(surprise.as_bytes()), Err(InvalidSnapshot::Json(_))));
    }

    #[test]
    fn the_files_are_listed() {
        assert_eq!(manifest().files().count(), 3);
        let disks = SnapshotManifest { memory: None, ..manifest() };
        assert_eq!(disks.files().count(), 1);
    }
}
