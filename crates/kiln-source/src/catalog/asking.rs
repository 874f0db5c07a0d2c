//! Small texts of a catalog's places: checksums, signatures, keys.

use super::error::LookUpError;
use super::place::{Place, on_shelf};
use super::shelf::Shelf;
use super::{TEXTS, at, signed};
use crate::checksum::MANIFEST_BYTES_MAX;
use crate::download::{Client, Download, Origin, Progress, Url};
use crate::hash::Hasher;
use crate::openpgp::{
    self, CLEAR_SIGNED_BYTES_MAX, KEYRING_BYTES_MAX, Keyring, SIGNATURE_BYTES_MAX, Verified,
};
use kiln_core::catalog::{Image, KeySource, Signature, SignaturePlace};
use kiln_core::image::Algorithm;
use kiln_sys::{Cancel, fs};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::time::SystemTime;

/// What is asked, and with what.
pub(super) struct Asking<'a, 'p> {
    cache: &'a Path,
    /// Whose files the local ones are, where they are not this host's.
    shelf: Option<&'a dyn Shelf>,
    pub(super) client: &'a Client<'a>,
    pub(super) progress: &'p mut dyn FnMut(Progress<'_>),
    pub(super) cancel: &'a Cancel,
    /// What came last of each address, as it came.
    pub(super) texts: BTreeMap<String, Vec<u8>>,
}

impl<'a, 'p> Asking<'a, 'p> {
    pub(super) fn new(
        cache: &'a Path,
        client: &'a Client<'a>,
        progress: &'p mut dyn FnMut(Progress<'_>),
        cancel: &'a Cancel,
    ) -> Self {
        Self { cache, shelf: None, client, progress, cancel, texts: BTreeMap::new() }
    }

    /// Has local files be those of a shelf.
    pub(super) fn of_shelf(self, shelf: &'a dyn Shelf) -> Self {
        Self { shelf: Some(shelf), ..self }
    }

    /// Fetches a text anew and reads it.
    pub(super) fn text(&mut self, address: &str, bytes_max: usize) -> Result<Vec<u8>, LookUpError> {
        let text = match Place::of(address)? {
            Place::Web(url) => self.fetched(address, &url, bytes_max)?,
            Place::Local(path) => match self.shelf {
                Some(shelf) => {
                    let text = shelf.read(&on_shelf(&path)?, bytes_max)?;
                    text.ok_or_else(|| LookUpError::NotMirrored { address: address.to_owned() })?.bytes
                }
                None => fs::read_limited(&path, bytes_max)?,
            },
        };
        self.texts.insert(address.to_owned(), text.clone());
        Ok(text)
    }

    fn fetched(&mut self, address: &str, url: &Url, bytes_max: usize) -> Result<Vec<u8>, LookUpError> {
        let directory = self.cache.join(TEXTS);
        fs::create_dir_all(&directory)?;
        let target = directory.join(Hasher::of(Algorithm::Sha256, address.as_bytes()).hex());
        let download = Download {
            urls: std::slice::from_ref(url),
            digest: None,
            bytes_max: bytes_max as u64,
            cache: &directory,
            target: &target,
            durable: false,
            origin: Origin::Web,
        };
        download.run(self.client, self.progress, self.cancel)?;
        Ok(fs::read_limited(&target, bytes_max)?)
    }

    pub(super) fn keys(&mut self, signature: &Signature) -> Result<Keyring, LookUpError> {
        let mut all: Option<Keyring> = None;
        for source in &signature.keys {
            let (place, text) = match source {
                KeySource::Address(address) => (address.clone(), self.text(address, KEYRING_BYTES_MAX)?),
                KeySource::Armoured(text) => ("the catalog".to_owned(), text.as_bytes().to_vec()),
            };
            let refused = |source| LookUpError::Keys { place: place.clone(), source };
            let ring = Keyring::parse(&text).map_err(refused)?;
            all = Some(match all {
                Some(all) => all.joined(ring).map_err(refused)?,
                None => ring,
            });
        }
        all.ok_or(LookUpError::NoKeys)
    }

    /// Returns the checksums as they were signed, and by whom.
    pub(super) fn checksums(
        &mut self,
        image: &Image,
        signature: Option<&Signature>,
        now: SystemTime,
    ) -> Result<(Vec<u8>, Option<Verified>), LookUpError> {
        let place = &image.checksums;
        match signature.map(|signature| (signature, &signature.place)) {
            Some((signature, SignaturePlace::Inline)) => {
                let text = self.text(place, CLEAR_SIGNED_BYTES_MAX)?;
                let keys = self.keys(signature)?;
                let checked = openpgp::verify_clear_signed(&text, &keys, &signature.signers, &at(now));
                let (verified, signed) = checked.map_err(|source| signed(place, source))?;
                Ok((signed, Some(verified)))
            }
            Some((signature, SignaturePlace::OfChecksums(beside))) => {
                let text = self.text(place, MANIFEST_BYTES_MAX)?;
                let proof = self.text(beside, SIGNATURE_BYTES_MAX)?;
                let keys = self.keys(signature)?;
                let data = Cursor::new(&text);
                let checked = openpgp::verify_detached(data, &proof, &keys, &signature.signers, &at(now));
                let verified = checked.map_err(|source| signed(beside, source))?;
                Ok((text, Some(verified)))
            }
            // That over the image is checked when it is there.
            Some((_, SignaturePlace::OfImage(_))) | None => {
                let text = self.text(place, CLEAR_SIGNED_BYTES_MAX)?;
                // Whoever asks for no signature may still be given one.
                let plain = openpgp::clear_signed_text(&text).unwrap_or(text);
                Ok((plain, None))
            }
        }
    }
}
