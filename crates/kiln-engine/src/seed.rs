//! The disk with a seed: what a machine tells the guest's cloud-init of itself, as its data source `NoCloud` wants it.
//! Source of the form: cloud-init's documentation, "NoCloud" and "Networking config Version 2".

use crate::spec::mac_of;
use crate::{Engine, EngineError, EngineResult};
use hadris_iso::read::PathSeparator;
use hadris_iso::write::options::{CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};
use kiln_core::SshPublicKey;
use kiln_core::machine::{MachineRecord, Network};
use kiln_core::seed::{Seed, USER_DATA_BYTES_MAX};
use kiln_sys::{IoResultExt as _, fs};
use serde_json::{Value, json};
use std::io::Cursor;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// The machine's seed, in its directory.
pub(crate) const SEED_FILE: &str = "seed.iso";
/// The length of every seed's disk, in bytes: a guest that is restored has a disk as long as the one it knows.
pub(crate) const SEED_BYTES: usize = 512 << 10;
const _: () = assert!(USER_DATA_BYTES_MAX < SEED_BYTES / 4);

/// The label by which cloud-init finds it.
const LABEL: &str = "cidata";
/// User data that has cloud-init do nothing.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";

/// Returns the files of a machine's seed: names and contents. Documents are JSON, which is YAML whatever a text in it holds.
fn files(record: &MachineRecord, seed: &Seed) -> [(&'static str, String); 3] {
    let text = |value: Value| format!("{value}\n");
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
    [
        ("meta-data", text(meta_data)),
        ("network-config", text(network)),
        ("user-data", seed.user_data.clone().unwrap_or_else(|| NO_USER_DATA.to_owned())),
    ]
}

/// Returns the bytes of a file system with these files in its root.
fn file_system(files: &[(&'static str, String)]) -> Result<Vec<u8>, String> {
    let file = |(name, text): &(&str, String)| File::File {
        name: Arc::new((*name).to_owned()),
        contents: text.clone().into_bytes(),
    };
    let path_separator = PathSeparator::ForwardSlash;
    let input = InputFiles { path_separator, files: files.iter().map(file).collect() };
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
    if bytes.len() > SEED_BYTES {
        return Err(format!("{} bytes do not fit into {SEED_BYTES}", bytes.len()));
    }
    Ok(bytes)
}

/// Writes a machine's seed into its directory.
pub(crate) fn write(dir: &Path, record: &MachineRecord, seed: &Seed) -> EngineResult<()> {
    let path = dir.join(SEED_FILE);
    let bytes = file_system(&files(record, seed))
        .map_err(|reason| EngineError::HostPath { path: path.clone(), reason })?;
    let file = fs::create_new(&path)?;
    file.write_all_at(&bytes, 0).at("write", &path)?;
    file.set_len(SEED_BYTES as u64).at("set the length of", &path)?;
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
