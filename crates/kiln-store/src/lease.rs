//! Leases: named, expiring reasons to keep a revision.

use crate::error::{StoreError, StoreResult};
use crate::layout::Store;
use kiln_core::Digest;
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::{clock, fs};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The version of a lease that is written and known.
const LEASE_VERSION: u32 = 1;
/// The largest lease that is read, in bytes.
const LEASE_BYTES_MAX: usize = 16 << 10;
/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// A reason to keep a revision for some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The lease's version, 1.
    pub version: u32,
    /// Its name: 16 hexadecimal digits.
    pub id: String,
    /// The revision.
    pub revision: Digest,
    /// Whose it is and what for, in the holder's words.
    pub reason: String,
    /// When it was taken, in milliseconds since 1970 (UTC).
    pub taken_unix_ms: u64,
    /// When it ends, in milliseconds since 1970 (UTC).
    pub expires_unix_ms: u64,
}

impl Lease {
    /// Whether it still holds at a time, in milliseconds since 1970 (UTC).
    pub fn holds_at(&self, unix_ms: u64) -> bool {
        unix_ms < self.expires_unix_ms
    }
}

impl Store {
    /// Takes a lease on a revision. The caller holds the store's lock, at least shared. A reason that is too long is
    /// shortened.
    pub fn take_lease(&self, revision: &Digest, reason: &str, time: Duration) -> StoreResult<Lease> {
        self.revision(revision)?;
        let now = clock::now_unix_ms();
        let mut reason = reason.to_owned();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let lease = Lease {
            version: LEASE_VERSION,
            id: clock::random_hex::<8>(),
            revision: *revision,
            reason,
            taken_unix_ms: now,
            expires_unix_ms: now.saturating_add(millis(time)),
        };
        self.write_lease(&lease, Existing::Keep)?;
        Ok(lease)
    }

    /// Lets a lease end `time` from now.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it ended and was removed: the revision may be gone.
    pub fn renew_lease(&self, id: &str, time: Duration) -> StoreResult<Lease> {
        let lease = self.leases()?.into_iter().find(|lease| lease.id == id);
        let Some(mut lease) = lease.filter(|lease| lease.holds_at(clock::now_unix_ms())) else {
            return Err(StoreError::NotFound { kind: "lease", name: id.to_owned(), similar: Vec::new() });
        };
        lease.expires_unix_ms = clock::now_unix_ms().saturating_add(millis(time));
        self.write_lease(&lease, Existing::Replace)?;
        Ok(lease)
    }

    /// Ends a lease; one that is not there is fine.
    pub fn release_lease(&self, id: &str) -> StoreResult<()> {
        match self.lease_path(id) {
            Some(path) => Ok(fs::remove_file(&path)?),
            None => Ok(()),
        }
    }

    /// Lists all leases, ended ones too.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for one that cannot be read: it may keep anything.
    pub fn leases(&self) -> StoreResult<Vec<Lease>> {
        let mut leases = Vec::new();
        for name in fs::list_dir(&self.root().join("leases"))? {
            let Some(path) =
                name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|id| self.lease_path(id))
            else {
                continue;
            };
            let Some(bytes) = fs::read_optional(&path, LEASE_BYTES_MAX)? else { continue };
            let lease: Lease = serde_json::from_slice(&bytes)
                .map_err(|error| StoreError::Damaged { path: path.clone(), reason: error.to_string() })?;
            if lease.version != LEASE_VERSION {
                let reason = format!("it has version {}, this kiln knows {LEASE_VERSION}", lease.version);
                return Err(StoreError::Damaged { path, reason });
            }
            leases.push(lease);
        }
        leases.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(leases)
    }

    fn write_lease(&self, lease: &Lease, existing: Existing) -> StoreResult<()> {
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec_pretty(lease).unwrap();
        let path = self.root().join("leases").join(format!("{}.json", lease.id));
        Ok(write_file(&path, &bytes, 0o644, existing)?)
    }

    /// Returns the file of a lease, for a name that can be one's.
    fn lease_path(&self, id: &str) -> Option<PathBuf> {
        let is_id = id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        is_id.then(|| self.root().join("leases").join(format!("{id}.json")))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
