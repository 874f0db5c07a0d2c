//! The verdict on `/dev/kvm`, asked of a child process that may hang, and remembered until the host restarts.

use crate::{Engine, EngineResult};
use kiln_core::Digest;
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::kvm::KvmVerdict;
use kiln_sys::{IoResult, fs};
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The most files of one kind that are kept: those of several users and of several programs.
const KEPT_MAX: usize = 16;

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
            remember(&path, &bytes)?;
        }
        Ok(verdict)
    }
}

/// Writes what was learnt of this host under a name that ends with what it was learnt of: `KIND-….json`. The oldest of
/// its kind go, since each start of the host and each new program file gives a new name.
pub(crate) fn remember(path: &Path, bytes: &[u8]) -> IoResult<()> {
    write_file(path, bytes, 0o644, Existing::Replace)?;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Ok(());
    };
    let kind = name.split_once('-').map_or(name, |(kind, _)| kind);
    let is_kin = |other: &str| {
        other != name && other.ends_with(".json") && other.split_once('-').is_some_and(|(of, _)| of == kind)
    };
    let kin = fs::list_dir_where(dir, |name| name.to_str().filter(|name| is_kin(name)).map(str::to_owned))?;
    let mut dated = Vec::new();
    for name in kin {
        let path = dir.join(name);
        if let Some(meta) = fs::optional(fs::symlink_metadata(&path))? {
            dated.push((meta.mtime(), meta.mtime_nsec(), path));
        }
    }
    dated.sort_unstable();
    // This one is the last.
    let excess = (dated.len() + 1).saturating_sub(KEPT_MAX);
    for (_, _, path) in &dated[..excess] {
        fs::remove_file(path)?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::tool::ScratchDir;

    #[test]
    fn what_was_learnt_of_hosts_and_programs_is_kept_so_many_times() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let dir = scratch.path();
        let kept = || fs::list_dir(dir).unwrap();
        for kind in ["kvm", "vmm"] {
            for number in 0..KEPT_MAX {
                let path = dir.join(format!("{kind}-{number:02}.json"));
                remember(&path, b"{}").unwrap();
                // Apart enough for any file system's clock.
                let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
                std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
            }
        }
        write_file(&dir.join("other"), b"", 0o644, Existing::Refuse).unwrap();
        assert_eq!(kept().len(), 2 * KEPT_MAX + 1);
        remember(&dir.join("kvm-00.json"), b"again").unwrap();
        assert_eq!(kept().len(), 2 * KEPT_MAX + 1, "the same name is the same file");
        remember(&dir.join("kvm-new.json"), b"{}").unwrap();
        assert_eq!(kept().len(), 2 * KEPT_MAX + 1);
        assert!(!kept().iter().any(|name| name == "kvm-01.json"), "the oldest went");
        assert!(kept().iter().any(|name| name == "vmm-01.json"), "of its kind");
    }
}
