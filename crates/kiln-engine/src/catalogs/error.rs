//! Why something is wrong with catalogs that are added, or with a mirror.

use crate::EngineError;
use kiln_core::catalog::{CatalogError, CatalogName, CatalogPlace, Serial};
use kiln_source::catalog::{LookUpError, ShelfError};
use kiln_sys::lock::LockError;
use std::path::PathBuf;

/// Why a catalog was not added, refreshed, removed or mirrored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogsError {
    /// A catalog of the web, and nobody named who has to sign it.
    #[error("{place} is of the web, and nobody is named who signs it")]
    NoSigner {
        /// Where it is.
        place: String,
    },
    /// More signers, or places of keys, than are kept.
    #[error("more than {} signers or keys", kiln_core::catalog::SIGNERS_MAX)]
    TooManySigners,
    /// It could not be had, or its signature is not good.
    #[error("the catalog {place} was not taken")]
    Fetch {
        /// Where it is.
        place: String,
        /// Why not.
        #[source]
        source: Box<LookUpError>,
    },
    /// What is there is no catalog.
    #[error("{place} is not a catalog")]
    NotACatalog {
        /// Where it is.
        place: String,
        /// Why not.
        #[source]
        source: CatalogError,
    },
    /// There is one of the name.
    #[error("there is a catalog `{name}` already")]
    Exists {
        /// The name.
        name: CatalogName,
    },
    /// There is none of the name.
    #[error("no catalog `{name}` was added{}", there_are(known))]
    NotFound {
        /// The name.
        name: CatalogName,
        /// Those there are.
        known: Vec<CatalogName>,
    },
    /// More than are read.
    #[error("more than {} catalogs", super::CATALOGS_MAX)]
    TooMany,
    /// What is offered was signed before that which is here.
    #[error("catalog `{name}` of {offered} is offered, older than that of {have} which is here")]
    Older {
        /// Its name.
        name: CatalogName,
        /// When that which is here was signed.
        have: Serial,
        /// When that which is offered was signed.
        offered: Serial,
    },
    /// A record of where a catalog is from that is none.
    #[error("{} is not a record of a catalog: {reason}", path.display())]
    Record {
        /// Its file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// An image that was not mirrored.
    #[error("{name} was not mirrored")]
    Image {
        /// Distribution and release, and the architecture.
        name: String,
        /// Why not.
        #[source]
        source: Box<LookUpError>,
    },
    /// An image that no file can be of.
    #[error("{name} cannot be mirrored")]
    Unfit {
        /// Distribution and release.
        name: String,
        /// Why not.
        #[source]
        source: CatalogError,
    },
    /// A catalog of a mirror that is no text.
    #[error("{place} is not text in UTF-8")]
    NotText {
        /// Where it is.
        place: String,
    },
    /// A mirror that cannot be used.
    #[error(transparent)]
    Mirror(ShelfError),
    /// The lock of whoever changes catalogs or a mirror cannot be used.
    #[error(transparent)]
    Lock(LockError),
}

fn there_are(known: &[CatalogName]) -> String {
    let names: Vec<&str> = known.iter().map(CatalogName::as_str).collect();
    if names.is_empty() { String::new() } else { format!("; there are {}", names.join(", ")) }
}

impl CatalogsError {
    /// Returns whether somebody else wrote what was to be written.
    pub(super) fn is_changed(&self) -> bool {
        matches!(self, Self::Mirror(ShelfError::Changed { .. }))
    }

    pub(super) fn fetch(place: &CatalogPlace, source: LookUpError) -> EngineError {
        match source {
            LookUpError::Cancelled => EngineError::Cancelled,
            source => Self::Fetch { place: place.address(), source: Box::new(source) }.into(),
        }
    }
}

impl From<CatalogsError> for EngineError {
    fn from(error: CatalogsError) -> Self {
        match error {
            CatalogsError::Lock(LockError::Cancelled { .. })
            | CatalogsError::Mirror(ShelfError::Cancelled) => Self::Cancelled,
            error => Self::Catalogs(Box::new(error)),
        }
    }
}

impl From<ShelfError> for CatalogsError {
    fn from(error: ShelfError) -> Self {
        Self::Mirror(error)
    }
}
