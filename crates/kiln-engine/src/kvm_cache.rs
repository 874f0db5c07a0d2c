//! The verdict on `/dev/kvm`, asked of a child process that may hang, and remembered until the host restarts.

use crate::{Engine, EngineResult};
use kiln_core::Digest;
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::fs;
use kiln_sys::kvm::KvmVerdict;
use std::path::Path;

/// The hidden command that probes in a process of its own.
pub const PROBE_COMMAND: &str = "__probe-kvm";

impl Engine {
    /// Returns what `/dev/kvm` is good for on this host.
    pub fn kvm_verdict(&self) -> EngineResult<KvmVerdict> {
        let path = self.store.root().join("cache/v1").join(format!("kvm-{}.json", host_key().hex()));
        if let Some(bytes) = fs::read_optional(&path, 64 << 10)?
            && let Ok(verdict) = serde_json::from_slice(&bytes)
        {
            return Ok(verdict);
        }
        let program = &self.settings.own_program;
        let verdict =
            kiln_vmm::accel::ask_child(program, &[PROBE_COMMAND.into()], self.settings.toolbox.env());
        // Only what was measured is kept: rights change, and a busy host times out.
        if !matches!(verdict, KvmVerdict::Unavailable { .. }) {
            #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
            let bytes = serde_json::to_vec(&verdict).unwrap();
            write_file(&path, &bytes, 0o644, Existing::Replace)?;
        }
        Ok(verdict)
    }
}

/// Names this boot of this host, and who asks: rights on the device differ by user.
pub(crate) fn host_key() -> Digest {
    let read = |path: &str| fs::read_limited(Path::new(path), 4096).unwrap_or_default();
    let boot = read("/proc/sys/kernel/random/boot_id");
    let release = read("/proc/sys/kernel/osrelease");
    let user = rustix::process::geteuid().as_raw().to_le_bytes().to_vec();
    #[expect(clippy::unwrap_used, reason = "lists of bytes always serialize")]
    let bytes = serde_json::to_vec(&[boot, release, user]).unwrap();
    Digest::of(&bytes)
}
