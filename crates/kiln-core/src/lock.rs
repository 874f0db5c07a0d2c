//! Locks: what names of the outside world stood for when a template was built, so that it can be built of the same
//! again. `docs/formats/lock.md` describes the file.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name of the file, beside the recipe.
pub const LOCK_FILE_NAME: &str = "kiln.lock";
/// The version of the format.
pub const LOCK_VERSION: u32 = 1;
/// The largest lock that is read, in bytes.
pub const LOCK_BYTES_MAX: usize = 1 << 20;
/// The most pins of a lock.
pub const PINS_MAX: usize = 8192;
/// The most bytes of a pin's name, and of what it stands for.
pub const PIN_BYTES_MAX: usize = 4096;

/// What a pin is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PinKind {
    /// A package, by its name; pinned to a version.
    Package,
    /// The package a kernel comes from, by the name in the recipe; pinned to name and version.
    Kernel,
    /// The time of a package archive's release file; pinned to its `Date`.
    Archive,
    /// An image of a registry, by its reference; pinned to the digest of its manifest.
    Oci,
    /// A flake, by its reference; pinned to what it was locked to.
    Nix,
    /// A file of the host, by its path; pinned to its SHA-256.
    File,
    /// Another template, by reference; pinned to its revision.
    Template,
    /// A program or library that shapes what is built, by its name; pinned to its version.
    Builder,
}

impl PinKind {
    /// Returns the word used in locks.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Package => "package",
            Self::Kernel => "kernel",
            Self::Archive => "archive",
            Self::Oci => "oci",
            Self::Nix => "nix",
            Self::File => "file",
            Self::Template => "template",
            Self::Builder => "builder",
        }
    }
}

/// Names and what they stand for, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pins(BTreeMap<(PinKind, String), String>);

impl Pins {
    /// Returns what a name is pinned to.
    pub fn get(&self, kind: PinKind, name: &str) -> Option<&str> {
        self.0.get(&(kind, name.to_owned())).map(String::as_str)
    }

    /// Pins a name; returns what it was pinned to before.
    pub fn set(&mut self, kind: PinKind, name: &str, to: &str) -> Option<String> {
        self.0.insert((kind, name.to_owned()), to.to_owned())
    }

    /// Returns all pins, by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = (PinKind, &str, &str)> {
        self.0.iter().map(|((kind, name), to)| (*kind, name.as_str(), to.as_str()))
    }

    /// Returns whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
