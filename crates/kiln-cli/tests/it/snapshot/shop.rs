//! A store with a revision, and snapshots and machines made by hand.

use crate::context;
use kiln_core::machine::{BootArtifacts, CloneMethod, CloneRecord, MachineStatus, Network, RECORD_VERSION};
use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::snapshot::{
    Compatibility, SNAPSHOT_RECORD_VERSION, SNAPSHOT_VERSION, SnapshotFile, SnapshotKeep, SnapshotManifest,
    SnapshotMemory, SnapshotRecord,
};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, ArtifactRole, ByteSize, Digest, Tag};
use kiln_store::{BuildRecord, IngestFrom, Store};
use kiln_sys::{Cancel, clock};
use kiln_testing::TestContext;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

/// The length of every file here, in bytes: as many blocks on every file system, and none of them a hole.
pub(super) const FILE_BYTES: usize = 64 << 10;
const HOUR_MS: u64 = 3_600_000;

/// A store with a revision that `web:latest` points to.
pub(super) struct Shop {
    pub(super) context: TestContext,
    pub(super) store: Store,
    cancel: Cancel,
    pub(super) revision: Digest,
}

impl Shop {
    pub(super) fn new() -> Self {
        let context = context();
        // Damage is done by writing, which fs-verity would not let happen.
        context.kiln(["init", "--protect", "none"]).ok();
        let (store, cancel) = (Store::open(&context.home()).unwrap(), Cancel::new().unwrap());
        let mut shop = Self { context, store, cancel, revision: Digest::of(b"") };
        shop.revision = shop.commit("rootfs");
        shop.store.set_tag(&"web".parse().unwrap(), &Tag::latest(), &shop.revision, "build").unwrap();
        shop
    }

    pub(super) fn file(&self, content: &str) -> SnapshotFile {
        let path = self.context.write("file", content.repeat(FILE_BYTES / content.len() + 1));
        std::fs::File::options().write(true).open(&path).unwrap().set_len(FILE_BYTES as u64).unwrap();
        let staging = self.store.stage("a test").unwrap();
        let taken = self.store.ingest(&path, IngestFrom::Outside, &staging, &self.cancel).unwrap();
        SnapshotFile { digest: taken.digest, size: taken.size }
    }

    pub(super) fn commit(&self, rootfs: &str) -> Digest {
        let artifact = |role, content: &str| {
            let SnapshotFile { digest, size } = self.file(content);
            Artifact { role, digest, size, format: ArtifactFormat::Ext4 }
        };
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            arch: Arch::X86_64,
            artifacts: vec![
                artifact(ArtifactRole::kernel(), "kernel"),
                artifact(ArtifactRole::rootfs(), rootfs),
            ],
            machine: MachineShape::default(),
            boot_args: Vec::new(),
            ready: None,
            snapshot: None,
            seed: None,
            variants: Vec::new(),
        };
        let record = BuildRecord {
            version: 1,
            template: "web".parse().unwrap(),
            key: Digest::of(rootfs.as_bytes()),
            built_unix_ms: clock::now_unix_ms() - 100 * HOUR_MS,
            elapsed_ms: 1,
            facts: std::collections::BTreeMap::new(),
        };
        self.store.commit_revision(&manifest, &record).unwrap()
    }

    /// Commits a snapshot, with memory where `state` is one, made some hours ago.
    pub(super) fn snapshot(
        &self,
        name: Option<&str>,
        disk: &str,
        state: Option<&str>,
        keep: SnapshotKeep,
        hours: u64,
    ) -> Digest {
        let mut compatibility = Compatibility::default();
        compatibility.insert("vmm", "qemu");
        compatibility.insert("vmm_version", "7.2.22");
        let memory = state.map(|state| SnapshotMemory { ram: None, state: self.file(state), compatibility });
        let manifest = SnapshotManifest {
            version: SNAPSHOT_VERSION,
            subject: self.revision,
            arch: Arch::X86_64,
            variant: None,
            machine: MachineShape::default(),
            boot_args: vec!["quiet".to_owned()],
            disk: self.file(disk),
            data_disk: None,
            memory,
        };
        let record = SnapshotRecord {
            version: SNAPSHOT_RECORD_VERSION,
            created_unix_ms: clock::now_unix_ms() - hours * HOUR_MS - HOUR_MS / 2,
            keep,
            name: name.map(|name| name.parse().unwrap()),
            machine: Some("web-1a2b".to_owned()),
            paused_us: 45_678,
            elapsed_ms: 1_234,
        };
        self.store.commit_snapshot(&manifest, &record).unwrap()
    }

    /// Makes a machine that continues a snapshot.
    pub(super) fn machine(&self, name: &str, of: Digest) {
        let id = kiln_core::MachineId::from_random(clock::random());
        let dir = self.store.machine_dir(&id);
        let record = kiln_core::machine::MachineRecord {
            version: RECORD_VERSION,
            id,
            name: name.parse().unwrap(),
            reference: "web".to_owned(),
            revision: self.revision,
            variant: None,
            arch: Arch::X86_64,
            shape: MachineShape::default(),
            boot: BootArtifacts::Kernel { kernel: self.revision, format: ArtifactFormat::Elf, initrd: None },
            boot_args: Vec::new(),
            ready: None,
            network: Network::None,
            accelerator: "auto".to_owned(),
            clone: CloneRecord {
                artifact: self.revision,
                size: ByteSize::from_mib(1),
                method: CloneMethod::Copy,
            },
            must_restore: false,
            boots: false,
            put_back: false,
            identity: kiln_core::machine::IdentityPolicy::default(),
            capturable: false,
            base: None,
            seed: false,
            ssh_keys: Vec::new(),
            snapshot: Some(of),
            remove_on_exit: false,
            ttl_ms: None,
            restart: kiln_core::RestartPolicy::No,
            idle_suspend_ms: None,
            created_unix_ms: 1,
        };
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("machine.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        self.store.write_status(&dir, &MachineStatus::created()).unwrap();
    }

    pub(super) fn manifest(&self, id: &Digest) -> PathBuf {
        self.context.home().join("snapshots").join(format!("{}.json", id.hex()))
    }

    pub(super) fn spoil(&self, id: &Digest) {
        std::fs::set_permissions(self.manifest(id), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(self.manifest(id), "{}").unwrap();
    }

    pub(super) fn file_of(&self, id: &Digest, role: &str) -> Digest {
        let manifest = self.store.snapshot(id).unwrap().manifest;
        manifest.parts().find(|(name, _)| *name == role).unwrap().1.digest
    }
}
