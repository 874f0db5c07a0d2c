//! The store on real files: what is committed, what is never visible, what is refused.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests work on the host directly and panic when they cannot"
)]

mod artifacts;
mod collection;
mod disks;
mod revisions;

use kiln_core::revision::{Artifact, ArtifactFormat, MANIFEST_VERSION, Manifest};
use kiln_core::variant::MachineShape;
use kiln_core::{Arch, ArtifactRole, Digest};
use kiln_store::{BuildRecord, IngestFrom, Store};
use kiln_sys::Cancel;
use kiln_sys::tool::ScratchDir;

/// A store in a directory of its own.
struct Fixture {
    dir: ScratchDir,
    store: Store,
    cancel: Cancel,
}

impl Fixture {
    fn new() -> Self {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let store = Store::open(&dir.path().join("home")).unwrap();
        Self { dir, store, cancel: Cancel::new().unwrap() }
    }

    /// Ingests a file with this content.
    fn artifact(&self, role: ArtifactRole, content: &[u8]) -> Artifact {
        let path = self.dir.path().join("file");
        std::fs::write(&path, content).unwrap();
        let staging = self.store.stage("a test").unwrap();
        let taken = self.store.ingest(&path, IngestFrom::Outside, &staging, &self.cancel).unwrap();
        Artifact { role, digest: taken.digest, size: taken.size, format: ArtifactFormat::Ext4 }
    }

    /// Commits a revision with a kernel and a root file system of these contents.
    fn revision(&self, kernel: &[u8], rootfs: &[u8]) -> Digest {
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            arch: Arch::X86_64,
            artifacts: vec![
                self.artifact(ArtifactRole::kernel(), kernel),
                self.artifact(ArtifactRole::rootfs(), rootfs),
            ],
            machine: MachineShape::default(),
            boot_args: Vec::new(),
            ready: None,
            variants: Vec::new(),
        };
        self.store.commit_revision(&manifest, &record()).unwrap()
    }
}

fn record() -> BuildRecord {
    BuildRecord {
        version: 1,
        template: "web".parse().unwrap(),
        key: Digest::of(b"key"),
        built_unix_ms: 1,
        elapsed_ms: 1,
        facts: std::collections::BTreeMap::new(),
    }
}
