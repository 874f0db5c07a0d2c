//! Why a keyring or a signature is refused.

use super::{CERTIFICATES_MAX, Fingerprint, KEYRING_BYTES_MAX, SIGNATURES_MAX};
use kiln_core::Date;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// Why text is no armour of the kind that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArmorError {
    /// Nothing at all.
    #[error("there is nothing in it")]
    Empty,
    /// A line outside of any block.
    #[error("line {line} is not within a block `{kind}`")]
    Outside {
        /// Its number, from 1.
        line: usize,
        /// The kind of block.
        kind: &'static str,
    },
    /// A line in a block that has no form known there.
    #[error("line {line} has no place in a block")]
    Line {
        /// Its number, from 1.
        line: usize,
    },
    /// A block whose content does not decode.
    #[error("the block that ends in line {line} is not base64")]
    Base64 {
        /// The number of its last line, from 1.
        line: usize,
    },
    /// A block without an end.
    #[error("a block is not finished in line {line}, the last")]
    Unfinished {
        /// The number of the last line, from 1.
        line: usize,
    },
}

/// Why text is not clear-signed, or not only. Lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClearSignedError {
    /// No beginning of a signed part.
    #[error("it is not clear-signed")]
    Unsigned,
    /// Text before the signed part.
    #[error("line {line} stands before the signed part")]
    Before {
        /// Its number.
        line: usize,
    },
    /// A header other than the names of hashes.
    #[error("line {line} is no header of a signed text")]
    Header {
        /// Its number.
        line: usize,
    },
    /// A character that programs take for different things.
    #[error("line {line} has a lone carriage return or a zero byte")]
    Control {
        /// Its number.
        line: usize,
    },
    /// A line whose dash is not escaped.
    #[error("line {line} starts with a dash that is not escaped")]
    Dash {
        /// Its number.
        line: usize,
    },
    /// No signature behind the text.
    #[error("its signature is missing")]
    Unfinished,
}

/// Why a keyring is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// A keyring over the limit of bytes.
    #[error("a keyring of more than {KEYRING_BYTES_MAX} bytes")]
    TooLong,
    /// A keyring over the limit of certificates.
    #[error("a keyring of more than {CERTIFICATES_MAX} certificates")]
    TooMany,
    /// A keyring over the limit of packets.
    #[error("a keyring of more than {limit} packets")]
    TooManyPackets {
        /// The limit.
        limit: usize,
    },
    /// Text that is no armoured keyring.
    #[error("a keyring that is not armoured as one")]
    Armor(#[from] ArmorError),
    /// A packet that is not understood.
    #[error("packet {index} of a keyring is not understood")]
    Packet {
        /// Its number, from 1.
        index: usize,
        /// Why.
        #[source]
        source: Box<pgp::errors::Error>,
    },
    /// A packet that has no place in a keyring of certificates, as a secret key.
    #[error("packet {index} of a keyring is of the kind `{kind}`")]
    OtherPacket {
        /// Its number, from 1.
        index: usize,
        /// Its kind.
        kind: String,
    },
    /// A certificate that is not understood.
    #[error("certificate {index} of a keyring is not understood")]
    Certificate {
        /// Its number, from 1.
        index: usize,
        /// Why.
        #[source]
        source: Box<pgp::errors::Error>,
    },
    /// Two certificates of one key, of which one may lack what the other says of it.
    #[error("a keyring has key {fingerprint} twice")]
    Twice {
        /// The primary key.
        fingerprint: Fingerprint,
    },
    /// A keyring without a certificate.
    #[error("a keyring without a certificate")]
    Empty,
}

/// Why a signature is not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Input over the limit of bytes.
    #[error("a signature or signed text of more than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// More signatures than the limit.
    #[error("more than {SIGNATURES_MAX} signatures in one file")]
    TooMany,
    /// Text that is no armoured signature.
    #[error("a signature that is not armoured as one")]
    Armor(#[from] ArmorError),
    /// Text that is not clear-signed, or not only.
    #[error("a signed text that is not of the clear-signed form")]
    ClearSigned(#[from] ClearSignedError),
    /// Bytes that are no signature.
    #[error("packet {index} of a file of signatures is not understood")]
    Packet {
        /// Its number, from 1.
        index: usize,
        /// Why.
        #[source]
        source: Box<pgp::errors::Error>,
    },
    /// A packet of another kind.
    #[error("packet {index} of a file of signatures is not a signature")]
    OtherPacket {
        /// Its number, from 1.
        index: usize,
    },
    /// No signature at all.
    #[error("a file of signatures without one")]
    NoSignature,
    /// A keyring without any key that is pinned.
    #[error("the keyring has no key that is pinned")]
    NoPinnedKey,
    /// Signatures by keys that no pin leads to only.
    #[error("not signed by a pinned key, but by {}", .found.join(", "))]
    UnknownSigner {
        /// What the signatures say of their keys: fingerprints, or key ids of 16 digits.
        found: Vec<String>,
    },
    /// A signature that claims a pinned key and is not its own over this data.
    #[error("the signature by key {key} is false: data or signature were changed")]
    False {
        /// The key it claims.
        key: Fingerprint,
    },
    /// The data could not be read.
    #[error("cannot read the data of a signature")]
    Read(#[source] io::Error),
    /// A signature by a pinned key that is good for nothing here.
    #[error("the signature by key {key} is not accepted: {problem}")]
    Unusable {
        /// The key.
        key: Fingerprint,
        /// Why not.
        problem: Unusable,
    },
    /// A signature by a key that has expired.
    #[error("key {key} of the signature expired on {}", date(*.expired_at))]
    KeyExpired {
        /// The key.
        key: Fingerprint,
        /// When it expired.
        expired_at: SystemTime,
        /// Whether the signature was made before, so that [`super::VerifyOptions::expired_keys`] would accept it.
        signed_before: bool,
    },
    /// A signature by a key that is revoked.
    #[error("key {key} of the signature is revoked{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    KeyRevoked {
        /// The key or the primary key, whichever is revoked.
        key: Fingerprint,
        /// What its owner says, clipped.
        reason: Option<String>,
    },
    /// A signature that has expired.
    #[error("the signature by key {key} expired on {}", date(*.expired_at))]
    Expired {
        /// The key.
        key: Fingerprint,
        /// When it expired.
        expired_at: SystemTime,
    },
    /// A signature from the future.
    #[error("the signature by key {key} is of {}, which is to come", date(*.signed_at))]
    Future {
        /// The key.
        key: Fingerprint,
        /// When it says it was made.
        signed_at: SystemTime,
    },
}

/// What makes a signature by a pinned key good for nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// A version of signatures from before version 3, or an unknown one.
    #[error("it is of an old version of signatures")]
    Version,
    /// A signature over something other than such data.
    #[error("it is of the kind `{0}`")]
    Kind(String),
    /// A hash that can be made to collide, or an unknown one.
    #[error("its hash is {0}")]
    Hash(String),
    /// No time.
    #[error("it does not say when it was made")]
    NoTime,
    /// A time before the key was made.
    #[error("it is older than its key")]
    OlderThanKey,
    /// A condition that is not understood and must be.
    #[error("it has a condition that is not understood")]
    Critical,
    /// No valid self-signature of the primary key.
    #[error("its primary key has no valid self-signature")]
    NoSelfSignature,
    /// A subkey without a valid binding by its primary key.
    #[error("its key is not bound by the primary key")]
    NotBound,
    /// A subkey that does not claim its primary key in turn.
    #[error("its key does not claim the primary key in turn")]
    NoBackSignature,
    /// A key that may not sign.
    #[error("its key is not one for signing data")]
    NotForSigning,
}

/// Returns the day of a time in UTC, as `2024-02-29`.
fn date(at: SystemTime) -> String {
    Date::of_unix_seconds(at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_told() {
        for (secs, day) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_709_251_199, "2024-02-29"),
            (4_294_967_295, "2106-02-07"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(secs)), day);
        }
    }
}
