//! Tar files that hold an image: where in them its parts are.

use super::error::OciError;
use super::image::{Blob, Image, Layer, Place, configuration, count_layers, id_of};
use super::layer::{Kind, TarReader, Totals};
use super::limits::{ARCHIVE_ENTRIES_MAX, CONFIG_BYTES_MAX, LAYER_BYTES_MAX, LINKS_MAX, MANIFEST_BYTES_MAX};
use super::wire::{DockerImage, parse};
use kiln_core::image::{Platform, RegistryReference};
use kiln_sys::{IoResultExt, fs};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What is wanted where a file is no archive.
const WANTED: &str = "an image's archive";

/// An archive, its headers read.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    files: HashMap<Vec<u8>, (u64, u64)>,
    /// Old versions of docker write a layer once and link to it.
    links: HashMap<Vec<u8>, Vec<u8>>,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Self, OciError> {
        let file = fs::open(path)?;
        let len = file.metadata().at("inspect", path)?.len();
        let mut reader = TarReader::new(&file, 0, len);
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let refuse =
            |problem: String| OciError::NotAnImage { path: path.to_owned(), wanted: WANTED, problem };
        let mut count = 0;
        let mut totals = Totals::default();
        while let Some(entry) = reader.next().map_err(|error| refuse(error.to_string()))? {
            count += 1;
            if count > ARCHIVE_ENTRIES_MAX {
                return Err(OciError::TooLarge { what: "entries in its archive", max: ARCHIVE_ENTRIES_MAX });
            }
            totals.add(&entry)?;
            let name = clean(&entry.path);
            match entry.kind {
                Kind::File => {
                    links.remove(&name);
                    files.insert(name, (entry.data, entry.len));
                }
                Kind::Symlink => {
                    files.remove(&name);
                    let above = name.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                    links.insert(name.clone(), clean(&[&name[..above], &entry.link].concat()));
                }
                Kind::HardLink => {
                    links.insert(name, clean(&entry.link));
                }
                _ => {}
            }
        }
        Ok(Self { path: path.to_owned(), files, links })
    }

    pub(super) fn place(&self, name: &[u8]) -> Option<Place> {
        let mut name = clean(name);
        for _ in 0..LINKS_MAX {
            match self.links.get(&name) {
                Some(target) => name = target.clone(),
                None => break,
            }
        }
        self.files.get(&name).map(|(offset, len)| Place {
            path: self.path.clone(),
            offset: *offset,
            len: *len,
        })
    }

    /// Opens an image of `docker save`: its `manifest.json` names files, its configuration what they uncompress to.
    pub(super) fn docker_image(
        &self,
        list: &Place,
        name: Option<&str>,
        platform: &Platform,
    ) -> Result<Image, OciError> {
        let bytes = list.read("manifest", MANIFEST_BYTES_MAX)?;
        let images: Vec<DockerImage> = parse("manifest.json", &bytes)?;
        let found: Vec<String> = images
            .iter()
            .flat_map(|image| &image.repo_tags)
            .take(32)
            .map(|tag| kiln_core::text::clip(tag))
            .collect();
        let path = || self.path.clone();
        let image = match (name, images.as_slice()) {
            (Some(name), all) => {
                // `app` is written as `docker.io/library/app:latest` by some.
                let whole = |name: &str| name.parse::<RegistryReference>().ok();
                let meant =
                    |tag: &String| tag == name || whole(tag).is_some_and(|tag| Some(tag) == whole(name));
                let image = all.iter().find(|image| image.repo_tags.iter().any(meant));
                image.ok_or_else(|| OciError::NoSuchImage { path: path(), name: name.to_owned(), found })?
            }
            (None, [one]) => one,
            (None, []) => {
                let problem = "its manifest.json names no image".to_owned();
                return Err(OciError::NotAnImage { path: path(), wanted: WANTED, problem });
            }
            (None, _) => return Err(OciError::Several { path: path(), found }),
        };
        count_layers(image.layers.len())?;
        let place = |name: &str| {
            let problem =
                || format!("it has no `{}`, which its manifest.json names", kiln_core::text::clip(name));
            let missing = || OciError::NotAnImage { path: path(), wanted: WANTED, problem: problem() };
            self.place(name.as_bytes()).ok_or_else(missing)
        };
        let bytes = place(&image.config)?.read("configuration", CONFIG_BYTES_MAX)?;
        let (config, diff_ids) = configuration(&bytes, image.layers.len(), platform)?;
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (name, diff_id) in image.layers.iter().zip(diff_ids) {
            let place = place(name)?;
            if place.len > LAYER_BYTES_MAX {
                return Err(OciError::TooLarge { what: "bytes in a layer", max: LAYER_BYTES_MAX });
            }
            layers.push(Layer { blob: Blob { place, digest: None }, diff_id });
        }
        Ok(Image { id: id_of(&bytes), config, layers })
    }
}

/// Names are only looked up: what leads out of the archive finds nothing.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}
