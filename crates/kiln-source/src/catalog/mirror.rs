//! Images of the catalog copied as they are published, with checksums, signatures and keys, into a directory that is a
//! place of the catalog then.

use super::asking::Asking;
use super::error::LookUpError;
use super::place::{Bring, Place, is_there};
use super::{Found, IMAGE_BYTES_MAX, LookUp, Verify, cached_path, check_image};
use crate::checksum::MANIFEST_BYTES_MAX;
use crate::download::{Client, Progress};
use crate::openpgp::KEYRING_BYTES_MAX;
use kiln_core::catalog::{Image, ImagePin, KeySource, SignaturePlace};
use kiln_core::image::ContentDigest;
use kiln_sys::commit::{self, Existing};
use kiln_sys::{Cancel, fs};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The mode of a mirror's directories: a server of files reads them.
const DIRECTORY_MODE: u32 = 0o755;
/// The mode of its files.
const FILE_MODE: u32 = 0o644;

/// An image, and where its mirror is.
#[derive(Debug, Clone, Copy)]
pub struct MirrorImage<'a> {
    /// The image as it is published.
    pub image: &'a Image,
    /// The same as the mirror has it: all its addresses are of local files.
    pub copy: &'a Image,
    /// A directory of the mirror's file system for what comes: what is there when a run ends is gone on with by the next.
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
    target: PathBuf,
}

impl MirrorImage<'_> {
    fn look_up(&self) -> LookUp<'_> {
        LookUp { image: self.image, verify: Verify::Usual, cache: self.work, now: self.now }
    }

    /// Returns what the mirror has, where its checksums are there and good.
    ///
    /// # Errors
    /// When the work was cancelled.
    pub fn there(
        &self,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Option<ImagePin>, LookUpError> {
        let there = LookUp { image: self.copy, ..self.look_up() };
        match there.run(client, progress, cancel) {
            Err(LookUpError::Cancelled) => Err(LookUpError::Cancelled),
            found => Ok(found.ok().map(|found| found.pin)),
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
            if is_there(&part.target, &part.digest, bytes_max, asking.cancel)? {
                continue;
            }
            let target = cached_path(self.work, &part.digest);
            let bring = Bring { digest: &part.digest, bytes_max, cache: self.work, target: &target };
            bytes += bring.run(part.urls, asking.client, asking.progress, asking.cancel)?.bytes;
            staged.push((target, &part.target));
        }
        if let Some(disk) = parts.first() {
            let path = staged.iter().find(|(_, target)| **target == disk.target);
            let path = path.map_or(&disk.target, |(path, _)| path);
            if let Some(verified) = check_image(&self.look_up(), path, asking)? {
                pin.serial = Some(super::serial_of(&verified));
                pin.signer = Some(verified.signer);
            }
        }
        let texts = self.texts(asking)?;
        for (from, to) in &staged {
            public_parent(to)?;
            commit::commit_file(&fs::open(from)?, from, to, FILE_MODE, Existing::Replace)?;
        }
        for (path, text) in texts {
            let max = MANIFEST_BYTES_MAX.max(KEYRING_BYTES_MAX);
            // One that is too long is another.
            if fs::read_optional(&path, max).ok().flatten().as_deref() != Some(text) {
                public_parent(&path)?;
                commit::write_file(&path, text, FILE_MODE, Existing::Replace)?;
            }
        }
        Ok(Mirrored { pin, fetched: staged.len(), bytes })
    }

    /// Returns where checksums, signature and keys go, as they came: the checksums last.
    fn texts<'t>(&self, asking: &'t Asking<'_, '_>) -> Result<Vec<(PathBuf, &'t [u8])>, LookUpError> {
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
    let target = local(copy.first().map(String::as_str).unwrap_or_default())?;
    Ok(Part { urls, digest, target })
}

fn local(address: &str) -> Result<PathBuf, LookUpError> {
    match Place::of(address)? {
        Place::Local(path) => Ok(path),
        Place::Web(_) => Err(LookUpError::Address { address: kiln_core::text::clip(address) }),
    }
}

/// Makes the directory of a file, and those above it, such that everybody may read them. Those that are there stay as
/// they are.
fn public_parent(path: &Path) -> Result<(), LookUpError> {
    let missing: Vec<&Path> =
        path.ancestors().skip(1).take_while(|directory| !fs::exists(directory).unwrap_or(true)).collect();
    for directory in missing.into_iter().rev() {
        match fs::create_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => {
                made?;
                fs::set_mode(directory, DIRECTORY_MODE)?;
            }
        }
    }
    Ok(())
}
