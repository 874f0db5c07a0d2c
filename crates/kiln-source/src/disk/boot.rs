//! The kernel that an image would start: what its boot loader's files name, else the newest there is.
//!
//! Read are entries of the Boot Loader Specification and the configuration of extlinux and syslinux. That of GRUB is a
//! program, which is not run: the newest kernel is what it starts by default.

use crate::ext4::{Image, ImageResult, Inode, Kind};
use std::cmp::Ordering;

/// The largest configuration of a boot loader that is read, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The most entries of a boot loader that are read.
pub const ENTRIES_MAX: usize = 256;

const ENTRY_DIRS: [&str; 1] = ["loader/entries"];
const SYSLINUX: [&str; 4] =
    ["extlinux.conf", "extlinux/extlinux.conf", "syslinux/syslinux.cfg", "syslinux.cfg"];
/// What the files of kernels are called.
const KERNEL_NAMES: [&str; 4] = ["vmlinuz", "vmlinux", "bzImage", "Image"];

/// Where boot files may lie: the root file system with its `/boot`, or a partition of its own.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    image: &'a Image,
    prefix: &'a str,
}

/// A kernel in an image.
#[derive(Debug)]
pub struct Kernel<'a> {
    /// The file system it lies in.
    pub image: &'a Image,
    /// Its inode, a regular file.
    pub inode: Inode,
    /// Its path there.
    pub path: String,
}

/// Finds the kernel of an image. `boot` is the partition that would be mounted at `/boot`, if there is one.
pub fn find_kernel<'a>(root: &'a Image, boot: Option<&'a Image>) -> ImageResult<Option<Kernel<'a>>> {
    let places =
        [boot.map(|image| Place { image, prefix: "/" }), Some(Place { image: root, prefix: "/boot/" })];
    let places: Vec<Place<'_>> = places.into_iter().flatten().collect();
    for find in [by_entries, by_syslinux, newest] {
        for place in &places {
            if let Some(kernel) = find(*place)? {
                return Ok(Some(kernel));
            }
        }
    }
    of_modules(root)
}

impl<'a> Place<'a> {
    /// Returns the regular file at a path that a configuration names: as the boot loader sees it, or as the system does.
    fn file(&self, path: &str) -> ImageResult<Option<Kernel<'a>>> {
        for path in [format!("{}{path}", self.prefix), path.to_owned()] {
            if let Some(inode) = self.image.follow(&path)?.filter(|inode| inode.kind == Kind::File) {
                return Ok(Some(Kernel { image: self.image, inode, path }));
            }
        }
        Ok(None)
    }

    fn text(&self, path: &str) -> ImageResult<Option<String>> {
        let path = format!("{}{path}", self.prefix);
        let Some(inode) = self.image.follow(&path)?.filter(|inode| inode.kind == Kind::File) else {
            return Ok(None);
        };
        let bytes = self.image.read_file(&inode, &path, CONFIG_BYTES_MAX)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Returns the names in a directory that are text; none where there is no such directory.
    fn names(&self, path: &str) -> ImageResult<Vec<String>> {
        let dir = self.image.follow(&format!("{}{path}", self.prefix))?;
        let Some(dir) = dir.filter(|inode| inode.kind == Kind::Directory) else { return Ok(Vec::new()) };
        let entries = self.image.entries(&dir)?;
        Ok(entries.into_iter().filter_map(|entry| String::from_utf8(entry.name).ok()).collect())
    }
}

/// Entries of the Boot Loader Specification: the one of the highest version.
fn by_entries(place: Place<'_>) -> ImageResult<Option<Kernel<'_>>> {
    let mut best: Option<(String, Kernel<'_>)> = None;
    for dir in ENTRY_DIRS {
        let names = place.names(dir)?;
        for name in names.iter().filter(|name| name.ends_with(".conf") && !is_rescue(name)).take(ENTRIES_MAX)
        {
            let Some(text) = place.text(&format!("{dir}/{name}"))? else { continue };
            let value = |key: &str| text.lines().find_map(|line| field(line, key)).map(str::to_owned);
            let Some(linux) = value("linux") else { continue };
            let Some(kernel) = place.file(&linux)? else { continue };
            let version = value("version").unwrap_or_else(|| name.clone());
            if best.as_ref().is_none_or(|(known, _)| compare(&version, known) == Ordering::Greater) {
                best = Some((version, kernel));
            }
        }
    }
    Ok(best.map(|(_, kernel)| kernel))
}

/// The entry that extlinux or syslinux starts by default, else its first.
fn by_syslinux(place: Place<'_>) -> ImageResult<Option<Kernel<'_>>> {
    for config in SYSLINUX {
        let Some(text) = place.text(config)? else { continue };
        let default = text.lines().find_map(|line| field(line, "default"));
        let (mut label, mut first, mut chosen) = (None, None, None);
        for line in text.lines().take(ENTRIES_MAX * 16) {
            if let Some(name) = field(line, "label") {
                label = Some(name);
            }
            let named = field(line, "linux").or_else(|| field(line, "kernel"));
            if let (Some(label), Some(path)) = (label, named) {
                first = first.or(Some(path));
                if Some(label) == default {
                    chosen = chosen.or(Some(path));
                }
            }
        }
        let Some(path) = chosen.or(first) else { continue };
        let dir = config.rsplit_once('/').map_or("", |(dir, _)| dir);
        if let Some(kernel) = place.file(&format!("{dir}/{path}"))? {
            return Ok(Some(kernel));
        }
        if let Some(kernel) = place.file(path)? {
            return Ok(Some(kernel));
        }
    }
    Ok(None)
}

/// The kernel whose name has the highest version.
fn newest(place: Place<'_>) -> ImageResult<Option<Kernel<'_>>> {
    for kind in KERNEL_NAMES {
        let mut names = place.names("")?;
        names.retain(|name| {
            let rest = name.strip_prefix(kind);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) && !is_rescue(name)
        });
        names.sort_by(|a, b| compare(b, a));
        for name in names {
            if let Some(kernel) = place.file(&name)? {
                return Ok(Some(kernel));
            }
        }
    }
    Ok(None)
}

/// Some distributions keep the kernel beside its modules.
fn of_modules(root: &Image) -> ImageResult<Option<Kernel<'_>>> {
    let place = Place { image: root, prefix: "/" };
    let mut versions = place.names("lib/modules")?;
    versions.sort_by(|a, b| compare(b, a));
    for version in versions.iter().take(ENTRIES_MAX) {
        if let Some(kernel) = place.file(&format!("lib/modules/{version}/vmlinuz"))? {
            return Ok(Some(kernel));
        }
    }
    Ok(None)
}

fn is_rescue(name: &str) -> bool {
    name.contains("rescue") || name.ends_with(".old") || name.ends_with(".bak")
}

/// Returns the value of a line that begins with a word, in any case.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (word, value) = line.trim().split_once(char::is_whitespace)?;
    Some(value.trim()).filter(|value| word.eq_ignore_ascii_case(key) && !value.is_empty())
}

/// Compares names by their numbers, as versions are: `6.10` is after `6.9`.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        match (a.is_empty(), b.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            _ => {}
        }
        let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let run = |text: &str| {
            let is_digit = digits(text);
            text.find(|c: char| c.is_ascii_digit() != is_digit).unwrap_or(text.len())
        };
        let ((one, rest_a), (other, rest_b)) = (a.split_at(run(a)), b.split_at(run(b)));
        let order = if digits(a) && digits(b) {
            let (one, other) = (one.trim_start_matches('0'), other.trim_start_matches('0'));
            one.len().cmp(&other.len()).then_with(|| one.cmp(other))
        } else {
            one.cmp(other)
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

#[cfg(test)]
mod tests;
