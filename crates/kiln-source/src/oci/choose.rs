//! Which image of several.

use super::error::OciError;
use super::wire::Descriptor;
use kiln_core::image::Platform;
use std::path::Path;

/// The annotation that names an image of a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What docker calls the same, with the repository before it.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// The most names and platforms that an error lists.
const LISTED_MAX: usize = 32;

/// Returns the entries of an index with a name; all of them where none is wanted and they have no more than one.
pub(super) fn by_name(
    entries: Vec<Descriptor>,
    name: Option<&str>,
    path: &Path,
) -> Result<Vec<Descriptor>, OciError> {
    let names = |entry: &Descriptor| {
        [REF_NAME, IMAGE_NAME]
            .map(|key| entry.annotations.get(key).cloned())
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    let mut found: Vec<String> = entries.iter().filter_map(|entry| names(entry).pop()).collect();
    found.sort();
    found.dedup();
    found.truncate(LISTED_MAX);
    let found: Vec<String> = found.iter().map(|name| kiln_core::text::clip(name)).collect();
    match name {
        Some(name) => {
            let named: Vec<Descriptor> =
                entries.into_iter().filter(|entry| names(entry).iter().any(|known| known == name)).collect();
            if named.is_empty() {
                return Err(OciError::NoSuchImage { path: path.to_owned(), name: name.to_owned(), found });
            }
            Ok(named)
        }
        None if found.len() > 1 => Err(OciError::Several { path: path.to_owned(), found }),
        None if entries.is_empty() => Err(OciError::NotAnImage {
            path: path.to_owned(),
            wanted: "an OCI layout",
            problem: "its index names no image".to_owned(),
        }),
        None => Ok(entries),
    }
}

/// Returns the entry for a platform. Where no variant is wanted, one that names none goes before the others, then the
/// one that every processor of the kind has.
pub(super) fn by_platform(entries: Vec<Descriptor>, wanted: &Platform) -> Result<Descriptor, OciError> {
    let mut found = Vec::new();
    let mut best: Option<(usize, Descriptor)> = None;
    let mut plain = None;
    for entry in entries {
        let Some(platform) = &entry.platform else {
            plain.get_or_insert(entry);
            continue;
        };
        let variant = platform.variant.as_deref();
        if platform.os != "linux" || platform.architecture != wanted.architecture() {
            // Signatures and provenance stand in indexes as `unknown/unknown`.
            if platform.os != "unknown" && found.len() < LISTED_MAX {
                found.push(platform_text(&platform.os, &platform.architecture, variant));
            }
            continue;
        }
        found.push(platform_text(&platform.os, &platform.architecture, variant));
        let base = match wanted.architecture() {
            "arm64" => Some("v8"),
            "amd64" => Some("v1"),
            "arm" => Some("v7"),
            _ => None,
        };
        let rank = match (wanted.variant(), variant) {
            (Some(wanted), Some(variant)) if wanted == variant => 0,
            (Some(wanted), None) if Some(wanted) == base => 1,
            (Some(_), _) => continue,
            (None, None) => 0,
            (None, Some(variant)) if Some(variant) == base => 1,
            (None, Some(_)) => 2,
        };
        if best.as_ref().is_none_or(|(known, _)| rank < *known) {
            best = Some((rank, entry));
        }
    }
    match (best, plain) {
        (Some((_, entry)), _) => Ok(entry),
        // One without a platform says in its configuration what it is for.
        (None, Some(entry)) if found.is_empty() => Ok(entry),
        _ => {
            found.sort();
            found.dedup();
            Err(OciError::Platform { wanted: wanted.clone(), found })
        }
    }
}

pub(super) fn platform_text(os: &str, arch: &str, variant: Option<&str>) -> String {
    let text = match variant {
        Some(variant) if !variant.is_empty() => format!("{os}/{arch}/{variant}"),
        _ => format!("{os}/{arch}"),
    };
    kiln_core::text::clip(&text)
}
