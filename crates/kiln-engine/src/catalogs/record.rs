//! `catalogs/NAME.json`: where a catalog is from, and by whose word it is what it is. `docs/formats/catalog.md` tells the
//! keys.

use super::{CatalogsError, NewCatalog};
use crate::{EngineError, EngineResult};
use kiln_core::Digest;
use kiln_core::catalog::{CatalogPlace, Fingerprint, KeySource, SIGNERS_MAX, Serial};
use kiln_source::catalog::FetchedCatalog;
use kiln_sys::{clock, fs};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of the records that are written, and the only one read.
const RECORD_VERSION: u32 = 1;
/// The most bytes of a record: that of all the keys it may hold.
pub(super) const RECORD_BYTES_MAX: usize = 2 << 20;

/// What is known of a catalog that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) place: CatalogPlace,
    pub(super) signers: Vec<Fingerprint>,
    /// Their keys, armoured.
    armoured: Vec<String>,
    pub(super) signer: Option<Fingerprint>,
    pub(super) serial: Option<Serial>,
    pub(super) fetched_unix_ms: u64,
    /// Of the text.
    pub(super) sha256: Digest,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    source: String,
    #[serde(default)]
    signers: Vec<String>,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    signer: Option<String>,
    #[serde(default)]
    serial: Option<String>,
    fetched_unix_ms: u64,
    sha256: Digest,
}

impl Record {
    pub(super) fn of(new: &NewCatalog, fetched: &FetchedCatalog) -> Self {
        let begun = Self {
            place: new.place.clone(),
            signers: new.signers.clone(),
            armoured: fetched.keys.clone(),
            signer: None,
            serial: None,
            fetched_unix_ms: 0,
            sha256: Digest::of(b""),
        };
        begun.renewed(fetched)
    }

    /// Returns the record of the same place, and what is there now.
    pub(super) fn renewed(&self, fetched: &FetchedCatalog) -> Self {
        Self {
            signer: fetched.verified.as_ref().map(|verified| verified.signer),
            serial: fetched.serial(),
            fetched_unix_ms: clock::now_unix_ms(),
            sha256: Digest::of(fetched.text.as_bytes()),
            ..self.clone()
        }
    }

    /// Returns the keys that were there when the catalog was added: no others count later.
    pub(super) fn keys(&self) -> Vec<KeySource> {
        self.armoured.iter().map(|key| KeySource::Armoured(key.as_str().into())).collect()
    }

    /// Reads a record; none where there is none.
    pub(super) fn read(path: &Path) -> EngineResult<Option<Self>> {
        let Some(bytes) = fs::read_optional(path, RECORD_BYTES_MAX)? else { return Ok(None) };
        let bad = |reason: String| -> EngineError {
            CatalogsError::Record { path: path.to_owned(), reason }.into()
        };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if version != RECORD_VERSION {
            return Err(bad(format!("it has version {version}, this kiln reads {RECORD_VERSION}")));
        }
        let wire: Wire = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if wire.signers.len() > SIGNERS_MAX || wire.keys.len() > SIGNERS_MAX {
            return Err(bad(format!("it has more than {SIGNERS_MAX} signers or keys")));
        }
        Self::parse(wire).map(Some).map_err(|error| bad(error.to_string()))
    }

    fn parse(wire: Wire) -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self {
            place: wire.source.parse()?,
            signers: wire.signers.iter().map(|it| it.parse()).collect::<Result<_, _>>()?,
            armoured: wire.keys,
            signer: wire.signer.map(|it| it.parse()).transpose()?,
            serial: wire.serial.map(|it| it.parse()).transpose()?,
            fetched_unix_ms: wire.fetched_unix_ms,
            sha256: wire.sha256,
        })
    }

    pub(super) fn to_json(&self) -> EngineResult<Vec<u8>> {
        let wire = Wire {
            version: RECORD_VERSION,
            source: self.place.address(),
            signers: self.signers.iter().map(ToString::to_string).collect(),
            keys: self.armoured.clone(),
            signer: self.signer.map(|it| it.to_string()),
            serial: self.serial.map(|it| it.to_string()),
            fetched_unix_ms: self.fetched_unix_ms,
            sha256: self.sha256,
        };
        #[expect(clippy::expect_used, reason = "it is plain data")]
        Ok(serde_json::to_vec_pretty(&wire).expect("a record is JSON"))
    }
}
