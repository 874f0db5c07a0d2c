//! Kernel modules: which ones a guest needs, in the order they can be loaded.
//!
//! Dependencies come from the modules themselves (the `depends=` line each carries), so that kernels work that were
//! unpacked and never installed, without `modules.dep`. Drivers that are part of the kernel are skipped.

use crate::decompress::Compression;
use kiln_guest::config::{Bus, When};
use kiln_sys::{IoError, fs};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The most module files a kernel may have.
pub const FILES_MAX: usize = 20_000;
/// The largest module, uncompressed, in bytes.
pub const MODULE_BYTES_MAX: u64 = 64 << 20;
/// The largest list of built-in drivers, in bytes.
pub const BUILTIN_BYTES_MAX: usize = 1 << 20;
/// The most directories within one another.
const DEPTH_MAX: usize = 16;

/// Why modules cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The kernel has no such module.
    #[error("kernel modules in {} lack `{name}`{}", directory.display(), for_whom(wanted_by.as_deref()))]
    Missing {
        /// The module.
        name: String,
        /// What depends on it.
        wanted_by: Option<String>,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A module was asked for, of a kernel without modules.
    #[error("module `{0}` is wanted, and the recipe names no directory of modules")]
    NoDirectory(String),
    /// Not a directory of modules.
    #[error("{} holds no kernel modules", .0.display())]
    Empty(PathBuf),
    /// Modules that need one another.
    #[error("kernel module `{0}` depends on itself")]
    Cycle(String),
    /// Compressed in a format that is not read.
    #[error("kernel module {} is compressed with {format}; plain, gzip and zstd can be read", path.display())]
    Compression {
        /// The file.
        path: PathBuf,
        /// The format.
        format: &'static str,
    },
    /// Not a module.
    #[error("{} is not a kernel module: {problem}", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: &'static str,
    },
    /// It does not uncompress.
    #[error("kernel module {} does not uncompress", path.display())]
    Uncompress {
        /// The file.
        path: PathBuf,
        /// The decoder's words.
        #[source]
        source: std::io::Error,
    },
    /// Over a limit.
    #[error("{} holds more than {FILES_MAX} modules", .0.display())]
    TooMany(PathBuf),
    /// A file could not be read.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn for_whom(wanted_by: Option<&str>) -> String {
    wanted_by.map_or(String::new(), |name| format!(", which `{name}` needs"))
}

/// A driver a guest needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The module's name.
    pub name: &'a str,
    /// When a guest loads it.
    pub when: When,
    /// Whether a kernel without it will do: it may be left out of the configuration, or another driver has its work.
    pub optional: bool,
}

const fn needed(name: &'static str, when: When) -> Wanted<'static> {
    Wanted { name, when, optional: false }
}

const fn optional(name: &'static str, when: When) -> Wanted<'static> {
    Wanted { name, when, optional: true }
}

/// What kiln needs of every kernel, in load order.
pub const GUEST_DRIVERS: [Wanted<'static>; 13] = [
    needed("virtio_ring", When::Always),
    needed("virtio", When::Always),
    optional("virtio_pci_modern_dev", When::Bus(Bus::Pci)),
    optional("virtio_pci_legacy_dev", When::Bus(Bus::Pci)),
    needed("virtio_pci", When::Bus(Bus::Pci)),
    optional("virtio_mmio", When::Bus(Bus::Mmio)),
    needed("virtio_blk", When::Device(2)),
    needed("virtio_console", When::Device(3)),
    optional("virtio_net", When::Device(1)),
    optional("virtio_rng", When::Device(4)),
    optional("vmw_vsock_virtio_transport", When::Device(19)),
    needed("ext4", When::Always),
    optional("isofs", When::Seed),
];

/// A module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedModule {
    /// Its name, with underscores.
    pub name: String,
    /// Its content, uncompressed.
    pub bytes: Vec<u8>,
    /// When a guest loads it.
    pub when: When,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct ModuleDir {
    path: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl ModuleDir {
    /// Opens `…/lib/modules/VERSION`.
    pub fn open(path: &Path) -> Result<Self, ModuleError> {
        let mut files = BTreeMap::new();
        let mut stack = vec![(path.to_owned(), 0)];
        while let Some((dir, depth)) = stack.pop() {
            for name in fs::list_dir(&dir)? {
                let below = dir.join(&name);
                let kind = fs::symlink_metadata(&below)?.file_type();
                if kind.is_dir() && depth < DEPTH_MAX {
                    stack.push((below, depth + 1));
                } else if kind.is_file()
                    && let Some(module) = name.to_str().and_then(module_name)
                {
                    files.insert(module, below);
                }
                check_files(files.len(), path)?;
            }
        }
        let list = fs::read_optional(&path.join("modules.builtin"), BUILTIN_BYTES_MAX)?.unwrap_or_default();
        let list = String::from_utf8_lossy(&list);
        let builtin: BTreeSet<String> =
            list.lines().filter_map(|line| module_name(line.rsplit('/').next().unwrap_or(line))).collect();
        if files.is_empty() && builtin.is_empty() {
            return Err(ModuleError::Empty(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), files, builtin })
    }

    /// Returns the wanted modules and what they depend on, each after what it depends on.
    pub fn resolve(&self, wanted: &[Wanted<'_>]) -> Result<Vec<LoadedModule>, ModuleError> {
        let mut loaded = Vec::new();
        let mut state = BTreeMap::new();
        for want in wanted {
            let name = normal(want.name);
            if want.optional && !self.files.contains_key(&name) {
                continue;
            }
            self.visit(&name, None, want.when, &mut state, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn visit(
        &self,
        name: &str,
        wanted_by: Option<&str>,
        when: When,
        state: &mut BTreeMap<String, Visit>,
        loaded: &mut Vec<LoadedModule>,
    ) -> Result<(), ModuleError> {
        match state.get(name) {
            Some(Visit::Open) => return Err(ModuleError::Cycle(name.to_owned())),
            Some(Visit::Done(index)) => {
                let module: &mut LoadedModule = &mut loaded[*index];
                if module.when != when {
                    // Two devices need it, or one that is always there.
                    module.when = When::Always;
                }
                return Ok(());
            }
            None => {}
        }
        if self.builtin.contains(name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            let (name, wanted_by) = (name.to_owned(), wanted_by.map(str::to_owned));
            return Err(ModuleError::Missing { name, wanted_by, directory: self.path.clone() });
        };
        state.insert(name.to_owned(), Visit::Open);
        let bytes = read(path)?;
        let depends =
            depends(&bytes).map_err(|problem| ModuleError::NotAModule { path: path.clone(), problem })?;
        for dependency in depends {
            self.visit(&dependency, Some(name), when, state, loaded)?;
        }
        state.insert(name.to_owned(), Visit::Done(loaded.len()));
        loaded.push(LoadedModule { name: name.to_owned(), bytes, when });
        Ok(())
    }
}

enum Visit {
    Open,
    Done(usize),
}

/// Returns the name of the module a file holds, if it is one.
fn module_name(file: &str) -> Option<String> {
    let stem = [".ko", ".ko.zst", ".ko.gz", ".ko.xz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(normal(stem))
}

/// The kernel takes `-` and `_` in names for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn check_files(files: usize, path: &Path) -> Result<(), ModuleError> {
    if files > FILES_MAX { Err(ModuleError::TooMany(path.to_owned())) } else { Ok(()) }
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let max = usize::try_from(MODULE_BYTES_MAX).unwrap_or(usize::MAX);
    let bytes = fs::read_limited(path, max)?;
    let Some(format) = Compression::detect(&bytes) else { return Ok(bytes) };
    let refuse = || ModuleError::Compression { path: path.to_owned(), format: format.name() };
    let reader = format.reader(&bytes[..]).ok_or_else(refuse)?;
    let mut out = Vec::new();
    let uncompress = |source| ModuleError::Uncompress { path: path.to_owned(), source };
    reader.take(MODULE_BYTES_MAX + 1).read_to_end(&mut out).map_err(uncompress)?;
    if out.len() > max {
        return Err(ModuleError::NotAModule { path: path.to_owned(), problem: "it has more than 64 MiB" });
    }
    Ok(out)
}

/// Returns the names in the `depends=` line of a module.
fn depends(bytes: &[u8]) -> Result<Vec<String>, &'static str> {
    let section = module_info(bytes).ok_or("it has no `.modinfo` section")?;
    let line = section.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(b"depends="));
    let line = std::str::from_utf8(line.unwrap_or_default()).map_err(|_| "its dependencies are not text")?;
    Ok(line.split(',').filter(|name| !name.is_empty()).map(normal).collect())
}

/// Finds the `.modinfo` section of a 64-bit little-endian ELF file.
fn module_info(bytes: &[u8]) -> Option<&[u8]> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let u16_at = |at: usize| bytes.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let u32_at = |at: usize| {
        let field = <[u8; 4]>::try_from(bytes.get(at..at.checked_add(4)?)?).ok()?;
        usize::try_from(u32::from_le_bytes(field)).ok()
    };
    let u64_at = |at: usize| {
        let field = <[u8; 8]>::try_from(bytes.get(at..at.checked_add(8)?)?).ok()?;
        usize::try_from(u64::from_le_bytes(field)).ok()
    };
    let (table, entry_size, count, names) = (u64_at(40)?, u16_at(58)?, u16_at(60)?, u16_at(62)?);
    let section = |index: usize| {
        let at = table.checked_add(index * entry_size)?;
        let (offset, len) = (u64_at(at.checked_add(24)?)?, u64_at(at.checked_add(32)?)?);
        Some((u32_at(at)?, bytes.get(offset..offset.checked_add(len)?)?))
    };
    let (_, names) = section(names)?;
    (0..count).filter_map(section).find_map(|(name, content)| {
        names.get(name..).is_some_and(|name| name.starts_with(b".modinfo\0")).then_some(content)
    })
}

#[cfg(test)]
mod tests;
