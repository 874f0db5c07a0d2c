//! Names of OCI images: where one lies, what a registry calls it, and the digests and platforms that tell several apart.

mod digest;
mod platform;
mod registry;

pub use digest::{Algorithm, ContentDigest, InvalidContentDigest};
pub use platform::{InvalidPlatform, Platform};
pub use registry::{DOCKER_HUB, InvalidRegistryReference, RegistryReference};

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest name of an image, in bytes.
pub const IMAGE_NAME_BYTES_MAX: usize = 4096;

/// Where an image lies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageName {
    /// A directory in OCI layout, and which of its images.
    Layout(PathBuf, Option<String>),
    /// A tar file with an OCI layout, and which of its images.
    OciArchive(PathBuf, Option<String>),
    /// A tar file of `docker save`, and which of its images.
    DockerArchive(PathBuf, Option<String>),
    /// A tar file of either kind on standard input.
    Stdin,
    /// An image of a registry.
    Registry(RegistryReference),
}

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidImageName {
    /// Longer than [`IMAGE_NAME_BYTES_MAX`].
    #[error("it has more than {IMAGE_NAME_BYTES_MAX} bytes")]
    TooLong,
    /// A path is wanted after the colon.
    #[error("`{0}` is without a path")]
    NoPath(String),
    /// Not a reference to a registry either.
    #[error(transparent)]
    Registry(#[from] InvalidRegistryReference),
}

/// Makes a name of a path and what follows it.
type Kind = fn(PathBuf, Option<String>) -> ImageName;

impl FromStr for ImageName {
    type Err = InvalidImageName;

    fn from_str(text: &str) -> Result<Self, InvalidImageName> {
        if text.len() > IMAGE_NAME_BYTES_MAX {
            return Err(InvalidImageName::TooLong);
        }
        if text == "-" {
            return Ok(Self::Stdin);
        }
        let kinds: [(&str, Kind); 3] = [
            ("oci-layout:", Self::Layout),
            ("oci-archive:", Self::OciArchive),
            ("docker-archive:", Self::DockerArchive),
        ];
        for (prefix, kind) in kinds {
            let Some(rest) = text.strip_prefix(prefix) else { continue };
            let (path, which) =
                rest.split_once(':').map_or((rest, None), |(path, which)| (path, Some(which)));
            if path.is_empty() || which.is_some_and(str::is_empty) || text.contains('\0') {
                return Err(InvalidImageName::NoPath(crate::text::clip(text)));
            }
            return Ok(kind(path.into(), which.map(str::to_owned)));
        }
        Ok(Self::Registry(text.parse()?))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path, which) = match self {
            Self::Layout(path, which) => ("oci-layout", path, which),
            Self::OciArchive(path, which) => ("oci-archive", path, which),
            Self::DockerArchive(path, which) => ("docker-archive", path, which),
            Self::Stdin => return f.write_str("-"),
            Self::Registry(reference) => return reference.fmt(f),
        };
        write!(f, "{kind}:{}", path.display())?;
        which.as_ref().map_or(Ok(()), |which| write!(f, ":{which}"))
    }
}

#[cfg(test)]
mod tests;
