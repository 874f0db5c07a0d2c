//! Locks: what names of the outside world stood for when a template was built, so that it can be built of the same
//! again. `docs/formats/lock.md` describes the file.

use crate::arch::Arch;
use crate::text::clip;
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
    /// A package archive, by address and suite; what stands there is the date of its release file. It says from which day's
    /// archive the versions are, and is not compared.
    Archive,
    /// An image of a registry, by its reference; pinned to the digest of its manifest.
    Oci,
    /// A flake, by its reference; pinned to what it was locked to.
    Nix,
    /// An image of the catalog, by its name; pinned to its digest, and to when and by whom that was signed.
    Image,
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
            Self::Image => "image",
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

/// What stood for the names of a recipe's source, by architecture, and what the recipe said then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lock {
    /// What the source says, each key with its value as JSON.
    pub inputs: BTreeMap<String, String>,
    pins: BTreeMap<String, Pins>,
}

/// Why a text is not a lock.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Larger than [`LOCK_BYTES_MAX`].
    #[error("it has {0} bytes, more than {LOCK_BYTES_MAX}")]
    TooLarge(usize),
    /// Not TOML, or not what a lock holds.
    #[error("{0}")]
    Syntax(String),
    /// Of a version this kiln does not know.
    #[error("it has version {0}; this kiln reads version {LOCK_VERSION}")]
    Version(u32),
    /// More than [`PINS_MAX`] pins.
    #[error("it has {0} pins, more than {PINS_MAX}")]
    TooMany(usize),
    /// A name or value that is empty, too long, or holds control characters.
    #[error("`{0}` is not a pin")]
    Pin(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LockFile {
    version: u32,
    #[serde(default)]
    inputs: BTreeMap<String, String>,
    #[serde(default)]
    pins: BTreeMap<String, BTreeMap<PinKind, BTreeMap<String, String>>>,
}

/// What stands at the head of the file.
const HEAD: &str = "\
# What the names in kiln.toml stood for. `kiln lock` writes it, `kiln update` moves it; builds keep to it.\n\n";

impl Lock {
    /// Returns the pins for an architecture; none where the lock was made for others only.
    pub fn pins(&self, arch: Arch) -> Option<&Pins> {
        self.pins.get(arch.as_str())
    }

    /// Sets the pins for an architecture.
    pub fn set_pins(&mut self, arch: Arch, pins: Pins) {
        self.pins.insert(arch.as_str().to_owned(), pins);
    }

    /// Returns the names of inputs that are not what they were when this was made, there or not.
    pub fn changed_inputs<'a>(&'a self, inputs: &'a BTreeMap<String, String>) -> Vec<&'a str> {
        let names = self.inputs.keys().chain(inputs.keys().filter(|name| !self.inputs.contains_key(*name)));
        names.filter(|name| self.inputs.get(*name) != inputs.get(*name)).map(String::as_str).collect()
    }

    /// Parses and checks the text of a lock.
    ///
    /// # Errors
    /// When it is none, or over a limit.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        if text.len() > LOCK_BYTES_MAX {
            return Err(LockError::TooLarge(text.len()));
        }
        let version = toml::from_str::<toml::Table>(text)
            .map_err(|error| LockError::Syntax(error.message().to_owned()))?
            .get("version")
            .and_then(toml::Value::as_integer)
            .and_then(|version| u32::try_from(version).ok());
        match version {
            Some(LOCK_VERSION) => {}
            Some(other) => return Err(LockError::Version(other)),
            None => return Err(LockError::Syntax("it has no version".to_owned())),
        }
        let file: LockFile =
            toml::from_str(text).map_err(|error| LockError::Syntax(error.message().to_owned()))?;
        let mut lock = Self { inputs: file.inputs, pins: BTreeMap::new() };
        let mut count = 0;
        for (arch, kinds) in file.pins {
            let mut pins = Pins::default();
            for (kind, named) in kinds {
                for (name, to) in named {
                    count += 1;
                    if !is_pin(&name) || !is_pin(&to) {
                        return Err(LockError::Pin(clip(&name)));
                    }
                    pins.set(kind, &name, &to);
                }
            }
            lock.pins.insert(arch, pins);
        }
        if count > PINS_MAX { Err(LockError::TooMany(count)) } else { Ok(lock) }
    }

    /// Returns the text of the file: the same for equal locks.
    pub fn to_text(&self) -> String {
        let mut file = LockFile { version: LOCK_VERSION, inputs: self.inputs.clone(), pins: BTreeMap::new() };
        for (arch, pins) in &self.pins {
            let kinds = file.pins.entry(arch.clone()).or_default();
            for (kind, name, to) in pins.iter() {
                kinds.entry(kind).or_default().insert(name.to_owned(), to.to_owned());
            }
        }
        #[expect(clippy::expect_used, reason = "maps of text always have a TOML form")]
        let text = toml::to_string(&file).expect("a lock has a TOML form");
        format!("{HEAD}{text}")
    }
}

/// Returns whether a text may be the name of a pin, or what it stands for.
fn is_pin(text: &str) -> bool {
    !text.is_empty() && text.len() <= PIN_BYTES_MAX && !text.chars().any(char::is_control)
}

/// How a pin moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// What it is of.
    pub kind: PinKind,
    /// Its name.
    pub name: String,
    /// What it was before; none where it was not pinned.
    pub before: Option<String>,
    /// What it is now; none where it is pinned no more.
    pub after: Option<String>,
}

impl Pins {
    /// Returns what is not the same in `after`, by kind and name.
    pub fn moved(&self, after: &Self) -> Vec<Moved> {
        let both = self.0.keys().chain(after.0.keys().filter(|key| !self.0.contains_key(*key)));
        let mut moved: Vec<Moved> = both
            .filter(|key| self.0.get(*key) != after.0.get(*key))
            .map(|key| Moved {
                kind: key.0,
                name: key.1.clone(),
                before: self.0.get(key).cloned(),
                after: after.0.get(key).cloned(),
            })
            .collect();
        moved.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        moved
    }

    /// Returns the pins of a kind.
    pub fn of(&self, kind: PinKind) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(move |(of, ..)| *of == kind).map(|(_, name, to)| (name, to))
    }
}

#[cfg(test)]
mod tests;
