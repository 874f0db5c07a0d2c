//! Images of the catalog: what a name stands for at present, by whose word, and the files themselves.
//!
//! [`LookUp::run`] reads the checksums that a distribution publishes, checks who signed them, and gives the digests as an
//! [`ImagePin`]. [`fetch`] brings a file of such a digest into a cache; [`check_image_signature`] checks a signature over
//! the image itself, for the distributions that sign so.

mod asking;
mod error;
mod mirror;
mod place;
mod remote;
mod shelf;

pub use crate::hash::digest_of;
pub use error::LookUpError;
pub use mirror::{MirrorImage, Mirrored};
pub use remote::{FetchedCatalog, RemoteCatalog};
pub use shelf::{Directory, Over, Shelf, ShelfError, Text};

use crate::checksum::Checksums;
use crate::download::{Client, Download, DownloadError, Origin, Progress, Url};
use crate::hash::Hasher;
use crate::openpgp::{self, SIGNATURE_BYTES_MAX, SignatureError, Verified, VerifyOptions};
use asking::Asking;
use kiln_core::catalog::{Image, ImagePin, Serial, SignaturePlace};
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::{Cancel, fs};
use place::{Bring, Place};
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

/// Returns the last part of an address: the name by which a checksum manifest lists the file.
fn file_name(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or(address)
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
        if self.verify == Verify::Nothing && self.image.kernel.is_none() {
            return self.unchecked(client, progress, cancel);
        }
        let mut asking = Asking::new(self.cache, client, progress, cancel);
        Ok(self.ask(&mut asking)?.0)
    }

    /// Asks, and returns all that is listed with it.
    fn ask(&self, asking: &mut Asking<'_, '_>) -> Result<(Found, Checksums), LookUpError> {
        let signature = self.image.signature.as_ref();
        let signature = match self.verify {
            Verify::Usual => signature,
            Verify::Signature => Some(signature.ok_or(LookUpError::NobodySigns)?),
            // Where nothing is checked, it is the checksums alone that tell which kernel is the disk's.
            Verify::Checksum | Verify::Nothing => None,
        };
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
        Ok((Found { pin, word, disk_bytes }, checksums))
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
        let places = self.image.urls.iter().map(|it| Place::of(it)).collect::<Result<Vec<_>, _>>()?;
        if let Some(Place::Local(path)) = places.first() {
            let found = place::digest_of(path, Algorithm::Sha256, IMAGE_BYTES_MAX, cancel)?;
            let too_large = || LookUpError::LocalTooLarge { path: path.clone(), max: IMAGE_BYTES_MAX };
            let (disk, bytes) = found.ok_or_else(too_large)?;
            let pin = ImagePin { disk, kernel: None, serial: None, signer: None };
            return Ok(Found { pin, word: Word::Nobody, disk_bytes: Some(bytes) });
        }
        let urls: Vec<Url> = places
            .into_iter()
            .filter_map(|place| if let Place::Web(url) = place { Some(url) } else { None })
            .collect();
        let name = self.image.urls.first().map(String::as_str).unwrap_or_default();
        let name = Hasher::of(Algorithm::Sha256, name.as_bytes());
        let target = directory.join(format!("unchecked-{}", name.hex()));
        let download = Download {
            urls: &urls,
            digest: None,
            bytes_max: IMAGE_BYTES_MAX,
            cache: &directory,
            target: &target,
            durable: false,
            origin: Origin::Web,
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

/// A file that was brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brought {
    /// Its digest.
    pub digest: ContentDigest,
    /// Its bytes.
    pub bytes: u64,
    /// The address or the path it came from; none when it was there.
    pub from: Option<String>,
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
) -> Result<Brought, LookUpError> {
    let target = &cached_path(cache, digest);
    let bytes_max = bytes.unwrap_or(IMAGE_BYTES_MAX).min(IMAGE_BYTES_MAX);
    Bring { digest, bytes_max, cache, target }.run(urls, client, progress, cancel)
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
    check_image(look_up, path, &mut Asking::new(look_up.cache, client, progress, cancel))
}

fn check_image(
    look_up: &LookUp<'_>,
    path: &Path,
    asking: &mut Asking<'_, '_>,
) -> Result<Option<Verified>, LookUpError> {
    let Some(signature) = &look_up.image.signature else { return Ok(None) };
    let (SignaturePlace::OfImage(place), Verify::Usual | Verify::Signature) =
        (&signature.place, look_up.verify)
    else {
        return Ok(None);
    };
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
