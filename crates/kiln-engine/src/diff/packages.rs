//! Packages that a root file system says it has, read from the databases of their managers. What a database says is
//! taken as it is: an entry without name or version is passed over. Databases of RPM are listed by the host's `rpm`.

mod rpm;

use super::report::{Change, PackageChange, PackageDiff};
use super::side::Side;
use crate::{Engine, EngineResult};
use kiln_source::ext4::{ImageError, ImageResult, Kind};
use rpm::RpmError;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The largest database that is read, in bytes.
const DATABASE_BYTES_MAX: u64 = 64 << 20;
/// The largest file of one package, in bytes.
const ONE_BYTES_MAX: u64 = 1 << 20;
/// The most packages of a root file system.
const PACKAGES_MAX: u64 = 1 << 20;
/// Lines of a paragraph that are looked at: what is read of it stands at its beginning.
const PARAGRAPH_LINES_MAX: usize = 256;
/// Characters of the hash that begins the name of a store path of Nix.
const NIX_HASH_CHARS: usize = 32;

const DPKG_STATUS: &str = "/var/lib/dpkg/status";
/// Images without a package manager keep a file for each package here.
const DPKG_STATUS_D: &str = "/var/lib/dpkg/status.d";
const APK_INSTALLED: [&str; 2] = ["/lib/apk/db/installed", "/usr/lib/apk/db/installed"];
const NIX_STORE: &str = "/nix/store";

/// Who manages a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Manager {
    /// Alpine's.
    Apk,
    /// Debian's.
    Dpkg,
    /// Store paths of Nix.
    Nix,
    /// That of Red Hat, SUSE and their kin.
    Rpm,
}

impl Manager {
    /// Returns the word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apk => "apk",
            Self::Dpkg => "dpkg",
            Self::Nix => "nix",
            Self::Rpm => "rpm",
        }
    }
}

/// The packages of a root file system.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    /// What is installed by manager and name; more than one where it is so for several architectures, or several times.
    packages: BTreeMap<(Manager, String), BTreeSet<Installed>>,
    /// Packages taken, no more than one above [`PACKAGES_MAX`].
    count: u64,
    /// Databases that are there and are not read, by manager, each with the reason.
    not_read: BTreeSet<(Manager, String)>,
}

/// A package as it is installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Installed {
    version: String,
    arch: Option<String>,
}

/// Reads the packages of a root file system.
pub(super) fn read(engine: &Engine, side: &Side) -> EngineResult<Inventory> {
    let mut inventory = Inventory::default();
    if let Some(bytes) = database(side, DPKG_STATUS)? {
        inventory.dpkg(&bytes);
    }
    if let Some(dir) = side.find(DPKG_STATUS_D)?.filter(|inode| inode.kind == Kind::Directory) {
        for entry in side.entries(&dir)? {
            let inode = side.inode(entry.inode)?;
            if inode.kind == Kind::File && !entry.name.ends_with(b".md5sums") {
                inventory.dpkg(&side.read_file(&inode, DPKG_STATUS_D, ONE_BYTES_MAX)?);
            }
        }
    }
    for path in APK_INSTALLED {
        if let Some(bytes) = database(side, path)? {
            inventory.apk(&bytes);
        }
    }
    if let Some(dir) = side.find(NIX_STORE)?.filter(|inode| inode.kind == Kind::Directory) {
        for entry in side.entries(&dir)? {
            inventory.nix(&entry.name);
        }
    }
    for dir in rpm::DIRS {
        match rpm::list(engine, side, dir) {
            Ok(packages) => inventory.rpm(packages),
            Err(RpmError::Engine(error)) => return Err(error),
            Err(reason) => _ = inventory.not_read.insert((Manager::Rpm, format!("{dir}: {reason}"))),
        }
    }
    inventory.checked().map_err(|error| side.error(error))
}

fn database(side: &Side, path: &str) -> EngineResult<Option<Vec<u8>>> {
    match side.find(path)? {
        Some(inode) if inode.kind == Kind::File => side.read_file(&inode, path, DATABASE_BYTES_MAX).map(Some),
        _ => Ok(None),
    }
}

/// Returns the packages that differ. Those of a manager with a database that was not read are left out: beside what is
/// not known, all would look added or removed.
pub(super) fn compare(a: &Inventory, b: &Inventory) -> PackageDiff {
    let names: BTreeSet<_> = a.packages.keys().chain(b.packages.keys()).collect();
    let not_read: BTreeSet<_> = a.not_read.union(&b.not_read).collect();
    let unknown: BTreeSet<Manager> = not_read.iter().map(|(manager, _)| *manager).collect();
    let line = |(manager, text): &(Manager, String)| format!("{}: {text}", manager.as_str());
    let mut diff = PackageDiff { changes: Vec::new(), not_read: not_read.into_iter().map(line).collect() };
    for key in names.into_iter().filter(|(manager, _)| !unknown.contains(manager)) {
        let (before, after) = (a.packages.get(key), b.packages.get(key));
        let change = match (before, after) {
            (Some(before), Some(after)) if before == after => continue,
            (Some(_), Some(_)) => Change::Changed,
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
        };
        let all = || before.into_iter().chain(after).flatten();
        let archs: BTreeSet<_> = all().map(|installed| installed.arch.as_deref()).collect();
        let (before, after) =
            (before.map(|set| text(set, archs.len() > 1)), after.map(|set| text(set, archs.len() > 1)));
        diff.changes.push(PackageChange { change, manager: key.0, name: key.1.clone(), before, after });
    }
    diff
}

/// Returns versions in one text, with the architectures where they tell them apart.
fn text(set: &BTreeSet<Installed>, with_arch: bool) -> String {
    let one = |installed: &Installed| match &installed.arch {
        Some(arch) if with_arch => format!("{} {arch}", installed.version),
        _ => installed.version.clone(),
    };
    set.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Inventory {
    /// Returns the inventory when it has not too many packages.
    fn checked(self) -> ImageResult<Self> {
        if self.count > PACKAGES_MAX {
            return Err(ImageError::Limit { what: "packages", max: PACKAGES_MAX });
        }
        Ok(self)
    }

    fn add(&mut self, manager: Manager, name: &str, version: &str, arch: Option<&str>) {
        if self.count <= PACKAGES_MAX {
            self.count += 1;
            self.packages
                .entry((manager, name.to_owned()))
                .or_default()
                .insert(Installed { version: version.to_owned(), arch: arch.map(str::to_owned) });
        }
    }

    /// Takes paragraphs as dpkg writes them. What is no more than configuration files is not installed.
    fn dpkg(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for paragraph in paragraphs(&text) {
            let field = |name: &str| {
                paragraph.iter().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim()).filter(|value| !value.is_empty())
                })
            };
            let is_gone = field("Status").is_some_and(|status| {
                matches!(status.split_whitespace().nth(2), Some("not-installed" | "config-files"))
            });
            if let (Some(name), Some(version), false) = (field("Package"), field("Version"), is_gone) {
                self.add(Manager::Dpkg, name, version, field("Architecture"));
            }
        }
    }

    /// Takes paragraphs as apk writes them: a letter, a colon, a value.
    fn apk(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for paragraph in paragraphs(&text) {
            let field = |letter: &str| {
                let value = paragraph.iter().find_map(|line| line.strip_prefix(letter)?.strip_prefix(':'));
                value.map(str::trim).filter(|value| !value.is_empty())
            };
            if let (Some(name), Some(version)) = (field("P"), field("V")) {
                self.add(Manager::Apk, name, version, field("A"));
            }
        }
    }

    /// Takes packages as `rpm` lists them.
    fn rpm(&mut self, packages: Vec<rpm::Package>) {
        for package in packages {
            self.add(Manager::Rpm, &package.name, &package.version, package.arch.as_deref());
        }
    }

    /// Takes the name of a store path: a hash, then name and version. The whole is the version, since the hash
    /// stands for all that went into it.
    fn nix(&mut self, path: &[u8]) {
        let Ok(path) = str::from_utf8(path) else { return };
        let Some((hash, rest)) = path.split_once('-') else { return };
        let is_hash = hash.len() == NIX_HASH_CHARS
            && hash.bytes().all(|c| c.is_ascii_digit() || c.is_ascii_lowercase());
        if is_hash && !rest.is_empty() {
            self.add(Manager::Nix, nix_name(rest), path, None);
        }
    }
}

/// Returns a name without its version: what comes before the first dash that a digit follows.
fn nix_name(text: &str) -> &str {
    let bytes = text.as_bytes();
    let dash =
        (1..bytes.len()).find(|at| bytes[*at] == b'-' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit));
    &text[..dash.unwrap_or(text.len())]
}

/// Returns the paragraphs of a text, as lines; what goes on in indented lines is left out.
fn paragraphs(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        let mut paragraph = Vec::new();
        loop {
            match lines.next() {
                Some(line) if !line.trim().is_empty() => {
                    if !line.starts_with([' ', '\t']) && paragraph.len() < PARAGRAPH_LINES_MAX {
                        paragraph.push(line);
                    }
                }
                Some(_) if paragraph.is_empty() => {}
                None if paragraph.is_empty() => return None,
                _ => return Some(paragraph),
            }
        }
    })
}

#[cfg(test)]
mod tests;
