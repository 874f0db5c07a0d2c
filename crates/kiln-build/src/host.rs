//! What a build depends on besides its recipe: gathered once, cheaply, and given to plans as a value.

use crate::agent::AGENT;
use crate::apt::{self, AptSource};
use crate::error::BuildError;
use crate::fingerprint::Hasher;
use crate::firmware;
use kiln_core::arch::Arch;
use kiln_core::digest::Digest;
use kiln_sys::{Cancel, Toolbox, fs, process};
use std::path::PathBuf;

/// The facts of a host that shape what is built on it.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// The architecture of host and guests.
    pub arch: Arch,
    /// Whether this process is root: owners are then kept on disk, otherwise by fakeroot.
    pub is_root: bool,
    /// The version of kiln.
    pub kiln_version: String,
    /// The digest of the guest agent.
    pub agent: Digest,
    /// The version of `mke2fs`.
    pub mke2fs_version: String,
    /// The archives that the host's apt uses; none without apt.
    pub apt_sources: Vec<AptSource>,
    /// What tells one installed `mmdebstrap` from another; none without it.
    pub mmdebstrap: Option<Digest>,
    /// The UEFI firmware for guests; none without it.
    pub firmware: Option<PathBuf>,
}

impl HostFacts {
    /// Returns the UEFI firmware that this host has for guests of an architecture.
    pub fn firmware_of(arch: Arch) -> Option<PathBuf> {
        firmware::on_host(arch)
    }

    /// Gathers the facts. A host without `mke2fs` cannot build.
    pub fn gather(toolbox: &Toolbox, cancel: &Cancel) -> Result<Self, BuildError> {
        let arch = Arch::host().ok_or(BuildError::Architecture(std::env::consts::ARCH))?;
        // Its version goes to standard error: `mke2fs 1.47.0 (5-Feb-2023)`.
        let said = toolbox.find("mke2fs")?.arg("-V").run(cancel, &mut |_| ())?.stderr;
        let version = said.lines().find_map(|line| line.strip_prefix("mke2fs ")).unwrap_or(said.trim());
        // Asking a script for its version takes longer than all the rest.
        let mmdebstrap = match toolbox.find("mmdebstrap") {
            Ok(tool) => {
                let mut identity = Hasher::default();
                identity.file(&fs::metadata(tool.program())?);
                Some(identity.finish())
            }
            Err(_) => None,
        };
        Ok(Self {
            arch,
            is_root: process::is_root(),
            kiln_version: env!("CARGO_PKG_VERSION").to_owned(),
            agent: Digest::of(AGENT),
            mke2fs_version: version.split_whitespace().next().unwrap_or_default().to_owned(),
            apt_sources: apt::host_sources(toolbox, cancel)?,
            mmdebstrap,
            firmware: firmware::on_host(arch),
        })
    }
}
