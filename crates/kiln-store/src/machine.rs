//! Machine records: what each machine is, and how it does. Reading them is the store's part; living them is the
//! supervisor's.

use crate::error::{StoreError, StoreResult};
use crate::layout::Store;
use kiln_core::MachineId;
use kiln_core::machine::{MachineRecord, MachineStatus, RECORD_BYTES_MAX, RECORD_VERSION};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::{fail, fs};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A machine as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineEntry {
    /// What it is.
    pub record: MachineRecord,
    /// How it does, by its own words: whoever shows this reconciles it with the living first.
    pub status: MachineStatus,
    /// Its directory.
    pub dir: PathBuf,
}

impl Store {
    /// Lists the ids of all machines.
    pub fn machine_ids(&self) -> StoreResult<Vec<MachineId>> {
        let names = fs::list_dir(&self.root().join("machines"))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Reads a machine.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Damaged`] for a record or status that cannot be read, one of another
    /// version among them.
    pub fn machine(&self, id: &MachineId) -> StoreResult<MachineEntry> {
        let dir = self.machine_dir(id);
        let Some(bytes) = fs::read_optional(&dir.join("machine.json"), RECORD_BYTES_MAX)? else {
            return Err(StoreError::NotFound { kind: "machine", name: id.to_string(), similar: Vec::new() });
        };
        let record: MachineRecord = parse(&dir.join("machine.json"), &bytes)?;
        let status = match fs::read_optional(&dir.join("status.json"), RECORD_BYTES_MAX)? {
            Some(bytes) => parse(&dir.join("status.json"), &bytes)?,
            None => MachineStatus::created(),
        };
        Ok(MachineEntry { record, status, dir })
    }

    /// Reads all machines; one that vanishes meanwhile is left out, one that is damaged is an error in its place.
    pub fn machines(&self) -> StoreResult<Vec<(MachineId, StoreResult<MachineEntry>)>> {
        let mut entries = Vec::new();
        for id in self.machine_ids()? {
            match self.machine(&id) {
                Err(StoreError::NotFound { .. }) => {}
                entry => entries.push((id, entry)),
            }
        }
        Ok(entries)
    }

    /// Writes how a machine does. Its supervisor, or whoever found that to be gone, does this.
    pub fn write_status(&self, dir: &Path, status: &MachineStatus) -> StoreResult<()> {
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec_pretty(status).unwrap();
        fail::point("status.write", dir)?;
        Ok(write_file(&dir.join("status.json"), &bytes, 0o600, Existing::Replace)?)
    }
}

/// Parses a record or status, its version first: another version may have other fields.
fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> StoreResult<T> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let Version { version } = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if version != RECORD_VERSION {
        return Err(damaged(format!("it has version {version}, this kiln knows {RECORD_VERSION}")));
    }
    serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))
}
