//! Where files of a catalog are: on the web, or in a directory of this host, as a mirror on a disk is.

use super::error::LookUpError;
use super::{Brought, IMAGES};
use crate::download::{Client, Download, Origin, Progress, Url};
use crate::hash::Hashing;
use kiln_core::catalog::local_path;
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::commit::{self, Existing};
use kiln_sys::{Cancel, IoResultExt as _, copy, fs};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The bytes that are hashed between two looks at whether to go on.
const STRETCH_BYTES: u64 = 8 << 20;

/// A place of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Web(Url),
    Local(PathBuf),
}

impl Place {
    /// Reads an address of a catalog.
    pub(super) fn of(address: &str) -> Result<Self, LookUpError> {
        let local = || local_path(address).map(Self::Local);
        let place = address.parse().map(Self::Web).ok().or_else(local);
        place.ok_or_else(|| LookUpError::Address { address: kiln_core::text::clip(address) })
    }
}

/// Returns the path on a shelf of a file that the catalog of a mirror names: its root is the shelf.
pub(super) fn on_shelf(path: &Path) -> Result<String, LookUpError> {
    let text = path.to_str().and_then(|text| text.strip_prefix('/'));
    let address = || LookUpError::Address { address: kiln_core::text::clip(&path.to_string_lossy()) };
    text.map(str::to_owned).ok_or_else(address)
}

/// Returns the digest of a local file, and how many bytes it has; none when it has more than `bytes_max`.
pub(super) fn digest_of(
    path: &Path,
    algorithm: Algorithm,
    bytes_max: u64,
    cancel: &Cancel,
) -> Result<Option<(ContentDigest, u64)>, LookUpError> {
    let file = fs::open(path)?;
    let mut hashing = Hashing::new(file.take(bytes_max.saturating_add(1)), algorithm);
    loop {
        cancel.check().map_err(|_| LookUpError::Cancelled)?;
        let read = std::io::copy(&mut (&mut hashing).take(STRETCH_BYTES), &mut std::io::sink());
        if read.at("read", path)? == 0 {
            break;
        }
    }
    let bytes = hashing.count;
    Ok((bytes <= bytes_max).then(|| (hashing.hasher.finish(), bytes)))
}

/// Returns whether the file of a digest is at a path.
pub(super) fn is_there(
    path: &Path,
    digest: &ContentDigest,
    bytes_max: u64,
    cancel: &Cancel,
) -> Result<bool, LookUpError> {
    if !fs::optional(fs::metadata(path))?.is_some_and(|meta| meta.is_file()) {
        return Ok(false);
    }
    let found = digest_of(path, digest.algorithm(), bytes_max, cancel)?;
    Ok(found.is_some_and(|(found, _)| found == *digest))
}

/// What is brought, and where to.
pub(super) struct Bring<'a> {
    pub(super) digest: &'a ContentDigest,
    pub(super) bytes_max: u64,
    pub(super) cache: &'a Path,
    pub(super) target: &'a Path,
}

impl Bring<'_> {
    /// Brings the file from the first address that has it.
    pub(super) fn run(
        &self,
        addresses: &[String],
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Brought, LookUpError> {
        let places: Vec<Place> = addresses.iter().map(|it| Place::of(it)).collect::<Result<_, _>>()?;
        let directory = self.cache.join(IMAGES);
        fs::create_dir_all(&directory)?;
        let mut last = None;
        // Neighbours on the web are one download, which goes on at one where another breaks off.
        for group in places.chunk_by(|one, next| matches!((one, next), (Place::Web(_), Place::Web(_)))) {
            let result = match group {
                [Place::Local(path)] => self.copy(path, cancel),
                _ => self.download(group, &directory, client, progress, cancel),
            };
            match result {
                Err(LookUpError::Cancelled) => return Err(LookUpError::Cancelled),
                Err(error) => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| crate::download::DownloadError::NoUrl.into()))
    }

    fn download(
        &self,
        places: &[Place],
        directory: &Path,
        client: &Client<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        cancel: &Cancel,
    ) -> Result<Brought, LookUpError> {
        let urls = places.iter().filter_map(|place| match place {
            Place::Web(url) => Some(url.clone()),
            Place::Local(_) => None,
        });
        let urls: Vec<Url> = urls.collect();
        let download = Download {
            urls: &urls,
            digest: Some(self.digest),
            bytes_max: self.bytes_max,
            cache: directory,
            target: self.target,
            durable: false,
            origin: Origin::Web,
        };
        let fetched = download.run(client, progress, cancel)?;
        let from = fetched.from.map(|url| url.to_string());
        Ok(Brought { digest: fetched.digest, bytes: fetched.bytes, from })
    }

    /// Copies a local file: what is hashed is the copy, which nobody else changes.
    fn copy(&self, path: &Path, cancel: &Cancel) -> Result<Brought, LookUpError> {
        let from = fs::open(path)?;
        let length = from.metadata().at("inspect", path)?.len();
        let too_large = || LookUpError::LocalTooLarge { path: path.to_owned(), max: self.bytes_max };
        if length > self.bytes_max {
            return Err(too_large());
        }
        let aside = commit::aside(self.target);
        let copied = fs::create_new(&aside).and_then(|to| {
            copy::copy_file(&from, &to, &aside, Some(cancel))?;
            Ok(to)
        });
        let result = copied.map_err(LookUpError::from).and_then(|to| {
            let found = digest_of(&aside, self.digest.algorithm(), self.bytes_max, cancel)?;
            let (actual, bytes) = found.ok_or_else(too_large)?;
            if actual != *self.digest {
                let (path, expected) = (path.to_owned(), self.digest.clone());
                return Err(LookUpError::LocalDigest { path, expected, actual });
            }
            commit::commit_file(&to, &aside, self.target, 0o644, Existing::Replace)?;
            Ok(Brought { digest: actual, bytes, from: Some(path.display().to_string()) })
        });
        if result.is_err() {
            // The error that is returned says more than a failed clean-up would.
            let _ = fs::remove_file(&aside);
        }
        result
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests work on the host directly")]
mod tests {
    use super::*;
    use crate::download::ClientOptions;
    use crate::hash::Hasher;
    use kiln_core::catalog::local_address;
    use kiln_sys::Toolbox;
    use kiln_sys::tool::ScratchDir;

    /// Brings a file of the content `right` from these files of a directory, in their order.
    fn bring(directory: &Path, names: &[&str], bytes_max: u64) -> Result<Brought, LookUpError> {
        let digest = Hasher::of(Algorithm::Sha512, b"right");
        let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
        let client = Client::new(ClientOptions::new(&toolbox));
        let target = directory.join("cache/images/it");
        let bring = Bring { digest: &digest, bytes_max, cache: &directory.join("cache"), target: &target };
        let addresses: Vec<String> = names.iter().map(|name| local_address(&directory.join(name))).collect();
        let brought = bring.run(&addresses, &client, &mut |_| {}, &cancel);
        let left = std::fs::read_dir(directory.join("cache/images")).unwrap().count();
        assert_eq!(left, usize::from(brought.is_ok()), "the file, or nothing");
        brought
    }

    #[test]
    fn a_local_file_counts_where_it_is_the_one_expected() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let directory = scratch.path();
        std::fs::write(directory.join("a wrong one"), "wrong").unwrap();
        std::fs::write(directory.join("right"), "right").unwrap();
        let wrong = bring(directory, &["a wrong one"], 5).unwrap_err();
        assert!(matches!(&wrong, LookUpError::LocalDigest { .. }), "{wrong}");
        let large = bring(directory, &["right"], 4).unwrap_err();
        assert!(matches!(&large, LookUpError::LocalTooLarge { max: 4, .. }), "{large}");
        assert!(matches!(bring(directory, &["missing"], 5), Err(LookUpError::Io(_))));
        let brought = bring(directory, &["missing", "a wrong one", "right"], 5).unwrap();
        assert_eq!(
            (brought.bytes, brought.from.unwrap()),
            (5, directory.join("right").display().to_string())
        );
        assert_eq!(std::fs::read(directory.join("cache/images/it")).unwrap(), b"right");
        assert!(is_there(&directory.join("right"), &brought.digest, 5, &Cancel::new().unwrap()).unwrap());
        assert!(!is_there(&directory.join("right"), &brought.digest, 4, &Cancel::new().unwrap()).unwrap());
        assert!(!is_there(directory, &brought.digest, 5, &Cancel::new().unwrap()).unwrap());
    }
}
