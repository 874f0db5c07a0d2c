//! The store on real files: what is committed, what is never visible, what is refused.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests work on the host directly and panic when they cannot"
)]

mod artifacts;
mod blocks;
mod changes;
mod collection;
mod disks;
mod faults;
mod grow;
mod limits;
mod migration;
mod protection;
mod revisions;
mod snapshots;

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

    /// Makes a store in this place.
    fn at(home: &std::path::Path) -> Self {
        Self { store: Store::open(home).unwrap(), ..Self::new() }
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
            snapshot: None,
            seed: None,
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

/// Works on a small file system that shares blocks. Only a loop-mounted one can show this on a host without; that
/// needs root and loop devices, and where they lack nothing is done.
fn on_xfs(work: impl FnOnce(&std::path::Path) + std::panic::UnwindSafe) {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let (image, mount) = (dir.path().join("xfs.img"), dir.path().join("mnt"));
    std::fs::create_dir(&mount).unwrap();
    let script = "truncate -s 320M \"$1\" && mkfs.xfs -q -m reflink=1 \"$1\" && mount -o loop \"$1\" \"$2\"";
    let mounted = std::process::Command::new("sh")
        .args(["-c", script, "sh"])
        .args([&image, &mount])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        return;
    }
    let result = std::panic::catch_unwind(|| work(&mount));
    let unmounted = std::process::Command::new("umount").arg(&mount).status().unwrap();
    assert!(unmounted.success());
    result.unwrap();
}
