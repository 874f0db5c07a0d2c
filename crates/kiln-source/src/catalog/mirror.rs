//! Images of the catalog copied as they are published, with checksums, signatures and keys, to where a catalog of its own
//! names them.

use super::asking::Asking;
use super::error::LookUpError;
use super::place::{Bring, Place, on_shelf};
use super::shelf::Shelf;
use super::{Found, IMAGE_BYTES_MAX, LookUp, Verify, cached_path, check_image};
use crate::download::{Client, Progress};
use kiln_core::catalog::{Image, ImagePin, KeySource, SignaturePlace};
use kiln_core::image::ContentDigest;
use kiln_sys::{Cancel, fs};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An image, and where its mirror is.
#[derive(Debug, Clone, Copy)]
pub struct MirrorImage<'a> {
    /// The image as it is published.
    pub image: &'a Image,
    /// The same as the mirror has it: all its addresses are of local files, whose root is the shelf.
    pub copy: &'a Image,
    /// Where the files of the mirror are.
    pub shelf: &'a dyn Shelf,
    /// A directory for what comes, of the file system of the mirror where that is a directory: what is there when a run
    /// ends is gone on with by the next.
    pub work: &'a Path,
    /// The present time.
    pub now: SystemTime,
}

/// What was done for an image of a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mirrored {
    /// What the image is.
    pub pin: ImagePin,
    /// The files that were fetched, checksums and the like aside.
    pub fetched: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// A file of an image.
struct Part<'a> {
    urls: &'a [String],
    digest: ContentDigest,
    path: String,
}

/// A file of an image that has come.
struct Staged<'a> {
    from: PathBuf,
    part: &'a Part<'a>,
    /// Whether the mirror lacks it.
    wanted: bool,
}

impl MirrorImage<'_> {
    fn look_up(&self) -> LookUp<'_> {
        LookUp { image: self.image, verify: Verify::Usual, cache: self.work, now: self.now }
    }

    /// Returns whether the signature is over the image itself.
    fn is_signed_itself(&self) -> bool {
        let signature = self.image.signature.as_ref();
        signature.is_some_and(|signature| matches!(signature.place, SignaturePlace::OfImage(_)))
    }

    /// Returns what the mirror has, where its checksums are there and good.
    ///
    /// # Errors
    /// When the mirror cannot be asked, and when the work was cancelled.
    pub fn there(
        &self,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Option<ImagePin>, LookUpError> {
        let there = LookUp { image: self.copy, ..self.look_up() };
        let mut asking = Asking::new(self.work, client, progress, cancel).of_shelf(self.shelf);
        match there.ask(&mut asking) {
            // What cannot be asked is not known to be older.
            Err(LookUpError::Cancelled) => Err(LookUpError::Cancelled),
            Err(LookUpError::Shelf(error)) if !error.is_too_large() => Err(LookUpError::Shelf(error)),
            found => Ok(found.ok().map(|(found, _)| found.pin)),
        }
    }

    /// Brings the mirror to what is published now. `may` is asked whether that is wanted, once it is known and before
    /// anything of it is fetched.
    ///
    /// Everything is checked before it is at its place, and what is there and right stays. The files of an image take
    /// their places together, its checksums last.
    ///
    /// # Errors
    /// When something cannot be had or is not its publisher's; the mirror is as it was then.
    pub fn run<E: From<LookUpError>>(
        &self,
        may: impl FnOnce(&ImagePin) -> Result<(), E>,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Mirrored, E> {
        let mut asking = Asking::new(self.work, client, progress, cancel);
        let look_up = self.look_up();
        let (found, checksums) = look_up.ask(&mut asking)?;
        may(&found.pin)?;
        let initrd = |urls: &[String]| -> Result<ContentDigest, LookUpError> {
            let name = urls.first().map(|url| super::file_name(url)).unwrap_or_default();
            let digest = checksums.digest(name).cloned();
            let place = self.image.checksums.clone();
            digest.map_err(|source| LookUpError::NotListed { place, source })
        };
        let mut parts = vec![part(&self.image.urls, found.pin.disk.clone(), &self.copy.urls)?];
        if let (Some(urls), Some(copy), Some(digest)) =
            (&self.image.kernel, &self.copy.kernel, &found.pin.kernel)
        {
            parts.push(part(urls, digest.clone(), copy)?);
        }
        if let (Some(urls), Some(copy)) = (&self.image.initrd, &self.copy.initrd) {
            parts.push(part(urls, initrd(urls)?, copy)?);
        }
        Ok(self.bring(&found, &parts, &mut asking)?)
    }

    fn bring(
        &self,
        found: &Found,
        parts: &[Part<'_>],
        asking: &mut Asking<'_, '_>,
    ) -> Result<Mirrored, LookUpError> {
        let mut pin = found.pin.clone();
        let (mut staged, mut bytes) = (Vec::new(), 0);
        for (index, part) in parts.iter().enumerate() {
            let bytes_max = found.disk_bytes.filter(|_| index == 0).unwrap_or(IMAGE_BYTES_MAX);
            let bytes_max = bytes_max.min(IMAGE_BYTES_MAX);
            let there = self.shelf.has(&part.path, &part.digest, bytes_max, asking.cancel)?;
            // A signature over the image itself is checked each time, which somebody else's copy is not there for.
            let at_hand = index > 0 || !self.is_signed_itself() || self.shelf.local(&part.path).is_some();
            if there && at_hand {
                continue;
            }
            let from = cached_path(self.work, &part.digest);
            let bring = Bring { digest: &part.digest, bytes_max, cache: self.work, target: &from };
            bytes += bring.run(part.urls, asking.client, asking.progress, asking.cancel)?.bytes;
            staged.push(Staged { from, part, wanted: !there });
        }
        if let Some(disk) = parts.first() {
            let path = staged.iter().find(|file| file.part.path == disk.path).map(|file| file.from.clone());
            if let Some(path) = path.or_else(|| self.shelf.local(&disk.path))
                && let Some(verified) = check_image(&self.look_up(), &path, asking)?
            {
                pin.serial = Some(super::serial_of(&verified));
                pin.signer = Some(verified.signer);
            }
        }
        for Staged { from, part, wanted } in &staged {
            if *wanted {
                let progress = &mut *asking.progress;
                let told = &mut |have, total| progress(Progress::Bytes { have, total: Some(total) });
                self.shelf.put(&part.path, from, &part.digest, told)?;
            } else {
                fs::remove_file(from)?;
            }
        }
        for (path, text) in self.texts(asking)? {
            self.shelf.keep(&path, text)?;
        }
        Ok(Mirrored { pin, fetched: staged.len(), bytes })
    }

    /// Returns where checksums, signature and keys go, as they came: the checksums last.
    fn texts<'t>(&self, asking: &'t Asking<'_, '_>) -> Result<Vec<(String, &'t [u8])>, LookUpError> {
        let mut places = Vec::new();
        if let (Some(signature), Some(copy)) = (&self.image.signature, &self.copy.signature) {
            for pair in signature.keys.iter().zip(&copy.keys) {
                if let (KeySource::Address(from), KeySource::Address(to)) = pair {
                    places.push((from, to));
                }
            }
            match (&signature.place, &copy.place) {
                (SignaturePlace::OfChecksums(from), SignaturePlace::OfChecksums(to))
                | (SignaturePlace::OfImage(from), SignaturePlace::OfImage(to)) => places.push((from, to)),
                _ => {}
            }
        }
        places.push((&self.image.checksums, &self.copy.checksums));
        let mut texts = Vec::new();
        for (from, to) in places {
            if let Some(text) = asking.texts.get(from) {
                texts.push((local(to)?, text.as_slice()));
            }
        }
        Ok(texts)
    }
}

fn part<'a>(urls: &'a [String], digest: ContentDigest, copy: &[String]) -> Result<Part<'a>, LookUpError> {
    let path = local(copy.first().map(String::as_str).unwrap_or_default())?;
    Ok(Part { urls, digest, path })
}

/// Returns the path on the shelf of an address of the copy.
fn local(address: &str) -> Result<String, LookUpError> {
    match Place::of(address)? {
        Place::Local(path) => on_shelf(&path),
        Place::Web(_) => Err(LookUpError::Address { address: kiln_core::text::clip(address) }),
    }
}
