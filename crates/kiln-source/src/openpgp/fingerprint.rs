//! Fingerprints of keys that were read.

use kiln_core::catalog::Fingerprint;
use pgp::types::{Fingerprint as PgpFingerprint, KeyDetails};

/// Returns the fingerprint of a key; none for versions that are not used here.
pub(super) fn fingerprint(key: &impl KeyDetails) -> Option<Fingerprint> {
    match key.fingerprint() {
        PgpFingerprint::V4(bytes) => Some(Fingerprint::V4(bytes)),
        PgpFingerprint::V6(bytes) => Some(Fingerprint::V6(bytes)),
        _ => None,
    }
}
