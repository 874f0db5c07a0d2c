//! The disk with a seed: what a machine tells the guest's cloud-init of itself, as its data source `NoCloud` wants it.
//! Source of the form: cloud-init's documentation, "NoCloud" and "Networking config Version 2".

use crate::spec::mac_of;
use crate::{Engine, EngineError, EngineResult};
use hadris_iso::read::PathSeparator;
use hadris_iso::write::options::{CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};
use kiln_core::SshPublicKey;
use kiln_core::machine::{BootArtifacts, MachineRecord, Network};
use kiln_core::seed::{Seed, USER_DATA_BYTES_MAX};
use kiln_sys::{IoResultExt as _, fs};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::Cursor;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// The machine's seed, in its directory.
pub(crate) const SEED_FILE: &str = "seed.iso";
/// The length of every seed's disk without an agent, in bytes: a guest that is restored has a disk as long as the one it
/// knows.
const SEED_BYTES: usize = 512 << 10;
/// The length of every seed's disk with an agent, in bytes; what it does not take is a hole.
const SEED_AGENT_BYTES: usize = 32 << 20;
const _: () = assert!(USER_DATA_BYTES_MAX < SEED_BYTES / 4);

/// The label by which cloud-init finds it.
const LABEL: &str = "cidata";
/// User data that has cloud-init do nothing.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";

/// Has the guest take the agent from the seed. A boot hook, as lists of commands in user data would replace those here.
const AGENT_SCRIPT: &str = include_str!("seed/agent.sh");
/// What the script installs for systemd and for OpenRC.
const AGENT_SERVICES: [(&str, &str); 2] = [
    ("kiln-agent.openrc", include_str!("seed/agent.openrc")),
    ("kiln-agent.service", include_str!("seed/agent.service")),
];

/// Returns the length of the seed's disk of machines that boot so.
pub(crate) fn seed_bytes(boot: &BootArtifacts) -> usize {
    if boot.is_firmware() { SEED_AGENT_BYTES } else { SEED_BYTES }
}

/// A file of a seed: its name and content.
type SeedFile = (&'static str, Cow<'static, [u8]>);

/// Returns the files of a machine's seed. Documents are JSON, which is YAML whatever a text in it holds.
fn files(record: &MachineRecord, seed: &Seed) -> Vec<SeedFile> {
    let text = |value: Value| Cow::Owned(format!("{value}\n").into_bytes());
    // What a disk was told before counts for the machine that was told it: another has another id.
    let mut meta_data = json!({ "instance-id": record.id.as_str(), "local-hostname": record.name.as_str() });
    if !record.ssh_keys.is_empty() {
        meta_data["public-keys"] = record.ssh_keys.iter().map(SshPublicKey::as_str).collect();
    }
    let network = match &record.network {
        // By its address: what the guest calls it is the guest's to say. Name servers come with the lease.
        Network::User { .. } => json!({
            "version": 2,
            "ethernets": { "kiln0": { "match": { "macaddress": mac_of(record).to_string() }, "dhcp4": true } },
        }),
        _ => json!({ "config": "disabled" }),
    };
    let user_data = seed.user_data.clone().unwrap_or_else(|| NO_USER_DATA.to_owned());
    let mut files = vec![
        ("meta-data", text(meta_data)),
        ("network-config", text(network)),
        ("user-data", Cow::Owned(user_data.into_bytes())),
    ];
    if record.boot.is_firmware() {
        // What kiln does not start itself does not bring the agent.
        files.push(("vendor-data", Cow::Borrowed(AGENT_SCRIPT.as_bytes())));
        files.extend(AGENT_SERVICES.map(|(name, text)| (name, Cow::Borrowed(text.as_bytes()))));
        files.push(("kiln-agent", Cow::Borrowed(kiln_build::AGENT)));
    }
    files
}

/// Returns the bytes of a file system with these files in its root.
fn file_system(files: Vec<SeedFile>, bytes_max: usize) -> Result<Vec<u8>, String> {
    let file = |(name, content): SeedFile| File::File {
        name: Arc::new(name.to_owned()),
        contents: content.into_owned(),
    };
    let path_separator = PathSeparator::ForwardSlash;
    let input = InputFiles { path_separator, files: files.into_iter().map(file).collect() };
    let options = IsoFormatOptions {
        volume_name: LABEL.to_owned(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: 2048,
        features: CreationFeatures::extensions(),
        path_separator,
        strict_charset: false,
    };
    let mut out = Cursor::new(Vec::new());
    IsoImageWriter::create(&mut out, input, options).map_err(|error| error.to_string())?;
    let bytes = out.into_inner();
    if bytes.len() > bytes_max {
        return Err(format!("{} bytes do not fit into {bytes_max}", bytes.len()));
    }
    Ok(bytes)
}

/// Writes a machine's seed into its directory.
pub(crate) fn write(dir: &Path, record: &MachineRecord, seed: &Seed) -> EngineResult<()> {
    let path = dir.join(SEED_FILE);
    let len = seed_bytes(&record.boot);
    let bytes = file_system(files(record, seed), len)
        .map_err(|reason| EngineError::HostPath { path: path.clone(), reason })?;
    let file = fs::create_new(&path)?;
    file.write_all_at(&bytes, 0).at("write", &path)?;
    file.set_len(len as u64).at("set the length of", &path)?;
    Ok(file.sync_all().at("sync", &path)?)
}

impl Engine {
    /// Writes a machine's seed into a directory that is to be the machine's, where its revision has one.
    pub(crate) fn write_seed(&self, dir: &Path, record: &MachineRecord) -> EngineResult<()> {
        match self.store.revision(&record.revision)?.manifest.seed {
            Some(seed) if record.seed => write(dir, record, &seed),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
