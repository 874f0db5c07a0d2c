//! Catalogs that others publish: fetched, and believed by the signature of whom the user named.

use super::asking::Asking;
use super::error::LookUpError;
use super::{at, signed};
use crate::download::{Client, DownloadError, Progress};
use crate::openpgp::{self, KEYRING_BYTES_MAX, SIGNATURE_BYTES_MAX, SignatureError, Verified};
use kiln_core::catalog::{
    CATALOG_BYTES_MAX, CatalogPlace, Fingerprint, KEY_BYTES_MAX, KeySource, Serial, Signature, SignaturePlace,
};
use kiln_sys::Cancel;
use std::io::Cursor;
use std::path::Path;
use std::time::SystemTime;

/// How a text begins that carries its signature.
const CLEAR_SIGNED: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
/// What detached signatures add to a catalog's name, in the order in which they are looked for.
const SIGNATURES: [&str; 2] = [".asc", ".sig"];
/// What keys add to it, where nobody says where they are.
const KEYS: &str = ".key";

/// A catalog at a place.
#[derive(Debug, Clone, Copy)]
pub struct RemoteCatalog<'a> {
    /// Where it is.
    pub place: &'a CatalogPlace,
    /// Who may sign it; nobody has to where this is empty.
    pub signers: &'a [Fingerprint],
    /// Where their keys are; beside the catalog, with `.key` added to its name, where this is empty.
    pub keys: &'a [KeySource],
    /// A directory for what is fetched; it is made if need be.
    pub cache: &'a Path,
    /// The present time.
    pub now: SystemTime,
}

/// A catalog that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchedCatalog {
    /// What was signed: its text.
    pub text: String,
    /// Who signed it; none where nobody had to.
    pub verified: Option<Verified>,
    /// The keys by which that was found, armoured, each at most [`KEY_BYTES_MAX`].
    pub keys: Vec<String>,
}

impl FetchedCatalog {
    /// Returns when it was signed.
    pub fn serial(&self) -> Option<Serial> {
        self.verified.as_ref().map(super::serial_of)
    }
}

impl RemoteCatalog<'_> {
    /// Fetches it. Whether the text is a catalog is not looked at.
    ///
    /// # Errors
    /// When it is not there, and when signers are named and none of them signed it as it is.
    pub fn run(
        &self,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<FetchedCatalog, LookUpError> {
        let mut asking = Asking::new(self.cache, client, progress, cancel);
        let (text, verified, keys) = if self.signers.is_empty() {
            let text = asking.text(&self.place.address(), CATALOG_BYTES_MAX + SIGNATURE_BYTES_MAX)?;
            (openpgp::clear_signed_text(&text).unwrap_or(text), None, Vec::new())
        } else {
            let keys = self.armoured(&mut asking)?;
            let checked = match self.signed(&mut asking, &keys) {
                // A catalog and its signature that were published between the two requests fit what comes now.
                Err(LookUpError::Signature { source, .. })
                    if matches!(*source, SignatureError::False { .. }) =>
                {
                    self.signed(&mut asking, &keys)
                }
                other => other,
            };
            let (text, verified) = checked?;
            (text, Some(verified), keys)
        };
        let text =
            String::from_utf8(text).map_err(|_| LookUpError::NotText { place: self.place.address() })?;
        Ok(FetchedCatalog { text, verified, keys })
    }

    /// Returns the keys as they are kept.
    fn armoured(&self, asking: &mut Asking<'_, '_>) -> Result<Vec<String>, LookUpError> {
        let beside = [KeySource::Address(format!("{}{KEYS}", self.place.address()))];
        let sources = if self.keys.is_empty() { &beside } else { self.keys };
        let mut armoured = Vec::new();
        for source in sources {
            let (place, bytes) = match source {
                KeySource::Address(address) => (address.clone(), asking.text(address, KEYRING_BYTES_MAX)?),
                KeySource::Armoured(text) => (self.place.address(), text.as_bytes().to_vec()),
            };
            let text = openpgp::armoured_keys(&bytes)
                .map_err(|source| LookUpError::Keys { place: place.clone(), source })?;
            if text.len() > KEY_BYTES_MAX {
                return Err(LookUpError::KeysTooLarge { place, max: KEY_BYTES_MAX });
            }
            armoured.push(text);
        }
        Ok(armoured)
    }

    /// Returns the text that was signed, and by whom.
    fn signed(
        &self,
        asking: &mut Asking<'_, '_>,
        keys: &[String],
    ) -> Result<(Vec<u8>, Verified), LookUpError> {
        let address = self.place.address();
        let text = asking.text(&address, CATALOG_BYTES_MAX + SIGNATURE_BYTES_MAX)?;
        let signature = Signature {
            place: SignaturePlace::Inline,
            signers: self.signers.to_vec(),
            keys: keys.iter().map(|key| KeySource::Armoured(key.as_str().into())).collect(),
        };
        let keyring = asking.keys(&signature)?;
        if text.starts_with(CLEAR_SIGNED) {
            let checked = openpgp::verify_clear_signed(&text, &keyring, self.signers, &at(self.now));
            let (verified, text) = checked.map_err(|source| signed(&address, source))?;
            return Ok((text, verified));
        }
        for ending in SIGNATURES {
            let beside = format!("{address}{ending}");
            let proof = match asking.text(&beside, SIGNATURE_BYTES_MAX) {
                Ok(proof) => proof,
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(error),
            };
            let data = Cursor::new(&text);
            let checked = openpgp::verify_detached(data, &proof, &keyring, self.signers, &at(self.now));
            let verified = checked.map_err(|source| signed(&beside, source))?;
            return Ok((text, verified));
        }
        Err(LookUpError::NotSigned { place: address })
    }
}

fn is_missing(error: &LookUpError) -> bool {
    match error {
        LookUpError::Download(error) => matches!(**error, DownloadError::Status { status: 404 | 410, .. }),
        LookUpError::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}
