//! Images of the catalog: what a name stands for at present, by whose word, and the files themselves.
//!
//! [`LookUp::run`] reads the checksums that a distribution publishes, checks who signed them, and gives the digests as an
//! [`ImagePin`]. [`fetch`] brings a file of such a digest into a cache; [`check_image_signature`] checks a signature over
//! the image itself, for the distributions that sign so.

mod error;

pub use crate::hash::digest_of;
pub use error::LookUpError;

use crate::checksum::{Checksums, MANIFEST_BYTES_MAX};
use crate::download::{Client, Download, DownloadError, Fetched, Progress, Url};
use crate::hash::Hasher;
use crate::openpgp::{
    self, CLEAR_SIGNED_BYTES_MAX, KEYRING_BYTES_MAX, Keyring, SIGNATURE_BYTES_MAX, SignatureError, Verified,
    VerifyOptions,
};
use kiln_core::catalog::{Image, ImagePin, KeySource, Serial, Signature, SignaturePlace};
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::{Cancel, fs};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most bytes of an image whose checksums do not say how many it has.
pub const IMAGE_BYTES_MAX: u64 = 64 << 30;

/// The directory of images in a cache, named by their digests.
const IMAGES: &str = "images";
/// The directory of checksums, signatures and keys in a cache, named by their addresses.
const TEXTS: &str = "catalog";

/// How much is checked of what an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Verify {
    /// By signature where the catalog knows a signer, else by checksum.
    #[default]
    Usual,
    /// By signature, or not at all.
    Signature,
    /// By the published checksum, whoever signed it.
    Checksum,
    /// Nothing: what comes first is taken.
    Nothing,
}

/// By what it was found that an image is what its publisher gave.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Word {
    /// A pinned signer's.
    Signed(Verified),
    /// That of the server with the checksums.
    Checksum,
    /// Nobody's.
    Nobody,
}

/// What an image is at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its digests, and when and by whom they were signed.
    pub pin: ImagePin,
    /// By whose word.
    pub word: Word,
    /// The bytes that the checksums give the disk image.
    pub disk_bytes: Option<u64>,
}

/// A question for what an image of the catalog is at present.
#[derive(Debug, Clone, Copy)]
pub struct LookUp<'a> {
    /// The image.
    pub image: &'a Image,
    /// How much is checked.
    pub verify: Verify,
    /// A directory for what is fetched; it is made if need be.
    pub cache: &'a Path,
    /// The present time.
    pub now: SystemTime,
}

/// Returns where a cache keeps the file of a digest.
pub fn cached_path(cache: &Path, digest: &ContentDigest) -> PathBuf {
    cache.join(IMAGES).join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
}

/// Reads the addresses of a catalog.
fn addresses(texts: &[String]) -> Result<Vec<Url>, LookUpError> {
    texts.iter().map(|text| address(text)).collect()
}

fn address(text: &str) -> Result<Url, LookUpError> {
    text.parse().map_err(|_| LookUpError::Address { address: kiln_core::text::clip(text) })
}

/// Returns the last part of an address: the name by which a checksum manifest lists the file.
fn file_name(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or(address)
}

/// What is asked, and with what.
struct Asking<'a, 'p> {
    cache: &'a Path,
    client: &'a Client<'a>,
    progress: &'p mut dyn FnMut(Progress<'_>),
    cancel: &'a Cancel,
}

impl Asking<'_, '_> {
    /// Fetches a text anew and reads it.
    fn text(&mut self, address: &str, bytes_max: usize) -> Result<Vec<u8>, LookUpError> {
        let directory = self.cache.join(TEXTS);
        fs::create_dir_all(&directory)?;
        let target = directory.join(Hasher::of(Algorithm::Sha256, address.as_bytes()).hex());
        let url = self::address(address)?;
        let download = Download {
            urls: std::slice::from_ref(&url),
            digest: None,
            bytes_max: bytes_max as u64,
            cache: &directory,
            target: &target,
        };
        download.run(self.client, self.progress, self.cancel)?;
        Ok(fs::read_limited(&target, bytes_max)?)
    }

    fn keys(&mut self, signature: &Signature) -> Result<Keyring, LookUpError> {
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
    fn checksums(
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

fn at(now: SystemTime) -> VerifyOptions {
    VerifyOptions::at(now)
}

fn signed(place: &str, source: SignatureError) -> LookUpError {
    LookUpError::Signature { place: place.to_owned(), source: Box::new(source) }
}

impl LookUp<'_> {
    /// Asks.
    ///
    /// # Errors
    /// When nobody answers, when a signature is missing or not good, and when the checksums do not name the image.
    pub fn run(
        &self,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Found, LookUpError> {
        let signature = self.image.signature.as_ref();
        let signature = match self.verify {
            Verify::Usual => signature,
            Verify::Signature => Some(signature.ok_or(LookUpError::NobodySigns)?),
            Verify::Checksum => None,
            Verify::Nothing if self.image.kernel.is_none() => {
                return self.unchecked(client, progress, cancel);
            }
            // Only the checksums tell which kernel is the disk's.
            Verify::Nothing => None,
        };
        let mut asking = Asking { cache: self.cache, client, progress, cancel };
        let (text, verified) = match asking.checksums(self.image, signature, self.now) {
            // Checksums and signature that were published between the two requests do not fit each other; those after
            // it do.
            Err(LookUpError::Signature { source, .. }) if matches!(*source, SignatureError::False { .. }) => {
                asking.checksums(self.image, signature, self.now)
            }
            other => other,
        }?;
        let place = &self.image.checksums;
        let disk = self.image.urls.first().map(|url| file_name(url)).unwrap_or_default();
        let kernel = self.image.kernel.as_ref().and_then(|urls| urls.first());
        // A manifest that is named after the image is about nothing else, and may not name it.
        let of_one = kernel.is_none() && file_name(place).starts_with(disk);
        let read = if of_one { Checksums::parse_of(disk, &text) } else { Checksums::parse(&text) };
        let checksums =
            read.map_err(|source| LookUpError::Checksums { place: place.clone(), source: Box::new(source) })?;
        let digest = |name: &str| {
            let found = checksums.digest(name).cloned();
            found.map_err(|source| LookUpError::NotListed { place: place.clone(), source })
        };
        let pin = ImagePin {
            disk: digest(disk)?,
            kernel: kernel.map(|url| digest(file_name(url))).transpose()?,
            serial: verified.as_ref().map(serial_of),
            signer: verified.as_ref().map(|verified| verified.signer),
        };
        let disk_bytes = checksums.size_bytes(disk);
        let word = verified.map_or(Word::Checksum, Word::Signed);
        Ok(Found { pin, word, disk_bytes })
    }

    /// Takes what comes.
    fn unchecked(
        &self,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Found, LookUpError> {
        let directory = self.cache.join(IMAGES);
        fs::create_dir_all(&directory)?;
        let urls = addresses(&self.image.urls)?;
        let name = self.image.urls.first().map(String::as_str).unwrap_or_default();
        let name = Hasher::of(Algorithm::Sha256, name.as_bytes());
        let target = directory.join(format!("unchecked-{}", name.hex()));
        let download = Download {
            urls: &urls,
            digest: None,
            bytes_max: IMAGE_BYTES_MAX,
            cache: &directory,
            target: &target,
        };
        let fetched = download.run(client, progress, cancel)?;
        fs::rename(&target, &cached_path(self.cache, &fetched.digest))?;
        let pin = ImagePin { disk: fetched.digest, kernel: None, serial: None, signer: None };
        Ok(Found { pin, word: Word::Nobody, disk_bytes: Some(fetched.bytes) })
    }
}

/// Returns the serial that the time of a signature is.
fn serial_of(verified: &Verified) -> Serial {
    let since = verified.signed_at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Serial::of_unix_seconds(since.as_secs())
}

/// Brings the file of a digest into a cache, from the first of these addresses that has it. Its path is
/// [`cached_path`].
///
/// # Errors
/// When none has it.
pub fn fetch(
    urls: &[String],
    digest: &ContentDigest,
    bytes: Option<u64>,
    cache: &Path,
    client: &Client<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
    cancel: &Cancel,
) -> Result<Fetched, LookUpError> {
    let directory = cache.join(IMAGES);
    fs::create_dir_all(&directory)?;
    let target = cached_path(cache, digest);
    let download = Download {
        urls: &addresses(urls)?,
        digest: Some(digest),
        bytes_max: bytes.unwrap_or(IMAGE_BYTES_MAX).min(IMAGE_BYTES_MAX),
        cache: &directory,
        target: &target,
    };
    Ok(download.run(client, progress, cancel)?)
}

/// Checks the signature over an image that was fetched; none where the image has none of that kind.
///
/// # Errors
/// When there should be one and it is missing or not good.
pub fn check_image_signature(
    look_up: &LookUp<'_>,
    path: &Path,
    client: &Client<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
    cancel: &Cancel,
) -> Result<Option<Verified>, LookUpError> {
    let Some(signature) = &look_up.image.signature else { return Ok(None) };
    let (SignaturePlace::OfImage(place), Verify::Usual | Verify::Signature) =
        (&signature.place, look_up.verify)
    else {
        return Ok(None);
    };
    let mut asking = Asking { cache: look_up.cache, client, progress, cancel };
    let proof = asking.text(place, SIGNATURE_BYTES_MAX)?;
    let keys = asking.keys(signature)?;
    let data = fs::open(path)?;
    let checked = openpgp::verify_detached(data, &proof, &keys, &signature.signers, &at(look_up.now));
    checked.map(Some).map_err(|source| signed(place, source))
}

impl From<DownloadError> for LookUpError {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Cancelled => Self::Cancelled,
            DownloadError::Io(error) => Self::Io(error),
            error => Self::Download(Box::new(error)),
        }
    }
}
